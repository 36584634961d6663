# Digits that span a factor of eight: a one-size detector at the zooms that a picture's digits ask for.
_base_ = [
    '../_base_/models/safd_retinanet_effnet-lite0.py',
    '../_base_/datasets/digits_det_8x.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
model = dict(
    _delete_=True,
    type='eff_plugins.ScaleAwareDetector',
    detector={{_base_.model}},
    size_range=(24, 48),
    proposal=dict(octaves=(-4.5, -1.0), bins=28, size=160),
    crop=192,
)
train_cfg = dict(max_epochs=5)
