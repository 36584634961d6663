"""Stop before training where a head has another number of classes than the data."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..registry import HOOKS


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Compare every head's ``num_classes`` with the data set's ``classes`` before training, validation and test.

    Without it a head with too few classes fails deep inside a loss, and one with too many trains without a word. Region
    proposal heads (one class by design) and data sets without class names are left alone.

    Raises:
        ValueError: They differ; the message names head, data set, both numbers and the config key.
    """

    def before_train(self, runner: Runner) -> None:
        self._check(runner, runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        self._check(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Runner, dataset: object) -> None:
        metainfo = getattr(dataset, 'metainfo', None) or {}
        classes = metainfo.get('classes')
        if not classes:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, module in model.named_modules():
            count = getattr(module, 'num_classes', None)
            is_head = name.split('.')[-1].endswith('head') or name.split('.')[-1].isdigit()
            if not is_head or 'rpn' in name or not isinstance(count, int) or count == len(classes):
                continue
            raise ValueError(
                f'model.{name} ({type(module).__name__}) has num_classes={count}, but {type(dataset).__name__} has '
                f'{len(classes)} classes ({", ".join(map(str, classes[:5]))}{", ..." if len(classes) > 5 else ""}): set '
                f'model.{name}.num_classes or the metainfo of the data set'
            )
