"""Prepare a model for inference, any two models alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from eff_plugins.dynamic.budget import carry_calibrations

from .fuse import fuse_conv_bn
from .prepack import prepack

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@dataclass(frozen=True)
class Preparation:
    """What is done to a model before it is deployed.

    Attributes:
        fuse: Fold BatchNorm into the convolutions.
        prepack: Pack the convolutions' weights for this processor and fuse activations and sums (needs ``fuse``; a CPU).
        channels_last: Keep 4-D weights in channels-last order.
        compile: ``torch.compile`` it; the first call then takes long and needs a C++ compiler on a CPU.
        dtype: ``'float32'`` or ``'bfloat16'``: of weights and inputs.
        device: Such as ``'cpu'`` or ``'cuda'``.

    Raises:
        ValueError: Unknown dtype, or a device that is not there.
    """

    fuse: bool = True
    prepack: bool = False
    channels_last: bool = True
    compile: bool = False
    dtype: str = 'float32'
    device: str = 'cpu'

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f'dtype={self.dtype!r}: must be one of {", ".join(DTYPES)}')
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            raise ValueError(f"device={self.device!r}: must be 'cpu', 'cuda' or 'cuda:N'") from None
        if kind == 'cuda' and not torch.cuda.is_available():
            raise ValueError(f'device={self.device!r}: torch sees no CUDA device here')

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (B, C, H, W) as the prepared model takes it."""
        return x.to(self.device, self.torch_dtype).contiguous(memory_format=self.memory_format)


def prepare(model: nn.Module, how: Preparation) -> nn.Module:
    """A copy of ``model`` in eval mode, prepared; the model itself is left as it is.

    What has a form of its own for inference (``specialise()``) takes it where BatchNorm is folded.
    """
    origin = model
    if how.fuse and hasattr(model, 'specialise'):
        model = model.specialise()  # type: ignore[operator]
    prepared = fuse_conv_bn(model) if how.fuse else copy.deepcopy(model).eval()
    prepared = prepared.requires_grad_(False).to(how.device).to(how.torch_dtype)
    prepared = prepared.to(memory_format=how.memory_format)  # type: ignore[call-overload]
    if how.prepack:
        prepack(prepared)
    carry_calibrations(origin, prepared)
    return torch.compile(prepared) if how.compile else prepared  # type: ignore[return-value]
