"""LASNet: Han et al., "Latency-aware Spatial-wise Dynamic Networks", NeurIPS 2022. Written from the paper."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from eff_plugins.dynamic.row_units import stride_of
from eff_plugins.dynamic.skip import input_channels
from eff_plugins.dynamic.spatial import SpatialGate
from eff_plugins.models.spatial.host import hosted, stages_of
from eff_plugins.ops.scores import Linear, patch_scores

GRANULARITY = (8, 4, 7, 1)


class PatchMasker(nn.Module):
    """One score a patch: the patch's mean, then a 1x1 convolution (section 3.2): (B, C, H, W) -> (B, 1, H / k, W / k).

    The paper has two logits a patch and takes the larger; their difference is this score.

    Args:
        channels: C.
        patch: k, side of a patch in pixels of the input; those at the border may stand out.
        keep: Bias at the start, so that patches begin switched on.
    """

    is_policy = True

    def __init__(self, channels: int, patch: int, keep: float = 5.0) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv2d(channels, 1, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.constant_(self.conv.bias, keep)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return patch_scores(x, conv.weight, conv.bias, self.patch)  # type: ignore[arg-type]

    def linear(self) -> Linear:
        """What ``forward`` computes."""
        conv = self.conv
        return Linear(conv.weight, conv.bias, self.patch)  # type: ignore[arg-type]


@hosted
def LASNet(network: nn.Module, granularity: int | Sequence[int] | None = None) -> nn.Module:
    """Residual blocks computed in the patches that need it, with patches as large as the device likes them.

    Args:
        network: The host.
        granularity: Side of a patch in pixels of a block's output, one number for each stage with residual blocks, or one
            for all (the paper's ResNets: 1-1-1-1, 4-4-2-1, 8-4-7-1). By default the last of these, as far as there are
            stages.

    Raises:
        ValueError: A granularity below 1, their number is not that of the stages, or none for more than four stages.
        TypeError: A residual block that cannot be computed in part; the message says why.
    """
    if granularity is None:
        count = len(stages_of(network, 1))
        if count > len(GRANULARITY):
            raise ValueError(
                f'granularity is needed: {type(network).__name__} has {count} stages with residual blocks, the paper '
                f'names patches for {len(GRANULARITY)}; give one number a stage, or one for all'
            )
        granularity = GRANULARITY[:count]
    for blocks, patch in stages_of(network, granularity):
        for block in blocks:
            block.decide_by(SpatialGate(PatchMasker(input_channels(block), patch * stride_of(block)), patch, block))
    return network
