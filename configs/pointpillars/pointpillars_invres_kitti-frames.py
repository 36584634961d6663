# mmdet3d's PointPillars with an inverted-residual network as BEV backbone, trained on the few KITTI frames at hand.
_base_ = [
    'mmdet3d::_base_/models/pointpillars_hv_secfpn_kitti.py',
    '../_base_/datasets/kitti_frames.py',
    '../_base_/schedules/adamw.py',
    '../_base_/default_runtime.py',
]
default_scope = 'mmdet3d'
point_cloud_range = [0, -20.48, -3, 61.44, 20.48, 1]
# mmdet3d's momentum of 0.01 is for long runs: after 200 iterations 13 % of the running statistics would still be the
# initial ones.
norm = dict(eps=1e-3, momentum=0.1)
model = dict(
    data_preprocessor=dict(voxel_layer=dict(point_cloud_range=point_cloud_range)),
    voxel_encoder=dict(point_cloud_range=point_cloud_range, norm_cfg=dict(type='BN1d', **norm)),
    middle_encoder=dict(output_shape=[256, 384]),
    backbone=dict(
        _delete_=True,
        type='eff_plugins.InvertedResidualNet',
        in_channels=64,
        # Strides 2, 4 and 8 of the 0.16 m pillars, as the SECOND backbone has; the neck brings all three to stride 2, which
        # is the stride of the anchors.
        arch=dict(
            stem_channels=64,
            stem_stride=2,
            act='relu',
            stages=[
                dict(channels=64, repeats=1, kernel=3, stride=1, expand=1),
                dict(channels=96, repeats=2, kernel=5, stride=2, expand=3),
                dict(channels=128, repeats=2, kernel=5, stride=2, expand=3),
            ],
        ),
        out_indices=(0, 1, 2),
        norm_cfg=dict(type='BN', **norm),
    ),
    neck=dict(
        in_channels='auto', upsample_strides=[1, 2, 4], out_channels=[32, 32, 32], norm_cfg=dict(type='BN', **norm)
    ),
    bbox_head=dict(
        in_channels='auto',
        feat_channels=96,
        anchor_generator=dict(
            ranges=[
                [0, -20.48, -0.6, 61.44, 20.48, -0.6],
                [0, -20.48, -0.6, 61.44, 20.48, -0.6],
                [0, -20.48, -1.78, 61.44, 20.48, -1.78],
            ]
        ),
    ),
)
# No weights to preserve: the backbone learns as fast as the rest.
optim_wrapper = dict(
    optimizer=dict(lr=3e-3, weight_decay=0.01), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0)))
)
# An epoch is one iteration of all three frames.
train_cfg = dict(max_epochs=200)
default_hooks = dict(checkpoint=dict(interval=25))
visualizer = dict(type='Visualizer', name='visualizer')
