"""Plans: what each convolution of a chain has to compute, natively, in plain torch and as differentiable masks."""

import pytest
import torch
from torch import nn

from eff_plugins.ops import plan as plan_module
from eff_plugins.ops.plan import Chain, plan_rows, rows_above, spread, spread_needed
from eff_plugins.ops.rows import RowConv

# kernel, stride, padding, dilation
LAYERS = [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2), (1, 2, 0, 1), (5, 2, 2, 1)]


@pytest.mark.parametrize('seed', range(25))
def test_native_plain_and_masks_agree(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, count):
        return torch.randint(low, high, (count,), generator=generator).tolist()

    layers = [nn.Conv2d(4, 4, *LAYERS[i]) for i in draw(0, len(LAYERS), 3)]
    chain = Chain([RowConv(c.weight, c.bias, c.stride, c.padding, c.dilation) for c in layers])
    size, patch = tuple(draw(17, 40, 2)), tuple(draw(1, 5, 2))
    sizes = chain.sizes(size)
    cells = [-(-n // p) for n, p in zip(sizes[-1], patch, strict=True)]
    chosen = torch.rand(2, 1, *cells, generator=generator) < 0.3
    native = plan_rows(chosen, patch, chain, size)
    monkeypatch.setattr(plan_module, 'kernels', lambda: None)
    plain = plan_rows(chosen, patch, chain, size)
    assert [sorted(rows.tolist()) for rows in native] == [rows.tolist() for rows in plain]
    mask = spread(chosen.float(), patch, sizes[-1])
    counts = [int(mask.sum())]
    for layer, inner in zip(layers[:0:-1], sizes[-2:0:-1], strict=True):
        mask = spread_needed(mask, layer, inner)
        counts.append(int(mask.sum()))
    assert [len(rows) for rows in native] == counts[::-1]


def test_nothing_chosen_plans_nothing_and_masks_have_gradients():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    chain = Chain([RowConv(layer.weight, layer.bias, padding=(1, 1))] * 2)
    assert [len(rows) for rows in plan_rows(torch.zeros(2, 1, 4, 4, dtype=torch.bool), (2, 2), chain, (8, 8))] == [0, 0]
    on = torch.zeros(1, 1, 4, 4, requires_grad=True)
    spread_needed(spread(on, (2, 2), (7, 8)), layer, (7, 8)).sum().backward()
    assert on.grad.abs().sum() > 0


def test_a_mask_in_any_memory_order_and_no_other_type():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    chain = Chain([RowConv(layer.weight, layer.bias, padding=(1, 1))] * 2)
    chosen = torch.rand(2, 1, 40, 30).transpose(2, 3) < 0.5
    for _ in range(10):
        got = plan_rows(chosen, (1, 1), chain, (30, 40))
        assert torch.equal(got[-1].long(), chosen.flatten().nonzero().flatten())
    with pytest.raises(TypeError, match='must be bool'):
        plan_rows(chosen.float(), (1, 1), chain, (30, 40))


@pytest.mark.parametrize('threshold', [float('-inf'), 0.1, float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_rows_above_a_threshold_natively_and_in_plain_torch(threshold, dtype, monkeypatch):
    values = torch.randn(2, 1, 9, 7).to(dtype).transpose(2, 3)
    values[0, 0, 0, 0] = torch.tensor(threshold).to(dtype)  # what lies at the threshold is off
    wanted = [i for i, value in enumerate(values.flatten().tolist()) if value > torch.tensor(threshold).to(dtype)]
    native = rows_above(values, threshold)
    monkeypatch.setattr(plan_module, 'kernels_for', lambda *_: None)
    plain = rows_above(values, threshold)
    assert native.tolist() == plain.tolist() == wanted and native.dtype == plain.dtype == torch.int32
