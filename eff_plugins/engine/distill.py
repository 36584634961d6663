"""Keep what a dense classifier knows while a network learns to compute less."""

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
from eff_plugins.engine.extra_losses import Losses, change_losses
from eff_plugins.models.classifiers import ImageClassifier
from eff_plugins.models.resolution.ranet import EarlyExitClassifier
from eff_plugins.registry import HOOKS, MODELS

_TAUGHT = [(kind.losses, ImageClassifier.logits) for kind in (ImageClassifier, EarlyExitClassifier)]


@HOOKS.register_module()
class DistillationHook(Hook):
    """Trains a classifier on the logits of a teacher.

    The task's losses get the weight 1 - alpha, and ``loss_distill`` = alpha T^2 KL(teacher || student) of the softened
    probabilities joins them (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; T = 4 and alpha = 0.5 as
    in LASNet); a student with several exits has one such term an exit, summed. The teacher is kept in checkpoints, so that
    a resumed training has the same one.

    Args:
        teacher: Config of an ``ImageClassifier`` that takes the student's inputs and loads its weights by ``init_cfg``;
            None: the dense network with the weights that the training starts from.
        temperature: T.
        alpha: In [0, 1].

    Raises:
        ValueError: An argument out of range, a checkpoint to resume from that holds no teacher, or a teacher that
            normalises its pictures otherwise than the student (on training).
        TypeError: The model is no ``ImageClassifier`` with one head or with exits (on training).
    """

    KEY = 'distillation_teacher'

    def __init__(self, teacher: dict | None = None, temperature: float = 4.0, alpha: float = 0.5) -> None:
        if not temperature > 0 or not 0 <= alpha <= 1:
            raise ValueError(f'temperature={temperature} must be positive and alpha={alpha} lie in [0, 1]')
        self.temperature, self.alpha = temperature, alpha
        self.teacher_cfg = teacher
        self.teacher: nn.Module | None = None
        self._state: dict[str, Tensor] | None = None
        self._logits: list[Tensor] = []
        self._undo: list[Callable[[], None]] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._state = checkpoint.get(self.KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.teacher is not None:
            checkpoint[self.KEY] = self.teacher.state_dict()

    def before_train(self, runner: Runner) -> None:
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        kind = type(model)
        if not isinstance(model, ImageClassifier) or (kind.losses, kind.logits) not in _TAUGHT:
            raise TypeError(
                'DistillationHook compares the logits of an ImageClassifier with one head or with exits; '
                f'{kind.__name__} is none, or has other losses'
            )
        self.teacher = self._build_teacher(model)
        if runner._resume:  # load_from starts a new training, with its own teacher
            if self._state is None:
                raise ValueError(
                    'the checkpoint to resume from holds no teacher: it was written without DistillationHook'
                )
            self.teacher.load_state_dict(self._state)
        self._task_losses = model.losses
        model.__dict__['losses'] = self._see_losses
        self._undo = [
            change_losses(model, self._mix),  # after the forward pass, whose multiply-adds are counted
            model.head.register_forward_hook(self._see_logits).remove,
            lambda: delattr(model, 'losses'),  # the class's own again
        ]

    def after_train(self, runner: Runner) -> None:
        for undo in self._undo:
            undo()
        self._undo = []

    def _build_teacher(self, student: ImageClassifier) -> nn.Module:
        if self.teacher_cfg is None:
            teacher: Any = copy.deepcopy(student)
        else:
            teacher = MODELS.build(self.teacher_cfg).to(next(student.parameters()).device)
            teacher.init_weights()
            ours, theirs = (dict(model.data_preprocessor.named_buffers()) for model in (student, teacher))
            if ours.keys() != theirs.keys() or any(not torch.equal(ours[key].cpu(), theirs[key].cpu()) for key in ours):
                raise ValueError(
                    'the teacher of DistillationHook sees the inputs of the student: give both the same data_preprocessor'
                )
        if any(dynamic_modules(teacher)):
            set_execution(teacher, 'dense')
        return teacher.eval().requires_grad_(False)

    def _see_logits(self, head: nn.Module, args: tuple, logits: Tensor) -> None:
        self._logits.append(logits)

    def _see_losses(self, inputs: Tensor, labels: Tensor) -> Losses:
        self._inputs = inputs
        self._logits.clear()
        losses = self._task_losses(inputs, labels)
        self._task = tuple(losses)
        return losses

    def _mix(self, losses: Losses) -> Losses:
        assert self.teacher is not None
        with torch.no_grad():
            wanted = self.teacher(self._inputs)
        t = self.temperature
        teacher = (wanted / t).log_softmax(1)
        loss = sum(
            F.kl_div((logits / t).log_softmax(1), teacher, reduction='batchmean', log_target=True) * t * t
            for logits in self._logits
        )
        task = {name: (1 - self.alpha) * losses[name] for name in self._task}
        return {**losses, **task, 'loss_distill': self.alpha * loss}
