"""The families that were published with the rules: what agrees, and where the papers rounded."""

from pathlib import Path

import pytest
import torch
from torch import nn

from eff_plugins.models.image.efficient import ARCHS
from eff_plugins.scaling import CompoundRule, Factors, TinyRule, cost, scale_to_macs
from eff_plugins.scaling.descriptions import StageTable
from eff_plugins.scaling.published import (
    BASE,
    EFFICIENTNETS,
    TINYNETS,
    agreement,
    compound_rows,
    implied_phis,
    left_out,
    markdown,
)
from tests.conftest import oracle

DOCUMENT = Path(__file__).parents[2] / 'docs' / 'scaling.md'


def timm_stages(name):
    """(repeats, channels) of every stage of timm's network, read off its modules; channels of stem and head."""
    with torch.device('meta'):
        model = oracle('timm').create_model(name, pretrained=False)
    convs = [[m for m in stage.modules() if isinstance(m, nn.Conv2d)] for stage in model.blocks]
    stages = [(len(stage), conv[-1].out_channels) for stage, conv in zip(model.blocks, convs, strict=True)]
    return stages, model.conv_stem.out_channels, model.conv_head.out_channels


@pytest.mark.parametrize('name', [*EFFICIENTNETS, *TINYNETS])
def test_published_coefficients_give_the_published_networks(name):
    (width, depth, size), rule = (
        (EFFICIENTNETS[name], CompoundRule) if name in EFFICIENTNETS else (TINYNETS[name], TinyRule)
    )
    made = BASE.scaled(Factors(depth, width, size / 224), rule.rounding).table
    stages = [(stage.repeats, stage.channels) for stage in made.stages]
    assert (stages, made.stem_channels, made.head_channels) == timm_stages(name)
    assert made.input_size == size


def test_compound_coefficients_that_were_rounded():
    phis = {name: implied_phis(*row, CompoundRule()) for name, row in EFFICIENTNETS.items()}
    # B2 is phi = 1, but its input is 260 (the rule: 257.6); B1 is phi = 0.5, but its width is 1 (the rule: 1.049)
    assert phis['efficientnet_b2'] == pytest.approx((1.0, 1.0, 1.07), abs=0.01)
    assert phis['efficientnet_b1'] == pytest.approx((0.52, 0.0, 0.49), abs=0.01)
    # from B4 on the published depth lags behind width and input: no single phi gives them
    for name in ('efficientnet_b4', 'efficientnet_b5', 'efficientnet_b6', 'efficientnet_b7'):
        depth, width, size = phis[name]
        assert depth < min(width, size) - 0.25, name


def test_compound_rule_at_the_published_cost():
    rows = {row[0]: tuple(map(int, row[-1].split(', '))) for row in compound_rows()[1:]}
    for name in ('efficientnet_b2', 'efficientnet_b3', 'efficientnet_b4'):
        assert rows[name] == (7, 7), name
    assert rows['efficientnet_b1'] == (7, 5)  # width 1.035 instead of 1
    assert rows['efficientnet_b7'] == (2, 3)  # depth 3.5 instead of 3.1, width 1.93 instead of 2


@pytest.mark.parametrize('name', ['tinynet_b', 'tinynet_e'])
def test_tiny_rule_finds_the_published_tinynets(name):
    width, depth, size = TINYNETS[name]
    member = scale_to_macs(BASE, TinyRule(), cost(StageTable(ARCHS[name])).macs, tolerance=0.01)
    assert member.met
    assert agreement(member.description.table, ARCHS[name]) == (7, 7)
    assert member.description.input_size == size
    assert member.factors.width == pytest.approx(width, abs=0.02)
    assert member.factors.depth == pytest.approx(depth, abs=0.02)


def test_tiny_rule_predicts_a_tinynet_from_the_others():
    for index, (depth, size) in {1: (0.695, 152), 2: (0.85, 184), 3: (1.1, 188)}.items():
        resolution, fitted = left_out(index)
        assert fitted == pytest.approx(depth, rel=0.08)
        assert 224 * resolution == pytest.approx(size, abs=9)
    assert left_out(0) is None


def test_the_document_shows_the_current_figures():
    assert markdown(compound_rows()) in DOCUMENT.read_text()
