# Embedded data: clips of one moving digit over a photograph; the eight classes are motions, so that one frame says nothing
# and mirroring is no augmentation. The input is eight differences of neighbouring frames, read at 64x64.
train_pipeline = [
    dict(type='eff_plugins.LoadClip'),
    dict(type='SampleFrames', clip_len=2, frame_interval=1, num_clips=8, keep_tail_frames=True),
    dict(type='ArrayDecode'),
    dict(type='eff_plugins.FrameDifference'),
    dict(type='RandomResizedCrop', area_range=(0.75, 1.0), aspect_ratio_range=(0.85, 1.18)),
    dict(type='Resize', scale=(64, 64), keep_ratio=False),
    dict(type='ColorJitter', brightness=0.0, contrast=0.3, saturation=0.3, hue=0.0),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs'),
]
test_pipeline = [
    dict(type='eff_plugins.LoadClip'),
    dict(type='SampleFrames', clip_len=2, frame_interval=1, num_clips=8, test_mode=True),
    dict(type='ArrayDecode'),
    dict(type='eff_plugins.FrameDifference'),
    dict(type='Resize', scale=(64, 64), keep_ratio=False),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='eff_plugins.DigitMotionDataset', split='train', generator=dict(count=4000), pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='eff_plugins.DigitMotionDataset', split='val', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='AccMetric', metric_options=dict(top_k_accuracy=dict(topk=(1,))))
test_evaluator = val_evaluator
