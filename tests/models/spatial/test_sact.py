"""SACT against the paper's algorithm, position by position."""

import pytest
import torch

from eff_plugins import dynamic
from eff_plugins.dynamic.losses import Situation, budget_loss
from eff_plugins.models.image.cifar_resnet import CifarResNet
from eff_plugins.models.spatial.sact import SACT, HaltingStage
from eff_plugins.testing.conformance import varied
from eff_plugins.testing.dynamic_types import DYNAMIC


def stages(net):
    return [(name, module) for name, module in net.named_modules() if isinstance(module, HaltingStage)]


def by_hand(block, stage, x, i, y, z):
    """Output and ponder cost at one position, from states in which halted positions keep theirs."""
    blocks, epsilon = (block, *stage._others), stage.decide.threshold
    states, scores, going = [x], [], torch.ones_like(x[:, :1])
    total = torch.zeros_like(going)
    for each, halting in zip(blocks, stage.halting, strict=True):
        scores.append(torch.sigmoid(halting(states[-1])))
        total = total + scores[-1]
        going = going * (1 - total > epsilon)
        states.append(each.act(states[-1] + each.run_branch(states[-1]) * going))
    out, spent = 0, 0.0
    for n, state in enumerate(states):
        score = float(scores[n][i, 0, y, z]) if n < len(scores) else 1.0
        if spent + score >= 1 - epsilon:
            return out + state[i, :, y, z] * (1 - spent), n + 1 + (1 - spent)
        out, spent = out + state[i, :, y, z] * score, spent + score
    raise AssertionError('the last state takes what is left')


def test_a_stage_is_what_the_paper_computes_at_each_position():
    torch.manual_seed(0)
    net = dynamic.set_execution(SACT(CifarResNet(26)).eval(), 'masked')
    for name, stage in stages(net):
        for halting in stage.halting:
            torch.nn.init.normal_(halting.conv.weight, std=0.5)
            halting.fc.bias.data.fill_(-0.5)
        block = net.get_submodule(name.removesuffix('.dynamic'))
        x = torch.randn(2, halting.fc.in_features, 5, 6).relu()
        with dynamic.record(net) as stats, torch.no_grad():
            out = stage(block, x.clone())
            hand = [[[by_hand(block, stage, x, i, y, z) for z in range(6)] for y in range(5)] for i in range(2)]
        want = torch.stack([torch.stack([torch.stack([p[0] for p in row], 1) for row in s], 1) for s in hand])
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
        ponder = torch.tensor([[[p[1] for p in row] for row in s] for s in hand]).flatten(1).mean(1)
        torch.testing.assert_close(stats.entries[0].ponder, ponder, rtol=1e-4, atol=1e-4)
        assert 1.1 < float(ponder.mean()) < 4.9


def test_the_ponder_cost_pulls_towards_an_early_halt():
    net = dynamic.set_execution(SACT(CifarResNet(20)), 'masked').train()
    with dynamic.record(net) as stats:
        net(torch.randn(2, 3, 32, 32))
    situation = Situation(stats.share(1e8), 0.5, list(stats.densities().values()), 0.5, 1.0, stats.ponders())
    assert len(situation.ponders) == 3
    budget_loss(dict(ponder=1.0), situation)['loss_budget_ponder'].backward()
    biases = [halting.fc.bias.grad for _, stage in stages(net) for halting in stage.halting]
    assert all(float(grad) < 0 for grad in biases)  # a step against the gradient raises the scores
    with pytest.raises(ValueError, match=r'gap has no gradient .* losses=dict\(ponder='):
        budget_loss(dict(gap=1.0), situation)


def test_the_ponder_cost_needs_a_network_that_halts():
    share = torch.tensor(0.5)
    with pytest.raises(ValueError, match="'ponder' is for networks that halt"):
        budget_loss(dict(ponder=1.0), Situation(share, 0.1, [share], 0.5))


def test_positions_never_come_back():
    net, x = varied(DYNAMIC['SACT'])
    seen = {}
    for name, stage in stages(net):
        stage.decide.register_forward_hook(lambda m, a, on, name=name: seen.setdefault(name, []).append(on))
    with torch.no_grad(), dynamic.record(dynamic.set_execution(net, 'sparse')) as stats:
        net(x)
    entry = next(entry for entry in stats.entries if entry.name == 'layer3.1.dynamic')
    share = torch.stack(seen['layer3.1.dynamic']).cumprod(0).mean(0)
    assert torch.equal(entry.mask, share) and 0 < float(share.mean()) < 1


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r'epsilon=1 must lie in \[0, 1\)'):
        SACT(CifarResNet(14), epsilon=1)
    with pytest.raises(ValueError, match='no stage of two or more residual blocks'):
        SACT(CifarResNet(8))
    with pytest.raises(TypeError, match='SqueezeExcite in a residual branch'):
        SACT(dict(type='eff_plugins.InvertedResidualNet', arch='efficientnet_b0'))
