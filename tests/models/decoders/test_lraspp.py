"""The LR-ASPP head on maps that are smaller than its pooling window, and as mmseg's on larger ones."""

import pytest
import torch

pytest.importorskip('mmseg', exc_type=ImportError)

from mmseg.models.decode_heads import LRASPPHead as MMSegLRASPPHead

from eff_plugins.models.decoders.lraspp import LRASPPHead

ARGS = dict(
    in_channels=(4, 6, 8),
    in_index=(0, 1, 2),
    channels=16,
    input_transform='multiple_select',
    num_classes=3,
    align_corners=False,
)


def maps(side):
    return [torch.randn(1, c, side * k, side * k + 4) for c, k in ((4, 4), (6, 2), (8, 1))]


def test_the_same_as_mmseg_on_large_maps():
    torch.manual_seed(0)
    head, other = LRASPPHead(**ARGS).eval(), MMSegLRASPPHead(**ARGS).eval()
    other.load_state_dict(head.state_dict())
    inputs = maps(66)  # two windows high, two wide
    torch.testing.assert_close(head(inputs), other(inputs))


@pytest.mark.parametrize('side', [1, 10, 48])
def test_small_maps_are_averaged_whole(side):
    head = LRASPPHead(**ARGS).eval()
    x = torch.randn(2, 8, side, side)
    torch.testing.assert_close(head.image_pool[0](x), x.mean((2, 3), keepdim=True))
    inputs = maps(side)
    assert head(inputs).shape == (1, 3, *inputs[0].shape[2:])
