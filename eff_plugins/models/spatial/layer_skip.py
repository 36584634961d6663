"""Layer skipping as a backbone for every framework."""

from __future__ import annotations

from torch import nn

from eff_plugins.dynamic.skip import skip_layers
from eff_plugins.models.spatial.host import hosted


@hosted
def LayerSkip(network: nn.Module, keep_first: int = 0) -> nn.Module:
    """Residual blocks that each sample of a batch leaves out where it does not need them.

    SkipNet (Wang et al., ECCV 2018) and ConvNet-AIG (Veit & Belongie, ECCV 2018).

    Args:
        network: The host.
        keep_first: Residual blocks at the beginning that stay static.

    Raises:
        ValueError: No residual block is left that may be skipped, or ``keep_first`` is negative.
    """
    return skip_layers(network, keep_first)
