"""LASNet, DynConv and layer skipping on the hosts that they promise to serve."""

import copy

import pytest
import torch
from mmengine.registry import MODELS

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.dynamic.module import dynamic_modules
from eff_plugins.models.image.cifar_resnet import CifarResNet
from eff_plugins.models.image.resnet import ResNet
from eff_plugins.models.spatial.dynconv import DynConv
from eff_plugins.models.spatial.lasnet import LASNet
from eff_plugins.models.spatial.layer_skip import LayerSkip
from eff_plugins.profiling.macs import count_macs
from eff_plugins.testing.oracles import randomise

SMALL = dict(base_channels=8)
MOBILE = dict(
    type='eff_plugins.InvertedResidualNet',
    arch=dict(
        stages=[dict(channels=8, repeats=3, expand=2, stride=2), dict(channels=12, repeats=3, stride=2, expand=2)],
        stem_channels=8,
    ),
    out_indices=(1, 2),
)
CASES = {
    'lasnet-r50': (lambda: LASNet(depth=50, **SMALL), (2, 3, 231, 225)),
    'lasnet-r18': (lambda: LASNet(depth=18, granularity=(4, 4, 2, 1), **SMALL), (2, 3, 131, 97)),
    'lasnet-cifar': (lambda: LASNet(CifarResNet(14), granularity=(4, 2, 2)), (3, 3, 32, 35)),
    'lasnet-mobile': (lambda: LASNet(MOBILE, granularity=(4, 2)), (2, 3, 65, 49)),
    'dynconv-r50': (lambda: DynConv(depth=50, **SMALL), (2, 3, 131, 97)),
    'dynconv-caffe-dilated': (
        lambda: DynConv(depth=50, style='caffe', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), **SMALL),
        (2, 3, 131, 97),
    ),
    'dynconv-mobile': (lambda: DynConv(MOBILE), (2, 3, 65, 49)),
    'layer-skip-r50': (lambda: LayerSkip(depth=50, **SMALL), (4, 3, 131, 97)),
    'layer-skip-resnext': (
        lambda: LayerSkip(dict(type='eff_plugins.ResNeXt', arch=dict(depths=(2, 1, 2, 1), cardinality=2, width=8))),
        (4, 3, 64, 64),
    ),
}


def network(case):
    torch.manual_seed(0)
    net = CASES[case][0]()
    randomise(net)
    return net.eval(), torch.randn(*CASES[case][1])


def halve(net, x):
    """Set each threshold near its scores' median, where rounding moves no score across, so that samples and places differ."""
    with torch.no_grad(), dynamic.record(dynamic.set_execution(net, 'masked')) as stats:
        net(x)
    scores = {entry.name: entry.scores for entry in stats.entries}
    for name, module in dynamic_modules(net):
        middle = scores[name].flatten().sort().values
        middle = middle[len(middle) // 3 : max(2 * len(middle) // 3, len(middle) // 3 + 2)]
        gap = int(middle.diff().argmax())
        module.decide.threshold = float(middle[gap : gap + 2].mean())
    return net


def close(a, b, tolerance):
    return all(float((p - q).abs().max()) <= tolerance * float(q.abs().max()) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize('native', ['native', 'plain'])
@pytest.mark.parametrize('case', CASES)
def test_executions_agree_and_macs_are_what_is_executed(case, native, monkeypatch):
    if native == 'plain':
        for module in ('rows', 'plan', 'scores'):
            monkeypatch.setattr(f'eff_plugins.ops.{module}.kernels', lambda: None)
    net, x = network(case)
    before = x.clone()
    with torch.no_grad():
        dense = dynamic.set_execution(net, 'dense')(x)
        dynamic.set_policy(net, 'all')
        assert close(dynamic.set_execution(net, 'masked')(x), dense, 1e-5)
        assert close(dynamic.set_execution(net, 'sparse')(x), dense, 1e-5)
        dynamic.set_policy(net, 'none')
        none = dynamic.set_execution(net, 'masked')(x)
        assert close(dynamic.set_execution(net, 'sparse')(x), none, 1e-5)
        halve(dynamic.set_policy(net, 'learned'), x)
        masked = dynamic.set_execution(net, 'masked')(x)
        with dynamic.record(dynamic.set_execution(net, 'sparse')) as stats:
            sparse = net(x)
    assert close(sparse, masked, 1e-4) and not close(masked, dense, 1e-3)
    assert torch.equal(x, before)
    assert torch.stack([e.density for e in stats.entries]).std(1).max() > 0  # samples decide for themselves
    total = dynamic.network_macs(net, lambda: net(x), len(x))
    executed = count_macs(net, lambda: net(x))[''] / len(x)
    assert float(stats.share(total)) == pytest.approx(executed / total, rel=1e-4)
    assert executed < 0.9 * total


@pytest.mark.parametrize('case', ['lasnet-r50', 'dynconv-mobile', 'layer-skip-r50'])
def test_the_deployed_network_computes_the_same(case):
    net, x = network(case)
    halve(net, x)
    wanted = dynamic.set_execution(net, 'sparse')(x)
    how = Preparation(prepack=True)
    deployed = prepare(net, how)
    assert close(deployed(how.inputs(x)), wanted, 1e-4)
    dense = dynamic.set_execution(net, 'dense')(x)
    assert close(dynamic.set_execution(deployed, 'dense')(how.inputs(x)), dense, 1e-4)


def test_maps_that_others_read_are_not_overwritten():
    net, x = network('lasnet-r18')
    halve(net, x)
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad():
        outs = net(x)
        copies = [y.clone() for y in outs]
        net(torch.randn_like(x))
    assert all(torch.equal(a, b) for a, b in zip(outs, copies, strict=True))


@pytest.mark.parametrize('case', CASES)
def test_every_parameter_gets_a_gradient(case):
    net, x = network(case)
    dynamic.set_execution(net, 'masked').train()
    with dynamic.record(net) as stats:
        out = net(x)
    (sum(y.square().mean() for y in out) + stats.saved_macs() * 1e-6).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_keys_are_the_hosts_and_the_policys():
    net = LASNet(depth=50, **SMALL)
    own = {key: value.shape for key, value in net.state_dict().items() if '.dynamic.' not in key}
    assert own == {key: value.shape for key, value in ResNet(50, **SMALL).state_dict().items()}


def test_changed_weights_are_noticed():
    net, x = network('dynconv-r50')
    halve(net, x)
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


def test_copies_and_bfloat16():
    net, x = network('lasnet-mobile')
    halve(net, x)
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad():
        wanted = net(x)
        assert close(copy.deepcopy(net)(x), wanted, 1e-6)
        low = copy.deepcopy(net).bfloat16()
        assert all(y.dtype == torch.bfloat16 and y.isfinite().all() for y in low(x.bfloat16()))


@pytest.mark.parametrize(
    ('build', 'error', 'message'),
    [
        (lambda: LASNet(depth=50, granularity=0), ValueError, 'granularity 0 must be at least 1'),
        (lambda: LASNet(depth=50, granularity=(8, 4)), ValueError, 'has 2 numbers; ResNet has 4 stages'),
        (lambda: DynConv(depth=50, norm_cfg=dict(type='GN', num_groups=8)), TypeError, 'GroupNorm depends'),
        (
            lambda: DynConv(dict(type='eff_plugins.InvertedResidualNet', arch='efficientnet_b0')),
            TypeError,
            'SqueezeExcite in a residual branch',
        ),
        (lambda: LASNet(MOBILE, depth=50), ValueError, r'depth: arguments of the backbone belong into backbone='),
    ],
)
def test_what_cannot_be_hosted_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_an_input_smaller_than_a_patch_is_refused():
    net, _ = network('lasnet-r50')
    dynamic.set_execution(net, 'masked')
    with pytest.raises(ValueError, match='a map of 4x4 is smaller than a patch of granularity 7'):
        net(torch.zeros(1, 3, 64, 64))


def test_one_changed_type_in_a_config():
    resnet = dict(depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1, norm_eval=True, style='pytorch')
    net = MODELS.build(dict(type='eff_plugins.LASNet', norm_cfg=dict(type='BN', requires_grad=True), **resnet))
    assert isinstance(net, ResNet) and net.out_channels == (256, 512, 1024, 2048)
