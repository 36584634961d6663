"""DynConv: Verelst & Tuytelaars, "Dynamic Convolutions: Exploiting Spatial Sparsity for Faster Inference", CVPR 2020.

Written from the paper.
"""

from __future__ import annotations

from torch import Tensor, nn

from eff_plugins.dynamic.row_units import stride_of
from eff_plugins.dynamic.skip import input_channels
from eff_plugins.dynamic.spatial import SpatialGate
from eff_plugins.models.spatial.host import hosted, stages_of
from eff_plugins.ops.scores import Linear, conv_scores


class PixelMasker(nn.Module):
    """One score a position: a 3x3 convolution plus a linear function of the channels' means (the paper's squeeze unit).

    (B, C, H, W) -> (B, 1, H / stride, W / stride)

    Args:
        channels: C.
        stride: Of the convolution.
        keep: Bias at the start, so that positions begin switched on.
    """

    is_policy = True

    def __init__(self, channels: int, stride: int = 1, keep: float = 2.0) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, 1, 3, stride, 1, bias=False)
        self.fc = nn.Linear(channels, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.fc.weight)
        nn.init.constant_(self.fc.bias, keep)

    def forward(self, x: Tensor) -> Tensor:
        fc = self.fc
        return conv_scores(x, self.conv.weight, fc.weight, fc.bias, self.stride)

    def linear(self) -> Linear:
        """What ``forward`` computes."""
        fc = self.fc
        return Linear(self.conv.weight, fc.bias, None, fc.weight, self.stride)


@hosted
def DynConv(network: nn.Module) -> nn.Module:
    """Residual blocks computed at the positions that need it, one decision a pixel of their output.

    Args:
        network: The host.

    Raises:
        TypeError: A residual block that cannot be computed in part; the message says why.
    """
    for blocks, _ in stages_of(network, 1):
        for block in blocks:
            block.decide_by(SpatialGate(PixelMasker(input_channels(block), stride_of(block)), 1, block))
    return network
