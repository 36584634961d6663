"""Stop a run whose loss is no longer a number, before it is saved over the good checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook

from ..registry import HOOKS


class NonFiniteLossError(FloatingPointError):
    """The loss of an iteration is NaN or infinite."""


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Raise :class:`NonFiniteLossError` in the first iteration whose loss is NaN or infinite.

    It runs after every iteration and before the checkpoint hook, so no checkpoint of that moment is written and the last
    good one stays. Parameters that an update has spoilt are not saved either.
    """

    priority = 'ABOVE_NORMAL'

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check every entry of ``outputs`` whose name contains 'loss' (mmengine's own rule for what is a loss)."""
        bad = {
            name: float(torch.as_tensor(value).detach().float().sum())
            for name, value in (outputs or {}).items()
            if 'loss' in name and not bool(torch.isfinite(torch.as_tensor(value)).all())
        }
        if not bad:
            return
        terms = {name: value for name, value in bad.items() if name != 'loss'} or bad
        shown = ', '.join(f'{name} = {value}' for name, value in terms.items())
        raise self._error(f'the loss is not finite at iteration {runner.iter + 1} (epoch {runner.epoch + 1}): {shown}')

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Refuse to save parameters that are not finite: the last update may have spoilt them after a finite loss."""
        for name, parameter in runner.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._error(f'parameter {name} is not finite after iteration {runner.iter + 1}')

    def _error(self, what: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f'{what}. Nothing was saved from this moment; the last checkpoint before it stays. Lower the learning rate '
            f'(--cfg-options optim_wrapper.optimizer.lr=...), clip gradients (optim_wrapper.clip_grad.max_norm=...), '
            f'train without --amp, or look for broken annotations; then go on with --resume'
        )
