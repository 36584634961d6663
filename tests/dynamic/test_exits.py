"""Early exits and choices on networks small enough to see through."""

import pytest
import torch
from torch import nn

from eff_plugins import dynamic
from eff_plugins.dynamic.budget import fingerprint
from eff_plugins.dynamic.choices import Choose, geometric_shares, random_choices
from eff_plugins.dynamic.exits import EarlyExit, ExitPoint, Survivors, fit_thresholds


class Chain(EarlyExit):
    """Three convolutions with a classifier behind each; the third also reads the first one's map."""

    def __init__(self):
        super().__init__(3)
        self.convs = nn.ModuleList(nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 12))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)) for _ in range(3)
        )

    def walk(self, x, alive):
        first = alive.hold(self.convs[0](x).relu())
        yield ExitPoint(self.heads[0], first.value)
        second = alive.hold(self.convs[1](alive.take(first)).relu())
        yield ExitPoint(self.heads[1], second.value)
        both = torch.cat([alive.take(first), alive.take(second)], 1)
        yield ExitPoint(self.heads[2], self.convs[2](both).relu())


@pytest.fixture
def chain():
    torch.manual_seed(0)
    net = Chain().eval()
    for head in net.heads:
        nn.init.normal_(head[2].weight, std=4)
    return net


def test_each_sample_gets_the_logits_of_the_first_exit_that_is_sure(chain):
    x = torch.randn(16, 3, 7, 5)
    with torch.no_grad():
        every = torch.stack(list(chain.anytime(x)), 1)
        sure = every.softmax(2).amax(2)
        chain.policy.thresholds = tuple(map(float, sure[:, :2].quantile(0.5, 0)))
        wanted = [
            0 if s[0] > chain.policy.thresholds[0] else 1 if s[1] > chain.policy.thresholds[1] else 2 for s in sure
        ]
        assert set(wanted) == {0, 1, 2}
        for mode in ('masked', 'sparse'):
            with dynamic.record(chain) as stats:
                out = dynamic.set_execution(chain, mode)(x)
            assert stats.choices()[''].tolist() == wanted
            torch.testing.assert_close(out, every[torch.arange(16), wanted])
        torch.testing.assert_close(dynamic.set_execution(chain, 'dense')(x), every[:, 2])


@pytest.mark.parametrize('kind', ['learned', 'random', 'all', 'none'])
def test_reported_multiply_adds_are_executed_by_every_policy(chain, kind):
    x = torch.randn(8, 3, 6, 6)
    chain.policy.thresholds = (0.9, 0.9)
    dynamic.set_policy(dynamic.set_execution(chain, 'sparse'), kind)
    with dynamic.record(chain) as stats, torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        chain(x)
    assert float(stats.entries[0].macs.sum()) == counter.get_total_flops() / 2
    assert chain(x[:1]).shape == (1, 4)
    assert chain(x[:0]).shape == (0, 4)


def test_a_deadline_bounds_every_sample(chain):
    x = torch.randn(6, 3, 6, 6)
    before = fingerprint(chain)
    chain.policy.max_exit = 1
    assert fingerprint(chain) != before  # a calibration for another deadline spends something else
    for mode in ('masked', 'sparse'):
        with dynamic.record(chain) as stats:
            dynamic.set_execution(chain, mode)(x)
        assert stats.choices()[''].tolist() == [1] * 6
    with pytest.raises(ValueError, match=r'max_exit=3 must lie in 0\.\.2'):
        chain.policy.max_exit = 3


def test_controls_and_their_errors(chain):
    x = torch.randn(10, 3, 6, 6)
    dynamic.set_execution(chain, 'sparse')
    for kind, index, exit_number in (('all', None, 2), ('none', None, 0), ('fixed', 1, 1)):
        dynamic.set_policy(chain, kind, index)
        with dynamic.record(chain) as stats:
            chain(x)
        assert stats.choices()[''].tolist() == [exit_number] * 10
    with pytest.raises(ValueError, match="'fixed' needs an index"):
        dynamic.set_policy(chain, 'fixed')
    with pytest.raises(ValueError, match=r'index=7 must lie in 0\.\.2'):
        dynamic.set_policy(chain, 'fixed', 7)
    with pytest.raises(ValueError, match='must be one of learned, random, all, none, fixed'):
        dynamic.set_policy(chain, 'some')
    with pytest.raises(ValueError, match="policy 'none' has no knob"):
        dynamic.calibrate(dynamic.set_policy(chain, 'none'), [x])


def test_policies_that_share_no_knob_are_refused(chain):
    both = nn.ModuleList([chain, Choose(2)])
    with pytest.raises(ValueError, match='mixes policies that share no knob: Choose, ConfidenceExit'):
        dynamic.calibrate(both, [torch.randn(2, 3, 6, 6)], lambda model, x: model[0](x))


def test_thresholds_spread_a_batch_geometrically():
    confidences = torch.rand(400, 4, generator=torch.Generator().manual_seed(0))
    for shares in (geometric_shares(4, 0.5), geometric_shares(4, 2.0), (0.0, 0.5, 0.0, 0.5)):
        thresholds = fit_thresholds(confidences, shares)
        left = torch.cat([confidences[:, :3] > torch.tensor(thresholds), torch.ones(400, 1, dtype=torch.bool)], 1)
        counts = torch.bincount(left.int().argmax(1), minlength=4)
        assert (counts - 400 * torch.tensor(shares)).abs().max() <= 2
    assert fit_thresholds(confidences, (1.0, 0.0, 0.0, 0.0))[0] == 0.0
    assert fit_thresholds(confidences, (0.0, 0.0, 0.0, 1.0)) == (1.0, 1.0, 1.0)


def test_held_maps_shrink_with_the_batch_and_keep_their_layout():
    alive = Survivors(5, torch.device('cpu'))
    x = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last)
    held = alive.hold(x)
    assert alive.leave(torch.tensor([True, False, False, True, False])).tolist() == [0, 3]
    late = alive.hold(alive.take(held))
    assert alive.leave(torch.tensor([False, True, False])).tolist() == [2]
    assert torch.equal(alive.take(held), x[[1, 4]]) and torch.equal(alive.take(late), x[[1, 4]])
    assert alive.take(held).is_contiguous(memory_format=torch.channels_last)


def test_choices_are_one_hot_lean_towards_the_cheap_and_pass_gradients():
    torch.manual_seed(0)
    choose = Choose(3)
    logits = torch.randn(200, 3, requires_grad=True)
    one_hot = choose.train()(logits)
    (one_hot * torch.tensor([3.0, 2.0, 1.0])).sum().backward()
    assert torch.equal(one_hot.detach().sum(1), torch.ones(200)) and (logits.grad != 0).any(1).all()
    choose.eval()
    spent = []
    for lean in choose.tried([logits.detach()]):
        choose.knob = lean
        spent.append(float((choose(logits.detach()) * torch.tensor([3.0, 2.0, 1.0])).sum(1).mean()))
    assert spent[0] == 3 and spent[-1] == 1 and spent == sorted(spent, reverse=True) and len(set(spent)) > 10
    with pytest.raises(ValueError, match='must have 3 columns'):
        choose(torch.zeros(2, 4))
    with pytest.raises(ValueError, match='count=1 must be at least 2'):
        Choose(1)


def test_random_choices_follow_their_shares_in_one_batch():
    torch.manual_seed(0)
    counts = torch.bincount(random_choices(50, (0.5, 0.3, 0.2), torch.device('cpu')), minlength=3)
    assert (counts - torch.tensor([25, 15, 10])).abs().max() <= 1
    orders = {tuple(random_choices(6, (0.5, 0.5), torch.device('cpu')).tolist()) for _ in range(20)}
    assert len(orders) > 5
