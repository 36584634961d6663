# The paper's smaller CIFAR network, each exit taught by the published ResNet-32.
_base_ = [
    '../_base_/models/resnet32_cifar10.py',
    '../_base_/datasets/cifar10_32px.py',
    '../_base_/schedules/cifar_sgd.py',
    '../_base_/cls_runtime.py',
]
custom_hooks = [dict(type='eff_plugins.DistillationHook', teacher={{_base_.model}})]
model = dict(
    _delete_=True,
    type='EarlyExitClassifier',
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone=dict(type='RANet', scales=(1, 2, 3), step=2, step_mode='lg'),
    num_classes=10,
)
# the teacher's loss is a few times that of the labels
optim_wrapper = dict(optimizer=dict(lr=0.05))
train_cfg = dict(max_epochs=65, val_interval=5)
