"""Pictures at another resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), bilinear with antialiasing; ``x`` itself where it has that size."""
    if tuple(x.shape[2:]) == size:
        return x
    # in float32: the antialiased form has no bfloat16 kernel on a CPU
    return F.interpolate(x.float(), size, mode='bilinear', antialias=True).to(x.dtype)
