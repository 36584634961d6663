# Control: every clip is one of its frames (no difference) eight times over. The classes are motions, so that the accuracy
# must stay near chance, 1/8.
_base_ = './tsm_effnet-lite0_digit-motions.py'
load = dict(type='eff_plugins.LoadClip')
one_frame = dict(type='SampleFrames', clip_len=8, frame_interval=0, num_clips=1)
decode = dict(type='ArrayDecode')
train_pipeline = [load, one_frame, decode, *_base_.train_pipeline[4:]]
test_pipeline = [load, dict(one_frame, test_mode=True), decode, *_base_.test_pipeline[4:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
