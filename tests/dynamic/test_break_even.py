"""Layers that are computed whole where rows would be slower, and the table that says where."""

import json

import pytest
import torch

from eff_plugins import dynamic
from eff_plugins.dynamic import break_even as module
from eff_plugins.dynamic.break_even import BreakEven, break_even_of, key_of, measure_break_even
from eff_plugins.dynamic.residual import residual_blocks
from eff_plugins.models.spatial.dynconv import DynConv
from eff_plugins.models.spatial.layer_skip import LayerSkip
from eff_plugins.ops.native import kernels
from eff_plugins.ops.rows import RowConv
from eff_plugins.profiling.macs import count_macs
from eff_plugins.testing.oracles import randomise


@pytest.fixture
def table(tmp_path, monkeypatch):
    found = BreakEven(tmp_path / 'table.json')
    monkeypatch.setattr(module, '_tables', {module._device(): found})
    return found


def network(kind=DynConv):
    torch.manual_seed(0)
    net = kind(depth=18, base_channels=8, out_indices=(1,))
    randomise(net)
    dynamic.set_policy(net.eval(), 'random')
    for step in dynamic.module.decisions(net):
        step.density = 0.05
    return dynamic.set_execution(net, 'sparse'), torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize('instruction_set', [None, 'portable'], indirect=True)
@pytest.mark.parametrize('kind', [DynConv, LayerSkip])
@pytest.mark.parametrize('cast', [False, True])
def test_measured_layers_are_kept_and_not_measured_again(instruction_set, table, kind, cast):
    net, x = network(kind)
    run = torch.autocast('cpu', torch.bfloat16, enabled=cast)(lambda: net(x))
    found = measure_break_even(net, run)
    assert {'bfloat16' in key for key in found} == {cast}
    assert found and all(density >= 0 for density in found.values())
    assert json.loads(table.path.read_text()) == pytest.approx(found)
    assert measure_break_even(net, run) == {} and BreakEven(table.path)._known == pytest.approx(found)


def test_a_layer_above_its_break_even_is_computed_whole_and_counted(table):
    net, x = network()
    with torch.no_grad():
        torch.manual_seed(1)
        rows = net(x)[0]
        sparse = count_macs(net, lambda: (torch.manual_seed(1), net(x)))['']
    table.add(dict.fromkeys(measure_break_even(net, lambda: net(x)), 0.0))
    with torch.no_grad(), dynamic.record(net) as stats:
        torch.manual_seed(1)
        whole = net(x)[0]
    torch.testing.assert_close(whole, rows, rtol=1e-4, atol=1e-4)
    counted = count_macs(net, lambda: (torch.manual_seed(1), net(x)))['']
    assert counted > 1.02 * sparse
    total = dynamic.network_macs(net, lambda: net(x), 2)
    assert float(stats.share(total)) == pytest.approx(counted / 2 / total, rel=1e-4)


@pytest.mark.parametrize(('wait', 'wanted'), [(0.0, False), (0.05, True)])
def test_the_faster_way_is_found(wait, wanted):
    from time import sleep

    conv = RowConv(torch.randn(8, 8, 3, 3), torch.zeros(8), padding=(1, 1))
    x = torch.randn(1, 8, 40, 40).contiguous(memory_format=torch.channels_last)

    def whole(x):
        if wait:
            sleep(wait)
        return torch.zeros(1, 8, 40, 40).contiguous(memory_format=torch.channels_last) if wait else y

    y = torch.nn.functional.conv2d(x, conv.weight, None, 1, 1).contiguous(memory_format=torch.channels_last)
    density = break_even_of(conv, whole, x, repeats=3)
    assert density > 1 if wanted else density < 0.5


def test_a_broken_file_is_measured_anew(tmp_path):
    (tmp_path / 'table.json').write_text('[not a table')
    conv = RowConv(torch.zeros(4, 2, 3, 3), torch.zeros(4))
    table = BreakEven(tmp_path / 'table.json')
    assert not table.knows(conv, (8, 8), True) and table.density(conv, (8, 8), True) in module.DEFAULTS.values()
    table.add({key_of(conv, (8, 8), True): 0.25})
    assert BreakEven(table.path).density(conv, (8, 8), True) == 0.25


@pytest.mark.parametrize(('last', 'whole'), [(0.5, True), (2.0, False)])
def test_a_block_that_is_on_runs_whole_where_rows_lose(last, whole, table, monkeypatch):
    if kernels() is None:
        pytest.skip('no C++ compiler')
    net, x = network(LayerSkip)
    dynamic.set_policy(net, 'all')
    found = measure_break_even(net, lambda: net(x))
    blocks = [block for _, block in residual_blocks(net)]
    for conv in blocks[0].dynamic.rows.prepared(blocks[0]).chain.convs:
        assert key_of(conv, (16, 16), False) in found  # the last layer, too
    table.add(dict.fromkeys(found, last))
    ran, kind = [], type(blocks[0])
    own = kind.run
    monkeypatch.setattr(kind, 'run', lambda self, x: ran.append(1) or own(self, x))
    with torch.no_grad():
        net(x.contiguous(memory_format=torch.channels_last))
    assert len(ran) == (len(blocks) if whole else 0)
