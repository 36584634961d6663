# Fine-tuning towards a budget in nine short epochs: the last third at a quarter of the rate, with policies nearly frozen.
_base_ = './cifar_sgd.py'
optim_wrapper = dict(optimizer=dict(lr=0.02, weight_decay=1e-4), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', milestones=[6], gamma=0.25, by_epoch=True),
]
train_cfg = dict(max_epochs=9, val_interval=100)
