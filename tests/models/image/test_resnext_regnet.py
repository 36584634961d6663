import dataclasses
import json

import pytest
import torch
from mmengine.registry import MODELS

from eff_plugins import TemporalShift
from eff_plugins.models.image.regnet import ARCHS, RegNet, RegNetSpec, RegNetStage, regnet_stages
from eff_plugins.models.image.resnext import ResNeXt

TINY_X = dict(depths=(1, 2, 1, 1), cardinality=4, width=2)
TINY_Y = dict(depth=6, w_0=8, w_a=6.0, w_m=2.0, group_width=4, se_ratio=0.25)
TINY_Z = dict(
    stages=[
        dict(channels=8, depth=1, group_width=4, hidden=32),
        dict(channels=16, depth=2, group_width=4, hidden=64),
    ],
    bottleneck=4.0,
    se_ratio=0.25,
    inverted=True,
    act='swish',
    stem_channels=8,
)


@pytest.mark.parametrize(
    ('build', 'arch', 'maps'),
    [(ResNeXt, TINY_X, 4), (RegNet, TINY_Y, 3), (RegNet, TINY_Z, 2), (RegNet, 'regnetz_500mf', 4)],
)
@pytest.mark.parametrize('size', [(64, 64), (65, 97)])
def test_maps_are_as_declared(build, arch, maps, size):
    net = build(arch, out_indices=tuple(range(maps))).eval()
    assert net.out_strides == (4, 8, 16, 32)[:maps]
    with torch.no_grad():
        outs = net(torch.rand(1, 3, *size))
    assert tuple(x.shape[1] for x in outs) == net.out_channels
    assert [tuple(x.shape[2:]) for x in outs] == [tuple(-(-s // stride) for s in size) for stride in net.out_strides]


@pytest.mark.parametrize(
    ('name', 'widths', 'depths', 'groups'),
    [
        # Radosavovic et al., Figures 15 and 16
        ('regnetx_200mf', (24, 56, 152, 368), (1, 1, 4, 7), 8),
        ('regnetx_3.2gf', (96, 192, 432, 1008), (2, 6, 15, 2), 48),
        ('regnetx_400mf', (32, 64, 160, 384), (1, 2, 7, 12), 16),
        ('regnety_800mf', (64, 128, 320, 768), (1, 3, 8, 2), 16),
        ('regnety_16gf', (224, 448, 1232, 3024), (2, 4, 11, 1), 112),
        ('regnety_32gf', (232, 696, 1392, 3712), (2, 5, 12, 1), 232),
    ],
)
def test_the_rule_gives_the_published_stages(name, widths, depths, groups):
    stages = regnet_stages(ARCHS[name])
    assert tuple(s.channels for s in stages) == widths
    assert tuple(s.depth for s in stages) == depths
    assert {s.group_width for s in stages} == {groups}


@pytest.mark.parametrize('name', sorted(ARCHS))
def test_groups_fit_every_stage(name):
    for stage in regnet_stages(ARCHS[name]):
        assert stage.hidden % stage.group_width == 0
        assert stage.hidden == stage.channels * ARCHS[name].bottleneck


def test_descriptions_are_data(tmp_path):
    spec = dataclasses.replace(ARCHS['regnety_400mf'], stages=(RegNetStage(8, 1, 8, 8), RegNetStage(24, 2, 8, 24)))
    path = tmp_path / 'arch.json'
    path.write_text(json.dumps({'kind': 'regnet', 'network': spec.to_dict(), 'input_size': 224}))
    net = RegNet(str(path), out_indices=(0, 1))
    assert net.spec == spec == RegNetSpec.from_dict(spec.to_dict())
    assert net.out_channels == (8, 24) and [len(stage) for stage in net.stages] == [1, 2]


@pytest.mark.parametrize(('build', 'arch'), [(ResNeXt, TINY_X), (RegNet, TINY_Y), (RegNet, TINY_Z)])
def test_residual_blocks_are_those_whose_input_is_added(build, arch):
    net = build(arch, out_indices=(1,)).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = net.stem(x)
        for block in (block for stage in net.stages for block in stage):
            branch = block.branch(x)
            if block.has_residual:
                torch.testing.assert_close(block(x), block.merge(x, branch))
            elif getattr(net.spec, 'inverted', False):
                torch.testing.assert_close(block(x), branch)
            else:
                torch.testing.assert_close(block(x), torch.relu(block.shortcut(x) + branch))
            x = block(x)
    flags = [[block.has_residual for block in stage] for stage in net.stages]
    assert not flags[0][0] and any(flag for stage in flags for flag in stage)
    assert (
        TemporalShift(build(arch, out_indices=(1,)), num_segments=2, shift_div=4)(torch.rand(4, 3, 64, 64)).shape[0]
        == 4
    )


@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_freezing_and_norm_eval(with_cp):
    net = ResNeXt(TINY_X, out_indices=(0, 2), frozen_stages=1, norm_eval=True, with_cp=with_cp).train()
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in net.named_parameters() if n.startswith(('stem.', 'stages.0.'))}
    before = {n: b.clone() for n, b in net.named_buffers()}
    sum(x.sum() for x in net(torch.rand(2, 3, 64, 64))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    assert len(net.stages) == 3, 'the stage after the last map is not built'


def test_strict_loading(tmp_path):
    source, path = ResNeXt(TINY_X), tmp_path / 'x.pth'
    torch.save({f'backbone.{k}': v for k, v in source.state_dict().items()}, path)
    net = ResNeXt(TINY_X, out_indices=(2,), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    net.init_weights()
    torch.testing.assert_close(net.stages[2][0].branch[1].conv.weight, source.stages[2][0].branch[1].conv.weight)
    other = ResNeXt(dict(TINY_X, width=4), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(ValueError, match='nothing was loaded'):
        other.init_weights()


@pytest.mark.parametrize(
    ('build', 'kwargs', 'message'),
    [
        (ResNeXt, dict(arch='resnext50'), 'nearest: .*resnext50_32x4d; known'),
        (ResNeXt, dict(arch=dict(depths=(1, 1))), 'four stages'),
        (ResNeXt, dict(arch=dict(TINY_X, widht=2)), "unknown key 'widht'"),
        (ResNeXt, dict(arch=TINY_X, out_indices=(4,)), 'stride 4'),
        (RegNet, dict(arch='regnetx_1.7gf'), 'nearest: regnetx_1.6gf'),
        (RegNet, dict(arch=dict(depth=3, w_0=12, w_a=1, w_m=2)), 'w_0 a positive multiple of 8'),
        (RegNet, dict(arch=dict(TINY_Y, stages=[dict(chanels=3)])), "unknown key 'chanels'"),
        (RegNet, dict(arch=TINY_Y, out_indices=(0, 1, 2), frozen_stages=9), 'frozen_stages=9'),
    ],
)
def test_bad_arguments_are_named(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_builds_by_type_in_bf16_with_any_input():
    net = MODELS.build(dict(type='eff_plugins.RegNet', arch=TINY_Y, in_channels=4, out_indices=(0, 2))).bfloat16()
    assert net(torch.rand(2, 4, 40, 56).bfloat16())[0].dtype == torch.bfloat16
