"""Residual blocks at rows: what computes them at single positions of their output."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.break_even import break_even
from eff_plugins.dynamic.residual import ResidualBlock, Unit, act_name
from eff_plugins.dynamic.row_units import fault_of, row_conv
from eff_plugins.ops.branch import NativeBranch
from eff_plugins.ops.dense import PackedConv2d
from eff_plugins.ops.native import kernels_for
from eff_plugins.ops.plan import Chain, other_rows, plan_rows
from eff_plugins.ops.rows import RowConv, run_rows
from eff_plugins.ops.scores import ScoreReader, Scores
from eff_plugins.ops.scratch import scratch

# Activations that leave their own result as it is: to apply them twice is no harm.
_IDEMPOTENT = (None, 'relu', 'relu6')


def fresh(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised channels-last map of its own."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class PreparedBranch:
    """A block's branch and shortcut as row convolutions, BatchNorm folded in.

    Args:
        block: The block.

    Attributes:
        chain: The branch's convolutions; the last one activates the sum with the shortcut where that may be done twice.
        alone: The last one without that.
        shortcut: The shortcut's convolution without and with the activation of the sum, or None.
    """

    def __init__(self, block: ResidualBlock) -> None:
        units = block.units()
        acts = [*(unit.act_name for unit in units[:-1]), act_name(block.act)]
        if acts[-1] not in _IDEMPOTENT:
            acts[-1] = None  # applied to the whole map afterwards
        self.chain = Chain([row_conv(unit, act) for unit, act in zip(units, acts, strict=True)])
        self.alone = self.chain.convs[-1].activated(None)
        self.shortcut = _shortcut_rows(block)
        self.units = [_with_act(unit) for unit in units]
        self.act = block.act
        self.settled = block.settled()
        self._packed = [isinstance(unit.conv, PackedConv2d) for unit in units]
        self._native: dict[str, NativeBranch] = {}
        self._pays: dict[tuple, bool] = {}
        parts = [part for unit in (*units, *block.shortcut_units()) for part in unit[:2] if part is not None]
        tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values())]
        self._weights = [t for t in tensors if t is not None and not t.is_inference()]
        self._versions = [weight._version for weight in self._weights]

    def current(self) -> bool:
        """Whether no weight or statistic has changed since."""
        return self._versions == [weight._version for weight in self._weights]

    def native(self, x: Tensor, scores: Tensor | Scores) -> NativeBranch | None:
        """What runs the whole branch in one call; None where the kernels do not serve these tensors."""
        native = kernels_for(x, weights=(scores,) if isinstance(scores, Tensor) else ())
        if native is None or torch._C._len_torch_dispatch_stack():
            return None
        if native.name not in self._native:
            self._native[native.name] = NativeBranch(native, self.chain, self.shortcut)
        return self._native[native.name]

    def watched(self, layer: int, x: Tensor) -> tuple:
        """What a measurement needs of a layer whose input is like ``x`` (B, C, H, W)."""
        cast = torch.is_autocast_enabled('cpu')
        return self.chain.convs[layer], self.units[layer].run, self._packed[layer], tuple(x.shape), x.dtype, cast

    def limit(self, layer: int, size: tuple[int, int]) -> float:
        """From which density of its rows on a layer is computed whole, for an input of ``size`` (H, W)."""
        return break_even().density(self.chain.convs[layer], size, self._packed[layer])

    def computes_whole(self, layer: int, size: tuple[int, int], density: float) -> bool:
        """Whether a layer of the branch is computed whole, because that is faster than at so many rows.

        Args:
            layer: Its number; the last one always computes rows, as its result is added in place.
            size: (H, W) of its input.
            density: Share of the rows that are needed.
        """
        return layer + 1 < len(self.units) and density >= self.limit(layer, size)

    def pays_everywhere(self, size: tuple[int, int]) -> bool:
        """Whether with everything on the layers, each in the faster way and the last one at rows, beat the whole block.

        Args:
            size: (H, W) of its input.
        """
        key = size, torch.is_autocast_enabled('cpu'), break_even().revision
        found = self._pays.get(key)
        if found is None:
            sizes, last, spent, whole = self.chain.sizes(size), len(self.units) - 1, 0.0, 0.0
            for i, conv in enumerate(self.chain.convs):
                macs = conv.weight.numel() * sizes[i + 1][0] * sizes[i + 1][1]
                whole += macs
                spent += macs / max(self.limit(i, sizes[i]), 1e-6 if i == last else 1.0)
            found = spent < whole
            self._pays = {key: found}  # of one size: another revision of the densities ends the others
        return found


class RowExecutor(nn.Module):
    """Runs the branch of a block at chosen places; has no parameters of its own.

    The branch is prepared and kept until a weight or statistic changes in place, a state dict is loaded or the model
    switches between training and evaluation: some tools swap weights behind autograd's back (an average of weights for
    evaluation), but they switch to evaluation mode after that, as must whoever replaces a part of the block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watch: Callable[[tuple], None] | None = None  # sees each layer that is run, for a measurement
        self._prepared: PreparedBranch | None = None
        self._reader: ScoreReader | None = None

    def train(self, mode: bool = True) -> RowExecutor:
        self._prepared = self._reader = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> RowExecutor:
        self._prepared = self._reader = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._prepared = self._reader = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'watch': None, '_prepared': None, '_reader': None}

    def prepared(self, block: ResidualBlock) -> PreparedBranch:
        """The branch as row convolutions."""
        found = self._prepared
        if found is None or not found.current():
            found = self._prepared = PreparedBranch(block)
        return found

    def read(self, masker: nn.Module, x: Tensor) -> Scores | None:
        """What ``masker`` gives for ``x``, for :meth:`run`, if it says what that is (``linear``); else None: call it.

        None also where kernels do not serve, a measurement or a mode of torch watches, or the policy has hooks or another
        ``forward`` than its ``linear`` is of.
        """
        watched = self.watch is not None or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
        hooked = masker._forward_hooks or masker._forward_pre_hooks or 'forward' in masker.__dict__
        if (
            watched
            or hooked
            or not _says_what_it_is(type(masker).__mro__)
            or torch.is_grad_enabled()
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return None
        native = kernels_for(x)
        if native is None:
            return None
        scores = masker.linear()  # type: ignore[operator]
        if self._reader is None or not self._reader.current(scores):
            self._reader = ScoreReader(scores)
        return self._reader.read(native, x)

    def run(
        self, block: ResidualBlock, x: Tensor, scores: Tensor | Scores, patch: int | None, threshold: float = 0.0
    ) -> Tensor:
        """The block's output for ``x`` (B, C, H, W), its branch computed where ``scores`` are above ``threshold``.

        Args:
            block: The block.
            x: Its input, overwritten where the block owns it.
            scores: (B, 1, cells_y, cells_x), or what :meth:`read` gave.
            patch: Side of a cell in pixels of the output; None is the whole map.
            threshold: As far as the scores' type can tell.
        """
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.run(block, x, scores, patch, threshold)
        x = x.contiguous(memory_format=torch.channels_last)
        ready = self.prepared(block)
        size = (x.shape[2], x.shape[3])
        out_size = ready.chain.sizes(size)[-1]
        cell = out_size if patch is None else (patch, patch)
        under = None
        if self.watch is None and (native := ready.native(x, scores)) is not None:
            shortcut, out = under = _under(block, ready, x, out_size)
            count = native.run(x, scores, threshold, cell, ready.limit, break_even().revision, out)
            if count > 0:
                return _activate(ready, x, shortcut, out)
            if count == 0:
                return block.rest(x, block.run_shortcut(x) if shortcut is None else shortcut)
        if not isinstance(scores, Tensor):
            scores = scores.tensor()
        plan = plan_rows(scores > threshold, cell, ready.chain, size)
        if not plan[-1].numel():
            return block.rest(x, block.run_shortcut(x))
        everywhere = plan[-1].numel() == x.shape[0] * out_size[0] * out_size[1]
        has_shortcut = under is not None and under[0] is not None and under[0] is not x
        if everywhere and self.watch is None and not has_shortcut and not ready.pays_everywhere(size):
            return block.run(x)
        return add_last(block, ready, x, self._run_inner(ready, x, plan), plan[-1], under=under)

    @torch.no_grad()
    def branch(self, block: ResidualBlock, x: Tensor, on: Tensor) -> Tensor:
        """The branch alone where ``on`` (B, 1, H', W') bool, anything elsewhere: (B, C', H', W'), channels-last.

        The map lives until the next call on this thread.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        ready = self.prepared(block)
        size = (x.shape[2], x.shape[3])
        shape = (x.shape[0], ready.chain.convs[-1].filters, *ready.chain.sizes(size)[-1])
        out = scratch(2, shape, x)
        plan = plan_rows(on, (1, 1), ready.chain, size)
        if plan[-1].numel():
            run_rows(self._run_inner(ready, x, plan), ready.alone, plan[-1], out)
        return out

    def _run_inner(self, ready: PreparedBranch, x: Tensor, plan: list[Tensor]) -> Tensor:
        """The planned rows of the branch up to the input of its last convolution, which only a measurement sees here."""
        sizes = ready.chain.sizes((x.shape[2], x.shape[3]))
        for i, (conv, rows) in enumerate(zip(ready.chain.convs[:-1], plan[:-1], strict=True)):
            if self.watch is not None:
                self.watch(ready.watched(i, x))
            places = x.shape[0] * sizes[i + 1][0] * sizes[i + 1][1]
            if ready.computes_whole(i, sizes[i], rows.numel() / places):
                x = ready.units[i].run(x)
            else:
                x = run_rows(x, conv, rows, scratch(i % 2, (x.shape[0], conv.filters, *sizes[i + 1]), x))
        if self.watch is not None:
            self.watch(ready.watched(len(ready.units) - 1, x))
        return x


@cache
def _says_what_it_is(classes: tuple[type, ...]) -> bool:
    """Whether the first class that defines ``forward`` also defines ``linear``: a subclass may decide otherwise."""
    owners = [next((c for c in classes if name in c.__dict__), None) for name in ('forward', 'linear')]
    return owners[0] is owners[1]


def add_last(
    block: ResidualBlock,
    ready: PreparedBranch,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    scale: Tensor | None = None,
    under: tuple[Tensor | None, Tensor] | None = None,
) -> Tensor:
    """The block's output, where all of its branch but the last convolution has been computed; without gradients.

    Args:
        block: The block.
        ready: Its branch.
        x: Its input (B, C, H, W), channels-last, overwritten where the block owns it.
        y: Input of the branch's last convolution.
        rows: (R,) int32 positions of the output at which the branch is added to the shortcut.
        scale: (B, 1, H', W') that multiplies the branch there, or None.
        under: What :func:`_under` gave, if it has been asked.
    """
    if not rows.numel():
        return block.rest(x, block.run_shortcut(x))
    conv = ready.chain.convs[-1]
    shortcut, out = under or _under(block, ready, x, conv.out_size(y.shape[2], y.shape[3]))
    if ready.shortcut is not None:  # as it is where the branch will be added, activated elsewhere
        plain, activated = ready.shortcut
        run_rows(x, plain, rows, out)
        run_rows(x, activated, other_rows(rows, out[:, 0].numel()), out)
    run_rows(y, conv, rows, out, out, scale)
    return _activate(ready, x, shortcut, out)


def _under(
    block: ResidualBlock, ready: PreparedBranch, x: Tensor, size: tuple[int, int]
) -> tuple[Tensor | None, Tensor]:
    """The shortcut, and what the branch is added to; None, and an empty map, where rows compute the shortcut."""
    if ready.shortcut is not None:
        shape = (x.shape[0], ready.shortcut[0].filters, *size)
        return None, fresh(shape, x)
    shortcut = block.run_shortcut(x)
    if shortcut is not x:
        same = shortcut if shortcut.dtype == x.dtype else shortcut.to(x.dtype)  # under autocast
        return shortcut, same.contiguous(memory_format=torch.channels_last)
    if len(ready.units) == 1 or not may_overwrite(block, x):  # a single one still reads it
        return x, x.clone(memory_format=torch.channels_last)
    return x, x


def _activate(ready: PreparedBranch, x: Tensor, shortcut: Tensor | None, out: Tensor) -> Tensor:
    """``out``, activated where the rows were not computed, too."""
    if shortcut is None or ready.act is None or (shortcut is x and ready.settled):
        return out
    return ready.act(out)


def _with_act(unit: Unit) -> Unit:
    """The unit, its activation within a packed convolution where it has one."""
    if isinstance(unit.conv, PackedConv2d) and unit.conv.act is None and unit.act is not None:
        return Unit(PackedConv2d(unit.conv, unit.act_name))
    return unit


def may_overwrite(block: ResidualBlock, x: Tensor) -> bool:
    """Whether a block's result may be written over its input: nobody reads it again, and no gradient needs it."""
    return block.owns_input and not x.requires_grad


def _shortcut_rows(block: ResidualBlock) -> tuple[RowConv, RowConv] | None:
    """A shortcut of one convolution whose sum is activated, so that no pass over the whole map is needed for that."""
    units, act = block.shortcut_units(), act_name(block.act)
    if len(units) != 1 or act is None or act not in _IDEMPOTENT or fault_of(units[0]):
        return None
    plain = row_conv(units[0], None)
    return plain, plain.activated(act)
