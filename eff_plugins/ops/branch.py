"""A branch of convolutions and the shortcut beneath it, computed at chosen patches by one native call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import addressof, c_int64
from functools import cache
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

from eff_plugins.ops.native import Kernels
from eff_plugins.ops.plan import Chain
from eff_plugins.ops.rows import RowConv
from eff_plugins.ops.scores import Scores


class NativeBranch:
    """What native/branch.cpp reads of a branch, laid out once.

    Args:
        native: The kernels.
        chain: The branch's convolutions.
        shortcut: The shortcut's convolution, without and with the activation of the sum; None where the shortcut is there.
    """

    def __init__(self, native: Kernels, chain: Chain, shortcut: tuple[RowConv, RowConv] | None) -> None:
        self._run = native.run_branch
        self._chain = chain
        self._shortcut = shortcut or ()
        convs = (*chain.convs, *self._shortcut)
        self._packed = [conv.packed(native) for conv in convs]  # lives as long as the pointers
        numbers: list[int] = []
        for conv, tensors in zip(convs, self._packed, strict=True):
            numbers += [*(tensor.data_ptr() for tensor in tensors), int(conv.groups > 1)]
        self._layers = (c_int64 * len(numbers))(*numbers)
        self._revision: object = None
        self._sized: dict[tuple, tuple[ctypes.Array, ctypes.Array, ctypes.Array]] = {}

    def run(
        self,
        x: Tensor,
        scores: Tensor | Scores,
        threshold: float,
        patch: tuple[int, int],
        limit: Callable[[int, tuple[int, int]], float],
        revision: object,
        out: Tensor,
    ) -> int:
        """Add the branch to ``out`` in the patches whose score is above ``threshold``.

        Args:
            x: (B, C, H, W), channels-last, of the kernels' type.
            scores: (B, 1, cells_y, cells_x).
            threshold: As far as their type can tell.
            patch: (height, width) of a patch in pixels of the output.
            limit: Layer, (H, W) of its input -> density of its rows from which on nothing is done here.
            revision: Another object where ``limit`` has changed.
            out: (B, C', H', W') of that type, channels-last; with a ``shortcut`` overwritten, else it holds the shortcut.

        Returns:
            The number of computed rows: nothing was done where that is 0, or -1 where a layer reached its limit.
        """
        if revision is not self._revision:
            self._sized, self._revision = {}, revision
        key = (x.shape, scores.shape, patch)
        found = self._sized.get(key)
        if found is None:
            found = self._sized[key] = self._lay_out(x.shape, scores.shape, patch, limit)
        grid, shapes, limits = found
        if isinstance(scores, Tensor):
            cells = scores.float().contiguous()  # has to live as long as the kernel reads it
            address = cells.data_ptr()
        else:
            address = scores.address
        if scores.dtype is not torch.float32:
            threshold = rounded(threshold, scores.dtype)
        return self._run(
            address,
            threshold,
            addressof(grid),
            addressof(shapes),
            addressof(self._layers),
            addressof(limits),
            len(self._chain.convs),
            bool(self._shortcut),
            x.data_ptr(),
            out.data_ptr(),
        )

    def _lay_out(
        self,
        x: torch.Size,
        scores: Sequence[int],
        patch: tuple[int, int],
        limit: Callable[[int, tuple[int, int]], float],
    ) -> tuple[ctypes.Array, ctypes.Array, ctypes.Array]:
        """The arrays ``grid``, ``shapes`` and ``limits`` of the native call."""
        size = (x[2], x[3])
        grid = (scores[0], scores[2], scores[3], *patch)
        shapes = [*self._chain.shapes(size), *(number for conv in self._shortcut for number in conv.shape(*size))]
        limits = []
        for layer, (inner, (height, width)) in enumerate(pairwise(self._chain.sizes(size)[:-1])):
            places = x[0] * height * width
            density = limit(layer, inner)
            limits.append(ceil(density * places) if density <= 1 else places + 1)
        return (c_int64 * 5)(*grid), (c_int64 * len(shapes))(*shapes), (c_int64 * len(limits))(*limits)


@cache
def rounded(value: float, dtype: torch.dtype) -> float:
    """What ``dtype`` makes of a number."""
    return torch.tensor(value, dtype=dtype).item()
