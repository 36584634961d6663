"""Train policies by reward towards a budget, in any framework."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from torch import Tensor, nn

from eff_plugins.dynamic.recorder import Entry
from eff_plugins.dynamic.reinforce import reinforce, resolution_advantage
from eff_plugins.engine.budget import BudgetHook
from eff_plugins.engine.wrapped import unwrapped
from eff_plugins.registry import HOOKS


def pixel_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pixel and whether it counts, both (B, 1, h, w), without gradients.

    Args:
        logits: (B, classes, h, w).
        labels: (B, h, w) of class indices.
        ignore_index: Label of pixels that do not count.
    """
    labels = labels.long()
    valid = (labels != ignore_index)[:, None]
    loss = F.cross_entropy(logits.detach().float(), labels, ignore_index=ignore_index, reduction='none')
    return loss[:, None], valid


def block_means(values: Tensor, valid: Tensor, size: tuple[int, int], block: int) -> Tensor:
    """Means over the blocks of a picture.

    Args:
        values: (B, 1, h, w).
        valid: The same shape; pixels that count.
        size: (H, W) of the picture that the blocks divide; ``values`` are brought to it.
        block: Side of a block.

    Returns:
        (B, 1, ceil(H / block), ceil(W / block)); a block without valid pixels has the mean of all.
    """
    both = torch.cat([values * valid, valid.to(values.dtype)], 1)
    if tuple(values.shape[2:]) != size:
        both = F.interpolate(both, size)
    total, count = F.avg_pool2d(both, block, ceil_mode=True, count_include_pad=False).split(1, 1)
    overall = total.sum() / count.sum().clamp(min=1e-6)
    return torch.where(count > 0, total / count.clamp(min=1e-6), overall)


@HOOKS.register_module()
class ReinforceHook(BudgetHook):
    """Trains the policies of :class:`eff_plugins.SegBlocks` by REINFORCE beside the network itself.

    Each block's reward is its task loss against the mean (full resolution goes where the network is wrong) plus the budget
    that is left (Verelst & Tuytelaars, TPAMI 2022, section 3.3). The task loss is read where the framework computes it: a
    forward hook on the loss module sees logits and labels, and the model stays as it is. Logged beside :class:`BudgetHook`'s
    figures: ``loss_policy``.

    Args:
        budget: Target share of the whole network's dense multiply-adds, policies included, in (0, 1].
        loss: Path in the model of the module that is called as ``loss(logits (B, classes, h, w), labels (B, h, w), ...)``.
        weight: Of the budget in the reward.
        losses: Further losses on the budget, as in :class:`BudgetHook`; none in the paper.

    Raises:
        ValueError: ``budget`` outside (0, 1] or an unknown loss.
    """

    def __init__(
        self,
        budget: float,
        loss: str = 'decode_head.loss_decode',
        weight: float = 1.0,
        losses: dict[str, float] | None = None,
    ) -> None:
        super().__init__(budget, losses or {})
        self.loss = loss
        self.weight = weight
        self._seen: tuple[Tensor, Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        try:
            module = model.get_submodule(self.loss)
        except AttributeError:
            raise ValueError(
                f'ReinforceHook: {type(model).__name__} has no module {self.loss!r}; name the module that computes its loss '
                'of (logits, labels)'
            ) from None
        super().before_train(runner)
        self._modules = dict(model.named_modules())
        handle = module.register_forward_hook(self._see, with_kwargs=True)
        self._undo.append(handle.remove)

    def _see(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if len(args) < 2 or args[0].ndim != 4 or args[1].ndim != 3:
            raise ValueError(
                f'ReinforceHook: {self.loss!r} was called with {[tuple(a.shape) for a in args]}; name the module that is '
                'called with logits (B, classes, h, w) and labels (B, h, w)'
            )
        ignore = kwargs.get('ignore_index')
        self._seen = pixel_loss(args[0], args[1], -100 if ignore is None else ignore)

    def _extra(self, runner: Runner) -> dict[str, Tensor]:
        losses = super()._extra(runner)
        stats = self._stats
        assert stats is not None  # or the budget's part would have raised
        entries = [entry for entry in stats.entries if entry.log_prob is not None]
        if not entries:
            raise ValueError('ReinforceHook: no policy of the model is trained by reward; use BudgetHook')
        if self._seen is None:
            raise ValueError(f'ReinforceHook: the loss module {self.loss!r} was not called in this training iteration')
        share = float(stats.share(self._network_macs[self._size]).detach())
        parts = [self._policy_loss(entry, *self._seen, self.budget(self.progress) - share) for entry in entries]
        self._seen = None
        return {**losses, 'loss_policy': torch.stack(parts).mean()}

    def _policy_loss(self, entry: Entry, values: Tensor, valid: Tensor, spare: float) -> Tensor:
        assert entry.log_prob is not None and entry.mask is not None
        assert self._size is not None  # blocks are those of pictures, which are tensors
        block = self._modules[entry.name].block_size
        difficulty = block_means(values, valid, (self._size[1], self._size[2]), block)
        return reinforce(entry.log_prob, resolution_advantage(entry.mask, difficulty, spare, self.weight))
