"""Keep what a dense classifier knows while it learns to compute less."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from eff_plugins.dynamic.module import dynamic_modules, set_execution
from eff_plugins.engine.extra_losses import change_losses
from eff_plugins.models.classifiers import ImageClassifier
from eff_plugins.registry import HOOKS

_ONE_HEAD = (ImageClassifier.losses, ImageClassifier.logits)


@HOOKS.register_module()
class DistillationHook(Hook):
    """Trains a classifier on the logits of a teacher: the dense network with the weights that the training starts from.

    The task's losses get the weight 1 - alpha, and ``loss_distill`` = alpha T^2 KL(teacher || student) of the softened
    probabilities joins them (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; T = 4 and alpha = 0.5 as
    in LASNet). The teacher is kept in checkpoints, so that a resumed training has the same one.

    Args:
        temperature: T.
        alpha: In [0, 1].

    Raises:
        ValueError: An argument out of range, or a checkpoint to resume from that holds no teacher.
        TypeError: The model is no ``ImageClassifier`` with one head (on training).
    """

    KEY = 'distillation_teacher'

    def __init__(self, temperature: float = 4.0, alpha: float = 0.5) -> None:
        if not temperature > 0 or not 0 <= alpha <= 1:
            raise ValueError(f'temperature={temperature} must be positive and alpha={alpha} lie in [0, 1]')
        self.temperature, self.alpha = temperature, alpha
        self.teacher: nn.Module | None = None
        self._state: dict[str, Tensor] | None = None
        self._undo: list[Callable[[], None]] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._state = checkpoint.get(self.KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.teacher is not None:
            checkpoint[self.KEY] = self.teacher.state_dict()

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        kind = type(model)
        if not isinstance(model, ImageClassifier) or (kind.losses, kind.logits) != _ONE_HEAD:
            raise TypeError(
                'DistillationHook compares the logits of the one head of an ImageClassifier; '
                f'{kind.__name__} is none, or has other losses'
            )
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        if any(dynamic_modules(self.teacher)):
            set_execution(self.teacher, 'dense')
        if runner._resume:  # load_from starts a new training, with its own teacher
            if self._state is None:
                raise ValueError(
                    'the checkpoint to resume from holds no teacher: it was written without DistillationHook'
                )
            self.teacher.load_state_dict(self._state)
        handles = [
            model.register_forward_pre_hook(self._see_inputs, with_kwargs=True),
            model.head.register_forward_hook(self._see_logits),
        ]
        self._undo = [change_losses(model, self._mix), *(handle.remove for handle in handles)]

    def after_train(self, runner: Runner) -> None:
        for undo in self._undo:
            undo()
        self._undo = []

    def _see_inputs(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._inputs = args[0] if args else kwargs['inputs']

    def _see_logits(self, head: nn.Module, args: tuple, logits: Tensor) -> None:
        self._logits = logits

    def _mix(self, losses: dict[str, Any]) -> dict[str, Any]:
        assert self.teacher is not None
        with torch.no_grad():
            wanted = self.teacher(self._inputs)
        t = self.temperature
        student, teacher = (self._logits / t).log_softmax(1), (wanted / t).log_softmax(1)
        loss = F.kl_div(student, teacher, reduction='batchmean', log_target=True) * t * t
        task = {name: (1 - self.alpha) * value if name == 'loss' else value for name, value in losses.items()}
        return {**task, 'loss_distill': self.alpha * loss}
