# Control: every clip is one of its frames eight times over. The classes are motions, so this must stay near chance (1/8).
_base_ = './tsm_effnet-lite0_digit-motions.py'
one_frame = dict(type='SampleFrames', clip_len=8, frame_interval=0, num_clips=1)
train_pipeline = [dict(type='eff_plugins.LoadClip'), one_frame, *_base_.train_pipeline[2:]]
test_pipeline = [dict(type='eff_plugins.LoadClip'), dict(one_frame, test_mode=True), *_base_.test_pipeline[2:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
