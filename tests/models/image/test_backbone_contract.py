"""What every image backbone promises, on the smallest variant of each family of the zoo."""

import pytest
import torch

from eff_plugins.deploy.export import max_difference
from eff_plugins.models.image import zoo
from eff_plugins.models.layers.conv import is_norm
from eff_plugins.models.video.temporal_shift import residual_branches
from eff_plugins.registry import MODELS
from eff_plugins.testing.families import families
from eff_plugins.testing.oracles import randomise

NAMES = [names[0] for names in families().values()]


def build(name, maps=3, **arguments):
    """The backbone with its last ``maps`` maps, its weights such that the signal of every family reaches them."""
    row = zoo.variant(name)
    out_indices = tuple(range(row.last_index - maps + 1, row.last_index + 1))
    torch.manual_seed(0)
    net = MODELS.build(dict(row.backbone, out_indices=out_indices, **arguments))
    randomise(net)
    return net


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_any_input_size_and_declared_maps(name):
    net = build(name).eval()
    assert net.size_divisor == max(net.out_strides)
    for height, width in ((64, 96), (65, 97), (193, 63)):
        outs = net(torch.randn(1, 3, height, width))
        assert tuple(y.shape[1] for y in outs) == net.out_channels
        for y, stride in zip(outs, net.out_strides, strict=True):
            for side, size in zip(y.shape[2:], (height, width), strict=True):
                # ceil-mode pooling without padding may lose the last, incomplete column
                assert size // stride <= side <= -(-size // stride)


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_fewer_maps_build_fewer_stages_with_the_same_values(name):
    whole = build(name).eval()
    part = MODELS.build(dict(zoo.variant(name).backbone, out_indices=whole.out_indices[:1])).eval()
    assert len(part.stages) < len(whole.stages)
    part.load_state_dict({key: value for key, value in whole.state_dict().items() if key in part.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    assert max_difference(part(x)[0], whole(x)[0]) <= 1e-5


@pytest.mark.parametrize('name', NAMES)
def test_frozen_stages_and_norm_eval(name):
    net = build(name, maps=1, frozen_stages=2, norm_eval=True).train()
    frozen = ('stem.', 'stages.0.', 'stages.1.')
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {
        n for n, _ in net.named_parameters() if n.startswith(frozen)
    }
    assert not any(module.training for module in net.modules() if is_norm(module))
    before = {n: b.clone() for n, b in net.named_buffers()}
    net(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert all(torch.equal(buffer, before[n]) for n, buffer in net.named_buffers())
    assert all((p.grad is None) == n.startswith(frozen) for n, p in net.named_parameters())


@pytest.mark.parametrize('name', NAMES)
def test_checkpointing_changes_no_gradient(name):
    x, grads = torch.randn(2, 3, 64, 64), []
    for with_cp in (False, True):
        net = build(name, with_cp=with_cp).train()
        sum(y.square().mean() for y in net(x)).backward()
        grads.append({n: p.grad for n, p in net.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-3, atol=1e-5, msg=key)


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES)
def test_channels_last_and_bf16(name):
    net, x = build(name, maps=1).eval(), torch.randn(1, 3, 65, 97)
    want = net(x)[0]
    got = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))[0]
    assert want.std() > 1e-3 and max_difference(got, want) <= 1e-4
    half = net.bfloat16()(x.bfloat16())[0]
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), want.flatten(), dim=0) > 0.98


def test_residual_branches_are_found():
    """Units of ShuffleNet v1 at stride 1 add their input; units of v2 concatenate and have no branch to shift in."""
    assert len(list(residual_branches(build('shufflenetv1_g3_050', maps=1)))) == 3 + 7 + 3
    assert not list(residual_branches(build('shufflenetv2_050', maps=1)))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(type='ShuffleNetV1', groups=5), 'groups=5 of ShuffleNetV1'),
        (dict(type='ShuffleNetV1', groups=3, width=0.21), 'cannot have groups=3'),
        (dict(type='ShuffleNetV2', width=1.25), 'width=1.25 of ShuffleNetV2'),
        (dict(type='ShuffleNetV2', width=(48, 96)), 'three numbers'),
        (dict(type='GoogLeNet', out_indices=(5,)), 'resolution levels'),
        (dict(type='GoogLeNet', frozen_stages=6), 'frozen_stages=6'),
        (dict(type='GoogLeNet', large_kernel=4), 'large_kernel=4'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(arguments)
