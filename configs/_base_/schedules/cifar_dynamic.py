# Fine-tuning towards a budget in twelve short epochs: a small rate that falls to nothing, so that the second half repairs what
# the skipping broke; policies start from nothing and learn faster. This rate is for 0.7 of the multiply-adds; towards 0.5 one
# of 0.02 keeps more.
_base_ = './cifar_sgd.py'
optim_wrapper = dict(
    optimizer=dict(lr=0.01, weight_decay=1e-4),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys=dict(dynamic=dict(lr_mult=3.0))),
)
train_cfg = dict(max_epochs=12, val_interval=100)
