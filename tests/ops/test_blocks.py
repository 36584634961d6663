"""SBNet's gather and scatter, and blocks of two resolutions, against plain loops and plain convolutions."""

import pytest
import torch
import torch.nn.functional as F

from eff_plugins.ops.block_conv import Borders, conv_blocks, conv_picture, max_pool_blocks
from eff_plugins.ops.blocks import BlockGrid, active_blocks, gather_blocks, scatter_blocks
from eff_plugins.ops.dual import DualGrid, Window, halve
from eff_plugins.ops.native import kernels

GRIDS = [BlockGrid((4, 4)), BlockGrid((5, 3), (4, 2), (-1, 1)), BlockGrid((3, 6), (3, 4), (0, -2))]


def picture(batch=2, channels=3, size=(13, 10), seed=0, channels_last=True):
    x = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def cut(x, block, grid):
    """One block by slices of a widely padded map."""
    wide = F.pad(x, (20, 20, 20, 20))
    b, i, j = block.tolist()
    top, left = (20 + grid.offset[a] + n * grid.steps[a] for a, n in ((0, i), (1, j)))
    return wide[b, :, top : top + grid.size[0], left : left + grid.size[1]]


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('average', [False, True])
def test_active_blocks_are_those_that_the_mask_touches(grid, average):
    mask = (torch.rand(2, 1, 13, 10, generator=torch.Generator().manual_seed(1)) > 0.93).float()
    found = active_blocks(mask, grid, 0.05, average)
    wanted = []
    high, wide = grid.counts(13, 10)
    for b in range(2):
        for i in range(high):
            for j in range(wide):
                here, inside = (cut(m, torch.tensor([b, i, j]), grid) for m in (mask, torch.ones_like(mask)))
                value = here.sum() / inside.sum() if average else here.max()
                if inside.any() and value > 0.05:
                    wanted.append([b, i, j])
    assert found.tolist() == wanted and 0 < len(wanted) < 2 * high * wide


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('channels_last', [False, True])
def test_gather_cuts_blocks_and_scatter_puts_them_back(grid, channels_last):
    x = picture(channels_last=channels_last).requires_grad_()
    high, wide = grid.counts(13, 10)
    every = torch.cartesian_prod(torch.arange(2), torch.arange(high), torch.arange(wide))
    blocks = every[::2]
    taken = gather_blocks(x, blocks, grid)
    reference = torch.stack([cut(x, block, grid) for block in blocks])
    assert torch.equal(taken, reference) and taken.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn(taken.shape)
    (ours,) = torch.autograd.grad((taken * weight).sum(), x)
    (wanted,) = torch.autograd.grad((reference * weight).sum(), x)
    torch.testing.assert_close(ours, wanted)
    # adding zero to what every block covers, counted
    out = torch.zeros_like(x.detach())
    with torch.no_grad():
        again = scatter_blocks(torch.ones_like(taken), blocks, grid, out, add=True)
    (count,) = torch.autograd.grad(torch.stack([cut(x, block, grid) for block in blocks]).sum(), x)
    assert again is out and torch.equal(out, count)
    values, base = weight.requires_grad_(), torch.randn(x.shape).requires_grad_()
    result = scatter_blocks(values, blocks, grid, base, add=True)
    result.square().sum().backward()
    torch.testing.assert_close(base.grad, 2 * result.detach())
    torch.testing.assert_close(values.grad, gather_blocks(2 * result.detach(), blocks, grid))


def test_replacing_leaves_the_rest_and_no_block_is_fine():
    x, grid = picture(), BlockGrid((4, 4))
    blocks = active_blocks(torch.ones(2, 1, 13, 10), grid)[1::3]
    out = torch.full_like(x, 7.0)
    scatter_blocks(gather_blocks(x, blocks, grid), blocks, grid, out)
    on = torch.zeros_like(x)
    scatter_blocks(torch.ones(len(blocks), 3, 4, 4), blocks, grid, on)
    assert torch.equal(out, torch.where(on > 0, x, torch.tensor(7.0)))
    none = active_blocks(torch.zeros(2, 13, 10), grid)
    assert none.shape == (0, 3) and gather_blocks(x, none, grid).shape == (0, 3, 4, 4)
    assert torch.equal(scatter_blocks(torch.zeros(0, 3, 4, 4), none, grid, x.clone()), x)
    base, values = x.clone().requires_grad_(), torch.ones(len(blocks), 3, 4, 4, requires_grad=True)
    assert torch.equal(scatter_blocks(values, blocks, grid, base), torch.where(on > 0, on, x))


def test_bad_blocks_are_refused():
    x, grid = picture(), BlockGrid((4, 4))
    with pytest.raises(IndexError, match=r'outside of the grid of \[2, 4, 3\]'):
        gather_blocks(x, torch.tensor([[0, 4, 0]]), grid)
    with pytest.raises(ValueError, match=r'as \(N, 3\) of int64'):
        gather_blocks(x, torch.tensor([[0, 1]]), grid)
    with pytest.raises(ValueError, match=r'it must be \(1, 3, 4, 4\)'):
        scatter_blocks(torch.zeros(1, 3, 4, 5), torch.tensor([[0, 1, 1]]), grid, x)
    with pytest.raises(ValueError, match='at least 1 both ways'):
        BlockGrid((4, 0))
    with pytest.raises(ValueError, match='mask is'):
        active_blocks(x, grid)


# blocks of two resolutions


def decided(size=(50, 41), block=16, batch=2, seed=3):
    cells = (-(-size[0] // block), -(-size[1] // block))
    high = torch.rand(batch, *cells, generator=torch.Generator().manual_seed(seed)) > 0.5
    return DualGrid(high, size, block), high


def spread(high, block, size):
    """Decisions as a map of pixels (B, 1, H, W)."""
    return high[:, None].float().repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, : size[0], : size[1]]


def double(x, size):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]


@pytest.mark.parametrize('size', [(48, 64), (50, 41), (33, 17), (7, 9)])
def test_splitting_and_combining(size):
    grid, high = decided(size)
    x = picture(2, 5, size)
    low = double(halve(x), size)
    wanted = torch.where(spread(high, 16, size) > 0, x, low)
    pool = grid.split(x)
    assert pool.shape == (1, 5, 1, grid.count(0)) == (1, 5, 1, int(grid.pixels(0).sum()))
    assert torch.equal(grid.combine(pool, 0), wanted)


@pytest.mark.parametrize('size', [(48, 64), (50, 41), (33, 17)])
@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding'), [(3, 1, (1, 1)), (5, 2, (2, 2)), (3, 2, None), (1, 2, (0, 0)), ((1, 3), 1, (0, 1))]
)
def test_block_padding_is_a_convolution_over_mixed_whole_maps(size, kernel, stride, padding):
    """Each resolution as a whole map, the other one resampled in where its blocks lie, convolved plainly."""
    grid, high = decided(size)
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    window = Window(kernel, stride, padding)
    x = picture(2, 4, size).requires_grad_()
    weight = torch.randn(6, 4, *kernel, generator=torch.Generator().manual_seed(5))
    pool = grid.split(x)
    taken = [F.conv2d(gather(pool), weight, stride=stride) for gather in grid.gathers(0, window)]
    rows = torch.cat([y.permute(0, 2, 3, 1).reshape(-1, 6) for y in taken])
    level = stride.bit_length() - 1
    ours = grid.combine(rows.t()[None, :, None], level)
    on = spread(high, 16, size)
    small = spread(high, 8, grid.map_size(0, True))
    fine = torch.where(on > 0, x, double(halve(x), size))
    coarse = torch.where(small > 0, halve(fine), halve(x))
    results = []
    for whole in (fine, coarse):
        top, left = window.before(whole.shape[2:])
        padded = F.pad(whole, (left, kernel[1], top, kernel[0]))
        out = [-(-n // stride) for n in whole.shape[2:]]
        results.append(F.conv2d(padded, weight, stride=stride)[:, :, : out[0], : out[1]])
    out_size = grid.map_size(level)
    chosen = spread(high, 16 // stride, out_size)
    wanted = torch.where(chosen > 0, results[0], double(results[1], out_size))
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    seed = torch.randn(ours.shape)
    got, reference = (torch.autograd.grad((y * seed).sum(), x)[0] for y in (ours, wanted))
    torch.testing.assert_close(got, reference, rtol=1e-4, atol=1e-4)


def test_decisions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r'it must be \(B, 4, 3\) of booleans'):
        DualGrid(torch.ones(2, 3, 3, dtype=torch.bool), (50, 41), 16)
    grid, _ = decided()
    with pytest.raises(ValueError, match=r'block_size=16 must be a multiple of 32'):
        grid.level(4)


needs_native = pytest.mark.skipif(kernels() is None, reason='no C++ compiler')
WINDOWS = [
    (3, 1, (1, 1), 1),
    (3, 2, (1, 1), 1),
    (5, 2, None, 1),
    (3, 1, (2, 2), 2),
    (1, 2, (0, 0), 1),
]


@needs_native
@pytest.mark.parametrize('size', [(64, 96), (50, 41), (33, 17)])
@pytest.mark.parametrize(('kernel', 'stride', 'padding', 'dilation'), WINDOWS)
@pytest.mark.parametrize(('channels', 'depthwise'), [(19, False), (48, False), (19, True), (50, True)])
def test_the_native_kernels_compute_what_the_reference_does(
    size, kernel, stride, padding, dilation, channels, depthwise
):
    """The reference runs where something needs a gradient."""
    grid, _ = decided(size, seed=7)
    spread_kernel = (kernel - 1) * dilation + 1
    borders = Borders(grid, 0, Window((spread_kernel, spread_kernel), stride, padding))
    pool = grid.split(picture(2, channels, size))
    groups, filters = (channels, channels) if depthwise else (1, 21)
    weight = torch.randn(filters, channels // groups, kernel, kernel, generator=torch.Generator().manual_seed(1))
    residual = torch.randn(1, 1, grid.count(stride - 1), filters).permute(0, 3, 1, 2)
    for bias, act, rest in ((None, None, None), (torch.randn(filters), 'relu6', residual)):
        with torch.no_grad():
            ours = conv_blocks(pool, weight, bias, borders, (dilation, dilation), groups, act, rest)
        watched = pool.clone(memory_format=torch.channels_last).requires_grad_()
        wanted = conv_blocks(watched, weight, bias, borders, (dilation, dilation), groups, act, rest)
        assert wanted.requires_grad
        torch.testing.assert_close(ours, wanted.detach(), rtol=1e-4, atol=1e-4)
    if not depthwise:
        ours = max_pool_blocks(pool, (kernel, kernel), (dilation, dilation), borders)
        wanted = max_pool_blocks(watched, (kernel, kernel), (dilation, dilation), borders)
        torch.testing.assert_close(ours, wanted.detach())
    whole, reference = grid.combine(ours, stride - 1), grid.combine(wanted, stride - 1)
    torch.testing.assert_close(whole, reference.detach(), rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize('size', [(64, 96), (50, 41), (7, 9)])
@pytest.mark.parametrize(('kernel', 'padding'), [(7, (3, 3)), (3, (1, 1)), (3, None)])
def test_the_first_layer_reads_the_picture(size, kernel, padding):
    grid, _ = decided(size, seed=4)
    x, window = picture(2, 3, size), Window((kernel, kernel), 2, padding)
    weight, bias = torch.randn(20, 3, kernel, kernel), torch.randn(20)
    ours = conv_picture(x, weight, bias, grid, window, act='relu')
    wanted = conv_picture(x, weight.requires_grad_(), bias, grid, window, act='relu')
    torch.testing.assert_close(ours, wanted.detach(), rtol=1e-4, atol=1e-4)
