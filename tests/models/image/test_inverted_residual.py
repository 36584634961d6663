import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.image.stages import Network, archs, resolve_arch, round_channels
from eff_plugins.profiling.macs import count_macs, count_parameters

# Published: parameters of the whole classifier (the checkpoints' own tensors agree, tests/hub).
PUBLISHED_PARAMS = {'efficientnet_lite0': 4.652, 'efficientnet_lite1': 5.417, 'efficientnet_lite2': 6.093}
TINY = dict(
    stages=[
        dict(channels=8, repeats=1, expand=1),
        dict(channels=12, repeats=2, stride=2, expand=2),
        dict(channels=16, repeats=2, stride=2, kernel=5, expand=2),
    ],
    stem_channels=8,
)


@pytest.mark.parametrize('name', sorted(PUBLISHED_PARAMS))
def test_published_parameter_counts(name):
    import eff_plugins

    model = eff_plugins.get_model(name)
    assert count_parameters(model) / 1e6 == pytest.approx(PUBLISHED_PARAMS[name], abs=1e-3)


@pytest.mark.parametrize('name', ['efficientnet_lite0', 'efficientnetv2_b0', 'mobilenetv3_small', 'fbnetv2_f1'])
@pytest.mark.parametrize('size', [(64, 64), (65, 97)])
def test_shapes_strides_and_channels_are_as_declared(name, size):
    net = InvertedResidualNet(name, out_indices=(0, 1, 2, 3, 4)).eval()
    with torch.no_grad():
        outs = net(torch.rand(1, 3, *size))
    assert tuple(x.shape[1] for x in outs) == net.out_channels
    assert [tuple(x.shape[2:]) for x in outs] == [tuple(-(-s // stride) for s in size) for stride in net.out_strides]
    assert net.size_divisor == 32


def test_multiply_adds_equal_a_hand_count():
    net = InvertedResidualNet(TINY, out_indices=(2,)).eval()
    counted = count_macs(net, lambda: net(torch.rand(1, 3, 32, 32)))['']
    stem = 27 * 8 * 16 * 16
    first = (9 * 8 + 8 * 8) * 16 * 16
    second = 8 * 16 * 16 * 16 + (9 * 16 + 16 * 12) * 8 * 8 + (12 * 24 + 9 * 24 + 24 * 12) * 8 * 8
    third = 12 * 24 * 8 * 8 + (25 * 24 + 24 * 16) * 4 * 4 + (16 * 32 + 25 * 32 + 32 * 16) * 4 * 4
    assert counted == stem + first + second + third


def test_every_parameter_gets_a_gradient_even_with_checkpointing():
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        net = InvertedResidualNet(TINY, out_indices=(1, 2), with_cp=with_cp).train()
        net(x)[-1].square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.stem.parameters())
        grads.append([p.grad for p in net.parameters()])
    assert all(g is not None for g in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_stages_and_norm_eval():
    net = InvertedResidualNet(TINY, out_indices=(2,), frozen_stages=1, norm_eval=True).train()
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(('stem.', 'stages.0.')) for n in frozen)
    assert {n for n, _ in net.named_parameters() if n.startswith(('stem.', 'stages.0.'))} == frozen
    before = {n: b.clone() for n, b in net.named_buffers()}
    net(torch.rand(2, 3, 32, 32))
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_bf16_channels_last_and_group_norm_run():
    net = InvertedResidualNet(TINY, out_indices=(2,), norm_cfg=dict(type='GN', num_groups=4)).eval()
    x = torch.rand(1, 3, 32, 32)
    want = net(x)[0]
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(x)[0], want, rtol=1e-4, atol=1e-5)
    assert net.bfloat16()(x.bfloat16())[0].dtype == torch.bfloat16


def test_same_padding_matches_its_definition():
    from eff_plugins.models.layers.conv import SamePadConv2d

    conv = SamePadConv2d(2, 3, 3, stride=2, bias=False)
    for size in (7, 8):
        x = torch.rand(1, 2, size, size)
        total = 2 if size % 2 else 1
        padded = torch.nn.functional.pad(x, (total // 2, total - total // 2) * 2)
        torch.testing.assert_close(conv(x), torch.nn.functional.conv2d(padded, conv.weight, stride=2))


def test_arch_json_round_trip(tmp_path):
    network = archs()['efficientnet_lite1']
    path = tmp_path / 'arch.json'
    path.write_text(json.dumps({'kind': 'stages', 'network': network.to_dict(), 'input_size': 240, 'search': {}}))
    assert resolve_arch(str(path)) == network
    assert Network.from_dict(network.to_dict()) == network


def test_round_channels_never_loses_more_than_a_tenth():
    for channels in np.arange(8, 400, 0.7):
        rounded = round_channels(float(channels))
        assert rounded % 8 == 0 and rounded >= 0.9 * channels


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='efficientnet_lite9'), 'nearest: efficientnet_lite'),
        (dict(arch=dict(stages=[])), "needs 'stages'"),
        (dict(arch=dict(stages=[dict(channels=8, widht=2)])), "unknown key 'widht'"),
        (dict(arch=TINY, out_indices=(4,)), 'resolution levels'),
        (dict(arch=TINY, out_indices=(2, 1)), 'must ascend'),
        (dict(arch=TINY, out_indices=(2,), frozen_stages=9), 'frozen_stages=9'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        InvertedResidualNet(**kwargs)


def test_builds_by_type_from_the_root_registry():
    net = MODELS.build(dict(type='eff_plugins.InvertedResidualNet', arch=TINY, out_indices=(1, 2)))
    assert net.out_channels == (12, 16)
