"""The executor of rows on blocks that the suite's networks do not have."""

import pytest
import torch
from torch import nn

from eff_plugins.dynamic.residual import ResidualBlock, Unit
from eff_plugins.dynamic.rows import RowExecutor


class Block(ResidualBlock):
    """Convolutions of 80 channels beside a shortcut that may be some module."""

    def __init__(self, layers, shortcut=None):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(80, 80, 3, padding=1) for _ in range(layers))
        self.act = nn.ReLU()
        self.shortcut = shortcut
        self.shortcuts = 0

    def units(self):
        return [Unit(conv) for conv in self.convs]

    def run_shortcut(self, x):
        self.shortcuts += 1
        return x if self.shortcut is None else self.shortcut(x)


def case(layers, **options):
    torch.manual_seed(0)
    block = Block(layers, **options).eval()
    x = torch.randn(2, 80, 6, 6).contiguous(memory_format=torch.channels_last)
    return block, x, torch.rand(2, 1, 3, 3)


@pytest.mark.parametrize('layers', [1, 2])
def test_a_block_that_owns_its_input_reads_it_before_it_is_overwritten(layers):
    block, x, scores = case(layers)
    block.owns_input = True
    with torch.no_grad():
        mask = (scores > 0.4).float().repeat_interleave(2, 2).repeat_interleave(2, 3)
        want = block.merge(x.clone(), block.run_branch(x) * mask)
        got = RowExecutor().run(block, x.clone(memory_format=torch.preserve_format), scores, 2, 0.4)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('threshold', [0.4, 1.0])
def test_a_shortcut_is_computed_once(threshold):
    block, x, scores = case(2, shortcut=nn.AvgPool2d(3, 1, 1))
    with torch.no_grad():
        RowExecutor().run(block, x, scores, 2, threshold)
    assert block.shortcuts == 1


def test_a_shortcut_of_another_type_as_under_autocast():
    block, x, scores = case(2, shortcut=nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(80, 80, 1)))
    with torch.no_grad():
        want = RowExecutor().run(block, x, scores, 2, 0.4)
        with torch.autocast('cpu', torch.bfloat16):
            got = RowExecutor().run(block, x, scores, 2, 0.4)
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.05)
