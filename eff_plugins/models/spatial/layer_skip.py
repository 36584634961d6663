"""Layer skipping as a backbone for every framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from eff_plugins.dynamic.skip import skip_layers
from eff_plugins.registry import MODELS


@MODELS.register_module()
class LayerSkip(BaseModule):
    """Any residual backbone of the suite, each sample of a batch skipping the residual branches that it does not need.

    SkipNet (Wang et al., ECCV 2018) and ConvNet-AIG (Veit & Belongie, ECCV 2018). Below ``backbone.`` the keys are those of
    the static network plus the gates': its ``init_cfg`` loads static weights. Train it with ``eff_plugins.BudgetHook``.

    Args:
        backbone: Config of the backbone (or the module itself) with blocks that declare ``has_residual`` and ``branch``.
        keep_first: Residual blocks at the beginning that stay static.
        init_cfg: As in mmengine; weights belong in the backbone's ``init_cfg``.

    Attributes:
        out_channels: Of the returned maps; ``out_strides`` and ``size_divisor`` as the backbone's.

    Raises:
        ValueError: The backbone has no residual block that may be skipped.
    """

    def __init__(
        self, backbone: Mapping[str, Any] | nn.Module, keep_first: int = 0, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        network: Any = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        self.backbone = skip_layers(network, keep_first)
        self.out_channels = tuple(network.out_channels)
        self.out_strides = tuple(network.out_strides)
        self.size_divisor = network.size_divisor

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone(x)
