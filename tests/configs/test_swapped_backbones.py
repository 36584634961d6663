"""Swapping the backbone alone works: in the suite's composed models, and by one changed type in the frameworks' configs."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from eff_plugins import adapt

BASES = Path(__file__).parents[2] / 'configs/_base_/models'
SEGMENTATION = ('ccnet', 'danet', 'deeplabv3plus', 'isanet', 'lraspp', 'ocrnet', 'segformer-head', 'segmenter')
OTHERS = ('classifier', 'tsm')  # no detector, no segmentor
COMPOSED = sorted(p for p in BASES.glob('*_effnet-lite0.py') if not p.name.startswith(OTHERS))
MMDET = [
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'detr/detr_r50_8xb2-150e_coco',
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'htc/htc-without-semantic_r50_fpn_1x_coco',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco',
    'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco',
    'pafpn/faster-rcnn_r50_pafpn_1x_coco',
    'retinanet/retinanet_r50_fpn_1x_coco',
    'solo/solo_r50_fpn_1x_coco',
    'solov2/solov2-light_r50_fpn_ms-3x_coco',
    'solov2/solov2_r50_fpn_1x_coco',
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco',
    'yolact/yolact_r50_1xb8-55e_coco',
    'yolof/yolof_r50-c5_8xb8-1x_coco',
]
MMSEG = [
    'ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'danet/danet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
    'isanet/isanet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024',
    'mobilenet_v3/mobilenet-v3-d8-scratch_lraspp_4xb4-320k_cityscapes-512x1024',
    'ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024',
    'ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024',
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512',
]


def build(cfg):
    """The adapted model with random weights."""
    init_default_scope(cfg.default_scope)
    quicker(cfg.model)
    model = adapt(cfg).model
    model.backbone.init_cfg = None  # no download
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        network = revert_sync_batchnorm(registry.build(model))
    network.init_weights()
    return network.train()


def quicker(part):
    """Keep the frameworks' wide necks and heads quick; what the backbone meets stays."""
    if isinstance(part, dict):
        if part.get('type') == 'BatchFixedSizePad':
            part['size'] = (128, 128)
        for name, most in dict(num=16, nms_pre=50, max_per_img=20, stack_times=1, stacked_convs=1, num_convs=1).items():
            if isinstance(part.get(name), int):
                part[name] = min(part[name], most)
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ():
        quicker(value)


def run(network, scope):
    """Losses of a detector on two pictures, or a segmentor's logits."""
    if scope == 'mmseg':
        logits = network(torch.rand(2, 3, 64, 64), None, mode='tensor')
        logits = logits if isinstance(logits, tuple) else (logits,)  # DANet has three
        assert all(part.shape[0] == 2 and torch.isfinite(part).all() for part in logits)
        return
    from mmdet.testing import demo_mm_inputs

    data = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=5, with_mask=True)
    losses = network(**network.data_preprocessor(data, True), mode='loss')
    values = [v for value in losses.values() for v in (value if isinstance(value, list) else [value])]
    assert values and all(torch.isfinite(value).all() for value in values)


FOREIGN_ARCHS = (
    'regnet/mask-rcnn_regnetx-3.2GF_fpn_1x_coco',
    'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco',
)
# One of every class; the composed models take them in turn.
SWAPS = (
    dict(type='eff_plugins.InvertedResidualNet', arch='mobilenetv3_small'),
    dict(type='eff_plugins.RegNet', arch='regnetx_200mf'),
    dict(type='eff_plugins.ShuffleNetV2', width=0.5),
    dict(type='eff_plugins.ResNeXt', arch=dict(depths=(1, 1, 1, 1), cardinality=4, width=4)),
    dict(type='eff_plugins.TimmBackbone', model='lcnet_035'),
    dict(type='eff_plugins.GoogLeNet'),
    dict(type='eff_plugins.ShuffleNetV1', width=0.5),
)


@pytest.mark.parametrize(('number', 'path'), list(enumerate(COMPOSED)), ids=[path.stem for path in COMPOSED])
def test_another_backbone_in_a_composed_model(number, path):
    scope = 'mmseg' if path.name.startswith(SEGMENTATION) else 'mmdet'
    pytest.importorskip(scope)
    cfg = Config.fromfile(path)
    cfg.default_scope = scope
    strides = cfg.model.backbone.out_strides
    swap = SWAPS[number % len(SWAPS)]
    if swap['type'].endswith('TimmBackbone'):
        pytest.importorskip('timm')
    cfg.model.backbone = dict(swap, out_strides=strides)
    network = build(cfg)
    assert network.backbone.out_strides == tuple(strides)
    run(network, scope)


@pytest.mark.parametrize('kind', ['GoogLeNet', 'ShuffleNetV1', 'ShuffleNetV2', 'RegNet', 'ResNeXt', 'TimmBackbone'])
@pytest.mark.parametrize('name', FOREIGN_ARCHS)
def test_a_foreign_arch_is_no_obstacle(name, kind):
    """mmdet's RegNet and EfficientNet take ``arch``, too; the strides that the neck reads stay."""
    pytest.importorskip('mmdet')
    if kind == 'TimmBackbone':
        pytest.importorskip('timm')
    cfg = Config.fromstring(
        f"_base_ = 'mmdet::{name}.py'\nmodel = dict(backbone=dict(type='eff_plugins.{kind}'))\n", '.py'
    )
    backbone = adapt(cfg).model.backbone
    backbone.pop('init_cfg', None)
    with torch.device('meta'):
        built = MODELS.build(backbone)
    assert built.out_strides == ((4, 8, 16, 32) if 'regnetx' in name else (8, 16, 32))


@pytest.mark.parametrize('name', [f'mmdet::{name}' for name in MMDET] + [f'mmseg::{name}' for name in MMSEG])
def test_one_changed_type_in_a_framework_config(name):
    scope = name.split('::')[0]
    pytest.importorskip(scope)
    change = "model = dict(backbone=dict(type='eff_plugins.InvertedResidualNet'))"
    cfg = Config.fromstring(f"_base_ = '{name}.py'\n{change}\n", '.py')
    cfg.default_scope = scope
    network = build(cfg)
    assert type(network.backbone).__name__ == 'InvertedResidualNet'
    run(network, scope)
