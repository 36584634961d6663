"""SFSI's interpolation, position by position."""

import math

import pytest
import torch

from eff_plugins import dynamic
from eff_plugins.dynamic.residual import residual_blocks
from eff_plugins.dynamic.rows import PreparedBranch
from eff_plugins.models.image.cifar_resnet import CifarResNet
from eff_plugins.models.image.resnet import ResNet
from eff_plugins.models.spatial.sfsi import SFSI, Kernel
from eff_plugins.testing.conformance import build, varied
from eff_plugins.testing.dynamic_types import DYNAMIC


def gate(window=5, grid=4):
    net = build(lambda: SFSI(CifarResNet(8), window=window, grid=grid))
    block = net.stages[0][0]
    block.dynamic.kernel.inverse_width.data.fill_(0.7)
    block.dynamic.decide.threshold = 0.5
    return block


@pytest.mark.parametrize('execution', ['masked', 'sparse'])
def test_values_between_samples_are_their_weighted_mean(execution):
    block = gate()
    x = torch.randn(2, 16, 9, 7).relu()
    dynamic.set_execution(block, execution)
    with torch.no_grad(), dynamic.record(block) as stats:
        out = block(x.clone())
        branch = block.run_branch(x)
    on = stats.entries[0].mask[:, 0] > 0
    assert 0.1 < float(on.float().mean()) < 0.9
    want = torch.zeros_like(branch)
    for i in range(2):
        for y in range(9):
            for z in range(7):
                near = [(a, b) for a in range(9) for b in range(7) if on[i, a, b] and max(abs(a - y), abs(b - z)) <= 2]
                if on[i, y, z]:
                    near = [(y, z)]
                weights = [math.exp(-(0.7**2) * ((a - y) ** 2 + (b - z) ** 2) / 2) for a, b in near]
                total = sum(w * branch[i, :, a, b] for w, (a, b) in zip(weights, near, strict=True))
                want[i, :, y, z] = total / sum(weights) if near else 0.0
    torch.testing.assert_close(out, (x + want).relu(), rtol=1e-4, atol=1e-5)


def test_the_grid_is_sampled_even_where_nothing_else_is():
    block = dynamic.set_policy(gate(), 'none')
    with torch.no_grad(), dynamic.record(dynamic.set_execution(block, 'sparse')) as stats:
        block(torch.randn(1, 16, 9, 7))
    where = stats.entries[0].mask[0, 0].nonzero().tolist()
    assert where == [[2, 2], [2, 6], [6, 2], [6, 6]]
    assert block.dynamic.grid_of((1, 3), torch.device('cpu')).sum() == 1


@pytest.mark.parametrize('limit', [0.9, 1.1])
def test_with_everything_sampled_nothing_is_computed_twice(limit, monkeypatch):
    monkeypatch.setattr(PreparedBranch, 'limit', lambda self, layer, size: limit)
    torch.manual_seed(0)
    net, x = build(lambda: SFSI(ResNet(18, avg_down=True, base_channels=8))).eval(), torch.randn(1, 3, 64, 64)
    dynamic.set_policy(dynamic.set_execution(net, 'sparse'), 'all')
    kind = type(next(block for _, block in residual_blocks(net)))
    run, computed = kind.run_shortcut, []

    def watched(block, x):
        y = run(block, x)
        computed.extend([] if y is x else [block])
        return y

    monkeypatch.setattr(kind, 'run_shortcut', watched)
    with torch.no_grad():
        got = net(x)
        assert len(computed) == len(set(computed)) == 3
        want = dynamic.set_execution(net, 'dense')(x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_width_that_changes_in_place_is_used():
    block = gate()
    dynamic.set_execution(block, 'sparse')
    with torch.inference_mode():
        x = torch.randn(2, 16, 9, 7).relu()
        block(x.clone())
    with torch.no_grad():
        block.dynamic.kernel.inverse_width.mul_(2)
        got = block(x.clone())
        want = dynamic.set_execution(block, 'masked')(x.clone())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_narrow_kernel_has_bounded_gradients():
    net, x = varied(DYNAMIC['SFSI'])
    for module in net.modules():
        if isinstance(module, Kernel):
            module.inverse_width.data.fill_(4.0)
    dynamic.set_execution(net, 'masked').train()
    torch.manual_seed(0)
    sum(y.square().mean() for y in net(x)).backward()
    norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
    assert float(norm) < 1e6


def test_the_width_is_learned():
    block = dynamic.set_execution(gate(), 'masked').train()
    torch.manual_seed(0)
    block(torch.randn(2, 16, 9, 7).relu()).square().mean().backward()
    assert abs(float(block.dynamic.kernel.inverse_width.grad)) > 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [(dict(window=4), 'window=4 must be odd'), (dict(window=1), 'window=1'), (dict(grid=0), 'grid=0 must be')],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SFSI(CifarResNet(8), **options)
