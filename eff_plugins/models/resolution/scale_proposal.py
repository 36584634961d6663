"""Which sizes of objects are in a picture: a small network on a small resample, supervised by the sizes alone.

Source: Hao et al., "Scale-Aware Face Detection", CVPR 2017, https://arxiv.org/abs/1706.09876, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eff_plugins.dynamic.policies import Decide, random_decisions
from eff_plugins.models.layers.conv import ConvNormAct
from eff_plugins.models.resolution.resample import resize


class ScaleProposalNetwork(nn.Module):
    """Pictures -> a histogram of the sizes of the objects in them, where they are being no matter.

    A size is log2(side of an object / longer side of its picture), the side being the square root of the box's area.

    Args:
        octaves: Lowest and highest size.
        bins: Of the histogram.
        size: Longer side in pixels of the resample, a multiple of 16.
        channels: Of the convolutions of stride 2.
        sigma: Width in octaves of an object's bump in the target histogram.

    Attributes:
        centres: (bins,) sizes.

    Raises:
        ValueError: Octaves, bins or size out of range.
    """

    is_policy = True  # has no counterpart in the detector, and its own initialisation
    centres: Tensor

    def __init__(
        self,
        octaves: tuple[float, float] = (-5.0, 0.0),
        bins: int = 30,
        size: int = 160,
        channels: Sequence[int] = (16, 32, 64, 96),
        sigma: float = 0.4,
    ) -> None:
        super().__init__()
        low, high = octaves
        if not low < high or bins < 2 or sigma <= 0:
            raise ValueError(
                f'octaves={tuple(octaves)} must ascend, bins={bins} be at least 2, sigma={sigma} be positive'
            )
        if size < 16 or size % 16:
            raise ValueError(f'size={size} must be a multiple of 16')
        self.size, self.sigma = size, sigma
        steps = torch.arange(bins) + 0.5
        self.register_buffer('centres', low + (high - low) * steps / bins, persistent=False)
        self.convs = nn.Sequential(
            *(
                ConvNormAct(a, b, 3, 2, norm_cfg=dict(type='BN'), act='relu')
                for a, b in zip((3, *channels), channels, strict=False)
            ),
            ConvNormAct(channels[-1], channels[-1], 3, norm_cfg=dict(type='BN'), act='relu'),
        )
        self.bins = nn.Conv2d(channels[-1], bins, 1)
        nn.init.normal_(self.bins.weight, std=0.01)
        self.bins.bias.data.fill_(-2.0)  # type: ignore[union-attr]  # most bins of most pictures are empty

    def forward(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (3, H, W) of any sizes -> logits (B, bins), the largest over all positions."""
        return self.bins(self.convs(torch.stack([self.resample(picture) for picture in pictures]))).amax((2, 3))

    def resample(self, picture: Tensor) -> Tensor:
        """(3, H, W) -> (3, size, size): the longer side fits, the rest is zero."""
        scale = self.size / max(picture.shape[1:])
        height, width = (max(1, round(side * scale)) for side in picture.shape[1:])
        return F.pad(resize(picture[None], (height, width))[0], (0, self.size - width, 0, self.size - height))

    def targets(self, sizes: Sequence[Tensor]) -> Tensor:
        """Sizes of the objects (n,) of each picture -> histograms (B, bins) in [0, 1]: the highest of their bumps."""
        rows = []
        for found in sizes:
            distance = found[:, None] - self.centres
            bumps = torch.exp(-(distance**2) / (2 * self.sigma**2))
            rows.append(bumps.amax(0) if len(found) else torch.zeros_like(self.centres))
        return torch.stack(rows)

    def loss(self, logits: Tensor, sizes: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of the bins, each an independent sigmoid, summed over a picture's bins."""
        wanted = self.targets(sizes).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction='none').sum(1).mean()


class ZoomPolicy(Decide):
    """Histograms (B, bins) -> the bins for whose sizes the picture is zoomed (B, bins) in {0, 1}.

    Learned: the histogram is smoothed, and its highest bin above ``threshold`` is taken until none is left, each
    suppressing the bins whose objects its zoom covers too, ``reach + margin`` around it. Controls: ``'all'`` is the fixed
    pyramid, ``'random'`` a share ``density`` of it.

    Args:
        centres: (bins,) sizes in octaves, ascending and evenly spaced.
        reach: Octaves on either side of a bin's size that the detector is trained for at its zoom.
        margin: Octaves beyond, in which its boxes are still believed.
        threshold: Of the smoothed probabilities.
        smooth: Bins of the moving average, odd.

    Attributes:
        pyramid: (bins,) bool, the zooms that cover all sizes.
    """

    pyramid: Tensor
    centres: Tensor

    def __init__(
        self, centres: Tensor, reach: float, margin: float = 0.5, threshold: float = 0.4, smooth: int = 3
    ) -> None:
        super().__init__()
        self.threshold, self.covered, self.smooth = threshold, reach + margin, smooth
        self.register_buffer('centres', centres.clone(), persistent=False)
        step = float(centres[1] - centres[0])
        low, span = float(centres[0]) - step / 2, step * len(centres)
        levels = math.ceil(span / (2 * reach) - 1e-6)
        wanted = low + span * (torch.arange(levels) + 0.5) / levels
        pyramid = torch.zeros(len(centres), dtype=torch.bool)
        pyramid[(wanted[:, None] - centres).abs().argmin(1)] = True
        self.register_buffer('pyramid', pyramid, persistent=False)

    def scores(self, logits: Tensor) -> Tensor:
        """Smoothed probabilities (B, bins)."""
        return F.avg_pool1d(
            logits.float().sigmoid()[:, None], self.smooth, 1, self.smooth // 2, count_include_pad=False
        )[:, 0]

    def forward(self, scores: Tensor) -> Tensor:
        if self.kind == 'learned':
            return self._peaks(scores)
        on = torch.zeros_like(scores)
        levels = scores[:, self.pyramid]
        on[:, self.pyramid] = (
            random_decisions(levels, self.density)
            if self.kind == 'random'
            else torch.full_like(levels, float(self.kind == 'all'))
        )
        return on

    def _peaks(self, scores: Tensor) -> Tensor:
        on = torch.zeros_like(scores)
        left = scores.clone()
        while True:
            value, bin_number = left.max(1)
            found = value > self.threshold
            if not bool(found.any()):
                return on
            on[found, bin_number[found]] = 1
            covered = (self.centres - self.centres[bin_number][:, None]).abs() < self.covered
            left = left.masked_fill(covered & found[:, None], -math.inf)
