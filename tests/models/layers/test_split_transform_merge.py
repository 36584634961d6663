"""The block in each published form against a composition in plain torch, as a convolution's stand-in, and with bad input."""

import pytest
import torch
import torch.nn.functional as F

from eff_plugins.models.image.inverted_residual import InvertedResidual
from eff_plugins.models.image.stages import Network, Stage
from eff_plugins.models.layers.split_transform_merge import SplitTransformMerge
from eff_plugins.models.layers.stm_forms import FORMS, Block, Conv, Pool
from eff_plugins.profiling.macs import count_parameters
from eff_plugins.registry import MODELS
from eff_plugins.testing.oracles import randomise
from tests.conftest import oracle

OPTIONS = {'resnext': dict(groups=4), 'shufflenet_v1': dict(groups=4)}


def built(*args, **kwargs):
    block = SplitTransformMerge(*args, **kwargs).eval()
    randomise(block)
    return block


def plain(x, layer, kernel=1, stride=1, groups=1, act=F.relu):
    """Convolution, inference-time normalisation and activation from the tensors of a layer."""
    y = F.conv2d(x, layer.conv.weight, None, stride, kernel // 2, 1, groups)
    n = layer.norm
    y = (y - n.running_mean[:, None, None]) / (n.running_var[:, None, None] + n.eps).sqrt()
    y = y * n.weight[:, None, None] + n.bias[:, None, None]
    return y if act is None else act(y)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_grouped_is_a_convolution_for_each_group():
    block, x = built(12, 8, form='grouped', groups=4), torch.randn(2, 12, 7, 9)
    conv = block.branch.paths[0][0][0]
    parts = [
        F.conv2d(part, weight, bias, padding=1)
        for part, weight, bias in zip(x.chunk(4, 1), conv.weight.chunk(4), conv.bias.chunk(4), strict=True)
    ]
    same(block(x), F.relu(torch.cat(parts, 1)))


@torch.no_grad()
def test_resnext_is_the_sum_of_parallel_bottlenecks():
    """Figure 3(a) of the paper: each of the C transforms has its own narrow 1x1, 3x3, 1x1."""
    block, x = built(16, 16, form='resnext', groups=4, hidden=8), torch.randn(2, 16, 7, 9)
    reduce, middle, widen = block.branch.paths[0]
    total = torch.zeros(2, 16, 7, 9)
    for c in range(4):
        own = slice(2 * c, 2 * c + 2)
        y = plain(x, reduce)[:, own]
        y = F.conv2d(y, middle.conv.weight[own], padding=1)
        y = F.relu(F.batch_norm(y, *(getattr(middle.norm, k)[own] for k in STATS), eps=1e-5))
        total += F.conv2d(y, widen.conv.weight[:, own])
    total = F.batch_norm(total, *(getattr(widen.norm, k) for k in STATS), eps=1e-5)
    same(block(x), F.relu(x + total))


STATS = ('running_mean', 'running_var', 'weight', 'bias')


@torch.no_grad()
def test_depthwise_separable_filters_each_channel_alone():
    block, x = built(6, 10, 5, 2, form='depthwise_separable'), torch.randn(2, 6, 9, 11)
    depthwise, pointwise = block.branch.paths[0]
    filtered = torch.cat(
        [F.conv2d(x[:, c : c + 1], depthwise.conv.weight[c : c + 1], stride=2, padding=2) for c in range(6)], 1
    )
    filtered = F.relu(F.batch_norm(filtered, *(getattr(depthwise.norm, k) for k in STATS), eps=1e-5))
    same(block(x), plain(filtered, pointwise))


@torch.no_grad()
@pytest.mark.parametrize('stride', [1, 2])
def test_inception_is_four_branches_next_to_each_other(stride):
    block, x = built(8, 32, 3, stride, form='inception'), torch.randn(2, 8, 9, 11)
    (one,), (reduce3, three), (reduce5, five), (_, pooled) = block.branch.paths
    want = [
        plain(x, one, 1, stride),
        plain(plain(x, reduce3), three, 3, stride),
        plain(plain(x, reduce5), five, 5, stride),
        plain(F.max_pool2d(x, 3, stride, 1), pooled),
    ]
    assert [part.shape[1] for part in want] == [8, 16, 4, 4]
    same(block(x), torch.cat(want, 1))


@torch.no_grad()
@pytest.mark.parametrize('stride', [1, 2])
def test_shufflenet_v1_unit(stride):
    out = 12 if stride == 1 else 30
    block, x = built(12, out, 3, stride, form='shufflenet_v1', groups=3, hidden=6), torch.randn(2, 12, 9, 11)
    reduce, _, depthwise, widen = block.branch.paths[-1]
    y = plain(x, reduce, groups=3)
    y = y[:, [0, 2, 4, 1, 3, 5]]  # of three groups of two channels: all first ones, then all second ones
    y = plain(plain(y, depthwise, 3, stride, 6, act=None), widen, groups=3, act=None)
    same(block(x), F.relu(x + y) if stride == 1 else F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1)))


@torch.no_grad()
@pytest.mark.parametrize('stride', [1, 2])
def test_shufflenet_v2_unit_is_torchvisions(stride):
    oracle('torchvision')
    from torchvision.models.shufflenetv2 import InvertedResidual as TorchvisionUnit

    theirs = TorchvisionUnit(12, 12 * stride, stride).eval()
    block = built(12, 12 * stride, 3, stride, form='shufflenet_v2')
    copy_in_order(block, theirs)
    x = torch.randn(2, 12, 9, 11)
    same(block(x), theirs(x))


@torch.no_grad()
def test_inception_is_torchvisions_with_its_smaller_kernel():
    oracle('torchvision')
    from torchvision.models.googlenet import Inception

    theirs = Inception(8, 4, 3, 6, 2, 4, 2).eval()
    block = built(
        8, 16, form='inception', widths=(4, 3, 6, 2, 4, 2), large_kernel=3, norm_cfg=dict(type='BN', eps=1e-3)
    )
    copy_in_order(block, theirs)
    x = torch.randn(2, 8, 9, 11)
    same(block(x), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize('form', ['mbconv', 'fused_mbconv'])
@pytest.mark.parametrize('stride', [1, 2])
def test_mbconv_is_the_inverted_residual_of_the_zoo(form, stride):
    stage = Stage(8, kernel=5, expand=3, se=0.25, block='inverted' if form == 'mbconv' else 'fused')
    theirs = InvertedResidual(8, stage, stride, Network((stage,), act='swish'), dict(type='BN')).eval()
    block = built(8, 8, 5, stride, form=form, expand=3, se=0.25)
    copy_in_order(block, theirs)
    x = torch.randn(2, 8, 9, 11)
    same(block(x), theirs(x))
    assert block.has_residual == theirs.has_residual == (stride == 1)


def copy_in_order(block, theirs):
    """Give ``theirs`` the block's tensors; both have the same ones in the same order."""
    own, other = block.state_dict(), theirs.state_dict()
    assert [v.shape for v in own.values()] == [v.shape for v in other.values()]
    theirs.load_state_dict(dict(zip(other, own.values(), strict=True)))


@torch.no_grad()
def test_a_described_block_equals_the_named_form():
    path = [dict(type='conv', channels=6), dict(type='conv', channels=6, kernel=3, groups=6, act=None)]
    description = dict(split=[6, 6], paths=[[], [*path, dict(type='conv', channels=6)]], shuffle=2)
    own, named = built(12, 12, form=description), built(12, 12, form='shufflenet_v2')
    assert own.block == named.block
    x = torch.randn(1, 12, 5, 5)
    same(own(x), named(x))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(('out', 'stride', 'dilation'), [(32, 1, 1), (64, 2, 1), (32, 2, 1), (32, 1, 2)])
def test_each_form_is_a_module_of_its_own(form, out, stride, dilation):
    """Alone: shapes at odd sizes, a gradient for every parameter, bf16; a state dict that loads elsewhere."""
    arguments = dict(stride=stride, padding=dilation, dilation=dilation, form=form, **OPTIONS.get(form, {}))
    block = MODELS.build(dict(type='SplitTransformMerge', in_channels=32, out_channels=out, **arguments))
    y = block(torch.randn(2, 32, 9, 13))
    assert y.shape == (2, out, -(-9 // stride), -(-13 // stride))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    assert block.bfloat16().eval()(torch.randn(1, 32, 9, 13).bfloat16()).dtype == torch.bfloat16
    other = SplitTransformMerge(32, out, **arguments)
    other.load_state_dict(block.state_dict(), strict=True)


def test_parameter_counts_by_hand():
    count = {form: count_parameters(SplitTransformMerge(32, 32, form=form, **OPTIONS.get(form, {}))) for form in FORMS}
    assert count['grouped'] == 9 * 16 * 32 + 32
    assert count['depthwise_separable'] == 9 * 32 + 64 + 32 * 32 + 64
    assert count['resnext'] == 32 * 16 + 32 + 9 * 4 * 16 + 32 + 16 * 32 + 64
    assert count['shufflenet_v1'] == 8 * 8 + 16 + 9 * 8 + 16 + 2 * 32 + 64
    assert count['shufflenet_v2'] == 2 * (16 * 16 + 32) + 9 * 16 + 32
    assert count['inception'] == 32 * (8 + 12 + 2 + 4) + 9 * 12 * 16 + 25 * 2 * 4 + 2 * (8 + 12 + 16 + 2 + 4 + 4)
    assert count['mbconv'] == 2 * 32 * 128 + 9 * 128 + 2 * (128 + 128 + 32) + 2 * 128 * 8 + 128 + 8
    assert count['fused_mbconv'] == 9 * 32 * 128 + 128 * 32 + 2 * (128 + 32)


@pytest.mark.parametrize('form', FORMS)
def test_linear_output_leaves_normalisation_to_the_host(form):
    block = SplitTransformMerge(32, 32, form=form, bias=True, linear_output=True, **OPTIONS.get(form, {}))
    assert not hasattr(block, 'act')
    for path in block.branch.paths:
        if len(path):
            assert isinstance(path[-1], torch.nn.Conv2d) and path[-1].bias is not None


def narrow_resnet(kind, form, replaced, **arguments):
    """Config of a framework's ResNet-50 at a quarter of the width with the block in the stages ``replaced``."""
    dcn = dict(type='eff_plugins.SplitTransformMerge', form=form, linear_output=True, **OPTIONS.get(form, {}))
    return dict(type=kind, depth=50, stem_channels=16, base_channels=16, dcn=dcn, stage_with_dcn=replaced, **arguments)


@pytest.mark.parametrize('form', FORMS)
def test_it_replaces_the_3x3_of_mmdets_resnet(form):
    pytest.importorskip('mmdet')
    replaced = (False, True, True, True)
    net = MODELS.build(narrow_resnet('mmdet.ResNet', form, replaced))
    check_training_step(net, replaced, [64, 128, 256, 512], [16, 8, 4, 2])


def test_it_replaces_the_dilated_3x3_of_mmsegs_resnet():
    pytest.importorskip('mmseg')
    replaced = (False, False, True, True)
    dilated = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    net = MODELS.build(narrow_resnet('mmseg.ResNetV1c', 'inception', replaced, **dilated))
    check_training_step(net, replaced, [64, 128, 256, 512], [16, 8, 8, 8])


def check_training_step(net, replaced, channels, sides):
    for i, expected in enumerate(replaced):
        convs = [block.conv2 for block in getattr(net, f'layer{i + 1}')]
        assert {isinstance(conv, SplitTransformMerge) for conv in convs} == {expected}
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    outs = net(torch.randn(2, 3, 64, 64))
    assert [tuple(y.shape[1:]) for y in outs] == [(c, s, s) for c, s in zip(channels, sides, strict=True)]
    sum(y.square().mean() for y in outs).backward()
    before = [p.detach().clone() for p in net.parameters()]
    assert all(p.grad is not None for p in net.parameters())
    optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(form='resnet'), 'unknown form .*inception'),
        (dict(form='inception', groups=2), "no option 'groups'; its options: widths"),
        (dict(form='inception', out_channels=24), 'no multiple of 16'),
        (dict(form='inception', widths=(1, 2, 3, 4, 5, 6)), 'gives 15 channels, out_channels=32'),
        (dict(form='inception', widths=(1, 2)), '6 entries'),
        (dict(form='resnext', groups=5), '32 to 16|16 to 16 channels cannot have groups=5'),
        (dict(form='shufflenet_v1', groups=3), 'cannot have groups=3'),
        (dict(form='shufflenet_v1', groups=4, stride=2, out_channels=16), 'must not be below'),
        (dict(form='shufflenet_v2', out_channels=33), 'must be even'),
        (dict(kernel_size=4), 'must be odd'),
        (dict(stride=0), 'stride=0'),
        (dict(form='mbconv', se=-1.0), 'se=-1.0 must not be negative'),
        (dict(form='mbconv', act='foo'), "unknown activation 'foo'; known: relu"),
        (dict(padding=0), 'padding=0'),
        (dict(bias=True), 'linear_output'),
        (dict(form=dict(paths=[])), 'at least one path'),
        (dict(form=dict(paths=[[]])), 'at least one path'),
        (dict(form=dict(paths=[[dict(type='cov')]])), "type 'cov'"),
        (dict(form=dict(paths=[[dict(type='conv', channels=4, kernal=3)]])), "unknown key 'kernal'"),
        (dict(form=dict(path=[])), "unknown key 'path'"),
        (dict(form=dict(paths=[[], []], merge='mean')), "merge='mean'"),
        (dict(form=dict(paths=[[], []], split=[32])), 'names 1 parts for 2 paths'),
        (dict(form=dict(paths=[[], []], split=[16, 8])), 'adds up to 24'),
        (dict(form=Block(((), (Conv(32, stride=2),)))), r'strides \[1, 2\]'),
        (dict(form=Block(((), (Conv(16),)), merge='sum')), r'\[32, 16\] channels'),
        (dict(form=Block(((Conv(16),),), residual=True), out_channels=16), 'cannot add its input of 32'),
        (dict(form=Block(((Pool('mean'),),))), "kind='mean'"),
        (dict(form=Block(((Conv(32),),), shuffle=5)), 'shuffled between 5'),
        (dict(form=Block(((Conv(32),),)), stride=2), 'a described form says itself'),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitTransformMerge(**{'in_channels': 32, 'out_channels': 32, **arguments})
