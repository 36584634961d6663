"""Targets are met by what is built, and say what was reached."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.image.regnet import RegNet, RegNetSpec
from eff_plugins.models.image.stages import Network, Stage
from eff_plugins.profiling.activations import count_activations
from eff_plugins.scaling import CompoundRule, FastRule, cost, read_base, scale_to_macs, scale_to_ms
from eff_plugins.scaling.descriptions import RegNetTable, StageTable
from eff_plugins.scaling.latency import measured_ms, time_descriptions
from eff_plugins.scaling.report import arch_file

ROOT = Path(__file__).parents[2]
SMALL = StageTable(
    Network(
        (Stage(16, 1, expand=1), Stage(32, 2, stride=2, se=0.25), Stage(64, 2, stride=2)),
        head_channels=128,
        input_size=64,
    )
)
SMALL_REGNET = RegNetTable(RegNetSpec(6, 24, 24.0, 2.5, 8, input_size=64))


def costs_by_formula(model, size):
    """Multiply-adds of all convolutions and linear layers from their shapes; elements of the convolutions' outputs."""
    macs = outputs = 0

    def add(module, args, output):
        nonlocal macs, outputs
        macs += module.weight.numel() * (output[0, 0].numel() if output.dim() == 4 else 1)
        outputs += output.numel() if isinstance(module, nn.Conv2d) else 0

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return macs, outputs


@pytest.mark.parametrize('base', [SMALL, SMALL_REGNET], ids=['stages', 'regnet'])
@pytest.mark.parametrize('rule', [CompoundRule(), FastRule(), FastRule(1.0)], ids=['compound', 'fast', 'width'])
@pytest.mark.parametrize('ratio', [0.7, 3.0])
def test_built_networks_meet_the_target(base, rule, ratio):
    target = ratio * cost(base).macs
    member = scale_to_macs(base, rule, target, tolerance=0.05)
    assert member.met and abs(member.reached / target - 1) <= 0.05
    model = member.description.classifier()
    macs, activations = costs_by_formula(model, member.description.input_size)
    assert macs == member.reached
    counted = cost(member.description)
    assert (counted.macs, counted.activations) == (macs, activations)
    assert counted.params == sum(p.numel() for p in model.parameters())


def test_a_ratio_of_one_gives_the_base():
    member = scale_to_macs(SMALL, FastRule(), cost(SMALL).macs)
    assert member.description == SMALL and member.error == 0


def test_targets_outside_the_family_name_its_limits():
    smallest = SMALL.scaled(FastRule().factors(1e-9), FastRule.rounding)
    with pytest.raises(
        ValueError, match=rf'smallest network of this rule and base has {cost(smallest).macs / 1e9:.4g} G'
    ):
        scale_to_macs(SMALL, FastRule(), 1e4)
    with pytest.raises(ValueError, match='must be positive'):
        scale_to_macs(SMALL, FastRule(), 0)
    with pytest.raises(ValueError, match='more than 10000 times the base'):
        scale_to_macs(SMALL, FastRule(1.0), 1e15)


def test_an_unreachable_tolerance_is_reported_not_hidden():
    member = scale_to_macs(SMALL, FastRule(), 1.234567 * cost(SMALL).macs, tolerance=1e-6)
    assert not member.met and 1e-6 < abs(member.error) < 0.1


def test_latency_targets_stop_within_the_tolerance():
    def measure(description):  # a machine that pays for activations, with an overhead
        return 0.5 + cost(description).activations / 1e5

    target = 3 * measure(SMALL)
    member = scale_to_ms(SMALL, FastRule(), target, measure, tolerance=0.05)
    assert member.met and member.unit == 'ms'
    assert member.reached == measure(member.description)
    with pytest.raises(ValueError, match=r'target 0.1 ms: the smallest network'):
        scale_to_ms(SMALL, FastRule(), 0.1, measure)


def test_networks_are_timed_in_turn():
    wide = SMALL.scaled(FastRule(1.0).factors(30.0), FastRule.rounding)
    times = time_descriptions({'small': SMALL, 'wide': wide}, repeats=5, warmup=1)
    assert {name: len(latency.ms) for name, latency in times.items()} == {'small': 5, 'wide': 5}
    assert times['wide'].p50 > times['small'].p50
    measure = measured_ms(SMALL, repeats=5)
    assert measure(wide) > measure(SMALL) == measure(SMALL) > 0


@pytest.mark.parametrize(
    ('base', 'kind'), [(SMALL, InvertedResidualNet), (SMALL_REGNET, RegNet)], ids=['stages', 'regnet']
)
def test_arch_files_build_the_network_and_can_be_scaled_again(base, kind, tmp_path):
    member = scale_to_macs(base, FastRule(), 2 * cost(base).macs)
    content = arch_file(member, 'small', FastRule())
    assert content['search']['reached'] == member.reached and content['input_size'] == member.description.input_size
    path = tmp_path / 'made.json'
    path.write_text(json.dumps(content))
    backbone, _ = member.description.model()
    net = kind(arch=str(path), out_indices=backbone['out_indices'])
    wanted = member.description.classifier().backbone.state_dict()
    assert {key: value.shape for key, value in net.state_dict().items()} == {k: v.shape for k, v in wanted.items()}
    assert read_base(str(path)) == member.description


def test_activations_are_the_outputs_of_convolutions():
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, 2, 1)
    model = nn.Sequential(first, nn.BatchNorm2d(8), second, nn.Flatten(), nn.Linear(64, 5))
    x = torch.zeros(2, 3, 8, 8)
    assert count_activations(model, lambda: model(x)) == 2 * (8 * 64 + 4 * 16)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ('name', 'millions'), [('efficientnet_b0', 6.7), ('regnetx_400mf', 3.1), ('regnety_4.0gf', 12.3)]
)
def test_activations_agree_with_published_figures(name, millions):
    # pycls' model zoo
    assert cost(read_base(name)).activations / 1e6 == pytest.approx(millions, abs=0.06)


def run_tool(*args):
    command = [sys.executable, '-W', 'ignore', 'tools/scale.py', *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_tool_prints_and_writes_a_family(tmp_path):
    base = tmp_path / 'small.json'
    base.write_text(json.dumps(SMALL.arch()))
    out = tmp_path / 'family'
    args = (
        '--rule',
        'fast',
        '--alpha',
        '0.8',
        '--targets',
        '2M',
        '8M',
        '--measure',
        '--repeats',
        '2',
        '--out',
        str(out),
    )
    result = run_tool(str(base), *args)
    assert result.returncode == 0, result.stderr
    assert 'small_fast_0.008G' in result.stdout and 'acts (M)' in result.stdout
    rows = json.loads((out / 'family.json').read_text())['rows']
    assert [row['target'] for row in rows] == [None, 2e6, 8e6] and all(row['latency_ms_p50'] > 0 for row in rows)
    assert read_base(str(out / 'small_fast_0.002G.json')).input_size == rows[1]['input_size']
    assert (out / 'family.png').stat().st_size > 10_000


def test_tool_says_what_is_wrong():
    result = run_tool('efficientnet_lite', '--targets', '1G')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert "base 'efficientnet_lite': unknown; nearest: efficientnet_lite" in result.stderr


def test_tool_reads_targets_and_rules():
    spec = importlib.util.spec_from_file_location('scale', ROOT / 'tools' / 'scale.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert [tool.multiply_adds(text) for text in ('0.4G', '400M', '4e8')] == [4e8, 4e8, 4e8]
    with pytest.raises(argparse.ArgumentTypeError, match="'0.4H' is no number of multiply-adds"):
        tool.multiply_adds('0.4H')
    given = argparse.Namespace(rule='fast', alpha=0.5, beta=None, gamma=None, samples=None)
    assert tool.rule_of(given) == FastRule(0.5)
    with pytest.raises(ValueError, match='--alpha is no argument of the tiny rule; it has: samples'):
        tool.rule_of(argparse.Namespace(**{**vars(given), 'rule': 'tiny'}))
