"""LR-ASPP for maps of any size (Howard et al., Searching for MobileNetV3, ICCV 2019, section 6.4)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from eff_plugins.compat import require

require('mmseg', 'LRASPPHead')

from mmseg.models.decode_heads import LRASPPHead as MMSegLRASPPHead  # noqa: E402

from eff_plugins.registry import MODELS  # noqa: E402


class WindowPool(nn.Module):
    """The paper's average over windows of 49x49 at strides 16 and 20; on a smaller map, over as much as there is.

    (B, C, H, W) -> (B, C, H', W') with H' = 1 where H <= 49, else (H - 49) // 16 + 1.
    """

    window = 49
    strides = (16, 20)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.avg_pool2d(x, (min(height, self.window), min(width, self.window)), self.strides)


@MODELS.register_module()
class LRASPPHead(MMSegLRASPPHead):
    """mmseg's ``LRASPPHead`` with the same arguments and weights, for maps smaller than its 49x49 pooling window, too.

    mmseg's own needs a last map of at least 49x49: at stride 32 an input of 1568 pixels.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_pool[0] = WindowPool()
