"""Keep what a dense classifier knows while a network learns to compute less."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from eff_plugins.dynamic.module import dynamic_modules, set_execution
from eff_plugins.engine.extra_losses import Losses, change_losses
from eff_plugins.engine.wrapped import unwrapped
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
        temperature: T.
        alpha: In [0, 1].
        teacher: Config of an ``ImageClassifier`` that takes the student's inputs and loads its weights by ``init_cfg``;
            None: the dense network with the weights that the training starts from.

    Raises:
        ValueError: An argument out of range; on training a checkpoint to resume from that holds no teacher, or a teacher
            of other pictures (``data_preprocessor``) or classes than the student's.
        TypeError: On training, a model that is no ``ImageClassifier`` with one head or with exits, or a teacher that is none.
    """

    KEY = 'distillation_teacher'

    def __init__(self, temperature: float = 4.0, alpha: float = 0.5, teacher: dict | None = None) -> None:
        if not temperature > 0 or not 0 <= alpha <= 1:
            raise ValueError(f'temperature={temperature} must be positive and alpha={alpha} lie in [0, 1]')
        self.temperature, self.alpha = temperature, alpha
        self.teacher_cfg = teacher
        self.teacher: nn.Module | None = None
        self._state: dict[str, Tensor] | None = None
        self._logits: list[Tensor] = []
        self._task: tuple[str, ...] | None = ()  # names of the task's losses; None while they are computed
        self._undo: list[Callable[[], None]] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._state = checkpoint.get(self.KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.teacher is not None:
            checkpoint[self.KEY] = self.teacher.state_dict()

    def before_train(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        kind = type(model)
        if not isinstance(model, ImageClassifier) or (kind.losses, kind.logits) not in _TAUGHT:
            raise TypeError(
                'DistillationHook compares the logits of an ImageClassifier with one head or with exits; '
                f'{kind.__name__} is none, or has other losses'
            )
        if runner._resume and self._state is None:  # load_from starts a new training, with its own teacher
            raise ValueError('the checkpoint to resume from holds no teacher: it was written without DistillationHook')
        self.teacher = self._build_teacher(model, self._state if runner._resume else None)
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

    def _build_teacher(self, student: ImageClassifier, state: dict[str, Tensor] | None) -> nn.Module:
        if self.teacher_cfg is None:
            teacher: Any = copy.deepcopy(student)
        else:
            teacher = MODELS.build(self.teacher_cfg)
            if not isinstance(teacher, ImageClassifier):
                raise TypeError(f'the teacher of DistillationHook is a {type(teacher).__name__}, no ImageClassifier')
            for what, read in (('data_preprocessor', _preprocessing), ('num_classes', lambda m: m.head.num_classes)):
                ours, theirs = read(student), read(teacher)
                if ours != theirs:
                    raise ValueError(
                        f'the teacher of DistillationHook has {what} {theirs}, the student {ours}: they see the same '
                        'pictures and classes'
                    )
            if state is None:
                teacher.init_weights()
                if not any(_is_pretrained(module) for module in teacher.modules()):
                    print_log(
                        'the teacher of DistillationHook is random: no part loads weights by init_cfg',
                        'current',
                        logging.WARNING,
                    )
        if state is not None:
            teacher.load_state_dict(state)
        if any(dynamic_modules(teacher)):
            set_execution(teacher, 'dense')
        return teacher.to(next(student.parameters()).device).eval().requires_grad_(False)

    def _see_logits(self, head: nn.Module, args: tuple, logits: Tensor) -> None:
        if self._task is None:  # not in a validation
            self._logits.append(logits)

    def _see_losses(self, inputs: Tensor, labels: Tensor) -> Losses:
        self._inputs, self._logits, self._task = inputs, [], None
        losses = self._task_losses(inputs, labels)
        self._task = tuple(losses)
        return losses

    def _mix(self, losses: Losses) -> Losses:
        assert self.teacher is not None and self._task is not None
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


def _is_pretrained(module: nn.Module) -> bool:
    init_cfg: Any = getattr(module, 'init_cfg', None)
    return isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'


def _preprocessing(model: ImageClassifier) -> dict[str, Any]:
    """What is done to the pictures that ``model`` gets."""
    part: Any = model.data_preprocessor
    values = {name: value.flatten().tolist() for name, value in part.named_buffers()}
    return {'type': type(part).__name__, 'channel_conversion': getattr(part, '_channel_conversion', None), **values}
