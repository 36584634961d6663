"""Histograms of object sizes and the zooms chosen from them."""

import pytest
import torch

from eff_plugins.models.resolution.scale_proposal import ScaleProposalNetwork, ZoomPolicy


def proposal():
    torch.manual_seed(0)
    return ScaleProposalNetwork(octaves=(-4.0, 0.0), bins=16, size=32, channels=(4, 8))


def test_targets_have_a_bump_at_each_size_and_none_without_objects():
    net = proposal()
    target = net.targets([torch.tensor([-3.1, -1.0]), torch.zeros(0)])
    assert target.shape == (2, 16) and target[1].sum() == 0
    for size in (-3.1, -1.0):
        nearest = (net.centres - size).abs().argmin()
        assert target[0, nearest] > 0.95
    assert target[0, (net.centres + 2.05).abs().argmin()] < 0.1


def test_the_network_learns_sizes_from_sizes_alone():
    """Discs of two sizes at random places: no box is shown to the network."""
    net = proposal()
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing='ij'))

    def batch(count):
        pictures, sizes = [], []
        for i in range(count):
            radius = (2.0, 7.0)[i % 2]
            centre = 8 + 16 * torch.rand(2, 1, 1, generator=generator)
            disc = ((grid - centre).square().sum(0) < radius**2).float()
            pictures.append(disc.expand(3, -1, -1) * 2 - 0.3)
            sizes.append(torch.tensor([2 * radius / 32]).log2())
        return pictures, sizes

    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    first = last = None
    for _ in range(25):
        pictures, sizes = batch(16)
        last = net.loss(net(pictures), sizes)
        first = first if first is not None else float(last)
        optimiser.zero_grad()
        last.backward()
        optimiser.step()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert float(last) < 0.6 * first
    pictures, sizes = batch(8)
    peaks = net.centres[net.eval()(pictures).argmax(1)]
    assert (peaks - torch.cat(sizes)).abs().max() < 0.8


def test_pictures_of_any_shape_keep_their_proportions():
    net = proposal()
    assert net.resample(torch.ones(3, 40, 10)).sum() == 3 * 32 * 8
    out = net.eval()([torch.randn(3, 40, 10), torch.randn(3, 9, 64)])
    alone = net([torch.randn(3, 5, 5)])
    assert out.shape == (2, 16) and alone.shape == (1, 16)
    assert net.bfloat16()([torch.randn(3, 40, 10).bfloat16()]).isfinite().all()


def test_peaks_suppress_what_their_zoom_covers():
    centres = proposal().centres  # a quarter of an octave apart
    policy = ZoomPolicy(centres, reach=0.5, margin=0.0).eval()
    scores = torch.zeros(3, 16)
    scores[0, [4, 5, 12]] = torch.tensor([0.9, 0.8, 0.7])
    scores[1, [4, 6]] = torch.tensor([0.6, 0.9])
    on = policy(scores)
    assert on[0].nonzero().flatten().tolist() == [4, 12]
    assert on[1].nonzero().flatten().tolist() == [4, 6]  # half an octave apart: each covers the other's edge only
    assert on[2].sum() == 0
    policy.threshold = 0.75
    assert policy(scores).sum(1).tolist() == [1, 1, 0]
    policy = ZoomPolicy(centres, reach=0.5, margin=0.25).eval()
    assert policy(scores)[1].nonzero().flatten().tolist() == [6]  # the higher one covers both


def test_controls_choose_from_the_pyramid_that_covers_all_sizes():
    policy = ZoomPolicy(proposal().centres, reach=0.5).eval()
    levels = policy.centres[policy.pyramid]
    assert len(levels) == 4
    assert (policy.centres[:, None] - levels).abs().amin(1).max() <= 0.5
    scores = torch.rand(50, 16)
    policy.kind = 'all'
    assert torch.equal(policy(scores) > 0, policy.pyramid.expand(50, -1))
    policy.kind = 'none'
    assert policy(scores).sum() == 0
    policy.kind, policy.density = 'random', 0.5
    on = policy(scores)
    assert on[:, ~policy.pyramid].sum() == 0 and float(on.sum(1).mean()) == 2


def test_settings_that_do_not_fit_are_refused():
    for changes, message in (
        (dict(octaves=(0, -3)), 'must ascend'),
        (dict(bins=1), 'bins=1 be at least 2'),
        (dict(size=50), 'multiple of 16'),
    ):
        with pytest.raises(ValueError, match=message):
            ScaleProposalNetwork(**changes)
