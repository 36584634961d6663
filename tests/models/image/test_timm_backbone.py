"""timm models as backbones: a convolutional network, a mobile one, a hybrid and transformers."""

import pytest
import torch
from mmengine.config import Config

from eff_plugins import adapt
from eff_plugins.compat import MissingExtraError
from tests.conftest import oracle

timm = oracle('timm')

from eff_plugins.models.image.timm_backbone import TimmBackbone  # noqa: E402


@pytest.mark.parametrize(
    ('model', 'arguments', 'size', 'channels', 'strides'),
    [
        ('resnet18', dict(out_indices=(0, 1, 4)), (65, 97), (64, 64, 512), (2, 4, 32)),
        ('efficientnet_lite0', {}, (65, 97), (24, 40, 112, 320), (4, 8, 16, 32)),
        ('convnext_atto', dict(out_indices=(2, 3)), (64, 96), (80, 160), (8, 16)),
        ('mobilevit_xxs', {}, (65, 97), (24, 48, 64, 320), (4, 8, 16, 32)),
        ('swin_tiny_patch4_window7_224', dict(strict_img_size=False), (64, 96), (96, 192, 384, 768), (4, 8, 16, 32)),
        ('vit_tiny_patch16_224', dict(out_indices=(2, 5), dynamic_img_size=True), (64, 96), (192, 192), (16, 16)),
    ],
)
def test_maps_are_timms_with_declared_shapes(model, arguments, size, channels, strides):
    net = TimmBackbone(model, **arguments).eval()
    assert (net.out_channels, net.out_strides, net.size_divisor) == (channels, strides, max(strides))
    x = torch.rand(1, 3, *size)
    outs = net(x)
    assert [tuple(y.shape[1:]) for y in outs] == [
        (c, *(-(-side // stride) for side in size)) for c, stride in zip(channels, strides, strict=True)
    ]
    for y, theirs in zip(outs, net.net(x), strict=True):
        assert torch.equal(y, theirs if y.shape == theirs.shape else theirs.permute(0, 3, 1, 2))
    sum(y.sum() for y in outs).backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize('model', ['resnet18', 'efficientnet_lite0', 'vit_tiny_patch16_224'])
def test_frozen_stages_are_what_the_map_depends_on(model):
    extra = dict(out_indices=(1, 3), dynamic_img_size=True) if model.startswith('vit') else {}
    net = TimmBackbone(model, frozen_stages=1, norm_eval=True, **extra).train()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    expected = {
        'resnet18': ('net.conv1.', 'net.bn1.', 'net.layer1.'),
        'efficientnet_lite0': ('net.conv_stem.', 'net.bn1.', 'net.blocks.0.', 'net.blocks.1.'),
        'vit_tiny_patch16_224': (
            *('net.model.cls_token', 'net.model.pos_embed', 'net.model.patch_embed.'),
            *('net.model.blocks.0.', 'net.model.blocks.1.'),
        ),
    }[model]
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith(expected)}
    before = {name: b.clone() for name, b in net.named_buffers()}
    sum(y.sum() for y in net(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_frozen_norms_stay_in_eval_mode_without_norm_eval():
    net = TimmBackbone('resnet18', frozen_stages=0).train()
    modes = {name: m.training for name, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert [name for name, training in modes.items() if not training] == ['net.bn1']


def test_parameters_behind_the_last_map_do_not_train():
    """timm builds all of an EfficientNet; idle parameters would stall distributed training."""
    net = TimmBackbone('efficientnet_lite0', out_indices=(1, 2))
    assert not any(p.requires_grad for p in net.net.blocks[-1].parameters())
    assert all(p.requires_grad for p in net.net.blocks[0].parameters())


def test_checkpointing_and_norm_cfg():
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        net = TimmBackbone('resnet18', with_cp=with_cp, norm_cfg=dict(type='BN', requires_grad=False)).train()
        net(x)[-1].square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and not any('bn' in name for name in grads[0])
    for name in grads[0]:
        torch.testing.assert_close(*(g[name] for g in grads))
    sync = TimmBackbone('efficientnet_lite0', out_indices=(1,), norm_cfg=dict(type='SyncBN', eps=0.02, momentum=0.3))
    norms = [m for m in sync.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert norms and all((m.eps, m.momentum) == (0.02, 0.3) for m in norms)
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in sync.modules())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(model='resnet19'), "no model 'resnet19'; nearest: resnet1"),
        (dict(model='resnet18', out_indices=(2, 5)), r'lie in \(0, 1, 2, 3, 4\)'),
        (dict(model='convnext_atto', out_indices=(0,)), r'lie in \(1, 2, 3, 4\)'),
        (dict(model='resnet18', frozen_stages=7), 'frozen_stages=7'),
        (dict(model='resnet18', norm_cfg=dict(type='LN')), 'BN and SyncBN'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)


def test_a_model_without_feature_maps_is_named(monkeypatch):
    def create_model(*args, **kwargs):
        raise RuntimeError('features_only is not implemented')

    monkeypatch.setattr(timm, 'create_model', create_model)
    with pytest.raises(ValueError, match='resnet18 gives no feature maps: features_only is not implemented'):
        TimmBackbone('resnet18')


def test_strides_that_are_no_powers_of_two_are_numbered_in_order():
    net = TimmBackbone('sequencer2d_s', out_indices=(0, 1)).eval()
    assert net.out_strides == (7, 14)
    assert [tuple(y.shape[1:]) for y in net(torch.rand(1, 3, 56, 56))] == [(192, 8, 8), (384, 4, 4)]


def test_fixed_input_sizes_are_said_before_the_computation():
    net = TimmBackbone('vit_tiny_patch16_224', out_indices=(1,), img_size=(64, 96))
    assert net.input_size == (64, 96) and net(torch.rand(1, 3, 64, 96))[0].shape == (1, 192, 4, 6)
    with pytest.raises(ValueError, match=r'img_size=\(H, W\).*dynamic_img_size=True'):
        net(torch.rand(1, 3, 64, 64))


def test_without_weights_to_be_had_the_remedy_is_named(monkeypatch):
    original = timm.create_model

    def offline(*args, pretrained=False, **kwargs):
        if pretrained:
            raise OSError('no network')
        return original(*args, **kwargs)

    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(RuntimeError, match='no network.*checkpoint_path=FILE'):
        TimmBackbone('resnet18', pretrained=True)


def test_strict_loading(tmp_path):
    source = TimmBackbone('resnet18', out_indices=(1,))
    path = tmp_path / 'x.pth'
    torch.save(source.state_dict(), path)
    net = TimmBackbone('resnet18', out_indices=(1,), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    net.init_weights()
    torch.testing.assert_close(net.net.conv1.weight, source.net.conv1.weight)
    other = TimmBackbone('resnet18', out_indices=(2,), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(ValueError, match=r'missing net\.layer2'):
        other.init_weights()


def test_without_timm_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(MissingExtraError, match=r"TimmBackbone needs timm.*pip install 'eff_plugins\[timm\]'"):
        TimmBackbone()


@pytest.mark.parametrize('model', ['resnet18', 'swin_tiny_patch4_window7_224'])
def test_one_changed_type_in_an_mmdet_config(model):
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS

    cfg = Config.fromfile('tests/data/retinanet_changed_type.py')
    cfg.model.backbone.update(type='eff_plugins.TimmBackbone', model=model)
    if model.startswith('swin'):
        cfg.model.backbone.update(strict_img_size=False)
    model = MODELS.build(adapt(cfg).model)
    assert cfg.model.neck.in_channels == list(model.backbone.out_channels)
    assert [tuple(x.shape[1:]) for x in model.extract_feat(torch.rand(1, 3, 64, 64))] == [
        (256, side, side) for side in (8, 4, 2, 1, 1)
    ]


def test_one_changed_type_in_an_mmseg_config():
    pytest.importorskip('mmseg')
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    cfg = Config.fromfile('tests/data/fcn_changed_type.py')
    cfg.model.backbone.update(type='eff_plugins.TimmBackbone', model='convnext_atto')
    cfg.model.decode_head.in_channels = 'auto'
    model = revert_sync_batchnorm(MODELS.build(adapt(cfg).model)).eval()
    assert model.decode_head.in_channels == 320 and model.auxiliary_head.in_channels == 160
    assert model(torch.rand(1, 3, 64, 64), mode='tensor').shape[:2] == (1, 19)
