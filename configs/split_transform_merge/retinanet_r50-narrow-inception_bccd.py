# The 3x3 of each bottleneck in the last three stages is an Inception block; the ResNet's own normalisation follows it.
_base_ = './retinanet_r50-narrow_bccd.py'
model = dict(
    backbone=dict(
        dcn=dict(type='eff_plugins.SplitTransformMerge', form='inception', linear_output=True),
        stage_with_dcn=(False, True, True, True),
    )
)
