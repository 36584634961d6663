# Raw KITTI frames. The few frames at hand serve for training and for testing: the run shows the plumbing, not accuracy.
data_root = '{{$EFF_PLUGINS_DATA:data}}/kitti_frames/'
class_names = ['Pedestrian', 'Cyclist', 'Car']
metainfo = dict(classes=class_names)
# A little smaller than usual, to train faster on a CPU: 384 x 256 pillars of 0.16 m.
point_cloud_range = [0, -20.48, -3, 61.44, 20.48, 1]
load_points = [
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
    dict(type='eff_plugins.PointsInCameraView'),
]
train_pipeline = [
    *load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='RandomFlip3D', flip_ratio_bev_horizontal=0.5),
    dict(type='GlobalRotScaleTrans', rot_range=[-0.05, 0.05], scale_ratio_range=[0.98, 1.02]),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='PointShuffle'),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]
test_pipeline = [
    *load_points,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points']),
]
train_dataloader = dict(
    batch_size=3,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='eff_plugins.RawKittiDataset', data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='eff_plugins.RawKittiDataset',
        data_root=data_root,
        metainfo=metainfo,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
# The benchmark samples recall at the detections' own scores, at most one threshold an object; with so few objects only the
# exact curve means anything (see configs/pointpillars/README.md).
val_evaluator = dict(type='eff_plugins.KittiAP', recall_sampling='exact')
test_evaluator = val_evaluator
