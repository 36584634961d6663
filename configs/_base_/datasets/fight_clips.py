# 160 + 40 two-second surveillance clips, 128 px high, label 1 = fight. Both labels show the same places, so the input is
# what moves: eight differences of frames a tenth of a second apart, the whole picture squeezed to 112 x 160.
data_root = '{{$EFF_PLUGINS_DATA:data}}/fight_clips/'
image_scale = (160, 112)
train_pipeline = [
    dict(type='eff_plugins.OpenVideo'),
    dict(type='SampleFrames', clip_len=2, frame_interval=3, num_clips=8),
    dict(type='OpenCVDecode'),
    dict(type='eff_plugins.FrameDifference', gain=1.5),
    dict(type='RandomResizedCrop', area_range=(0.5, 1.0), aspect_ratio_range=(1.2, 2.0)),
    dict(type='Resize', scale=image_scale, keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='ColorJitter', brightness=0.0, contrast=0.4, saturation=0.4, hue=0.0),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs'),
]
test_pipeline = [
    dict(type='eff_plugins.OpenVideo'),
    dict(type='SampleFrames', clip_len=2, frame_interval=3, num_clips=8, test_mode=True),
    dict(type='OpenCVDecode'),
    dict(type='eff_plugins.FrameDifference', gain=1.5),
    dict(type='Resize', scale=image_scale, keep_ratio=False),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='VideoDataset',
        ann_file=data_root + 'train.txt',
        data_prefix=dict(video=data_root),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='VideoDataset',
        ann_file=data_root + 'val.txt',
        data_prefix=dict(video=data_root),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='AccMetric', metric_options=dict(top_k_accuracy=dict(topk=(1,))))
test_evaluator = val_evaluator
