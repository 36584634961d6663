"""Run a convolutional network, as it is, on blocks of two resolutions.

A network knows nothing of blocks: while :class:`Blockwise` is active, torch's functions that see neighbours are taken over
where they meet a pool (``eff_plugins.ops.dual``), and all others run on the pool's pixels unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eff_plugins.dynamic.recorder import recording
from eff_plugins.ops.block_conv import Borders, conv_blocks, conv_picture, join, max_pool_blocks
from eff_plugins.ops.blocks import pair
from eff_plugins.ops.dense import ACTIVATIONS, PackedConv2d, PackedSamePadConv2d
from eff_plugins.ops.dual import DualGrid, Window, pool_of, rows_of

# What mixes pixels in ways that blocks do not allow
_REFUSED = (
    'interpolate', 'upsample', 'grid_sample', 'pad', 'group_norm', 'instance_norm', 'layer_norm', 'unfold', 'softmax',
    'conv_transpose2d', 'adaptive_max_pool2d', 'scaled_dot_product_attention', 'pixel_shuffle', 'pixel_unshuffle',
)  # fmt: skip


class Blockwise(TorchFunctionMode):
    """While active, a network that is called on ``image`` computes it in the blocks of ``grid``.

    The first layer reads the picture itself, which exists in both resolutions everywhere; from there on tensors are pools,
    and so are the network's results (:meth:`combine`).

    Args:
        grid: The decision.
        image: (B, C, H, W).

    Attributes:
        macs: (B,) multiply-adds executed so far for each sample, where somebody records.
    """

    def __init__(self, grid: DualGrid, image: Tensor) -> None:
        super().__init__()
        self.grid, self.image, self.counts = grid, image, recording()
        self.macs = torch.zeros(grid.batch, dtype=torch.float64, device=image.device)
        self._levels: dict[int, int] = {}  # pixels in a pool -> its level
        self._checked: set[tuple[Window, int]] = set()

    def combine(self, pool: Tensor, level: int) -> Tensor:
        """A result of the network as a whole map (B, C, H, W)."""
        return self.grid.combine(pool, level)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, '__name__', '')
        if name in _REFUSED:
            raise NotImplementedError(f'{name}() mixes pixels of a whole map; a network with it cannot run in blocks')
        handler = _HANDLERS.get(name)
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def is_pool(self, x: Any) -> bool:
        """Whether ``x`` holds pixels in blocks (and not, say, one vector a sample)."""
        return isinstance(x, Tensor) and x.ndim == 4 and x.shape[:1] == (1,) and x.shape[3] in self._levels

    def _level(self, x: Tensor) -> int:
        if x is self.image:
            return 0
        if not self.is_pool(x):
            raise ValueError(
                f'a tensor of {tuple(x.shape)} is no pool of blocks; the first layer must be a convolution'
            )
        return self._levels[x.shape[3]]

    def _after(self, x: Tensor, window: Window) -> int:
        """The level of an operator's output; the operator is checked."""
        level = self._level(x)
        self._check(window, level)
        return level + window.stride.bit_length() - 1

    def _check(self, window: Window, level: int) -> None:
        """Every output pixel must have its place in a block: maps of ceil(size / stride).

        Raises:
            NotImplementedError: The operator's outputs have another size.
        """
        if (window, level) in self._checked:
            return
        for low in (False, True):
            for size, kernel, before in zip(
                self.grid.map_size(level, low), window.kernel, window.padding or (0, 0), strict=True
            ):
                if window.padding and (size + 2 * before - kernel) // window.stride + 1 != -(-size // window.stride):
                    raise NotImplementedError(
                        f'kernel {window.kernel}, stride {window.stride}, padding {window.padding} on a map of {size}: '
                        'blocks need operators that return ceil(size / stride) pixels'
                    )
        self._checked.add((window, level))

    def _note(self, pool: Tensor, level: int) -> Tensor:
        """Remember the level of a layer's output.

        Raises:
            ValueError: The picture is so small that this cannot be told from the number of pixels.
        """
        known = self._levels.setdefault(pool.shape[3], level)
        if known != level:
            strides = ' and '.join(str(1 << each) for each in sorted((known, level)))
            raise ValueError(
                f'a picture of {self.grid.size[0]}x{self.grid.size[1]} is too small for blocks of two resolutions: its maps '
                f'at strides {strides} have as many pixels; take larger pictures, or dense execution'
            )
        return pool

    def _count(self, weight: Tensor, level: int | None) -> None:
        if self.counts:
            self.macs += weight.numel() * (1 if level is None else self.grid.pixels(level))

    def conv2d(
        self,
        func: Callable,
        input: Tensor,  # torch's names, which may be given as keywords
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        act: str | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        if input is not self.image and not self.is_pool(input):  # a vector for each sample, as in squeeze-excite
            self._count(weight, None)
            return ACTIVATIONS[act](func(input, weight, bias, stride, padding, dilation, groups))
        step, dilation = _square(stride), pair(dilation)
        window = Window(_spread(weight.shape[2:], dilation), step, None if padding == 'SAME' else pair(padding))
        level = self._after(input, window)
        self._count(weight, level)
        if input is self.image:
            return self._note(conv_picture(input, weight, bias, self.grid, window, dilation, groups, act), level)
        pointwise = window == Window((1, 1), 1, (0, 0))
        borders = None if pointwise else Borders(self.grid, self._level(input), window)
        return self._note(conv_blocks(input, weight, bias, borders, dilation, groups, act, residual), level)

    def same_pad_conv2d(
        self, func: Callable, x: Tensor, weight: Tensor, bias: Any, stride: Any, dilation: Any, groups: int
    ) -> Tensor:
        return self.conv2d(F.conv2d, x, weight, bias, stride, 'SAME', dilation, groups)

    def fused(
        self, func: Callable, conv: PackedConv2d, x: Tensor, act: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """A convolution prepared for inference."""
        padding = 'SAME' if isinstance(conv, PackedSamePadConv2d) else conv.padding
        settings = (conv.stride, padding, conv.dilation, conv.groups)
        return self.conv2d(F.conv2d, x, conv.weight, conv.bias, *settings, act, residual)

    def max_pool2d(
        self,
        func: Callable,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        if ceil_mode or return_indices or input is self.image:
            raise NotImplementedError('max pooling with ceil_mode or of the picture itself cannot run in blocks')
        kernel, step, dilation = pair(kernel_size), _square(stride or kernel_size), pair(dilation)
        window = Window(_spread(kernel, dilation), step, pair(padding))
        level = self._after(input, window)
        borders = Borders(self.grid, self._level(input), window)
        return self._note(max_pool_blocks(input, kernel, dilation, borders), level)

    def avg_pool2d(
        self,
        func: Callable,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        if ceil_mode or input is self.image or not (count_include_pad or pair(padding) == (0, 0)):
            raise NotImplementedError('average pooling over an uneven number of pixels cannot run in blocks')
        kernel, step = pair(kernel_size), _square(stride or kernel_size)
        window = Window(kernel, step, pair(padding))
        level = self._after(input, window)
        blocks = (gather(input) for gather in self.grid.gathers(self._level(input), window))
        pooled = (F.avg_pool2d(block, kernel, step, divisor_override=divisor_override) for block in blocks)
        return self._note(join(pooled), level)

    def mean(self, func: Callable, input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
        """Over the picture: a pixel of half the resolution stands for four."""
        if not self.is_pool(input):
            return func(input, **({} if dim is None else dict(dim=dim, keepdim=keepdim)), **kwargs)
        if tuple(sorted(d % 4 for d in ([dim] if isinstance(dim, int) else dim or ()))) != (2, 3):
            raise NotImplementedError(f'a mean over dimensions {dim} of a map cannot run in blocks')
        sample, weight = self.grid.owners(self._level(input))
        weight = weight.to(input.dtype)[:, None]
        total = input.new_zeros(self.grid.batch, input.shape[1]).index_add(0, sample, rows_of(input) * weight)
        area = input.new_zeros(self.grid.batch, 1).index_add(0, sample, weight)
        mean = total / area
        return mean[:, :, None, None] if keepdim else mean

    def adaptive_avg_pool2d(self, func: Callable, input: Tensor, output_size: Any) -> Tensor:
        if not self.is_pool(input) or output_size not in (1, (1, 1), [1, 1]):
            raise NotImplementedError(f'adaptive pooling to {output_size} cannot run in blocks')
        return self.mean(torch.mean, input, (2, 3), True)

    def mul(self, func: Callable, input: Tensor, other: Any) -> Tensor:
        """A factor for each sample and channel meets the pixels of its sample."""
        if isinstance(input, Tensor) and self.is_pool(other) and not self.is_pool(input):
            input, other = other, input
        if self.is_pool(input) and isinstance(other, Tensor) and other.shape == (self.grid.batch, input.shape[1], 1, 1):
            sample, _ = self.grid.owners(self._level(input))
            other = pool_of(other[:, :, 0, 0].index_select(0, sample))
        return func(input, other)


_HANDLERS: dict[str, Callable] = {
    name: getattr(Blockwise, name)
    for name in ('conv2d', 'same_pad_conv2d', 'fused', 'max_pool2d', 'avg_pool2d', 'mean', 'adaptive_avg_pool2d', 'mul')
} | dict.fromkeys(('mul_', '__mul__', '__rmul__', '__imul__'), Blockwise.mul)


def _square(value: Any) -> int:
    """A stride that is the same both ways.

    Raises:
        NotImplementedError: It is not, or no power of two.
    """
    high, wide = pair(value)
    if high != wide or high & (high - 1):
        raise NotImplementedError(f'stride {value}: blocks need a power of two, the same both ways')
    return high


def _spread(kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int]:
    return (kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1
