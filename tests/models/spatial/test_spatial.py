"""LASNet, DynConv and layer skipping: what goes beyond the conformance suite."""

import pytest
import torch
from mmengine.registry import MODELS

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.dynamic.break_even import DEFAULTS
from eff_plugins.dynamic.module import dynamic_modules
from eff_plugins.dynamic.policies import Decide
from eff_plugins.models.image.resnet import ResNet
from eff_plugins.models.spatial.dynconv import DynConv
from eff_plugins.models.spatial.lasnet import LASNet
from eff_plugins.models.spatial.layer_skip import LayerSkip
from eff_plugins.models.spatial.sbnet import SBNet
from eff_plugins.ops.native import kernels
from eff_plugins.profiling.macs import count_macs
from eff_plugins.testing.conformance import check, difference, varied
from eff_plugins.testing.dynamic_types import DYNAMIC, MOBILE
from eff_plugins.testing.oracles import randomise

SMALL = dict(base_channels=8)
GN = dict(type='GN', num_groups=8)
# blocks of one convolution whose activation comes before the sum, as in EfficientNetV2
FUSED = dict(
    type='eff_plugins.InvertedResidualNet',
    arch=dict(stages=[dict(channels=8, repeats=3, block='conv', stride=2)], stem_channels=8, act='relu6'),
    out_indices=(1,),
)


def network(label):
    return varied(DYNAMIC[label])


@pytest.mark.parametrize('name', ['sparse', 'odd_size', 'selections', 'macs'])
@pytest.mark.parametrize(
    'label',
    [
        'LASNet on CifarResNet',
        'LASNet on InvertedResidualNet',
        'DynConv on a dilated ResNet',
        'DynConv on InvertedResidualNet',
        'LayerSkip on InvertedResidualNet',
    ],
)
@pytest.mark.parametrize('instruction_set', [None], indirect=True)
def test_plain_torch_serves_where_there_is_no_native_kernel(label, name, instruction_set, monkeypatch):
    assert kernels() is None
    monkeypatch.setitem(DEFAULTS, 'torch', DEFAULTS['native'])  # rows at any density
    check(DYNAMIC[label], name)


def close(a, b, tolerance):
    return difference(list(a), list(b)) <= tolerance


@pytest.mark.parametrize('case', ['LASNet', 'DynConv on InvertedResidualNet', 'LayerSkip', 'SACT', 'SFSI', 'LCCL'])
def test_the_deployed_network_computes_the_same(case):
    net, x = network(case)
    wanted = dynamic.set_execution(net, 'sparse')(x)
    how = Preparation(prepack=True)
    deployed = prepare(net, how)
    assert close(deployed(how.inputs(x)), wanted, 1e-4)
    dense = dynamic.set_execution(net, 'dense')(x)
    assert close(dynamic.set_execution(deployed, 'dense')(how.inputs(x)), dense, 1e-4)


def test_maps_that_others_read_are_not_overwritten():
    net, x = network('LASNet on ResNet-18')
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad():
        outs = net(x)
        copies = [y.clone() for y in outs]
        net(torch.randn_like(x))
    assert all(torch.equal(a, b) for a, b in zip(outs, copies, strict=True))


def test_changed_weights_are_noticed():
    net, x = network('DynConv')
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad():
        first = net(x)
        for parameter in net.parameters():
            parameter.mul_(1.1)
        assert not close(net(x), first, 1e-3)
        assert close(net(x), dynamic.set_execution(net, 'masked')(x), 1e-4)
        for parameter in net.parameters():
            parameter.data.copy_(parameter.data * 0.9)  # unseen by autograd, as averaged weights are swapped in
        net.eval()
        masked = net(x)
        assert close(dynamic.set_execution(net, 'sparse')(x), masked, 1e-4)


@pytest.mark.parametrize(
    ('build', 'error', 'message'),
    [
        (
            lambda: LASNet(backbone=torch.nn.Sequential(), granularity=2),
            ValueError,
            'Sequential of torch has no residual block',
        ),
        (lambda: LASNet(depth=50, granularity=0), ValueError, 'granularity 0 must be at least 1'),
        (lambda: LASNet(depth=50, granularity=0.5), ValueError, 'granularity 0.5 must be a whole number'),
        (lambda: LASNet(FUSED), TypeError, r'ends with an activation \(relu6\) before the sum'),
        (lambda: DynConv({**FUSED, 'arch': {**FUSED['arch'], 'act': 'swish'}}), TypeError, 'no kernel computes swish'),
        (lambda: SBNet(dict(type='eff_plugins.ResNet', depth=18, norm_cfg=GN)), TypeError, 'GroupNorm depends'),
        (lambda: SBNet(LASNet(depth=18)), ValueError, 'SpatialGate decides for this block already'),
        (lambda: LASNet(depth=50, granularity=(8, 4)), ValueError, 'has 2 numbers; ResNet has 4 stages'),
        (
            lambda: LASNet(dict(type='eff_plugins.InvertedResidualNet', arch='efficientnet_lite0')),
            ValueError,
            'granularity is needed: InvertedResidualNet has 5 stages',
        ),
        (lambda: DynConv(depth=50, norm_cfg=dict(type='GN', num_groups=8)), TypeError, 'GroupNorm depends'),
        (
            lambda: DynConv(dict(type='eff_plugins.InvertedResidualNet', arch='efficientnet_b0')),
            TypeError,
            'SqueezeExcite in a residual branch',
        ),
        (
            lambda: LASNet(MOBILE['backbone'], depth=50),
            ValueError,
            r'depth: arguments of the backbone belong into backbone=',
        ),
    ],
)
def test_what_cannot_be_hosted_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize('label', ['LASNet', 'DynConv', 'LayerSkip', 'SACT', 'SFSI', 'LCCL', 'SBNet', 'SegBlocks'])
def test_training_goes_on_after_inference_mode(label):
    net, x = network(label)
    with torch.inference_mode():
        dynamic.set_execution(net, 'sparse')(x)
    outs = dynamic.set_execution(net, 'masked').train()(x)
    sum(y.square().mean() for y in outs).backward()


def test_deformable_convolutions_are_counted_where_blocks_are_skipped_and_refused_where_they_are_cut():
    pytest.importorskip('mmcv.ops')
    host = dict(depth=50, **SMALL, dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, False, True, True))
    net, x = LayerSkip(**host).eval(), torch.randn(2, 3, 64, 64)
    dynamic.set_policy(net, 'none')
    for execution in ('masked', 'sparse'):
        with dynamic.record(net) as stats, torch.no_grad():
            dynamic.set_execution(net, execution)(x)
        assert min(float(entry.dense_macs) for entry in stats.entries) > 0 and float(stats.saved_macs()) > 0
    with pytest.raises(TypeError, match='ModulatedDeformConv2dPack|DCNv2'):
        SBNet(dict(type='eff_plugins.ResNet', **host))


@pytest.mark.parametrize('act', ['relu6', 'swish'])
def test_an_activation_before_the_sum_stays(act):
    config = {**FUSED, 'arch': {**FUSED['arch'], 'act': act}}
    net, x, how = MODELS.build(config).eval(), torch.randn(3, 3, 32, 32), Preparation(prepack=True)
    randomise(net)
    with torch.no_grad():
        want = net(x)
        assert close(prepare(net, how)(how.inputs(x)), want, 1e-4)
        skipping = LayerSkip(net).eval()
        for module in skipping.modules():
            if isinstance(module, Decide):
                module.kind, module.density = 'random', 0.5
        torch.manual_seed(0)
        masked = [y.clone() for y in dynamic.set_execution(skipping, 'masked')(x)]
        torch.manual_seed(0)
        assert close(dynamic.set_execution(skipping, 'sparse')(x), masked, 1e-4) and not close(masked, want, 1e-3)


def test_granularity_by_default_fits_the_stages():
    gates = [m.patch for _, m in dynamic_modules(LASNet(depth=18, out_indices=(1, 2), **SMALL))]
    assert gates == [8, 8, 4, 4, 7, 7]


def test_an_input_smaller_than_a_patch_is_refused():
    net, _ = network('LASNet')
    dynamic.set_execution(net, 'masked')
    with pytest.raises(ValueError, match='a map of 4x4 is smaller than a patch of granularity 7'):
        net(torch.zeros(1, 3, 64, 64))


def test_one_changed_type_in_a_config():
    resnet = dict(depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1, norm_eval=True, style='pytorch')
    net = MODELS.build(dict(type='eff_plugins.LASNet', norm_cfg=dict(type='BN', requires_grad=True), **resnet))
    assert isinstance(net, ResNet) and net.out_channels == (256, 512, 1024, 2048)


@pytest.mark.parametrize('build', [LASNet, LayerSkip])
def test_checkpointing_recomputes_branches_and_reports_once(build):
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        options = {} if build is LayerSkip else dict(granularity=(4, 4, 2, 1))
        net = build(depth=18, base_channels=8, with_cp=with_cp, norm_eval=True, **options)
        randomise(net)
        dynamic.set_execution(net, 'masked').train()
        torch.manual_seed(1)
        with dynamic.record(net) as stats:
            out = net(torch.randn(2, 3, 64, 64))
        (out[-1].square().mean() + stats.saved_macs() * 1e-6).backward()
        assert len(stats.entries) == 8
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_policies_in_frozen_stages_learn():
    net = LASNet(depth=18, base_channels=8, frozen_stages=2, granularity=(4, 4, 2, 1))
    net.train()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen and not any('.dynamic.' in name for name in frozen)
    assert all(module.training for _, module in dynamic_modules(net)) and not net.layer1[0].bn1.training
    assert not any(module.training for _, module in dynamic_modules(net.eval()))


def test_statistics_and_assigned_weights_are_noticed():
    net, x = network('DynConv')
    with torch.no_grad():
        dynamic.set_execution(net, 'sparse')(x)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.mul_(1.5)
        assert close(net(x), dynamic.set_execution(net, 'masked')(x), 1e-4)
        dynamic.set_execution(net, 'sparse')(x)
        state = {key: value * 1.1 if value.is_floating_point() else value for key, value in net.state_dict().items()}
        net.load_state_dict(state, assign=True)
        assert close(net(x), dynamic.set_execution(net, 'masked')(x), 1e-4)


def test_gradients_are_cut_but_nothing_is_overwritten_where_they_are_recorded():
    net, x = network('LayerSkip')
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    out = dynamic.set_execution(net, 'sparse')(x)
    with torch.no_grad():
        assert close(out, dynamic.set_execution(net, 'masked')(x), 1e-4)
    assert not out[-1].requires_grad


def test_a_mixed_batch_of_layer_skipping_reports_what_is_computed_whole(monkeypatch):
    from eff_plugins.dynamic.break_even import BreakEven

    monkeypatch.setattr(BreakEven, 'density', lambda *_: 0.3)
    net, x = network('LayerSkip')
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad(), dynamic.record(net) as stats:
        net(x)
    total = dynamic.network_macs(net, lambda: net(x), len(x))
    executed = count_macs(net, lambda: net(x))[''] / len(x)
    assert float(stats.share(total)) == pytest.approx(executed / total, rel=1e-4)
