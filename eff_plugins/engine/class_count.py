"""Stop before training where a head has another number of classes than the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS
from .wrapped import unwrapped


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Compare every head's ``num_classes`` with the data before training, validation and test.

    Without it a head with too few classes fails deep inside a loss, and one with too many trains without a word. What is
    compared is the data set's ``classes``, and the labels themselves where a row carries one (classification; mmaction2's
    list files, which have no class names). Region proposal heads (one class by design) are left alone.

    Raises:
        ValueError: They differ; the message names head, data set and both numbers, or the line with the label.
    """

    def __init__(self) -> None:
        self._validated: object = None  # checked before: a training validates many times

    def before_train(self, runner: Runner) -> None:
        self._check(runner, runner.train_dataloader.dataset, lowest=0)
        if runner.val_loop is not None:  # its faults would show after a whole epoch
            self.before_val(runner)

    def before_val(self, runner: Runner) -> None:
        dataset = runner.val_dataloader.dataset
        if dataset is not self._validated:
            self._check(runner, dataset)
            self._validated = dataset

    def before_test(self, runner: Runner) -> None:
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Runner, dataset: object, lowest: int = -1) -> None:
        heads = dict(_heads(runner.model))
        if not heads:
            return
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        for name, head in heads.items() if classes else ():
            if head.num_classes != len(classes):
                raise ValueError(
                    f'model.{name} ({type(head).__name__}) has num_classes={head.num_classes}, but '
                    f'{type(dataset).__name__} has {len(classes)} classes ({", ".join(map(str, classes[:5]))}'
                    f'{", ..." if len(classes) > 5 else ""}): set model.{name}.num_classes or the metainfo of the data set'
                )
        name, head = min(heads.items(), key=lambda item: item[1].num_classes)
        for part in _parts(dataset):
            _check_labels(part, lowest, name, head)


def _heads(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and modules of the heads that know their number of classes."""
    for name, module in unwrapped(model).named_modules():
        last = name.split('.')[-1]
        is_head = (last.endswith('head') or last.isdigit()) and 'rpn' not in name
        if is_head and isinstance(getattr(module, 'num_classes', None), int):
            yield name, module


def _parts(dataset: Any) -> Iterator[BaseDataset]:
    """The data sets inside mmengine's wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    for part in [*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)]:
        if part is not None:
            yield from _parts(part)


def _check_labels(dataset: BaseDataset, lowest: int, name: str, head: Any) -> None:
    """Raise for the first row whose label the head has no class for; ``lowest`` -1 lets rows without a label pass."""
    for index in range(len(dataset)):
        # not the data set's own: mmaction2's makes vectors of the labels, and fails where one is out of range
        row = BaseDataset.get_data_info(dataset, index)
        label = row.get('label', row.get('gt_label'))
        if label is None:
            return
        for value in label if isinstance(label, (list, tuple)) else [label]:
            if not lowest <= value < head.num_classes:
                raise ValueError(
                    f'{_place(dataset, row, index)}: label {value}, but model.{name} ({type(head).__name__}) has '
                    f'num_classes={head.num_classes}, so that labels go from 0 to {head.num_classes - 1}: correct the '
                    f'label or set model.{name}.num_classes'
                )


def _place(dataset: BaseDataset, row: dict, index: int) -> str:
    """Where a row comes from: file and line of a list file, else file and row."""
    file = Path(dataset.ann_file) if dataset.ann_file else None
    item = row.get('filename') or row.get('frame_dir') or row.get('img_path')
    if file is not None and file.suffix in ('.txt', '.csv') and file.is_file() and item:
        # rows may have been left out (`indices`, filters), so the number of the row is not that of the line
        for number, line in enumerate(file.read_text().splitlines(), 1):
            words = line.strip().split(getattr(dataset, 'delimiter', ' '))
            if words[0] and Path(item).as_posix().endswith(words[0]):
                return f'{file}, line {number} ({line.strip()})'
    return f'{file or type(dataset).__name__}, row {index}{f" ({item})" if item else ""}'
