# mmdet's Mask Scoring R-CNN: Mask R-CNN with a head that predicts the quality of each mask.
_base_ = './mask-rcnn_effnet-lite0.py'
model = dict(
    type='MaskScoringRCNN',
    roi_head=dict(
        type='MaskScoringRoIHead',
        mask_iou_head=dict(
            type='MaskIoUHead',
            num_convs=4,
            num_fcs=2,
            roi_feat_size=14,
            in_channels='auto',
            conv_out_channels=64,
            fc_out_channels=256,
            num_classes=80,
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
