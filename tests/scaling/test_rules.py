"""The rules as formulas, their rounding, and the descriptions that they scale."""

import math

import pytest

from eff_plugins.models.image.regnet import RegNetSpec, regnet_stages
from eff_plugins.models.image.stages import Network, Stage, archs
from eff_plugins.scaling import CompoundRule, Factors, FastRule, Rounding, Sample, TinyRule, pareto_front, read_base
from eff_plugins.scaling.descriptions import RegNetTable, StageTable, scaled_group_width


@pytest.mark.parametrize('alpha', [0.0, 1 / 3, 0.8, 1.0])
@pytest.mark.parametrize('ratio', [0.1, 1.0, 8.0])
def test_fast_factors_multiply_to_the_ratio(alpha, ratio):
    factors = FastRule(alpha).factors(ratio)
    assert factors.macs == pytest.approx(ratio)
    assert factors.width == pytest.approx(ratio ** (alpha / 2))


def test_fast_rule_as_published():
    # "dWr" of the paper's code: depth, width^2 and resolution^2 take 1, 8 and 1 parts of the ratio
    factors = FastRule().factors(4.0)
    assert (factors.depth, factors.width, factors.resolution) == pytest.approx((4**0.1, 4**0.4, 4**0.05))
    width_only = FastRule(1.0).factors(4.0)
    assert (width_only.depth, width_only.width, width_only.resolution) == (1.0, 2.0, 1.0)
    uniform = FastRule(1 / 3).factors(8.0)
    assert (uniform.depth, uniform.width**2, uniform.resolution**2) == pytest.approx((2.0, 2.0, 2.0))


def test_compound_rule_as_published():
    rule = CompoundRule()
    one = rule.at_phi(1)
    assert (one.depth, one.width, one.resolution) == (1.2, 1.1, 1.15)
    assert one.macs == pytest.approx(1.92, abs=0.01)
    assert rule.phi(rule.at_phi(-1.5).macs) == pytest.approx(-1.5)
    assert rule.factors(one.macs**2).depth == pytest.approx(1.44)


@pytest.mark.parametrize('alpha', [-0.1, 1.01, math.nan])
def test_fast_rule_refuses_alphas_outside_its_range(alpha):
    with pytest.raises(ValueError, match=r'alpha=.* is outside \[0, 1\]'):
        FastRule(alpha)


def test_compound_rule_refuses_bases_that_do_not_grow():
    with pytest.raises(ValueError, match=r'alpha=0.9, beta=1.1, gamma=1.15'):
        CompoundRule(alpha=0.9)
    with pytest.raises(ValueError, match='one > 1'):
        CompoundRule(1, 1, 1)


def test_tiny_rule_follows_its_samples_and_refuses_to_leave_them():
    samples = [Sample(c, resolution=c**0.25, depth=c**0.3) for c in (0.05, 0.1, 0.2, 0.4, 0.8)]
    rule = TinyRule(samples)
    for ratio in (0.07, 0.15, 0.5):
        resolution, depth = rule.shape(ratio)
        assert resolution == pytest.approx(ratio**0.25, rel=0.03)
        assert depth == pytest.approx(ratio**0.3, rel=0.03)
        assert rule.factors(ratio).macs == pytest.approx(ratio)
    with pytest.raises(ValueError, match=r'cover 0.04 to 1 times'):
        rule.shape(2.0)
    with pytest.raises(ValueError, match='at least 3'):
        TinyRule(samples[:2])


def test_pareto_front_peels_fronts_until_the_share_is_reached():
    front = [Sample(c, 1, 1, accuracy) for c, accuracy in ((0.1, 50.0), (0.2, 60.0), (0.4, 70.0))]
    second = [Sample(0.15, 1, 1, 45.0), Sample(0.3, 1, 1, 55.0)]
    worst = [Sample(0.5 + i / 10, 1, 1, 40.0) for i in range(5)]
    assert pareto_front([*worst, *second, *front], share=0.0) == tuple(front)
    assert set(pareto_front([*worst, *second, *front], share=0.4)) == {*front, *second}
    with pytest.raises(ValueError, match='accuracy=None'):
        pareto_front([Sample(0.1, 1, 1)])


def test_depth_counts_rows_of_equal_channels_as_one_stage():
    large = archs()['mobilenetv3_large']
    deeper = StageTable(large).scaled(Factors(2.0, 1.0, 1.0), Rounding()).table
    blocks: dict[int, int] = {}
    for stage in deeper.stages:
        blocks[stage.channels] = blocks.get(stage.channels, 0) + stage.repeats
    assert blocks == {16: 2, 24: 4, 40: 6, 80: 8, 112: 4, 160: 6}
    assert sum(stage.stride == 2 for stage in deeper.stages) == 4
    shallow = StageTable(large).scaled(Factors(0.01, 1.0, 1.0), Rounding()).table
    assert [stage.channels for stage in shallow.stages] == [16, 24, 40, 80, 112, 160]
    wider = StageTable(large).scaled(Factors(1.0, 2.0, 1.0), Rounding()).table
    assert [stage.hidden for stage in wider.stages] == [2 * stage.hidden for stage in large.stages]
    assert wider.head_hidden == 2 * large.head_hidden


@pytest.mark.parametrize(
    ('group_width', 'width', 'expected'), [(1, 1.4, 1), (8, 0.25, 2), (8, 0.5, 4), (16, 1.41, 24), (64, 2, 128)]
)
def test_group_widths_scale_with_the_channels(group_width, width, expected):
    assert scaled_group_width(group_width, width) == expected


def test_regnets_scale_their_stages_with_whole_groups():
    base = read_base('regnety_4.0gf')
    made = base.scaled(FastRule().factors(4.0), FastRule.rounding)
    for before, after in zip(regnet_stages(base.spec), made.spec.stages, strict=True):
        assert after.channels == pytest.approx(before.channels * 4**0.4, abs=64)
        assert after.group_width == 112 and after.hidden % after.group_width == 0
        assert after.depth == round(before.depth * 4**0.1)
    assert made.input_size == 240
    narrow = base.scaled(FastRule().factors(1e-4), FastRule.rounding)
    assert all(stage.hidden % stage.group_width == 0 and stage.depth >= 1 for stage in narrow.spec.stages)


def test_channels_and_input_never_vanish():
    base = StageTable(Network((Stage(16, 1), Stage(24, 2, stride=2)), input_size=64))
    table = base.scaled(FastRule(0.5).factors(1e-9), FastRule.rounding).table
    assert {stage.channels for stage in table.stages} == {8}
    assert [stage.repeats for stage in table.stages] == [1, 1] and table.input_size == 32
    regnet = RegNetTable(RegNetSpec(13, 24, 36.44, 2.49, 8)).scaled(Factors(1, 0.01, 1), Rounding())
    assert regnet.spec.stages[0].channels == 8


def test_unknown_bases_name_the_nearest():
    with pytest.raises(ValueError, match=r"base 'efficientnet_bo': unknown; nearest: efficientnet_b"):
        read_base('efficientnet_bo')
    with pytest.raises(ValueError, match=r"'resnext50_32x4d': has no description that the rules can scale"):
        read_base('resnext50_32x4d')
    with pytest.raises(FileNotFoundError, match=r'gone.json: no such arch file'):
        read_base('gone.json')


def test_arch_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / 'cells.json'
    path.write_text('{"kind": "cells", "network": {}}')
    with pytest.raises(ValueError, match=r"kind is 'cells', the rules scale 'stages' and 'regnet'"):
        read_base(str(path))
