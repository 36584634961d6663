"""BatchNorm's running statistics as part of the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


@torch.no_grad()
def folded(conv: _ConvNd, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what ``conv`` and then ``norm`` do in evaluation mode.

    Computed in double precision, returned in the weight's type. Source: Jacob et al., CVPR 2018, section 3.2.

    Args:
        conv: Not transposed.
        norm: With running statistics of ``conv``'s output channels.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.detach()
    rows = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.double() * rows).to(weight.dtype), shift.to(weight.dtype)
