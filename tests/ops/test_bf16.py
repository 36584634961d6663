"""The native kernels on bf16 maps, alone and under autocast: what fp32 gives, up to rounding."""

from math import log2

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eff_plugins.dynamic.break_even import key_of
from eff_plugins.ops import native
from eff_plugins.ops.block_conv import Borders, conv_blocks, max_pool_blocks
from eff_plugins.ops.branch import NativeBranch
from eff_plugins.ops.dense import PackedConv2d
from eff_plugins.ops.dual import DualGrid, Window
from eff_plugins.ops.interpolate import add_interpolated
from eff_plugins.ops.native import kernels, kernels_for, levels_of
from eff_plugins.ops.plan import Chain
from eff_plugins.ops.rows import ACTIVATIONS, RowConv, conv2d_rows, run_rows
from eff_plugins.ops.scores import conv_scores, patch_scores

LOW = torch.bfloat16
# No kernels, then each level that has some of its own for bf16.
every_level = pytest.mark.parametrize('instruction_set', [None, *levels_of(LOW)], indirect=True)
every_native = pytest.mark.parametrize('instruction_set', levels_of(LOW), indirect=True)


def near(got, want, times=1):
    """``got`` in bf16 is ``want`` in fp32, rounded so many times to 8 bits."""
    assert got.dtype == LOW
    assert (got.float() - want).abs().max() <= times * 2**-8 * want.abs().max()


def rounded(*shape):
    """Values that bf16 holds, in fp32."""
    return torch.randn(shape).to(LOW).float()


def filters_of(count, channels, kernel):
    """Weights that bf16 holds, for outputs about as large as the inputs."""
    return rounded(count, channels, kernel, kernel) * 2.0 ** -round(log2(channels * kernel**2) / 2)


def maps(*shape):
    return rounded(*shape).contiguous(memory_format=torch.channels_last)


def low(tensor):
    return tensor.to(LOW).contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.to(LOW)


# inputs, filters, kernel, stride, dilation, groups: of whole and of broken tiles, of one and of several
LAYERS = {
    'pointwise': (64, 64, 1, 1, 1, 1),
    'narrow': (3, 5, 1, 1, 1, 1),
    '3x3': (32, 32, 3, 1, 1, 1),
    'odd 3x3': (13, 45, 3, 1, 1, 1),
    'strided': (128, 70, 3, 2, 1, 1),
    'dilated': (16, 33, 3, 1, 2, 1),
    'wide': (256, 100, 3, 1, 1, 1),
    'more weights than a cache holds': (300, 200, 3, 1, 1, 1),
    'depthwise': (37, 37, 3, 1, 1, 37),
    'depthwise 5x5': (16, 16, 5, 2, 1, 16),
}


@every_level
@pytest.mark.parametrize('name', LAYERS)
def test_rows(name, instruction_set):
    torch.manual_seed(0)
    act = [*ACTIVATIONS][[*LAYERS].index(name) % len(ACTIVATIONS)]
    inputs, filters, kernel, stride, dilation, groups = LAYERS[name]
    weight, bias = filters_of(filters, inputs // groups, kernel), rounded(filters)
    spacing = ((stride,) * 2, (kernel // 2 * dilation,) * 2, (dilation,) * 2, groups)
    x = maps(2, inputs, 15, 11)
    whole = F.conv2d(x, weight, bias, *spacing)
    residual, scale = maps(*whole.shape), rounded(2, 1, *whole.shape[2:])
    rows = torch.randperm(whole[:, 0].numel())[: 2 * whole[:, 0].numel() // 3].sort().values
    conv = RowConv(low(weight), low(bias), *spacing, act)
    factors = scale if groups == 1 else None  # no kernel scales a depthwise convolution
    for added, factor in ((None, None), (residual, None), (residual, factors)):
        want = whole if factor is None else whole * factor
        want = want if added is None else want + added
        want = ACTIVATIONS[act](want)
        out = low(torch.full_like(whole, 7.0))
        got = conv2d_rows(low(x), conv, rows, out, *(None if t is None else low(t) for t in (added, factor)))
        flat = got.permute(0, 2, 3, 1).flatten(0, 2)
        near(flat[rows], want.permute(0, 2, 3, 1).flatten(0, 2)[rows], 1 if instruction_set else 4)
        untouched = torch.ones(len(flat), dtype=torch.bool)
        untouched[rows] = False
        assert (flat[untouched] == 7).all()
    served = kernels_for(low(x))
    assert (served is not None) == (instruction_set is not None) and len(conv._packed) == (served is not None)


@every_native
@pytest.mark.parametrize('count', [1, 15, 16, 17, 32, 33, 64, 100])
def test_rows_of_any_number(count, instruction_set):
    torch.manual_seed(0)
    x, weight, bias = maps(1, 40, 10, 10), filters_of(48, 40, 3), rounded(48)
    out = conv2d_rows(
        low(x), RowConv(low(weight), low(bias), padding=(1, 1)), torch.arange(count), low(torch.zeros(1, 48, 10, 10))
    )
    want = F.conv2d(x, weight, bias, padding=1).permute(0, 2, 3, 1).flatten(0, 2)
    got = out.permute(0, 2, 3, 1).flatten(0, 2)
    near(got[:count], want[:count])
    assert (got[count:] == 0).all()


@every_native
def test_values_that_are_no_numbers_stay_so(instruction_set):
    x = low(torch.ones(1, 32, 4, 8))
    x[0, 0, 0, 0], x[0, 0, 0, 1] = float('nan'), float('inf')
    conv = RowConv(low(torch.ones(32, 32, 1, 1)), low(torch.zeros(32)))
    out = conv2d_rows(x, conv, torch.arange(32), torch.zeros_like(x))
    assert out[0, :, 0, 0].isnan().all() and out[0, :, 0, 1].isinf().all() and (out[0, :, 0, 2:] == 32).all()


@every_native
@pytest.mark.parametrize('threads', [1, 2])
def test_a_branch(threads, instruction_set):
    torch.manual_seed(0)
    sizes = [(24, 40, 1), (40, 40, 3), (40, 24, 1)]
    convs = [RowConv(low(filters_of(n, c, k)), low(rounded(n)), padding=(k // 2,) * 2, act='relu') for c, n, k in sizes]
    chain, x, scores = Chain(convs), maps(2, 24, 16, 12), rounded(2, 1, 4, 3)
    want = x
    for conv in convs[:-1]:
        want = low(F.conv2d(want, conv.weight.float(), conv.bias.float(), padding=conv.padding).relu()).float()
    want = (F.conv2d(want, convs[-1].weight.float(), convs[-1].bias.float()) + x).relu()
    on = (scores > 0.3).float().repeat_interleave(4, 2).repeat_interleave(4, 3) > 0
    before, out = torch.get_num_threads(), low(x).clone(memory_format=torch.channels_last)
    try:
        torch.set_num_threads(threads)
        branch = NativeBranch(kernels(dtype=LOW), chain, None)
        count = branch.run(low(x), low(scores), 0.3, (4, 4), lambda *_: 1.1, None, out)
    finally:
        torch.set_num_threads(before)
    assert count == int(on.sum())
    near(torch.where(on, out, 0), torch.where(on, want, 0.0))
    assert torch.equal(torch.where(on, 0, out), torch.where(on, 0, low(x)))


@every_native
def test_a_threshold_is_what_bf16_makes_of_it(instruction_set):
    x, conv = low(torch.ones(1, 8, 4, 4)), RowConv(low(torch.ones(8, 8, 1, 1)), low(torch.zeros(8)))
    branch = NativeBranch(kernels(dtype=LOW), Chain([conv, conv]), None)
    scores = torch.full((1, 1, 1, 1), 0.3, dtype=LOW)  # 0.30078, and so is the threshold
    assert branch.run(x, scores, 0.3, (4, 4), lambda *_: 1.1, None, x.clone()) == 0


@every_level
@pytest.mark.parametrize('channels', [3, 16, 70])
def test_scores(channels, instruction_set):
    torch.manual_seed(0)
    x, weight, bias = maps(2, channels, 19, 13), rounded(1, channels, 3, 3), rounded(1)
    near(conv_scores(low(x), low(weight), None, low(bias), 1), F.conv2d(x, weight, bias, padding=1))
    means = F.avg_pool2d(x, 4, ceil_mode=True, count_include_pad=False)
    point = rounded(1, channels, 1, 1)
    want = F.conv2d(means, point, bias)
    got = patch_scores(low(x), low(point), low(bias), 4)
    assert got.dtype == LOW and (got.float() - want).abs().max() < 0.05  # torch rounds the means, too


@every_level
def test_interpolation(instruction_set):
    torch.manual_seed(0)
    sampled, residual, kernel = maps(2, 21, 9, 7), maps(2, 21, 9, 7), rounded(1, 1, 3, 3).abs()
    on = (torch.rand(2, 1, 9, 7) < 0.5).float()
    want = add_interpolated(sampled.double(), on.double(), kernel.double(), residual.double(), 'relu').float()
    got = add_interpolated(low(sampled), low(on), low(kernel), low(residual), 'relu')
    assert got.dtype == LOW and (got.float() - want).abs().max() < 0.05


@every_level
def test_blocks(instruction_set):
    torch.manual_seed(0)
    high = torch.tensor([[[True, False], [False, True]]])
    grid = DualGrid(high, (16, 16), 8)
    pool, window = grid.split(maps(1, 24, 16, 16)), Window((3, 3), 1, (1, 1))
    borders = Borders(grid, 0, window)
    weight, bias = filters_of(40, 24, 3), rounded(40)
    pool = pool.to(LOW).float()
    want = conv_blocks(pool.double(), weight.double(), bias.double(), borders, act='relu').float()
    near(conv_blocks(pool.to(LOW), low(weight), low(bias), borders, act='relu'), want, 2)  # means are rounded
    largest = max_pool_blocks(pool.double(), (3, 3), (1, 1), borders).float()
    near(max_pool_blocks(pool.to(LOW), (3, 3), (1, 1), borders), largest)


@every_native
def test_autocast_takes_the_same_kernels(instruction_set):
    torch.manual_seed(0)
    x, conv = maps(1, 32, 9, 9), RowConv(filters_of(32, 32, 3), rounded(32), padding=(1, 1))
    want = F.conv2d(x, conv.weight, conv.bias, padding=1)
    rows, out = torch.arange(81, dtype=torch.int32), low(torch.zeros(1, 32, 9, 9))
    with torch.autocast('cpu', LOW), torch.no_grad():
        assert kernels_for(x) is None  # another type than asked for
        assert kernels_for(out).dtype == LOW
        assert 'bfloat16' in key_of(conv, (9, 9), True)
        near(run_rows(low(x), conv, rows, out), want)
        with FlopCounterMode(display=False) as counter:
            near(run_rows(low(x), conv, rows, torch.zeros_like(out)), want)
    assert counter.get_total_flops() == 2 * 81 * conv.weight.numel()


@pytest.mark.parametrize('instruction_set', [None], indirect=True)
def test_counting_under_autocast_needs_no_kernels(instruction_set):
    x, conv = low(maps(1, 8, 4, 4)), RowConv(rounded(8, 8, 1, 1), rounded(8))
    with torch.autocast('cpu', LOW), torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = run_rows(x, conv, torch.arange(5, dtype=torch.int32), torch.zeros_like(x))
    assert counter.get_total_flops() == 2 * 5 * 64 and out.dtype == LOW


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason='oneDNN has no bf16 for this processor')
@pytest.mark.parametrize('autocast', [False, True])
def test_whole_convolutions_are_packed(autocast):
    torch.manual_seed(0)
    conv, x, residual = nn.Conv2d(64, 128, 3, padding=1), maps(1, 64, 40, 40), maps(1, 128, 40, 40)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.to(LOW))
        conv.bias.copy_(conv.bias.to(LOW))
        want = F.relu(conv(x) + residual)
        packed = PackedConv2d(conv if autocast else conv.to(LOW))
        with torch.autocast('cpu', LOW, enabled=autocast):
            given = x if autocast else low(x)
            for _ in range(2):
                near(packed.fused(given, 'relu', low(residual)), want)
        assert len(packed._packed) == 1


def test_without_bf16_in_the_processor_there_are_no_kernels_for_it(monkeypatch):
    if native.compiler() is None:
        pytest.skip('no C++ compiler')
    monkeypatch.delenv('EFF_PLUGINS_NATIVE', raising=False)
    native._kernels.cache_clear()
    best = native._best(native._library())
    try:
        for had, level in enumerate(native.LEVELS[: best + 1]):
            monkeypatch.setattr(native, '_best', lambda _, had=had: had)
            native._kernels.cache_clear()
            found = kernels(dtype=LOW)
            assert (found.name if found else None) == (f'{level}_bf16' if level in ('avx512bf16', 'amx') else None)
    finally:
        native._kernels.cache_clear()
