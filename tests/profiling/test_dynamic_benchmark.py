"""Dynamic networks in the benchmark: what is timed is what is decided, at the budget, next to the dense network."""

import copy
import csv
import json

import pytest
import torch

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, fuse_conv_bn, prepare
from eff_plugins.dynamic.module import decisions
from eff_plugins.models.spatial.lasnet import LASNet
from eff_plugins.models.spatial.layer_skip import LayerSkip
from eff_plugins.profiling.benchmark import SCHEMA, Settings, compare
from eff_plugins.profiling.candidates import Dynamic
from eff_plugins.profiling.macs import count_macs
from eff_plugins.profiling.subjects import Subject, find_subject
from eff_plugins.profiling.variants import Plan, Variant, blind_calibration, draw
from tests.profiling.test_benchmark import CIFAR, QUICK, rows_of, run, tiny_data, tool  # noqa: F401
from tests.toy_spatial import toy

TOY = 'tests/data/toy_cls.py'


def subject(**options):
    return Subject('toy', toy(), **options)


def settings(*batch_sizes, repeats=3):
    return Settings(batch_sizes or (1,), size=64, repeats=repeats, warmup=0, data='random')


def saved_share(row, dense):
    return 1 - row['macs_mean'] / dense['macs_mean']


def test_rows_of_an_untrained_network_are_blind_at_the_budget():
    plan = Plan(('dense', 'masked', 'sparse'), ('learned', 'random'), (0.6, 0.9))
    results = compare(subject(), None, settings(1, 2, repeats=6), plan)
    rows = [result.row for result in results]
    assert [(r['execution'], r['policy'], r['budget'], r['batch_size']) for r in rows] == [
        (*variant, batch_size)
        for batch_size in (1, 2)
        for variant in (
            ('dense', None, None),
            ('masked', 'synthetic', 0.6),
            ('masked', 'synthetic', 0.9),
            ('sparse', 'synthetic', 0.6),
            ('sparse', 'synthetic', 0.9),
        )
    ]
    static = toy()
    dynamic.set_execution(static, 'dense')
    for result in results:
        row, dense = result.row, rows[0 if result.row['batch_size'] == 1 else 5]
        assert tuple(row) == SCHEMA and row['t_dense_ms'] == dense['latency_ms_p50']
        if row['execution'] == 'dense':
            assert row['macs_mean'] == count_macs(static, lambda: static(torch.zeros(1, 3, 64, 64)))['']
            assert row['density'] is row['realised_saving'] is None
            gates = sum(p.numel() for level in static.levels for p in level.gate.parameters())
            assert result.parameters == results[1].parameters - gates
        elif row['execution'] == 'masked':  # computes all, and the policy
            assert row['macs_mean'] > dense['macs_mean'] and row['realised_saving'] is None
            assert 0 < row['density'] < 1
        else:
            assert row['macs_mean'] / dense['macs_mean'] == pytest.approx(row['budget'], abs=0.02)
            wanted = (1 - row['latency_ms_p50'] / row['t_dense_ms']) / saved_share(row, dense)
            assert row['realised_saving'] == pytest.approx(wanted)
            assert result.realised[0] <= result.realised[1]
    assert rows[3]['density'] < rows[4]['density']


def test_a_blind_policy_is_timed_with_the_work_of_a_learned_one_and_fixed_decisions():
    net = subject()
    how = Preparation(channels_last=False)
    plan = Plan(('sparse',), ('learned',), (0.6,))
    x = torch.randn(2, 3, 64, 64)
    dense, candidate = Dynamic(net, how, plan, 64).candidates([x], 2)
    assert not dense.wanted and candidate.variant == Variant('sparse', 'synthetic', 0.6)
    gates, steps = [], decisions(candidate.timed)
    for level in candidate.timed.levels:
        level.gate.register_forward_hook(lambda *_: gates.append(1))
    with torch.no_grad():
        candidate.ready[0]()
        own = [step.forward.own for step in steps]  # the learned decision is made, too
        assert all(fn.__self__ is step and step.kind == 'learned' for fn, step in zip(own, steps, strict=True))
        first, second = (candidate.call(0)() for _ in range(2))
        assert torch.equal(first[0], second[0]) and len(gates) == 8
        dynamic.set_execution(candidate.timed, 'masked')
        torch.testing.assert_close(candidate.call(0)()[0], first[0], atol=1e-5, rtol=1e-5)
    candidate.macs(2)
    candidate.timed.levels[1].decide = torch.nn.Identity()  # a network that goes past its step
    with pytest.raises((RuntimeError, ValueError)):
        candidate.macs(2)


def test_a_network_without_a_policy_is_timed_as_it_is():
    class Positive(torch.nn.Module):
        """Decides by its scores alone, with nothing that could be turned."""

        def forward(self, scores):
            return (scores > 0).to(scores.dtype)

    net = Subject('toy', toy(), checkpoint='x.pth')
    for level in net.model.levels:
        level.decide = Positive()
    dense, sparse = compare(net, None, settings(), Plan())
    assert sparse.row['execution'] == 'sparse' and sparse.row['macs_mean'] < dense.row['macs_mean']
    with pytest.raises(ValueError, match='contains no policy that decides'):
        compare(net, None, settings(), Plan(policies=('all',)))


def test_decisions_that_are_not_asked_for_are_noticed():
    model = toy()
    x = torch.randn(1, 3, 64, 64)
    dense = dynamic.network_macs(model, lambda: model(x), 1)
    found = blind_calibration(model, x, 1, lambda network, batch: network(batch), [0.7])
    switch = draw(model, Variant('sparse', 'synthetic', 0.7), found, lambda: model(x), dense)
    switch()
    with pytest.raises(RuntimeError, match='decided 0 times, 1 decisions were drawn'):
        switch.check()
    model(x)
    switch.check()


@pytest.mark.parametrize('kind', [LASNet, LayerSkip])
def test_what_is_timed_are_the_drawn_decisions(kind):
    torch.manual_seed(0)
    model = kind(depth=18, base_channels=8).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        dense = dynamic.network_macs(model, lambda: model(x), 2)
        found = blind_calibration(model, x, 2, lambda network, batch: network(batch), [0.7])
        switch = draw(model, Variant('sparse', 'synthetic', 0.7), found, lambda: model(x), dense)
        switch()
        timed = model(x)  # with nothing that records
        switch.check()
        with dynamic.record(model):
            recorded = model(x)
        dynamic.set_execution(model, 'masked')
        for got, same, want in zip(timed, recorded, model(x), strict=True):
            torch.testing.assert_close(got, same)
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_learned_rows_use_thresholds_of_the_training_split_and_of_a_file(run, tiny_data, tmp_path):  # noqa: F811
    model = find_subject(TOY).model
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    common = (TOY, str(tmp_path / 'a.pth'), '--batch-size', '1', *QUICK, '--budgets', '0.7')
    out = run(*common, '--repeats', '6', '--policy', 'learned', 'random', 'all', '--out', str(tmp_path / 'own'))
    rows = rows_of(tmp_path / 'own')
    assert [(r['execution'], r['policy'], r['budget']) for r in rows] == [
        ('dense', None, None),
        ('sparse', 'learned', 0.7),
        ('sparse', 'random', 0.7),
        ('sparse', 'all', None),
    ]
    assert 'realised saving [95 %]' in out and 'its modules report' not in out
    assert rows[2]['macs_mean'] / rows[0]['macs_mean'] == pytest.approx(0.7, abs=0.03)
    with (tmp_path / 'own' / 'benchmark.csv').open() as stream:
        table = list(csv.DictReader(stream))
    assert float(table[1]['realised_low']) <= float(table[1]['realised_high']) and table[0]['realised_low'] == ''
    # the same thresholds from a file, which holds for the checkpoint and not for another one
    batches = find_subject(TOY, str(tmp_path / 'a.pth')).training_batches(None, Preparation())
    found = dynamic.calibrate(model, batches, lambda network, batch: network.test_step(batch))
    found.save(tmp_path / 'c.json')
    run(*common, '--calibration', str(tmp_path / 'c.json'), '--out', str(tmp_path / 'file'))
    with (tmp_path / 'file' / 'benchmark.csv').open() as stream:
        assert {row['realised_low'] for row in csv.DictReader(stream)} == {''}  # each batch was timed once
    stored = rows_of(tmp_path / 'file')[1]
    assert stored['macs_mean'] == pytest.approx(rows[1]['macs_mean'], rel=0.1)
    model.head.fc.weight.data.zero_()
    model.backbone.levels[0].conv.weight.data.zero_()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'b.pth')
    error = run(
        TOY, str(tmp_path / 'b.pth'), *QUICK, '--budgets', '0.7', '--calibration', str(tmp_path / 'c.json'), fails=True
    )
    assert 'calibration is of another model' in error


def test_a_size_resizes_the_test_set_and_where_there_is_none_it_is_said(run, tiny_data, tmp_path, monkeypatch):  # noqa: F811
    net = find_subject(TOY, size=64)
    (x,) = net.batches(2, 64, 'real', 1, Preparation())
    own = find_subject(TOY).batches(2, None, 'real', 1, Preparation())[0]
    seen = net.model.data_preprocessor(own, False)['inputs']
    assert x.shape == (2, 3, 64, 64) and float(x.mean()) == pytest.approx(float(seen.mean()), abs=0.05)
    assert torch.equal(net.batches(2, seen.shape[-1], 'real', 1, Preparation())[0], seen) and len(net.notes) == 1
    monkeypatch.setenv('EFF_PLUGINS_DATA', str(tmp_path / 'nothing'))
    absent = find_subject(TOY, size=64)
    for _ in range(2):
        assert absent.batches(1, 64, 'real', 1, Preparation())[0].shape == (1, 3, 64, 64)
    assert sum('photographs instead' in note for note in absent.notes) == 1


def test_another_config_gives_the_data(run, tiny_data, tmp_path):  # noqa: F811
    run('mobilenetv3_small', '--batch-size', '2', *QUICK, '--data', CIFAR, '--out', str(tmp_path))
    assert rows_of(tmp_path)[0]['input_size'] == 96  # as that config's pipeline makes them


def test_without_budgets_an_untrained_network_is_timed_dense(run, tmp_path):  # noqa: F811
    run(TOY, '--size', '64', '--batch-size', '1', *QUICK, '--out', str(tmp_path))
    assert [row['execution'] for row in rows_of(tmp_path)] == ['dense']
    assert json.loads((tmp_path / 'benchmark.json').read_text())[0]['policy'] is None


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([CIFAR, '--execution', 'sparse'], 'contains no dynamic module: its only execution is dense'),
        ([CIFAR, '--budgets', '0.5'], 'contains no dynamic module'),
        ([TOY, '--execution', 'fast'], "execution 'fast' must be one of dense, masked, sparse"),
        ([TOY, '--policy', 'best'], "policy 'best' must be one of learned, random, all"),
        ([TOY, '--budgets', '1.5'], 'budget=1.5 must lie in (0, 1]'),
        ([TOY, '--size', '64', '--budgets', '0.01'], 'budget=0.01 is below the static floor of this network, 0.'),
        ([TOY, '--execution', 'sparse'], 'needs --budgets to spend'),
        ([TOY, '--budgets', '0.6', '--calibration', TOY], '--calibration serves a learned policy'),
        ([TOY, '--budgets', '0.6', '--calibration', 'x.json'], 'x.json: no such calibration'),
        ([TOY, '--policy', 'random'], 'execution sparse of the synthetic policy needs --budgets to spend'),
        ([TOY, '--execution', 'dense', '--budgets', '0.5'], 'no row has a budget'),
        ([TOY, '--policy', 'all', '--budgets', '0.5'], 'no row has a budget'),
        ([TOY, '--execution', 'dense', '--policy', 'all'], "execution 'dense' computes everything: leave --policy out"),
        (['mobilenetv3_small', '--policy', 'random'], 'contains no dynamic module'),
        ([TOY, '--budgets', '0.5', '--compile'], 'leave --compile out'),
    ],
)
def test_bad_input_is_one_line(run, arguments, message):  # noqa: F811
    error = run(*arguments, fails=True)
    assert error.startswith('error: ') and message in error and 'Traceback' not in error


def test_networks_of_two_frameworks_and_what_was_timed_before_a_fault(run, tiny_data, tmp_path):  # noqa: F811
    pytest.importorskip('mmdet')
    detector = 'tests/data/toy_det.py'
    run(TOY, detector, '--against', TOY, '--batch-size', '1', *QUICK, '--out', str(tmp_path))
    rows = rows_of(tmp_path)
    assert [row['model'] for row in rows] == [TOY, TOY, detector, TOY] and rows[0]['input_size'] != rows[2][
        'input_size'
    ]
    options = ('--size', '64', '--batch-size', '1', *QUICK, '--budgets', '0.9')
    error = run(TOY, detector, *options, fails=True)
    assert error.startswith(f'error: {detector}: its pipeline sets the input size')
    assert 'toy_cls' in run.printed


@pytest.mark.parametrize('mode', ['sparse', 'masked'])
def test_folding_reaches_a_network_in_any_execution_and_keeps_its_budget(mode):
    net = dynamic.set_execution(toy(), mode)
    x = torch.randn(4, 3, 64, 64)
    dynamic.calibrate(net, [x])
    dynamic.set_budget(net, 0.7)
    fused = fuse_conv_bn(net)
    assert [type(level.norm) for level in fused.levels] == [torch.nn.Identity] * 4
    assert {m.execution for _, m in dynamic.module.dynamic_modules(fused)} == {mode}
    torch.testing.assert_close(fused(x)[0], net(x)[0], atol=1e-4, rtol=1e-4)
    for copied in (fused, prepare(net, Preparation(dtype='bfloat16'))):
        assert dynamic.set_budget(copied, 0.6) == dynamic.set_budget(net, 0.6)
    other = copy.deepcopy(net)
    other.levels[0].conv.weight.data.zero_()
    with pytest.raises(ValueError, match='another model'):
        dynamic.set_budget(fuse_conv_bn(other), 0.6)
