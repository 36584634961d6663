"""A branch in one native call: what its layers give one by one, at the rows that a plan names."""

import pytest
import torch

from eff_plugins.ops.branch import NativeBranch
from eff_plugins.ops.native import kernels, levels_of
from eff_plugins.ops.plan import Chain, other_rows, plan_rows
from eff_plugins.ops.rows import RowConv, conv2d_rows

pytestmark = pytest.mark.parametrize('instruction_set', levels_of(torch.float32), indirect=True)


def _conv(inputs, filters, kernel=1, stride=1, groups=1, act='relu'):
    weight = torch.randn(filters, inputs // groups, kernel, kernel)
    return RowConv(weight, torch.randn(filters), (stride,) * 2, (kernel // 2,) * 2, groups=groups, act=act)


# The convolutions of a branch on 12 channels, and its shortcut's filters, where it has a convolution there.
BRANCHES = {
    'bottleneck': ([dict(filters=8), dict(filters=8, kernel=3), dict(filters=12)], None),
    'projection': ([dict(filters=8), dict(filters=8, kernel=3, stride=2), dict(filters=20)], 20),
    'inverted residual': ([dict(filters=24), dict(filters=24, kernel=5, groups=24), dict(filters=12, act=None)], None),
    'basic': ([dict(filters=9, kernel=3), dict(filters=12, kernel=3)], None),
    'one layer': ([dict(filters=12, kernel=3)], None),
}


def _case(name, batch=2):
    torch.manual_seed(0)
    layers, filters = BRANCHES[name]
    convs, inputs = [], 12
    for layer in layers:
        convs.append(_conv(inputs, **layer))
        inputs = layer['filters']
    chain = Chain(convs)
    stride = convs[-2].stride[0] if filters else 1
    plain = filters and _conv(12, filters, stride=stride, act=None)
    shortcut = plain and (plain, RowConv(plain.weight, plain.bias, plain.stride, act='relu'))
    x = torch.randn(batch, 12, 11, 14).contiguous(memory_format=torch.channels_last)
    size = chain.sizes((11, 14))[-1]
    out = torch.randn(batch, inputs, *size).contiguous(memory_format=torch.channels_last)
    scores = torch.randn(batch, 1, *(-(-n // 3) for n in size))
    return x, chain, shortcut, out, scores


def _one_by_one(x, chain, shortcut, out, rows):
    if shortcut:
        conv2d_rows(x, shortcut[0], rows[-1], out)
        conv2d_rows(x, shortcut[1], other_rows(rows[-1], out[:, 0].numel()), out)
    for conv, listed, size in zip(chain.convs[:-1], rows, chain.sizes((11, 14))[1:], strict=False):
        shape = (len(x), conv.filters, *size)
        x = conv2d_rows(x, conv, listed, torch.zeros(shape).contiguous(memory_format=torch.channels_last))
    return conv2d_rows(x, chain.convs[-1], rows[-1], out, out)


@pytest.fixture
def native(instruction_set):
    return kernels()


@pytest.mark.parametrize('name', BRANCHES)
def test_equals_its_layers_one_by_one(name, native):
    x, chain, shortcut, out, scores = _case(name)
    rows = plan_rows(scores > 0.3, (3, 3), chain, (11, 14))
    want = _one_by_one(x, chain, shortcut, out.clone(), rows)
    branch = NativeBranch(native, chain, shortcut)
    for _ in range(2):  # with fresh memory, then with what the first call left there
        got = out.clone(memory_format=torch.channels_last)
        count = branch.run(x, scores, 0.3, (3, 3), lambda *_: 1.1, None, got)
        assert count == len(rows[-1]) > 0
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['bottleneck', 'projection', 'basic'])
def test_nothing_is_done_where_nothing_is_chosen_or_a_layer_is_better_computed_whole(name, native):
    x, chain, shortcut, out, scores = _case(name)
    before = out.clone()
    branch = NativeBranch(native, chain, shortcut)
    assert branch.run(x, scores, float(scores.max()), (3, 3), lambda *_: 1.1, None, out) == 0
    places = [2 * height * width for height, width in chain.sizes((11, 14))[1:]]
    first = len(plan_rows(scores > 0.3, (3, 3), chain, (11, 14))[0]) / places[0]
    assert branch.run(x, scores, 0.3, (3, 3), lambda layer, _: 1.1 if layer else first, 'at it', out) == -1
    assert torch.equal(out, before)
    assert branch.run(x, scores, 0.3, (3, 3), lambda layer, _: 1.1 if layer else first + 1e-3, 'above it', out) > 0


def test_a_threshold_is_compared_as_fp32_has_it(native):
    x, chain, _, out, scores = _case('bottleneck')
    scores.fill_(0.3)  # a little more than 0.3 in double precision
    assert NativeBranch(native, chain, None).run(x, scores, 0.3, (3, 3), lambda *_: 1.1, None, out) == 0
