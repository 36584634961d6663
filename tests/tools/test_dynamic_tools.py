"""``tools/test.py`` on a dynamic network: a budget without retraining, what the metrics file says, and clear refusals."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.visualization import Visualizer

from eff_plugins.dynamic import Calibration, network_macs, record
from eff_plugins.dynamic.module import policy_prefixes
from eff_plugins.engine import calibration
from eff_plugins.engine.execution import Operation
from eff_plugins.engine.runs import friendly, load_config
from eff_plugins.profiling.subjects import find_subject
from tests.tools.test_tools import SMALL

ROOT = Path(__file__).parents[2]
TOY, STATIC = 'tests/data/toy_cls.py', 'configs/image_classification/effnet-lite0_cifar10.py'


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Of the toy with two seeds, and of a static network."""
    folder = tmp_path_factory.mktemp('checkpoints')
    for name, config, seed in (('a', TOY, 0), ('b', TOY, 1), ('static', STATIC, 0)):
        torch.manual_seed(seed)
        model = find_subject(str(ROOT / config)).model
        torch.save({'state_dict': model.state_dict()}, folder / f'{name}.pth')
    return folder


@pytest.fixture
def run(tiny_root, tmp_path, monkeypatch, capsys):
    """tools/test.py on a checkpoint; returns standard output and the metrics, or the error when it fails."""
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location('test_tool', ROOT / 'tools' / 'test.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(config, checkpoint, *arguments, fails=False):
        number = len(list(tmp_path.glob('*.json')))
        out = tmp_path / f'metrics{number}.json'
        options = [option for option in SMALL if not option.startswith('model.') or config == STATIC]
        options.append(f'experiment_name={tmp_path.name}_{number}')
        words = ['--out', str(out), '--work-dir', str(tmp_path / 'work'), '--cfg-options', *options]
        monkeypatch.setattr(sys, 'argv', ['tools/test.py', config, str(checkpoint), *arguments, *words])
        if not fails:
            tool.main()
            return capsys.readouterr().out, json.loads(out.read_text())
        with pytest.raises(SystemExit) as stop:
            friendly(tool.main)
        assert stop.value.code == 1 and not out.exists()
        lines = capsys.readouterr().err.strip().splitlines()
        error = next(line for line in lines if line.startswith('error: '))
        assert lines.index(error) == len(lines) - 2  # the other tells how to see the traceback
        return error

    return call


def test_a_budget_is_met_without_retraining_and_written(run, checkpoints):
    shares = []
    for budget in (0.9, 0.6):
        out, metrics = run(TOY, checkpoints / 'a.pth', '--budget', str(budget), '--execution', 'sparse')
        assert (metrics['execution'], metrics['budget'], metrics['policy']) == ('sparse', budget, 'learned')
        assert 0 < metrics['density'] < 1 and 'acc/top1' in metrics
        assert f'{metrics["executed_share"]:.3f} of a budget of {budget:.3f}' in out
        shares.append(metrics['executed_share'])
    # calibrated on other pictures than those of the test
    assert shares == pytest.approx([0.9, 0.6], abs=0.08)
    out, masked = run(TOY, checkpoints / 'a.pth', '--budget', '0.6', '--execution', 'masked')
    assert f'share that sparse execution spends: {masked["executed_share"]:.3f} of a budget' in out
    assert masked['executed_share'] == pytest.approx(shares[1], rel=1e-5) and masked['execution'] == 'masked'
    _, blind = run(TOY, checkpoints / 'a.pth', '--budget', '0.6', '--policy', 'random')
    assert blind['policy'] == 'random' and blind['executed_share'] == pytest.approx(0.6, abs=0.05)


def test_without_options_a_dynamic_network_is_tested_as_it_was_trained(run, checkpoints):
    out, metrics = run(TOY, checkpoints / 'a.pth')
    assert (metrics['execution'], metrics['budget'], metrics['policy']) == ('sparse', None, 'learned')
    assert f'executed share of the dense network: {metrics["executed_share"]:.3f}, density' in out
    _, dense = run(TOY, checkpoints / 'a.pth', '--execution', 'dense')
    assert dense['execution'] == 'dense' and dense['policy'] is None and 'executed_share' not in dense
    _, everything = run(TOY, checkpoints / 'a.pth', '--policy', 'all')
    assert everything['density'] == 1 and everything['acc/top1'] == dense['acc/top1']
    assert everything['executed_share'] > 1  # the policies on top


def test_who_took_which_exit_is_told_and_written(run, tmp_path, monkeypatch):
    scalars = {}
    monkeypatch.setattr(Visualizer, 'add_scalars', lambda self, values, *_, **__: scalars.update(values))
    config = 'configs/ranet/ranet-lg2-scales123_cifar10.py'
    torch.manual_seed(0)
    torch.save({'state_dict': find_subject(str(ROOT / config)).model.state_dict()}, tmp_path / 'ranet.pth')
    out, fixed = run(config, tmp_path / 'ranet.pth', '--policy', 'fixed:1')
    taken = [fixed[f'choice_{k}'] for k in range(3)]
    assert taken == [0.0, 1.0, 0.0] and 'choice 0 0.000, choice 1 1.000, choice 2 0.000' in out
    assert scalars['test/choice_1'] == 1.0 and scalars['test/executed_share'] == fixed['executed_share']
    _, mixed = run(config, tmp_path / 'ranet.pth', '--policy', 'random', '--budget', '0.5')
    shares = [value for name, value in mixed.items() if name.startswith('choice_')]
    assert sum(shares) == pytest.approx(1) and len([share for share in shares if share > 0]) > 1


def test_a_calibration_is_kept_and_used_again(run, checkpoints, tmp_path, monkeypatch):
    kept = tmp_path / 'kept' / 'c.json'
    options = ('--budget', '0.6', '--calibration', str(kept))
    _, first = run(TOY, checkpoints / 'a.pth', *options)
    assert len(Calibration.load(kept).knobs) > 10  # serves any budget
    monkeypatch.setattr(calibration, 'calibrate', None)  # is not called again
    _, second = run(TOY, checkpoints / 'a.pth', *options)
    assert second['executed_share'] == first['executed_share']
    other = run(TOY, checkpoints / 'b.pth', *options, fails=True)
    assert f'{kept}: the calibration is of another model' in other
    random = run(TOY, checkpoints / 'a.pth', *options, '--policy', 'random', fails=True)
    assert f'{kept}: the calibration is for the learned policy, the model has random' in random
    kept.write_text('{}')
    assert f"{kept} is no calibration: 'knobs'" in run(TOY, checkpoints / 'a.pth', *options, fails=True)


@pytest.mark.parametrize(
    ('config', 'arguments', 'message'),
    [
        (TOY, ['--budget', '0'], 'budget=0.0 must lie in (0, 1]'),
        (TOY, ['--budget', '1.2'], 'budget=1.2 must lie in (0, 1]'),
        (TOY, ['--budget', '0.01'], 'below the static floor of this network, 0.'),
        (TOY, ['--execution', 'fast'], "execution 'fast' must be one of dense, masked, sparse"),
        (TOY, ['--policy', 'best'], "policy 'best' must be one of learned, random, all, none"),
        (TOY, ['--policy', 'all', '--budget', '0.5'], "policy 'all' has no knob"),
        (TOY, ['--policy', 'fixed'], "policy 'fixed': 'fixed' is followed by which"),
        (TOY, ['--policy', 'all:1'], "policy 'all:1': 'fixed' is followed by which"),
        (TOY, ['--policy', 'all:x'], "policy 'all:x': 'fixed' is followed by which"),
        (TOY, ['--execution', 'dense', '--budget', '0.5'], "execution 'dense' computes everything: leave --budget out"),
        (TOY, ['--execution', 'dense', '--policy', 'none'], "execution 'dense' computes everything, whatever a policy"),
        (TOY, ['--calibration', 'c.json'], 'give --budget as well'),
        (TOY, ['--budget', '0.5', '--calibration', 'configs'], 'configs is a folder; name a file'),
        (TOY, ['--budget', '0.5', '--calibration', 'README.md/c.json'], 'README.md is a file'),
        (STATIC, ['--budget', '0.5'], 'contains no dynamic module: its only execution is dense, and it has no budget'),
        (STATIC, ['--execution', 'sparse'], 'contains no dynamic module'),
    ],
)
def test_mistakes_are_one_line(run, checkpoints, config, arguments, message):
    name = 'a' if config == TOY else 'static'
    assert message in run(config, checkpoints / f'{name}.pth', *arguments, fails=True)


def test_a_checkpoint_of_another_network_or_without_policies_is_refused(run, checkpoints):
    error = run(TOY, checkpoints / 'static.pth', fails=True)
    assert 'static.pth does not fit this config: ' in error and 'such as ' in error
    assert 'a.pth does not fit this config' in run(STATIC, checkpoints / 'a.pth', fails=True)
    weights = torch.load(checkpoints / 'a.pth')['state_dict']
    policies = {key for key in weights if key.startswith(policy_prefixes(find_subject(TOY).model))}
    torch.save({key: weights[key] for key in set(weights) - policies}, checkpoints / 'plain.pth')
    assert policies and 'plain.pth is of a network without policies (' in run(
        TOY, checkpoints / 'plain.pth', fails=True
    )
    _, dense = run(TOY, checkpoints / 'plain.pth', '--execution', 'dense')
    _, everything = run(TOY, checkpoints / 'plain.pth', '--policy', 'all')
    assert dense['acc/top1'] == everything['acc/top1']
    key = next(key for key in weights if key.endswith('conv.weight'))
    torch.save({**weights, key: weights[key][:1]}, checkpoints / 'shape.pth')
    error = run(TOY, checkpoints / 'shape.pth', fails=True)
    assert 'does not fit this config: 1 of the ' in error and f'such as {key};' in error


def test_static_networks_are_dense(run, checkpoints):
    _, metrics = run(STATIC, checkpoints / 'static.pth', '--execution', 'dense')
    assert (metrics['execution'], metrics['budget'], metrics['policy']) == ('dense', None, None)


@pytest.mark.parametrize('name', ['toy_cls', 'toy_det', 'toy_seg'])
def test_calibration_data_are_training_pictures_as_a_test_sees_them(name, tiny_root):
    cfg = load_config(str(ROOT / 'tests/data' / f'{name}.py'))
    if name != 'toy_cls':
        pytest.importorskip(cfg.default_scope)
    cfg.test_dataloader.num_workers = 0
    cfg.test_dataloader.persistent_workers = False
    batches = list(calibration.training_batches(cfg, 3, 2))
    counts = [len(batch['inputs']) for batch in batches]
    assert counts == ([2, 1] if name == 'toy_cls' else [2])  # the tiny data have 4, and 2
    if name == 'toy_cls':
        assert batches[0]['inputs'][0].shape == (3, 96, 96)  # no training crop
    else:
        train = str(cfg.train_dataloader.dataset.get('ann_file') or cfg.train_dataloader.dataset.data_prefix)
        assert 'train' in train and all('/1' not in s.img_path.rpartition('/')[2] for s in batches[0]['data_samples'])
    again = list(calibration.training_batches(cfg, 3, 2))
    assert torch.equal(batches[0]['inputs'][0], again[0]['inputs'][0])
    part = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, dict(type='RepeatDataset', dataset=part)])
    cfg.test_dataloader.update(num_workers=2, prefetch_factor=4, persistent_workers=True)
    assert sum(len(batch['inputs']) for batch in calibration.training_batches(cfg, 9, 2)) == (
        8 if name == 'toy_cls' else 4
    )


def test_a_detector_is_calibrated_on_its_training_pictures(tiny_root):
    pytest.importorskip('mmdet')
    config = str(ROOT / 'tests/data/toy_det.py')
    torch.manual_seed(0)
    model, cfg = find_subject(config).model, load_config(config)
    with pytest.raises(ValueError, match='below the static floor') as refused:
        Operation('sparse', 0.1).apply(model, cfg)
    floor = float(str(refused.value).split('network, ')[1].split(':')[0])
    Operation('sparse', (1 + floor) / 2).apply(model, cfg)
    batch = next(calibration.training_batches(cfg, 2))
    with record(model) as stats:
        model.test_step(batch)
    share = float(stats.share(network_macs(model, lambda: model.test_step(batch), stats.samples)))
    assert share == pytest.approx((1 + floor) / 2, abs=(1 - floor) / 4)
