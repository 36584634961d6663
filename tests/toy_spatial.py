"""A spatial dynamic network that is as small as possible: one masked 3x3 convolution a level, as a backbone."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from eff_plugins.dynamic import DynamicModule, emit
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.recorder import recording


class PixelGate(nn.Conv2d):
    is_policy = True


class MaskedConv(DynamicModule):
    """x + convolution, where a 1x1 convolution of x says so; in sparse mode from the patches of these places alone."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.gate = PixelGate(channels, 1, 1)
        self.decide = Decide()

    def forward(self, x):
        self.check_execution()
        if self.execution == 'dense':
            return x + self.norm(self.conv(x))
        scores = self.gate(x)
        on = self.decide(scores)
        if recording():
            gate, dense = x[0].numel(), 9 * x[0].numel() * x.shape[1]
            density = on.flatten(1).mean(1)
            emit(
                self,
                dense_macs=float(dense),
                macs=density * dense + gate,
                policy_macs=float(gate),
                density=density,
                mask=on.detach(),
                scores=scores.detach(),
            )
        if self.execution == 'masked':
            return x + on * self.norm(self.conv(x))
        rows = F.unfold(x, 3, padding=1).transpose(1, 2)[on.flatten(1) > 0]
        flat = x.flatten(2).transpose(1, 2).contiguous()
        if len(rows):
            out = rows @ self.conv.weight.flatten(1).t()
            if self.conv.bias is not None:
                out = out + self.conv.bias
            if isinstance(self.norm, nn.BatchNorm2d):
                out = self.norm(out[:, :, None, None])[:, :, 0, 0]
            flat[on.flatten(1) > 0] += out
        return flat.transpose(1, 2).reshape(x.shape)


@MODELS.register_module(force=True)
class ToySpatialNet(BaseModule):
    """Maps of levels 1 to 4, strides 4 to 32, 8 channels each."""

    def __init__(self, out_indices=(4,), channels=8, init_cfg=None):
        super().__init__(init_cfg)
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.levels = nn.ModuleList(MaskedConv(channels) for _ in range(4))
        self.wanted = [index - 1 for index in out_indices]
        self.out_strides = tuple(2 ** (index + 1) for index in out_indices)
        self.out_channels = (channels,) * len(out_indices)
        self.size_divisor = 32

    def init_weights(self):
        super().init_weights()
        for level in self.levels:  # scores that differ from place to place
            nn.init.normal_(level.gate.weight)

    def forward(self, x):
        x, maps = self.stem(x), []
        for level in self.levels:
            if maps:
                x = F.max_pool2d(x, 2)
            x = level(x)
            maps.append(x)
        return tuple(maps[i] for i in self.wanted)


def toy(seed=0, **options):
    torch.manual_seed(seed)
    net = ToySpatialNet(**options)
    net.init_weights()
    for level in net.levels:
        nn.init.uniform_(level.norm.running_mean)
        nn.init.uniform_(level.norm.running_var, 0.5, 2)
    return net.eval()
