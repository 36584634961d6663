# Fine-tuning towards a budget: the static weights move at a tenth of the policies' rate, the dense network is the teacher
# (Han et al., NeurIPS 2022, section 4).
_base_ = './imagenet_sgd.py'
optim_wrapper = dict(
    optimizer=dict(lr=0.08, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'.dynamic.': dict(lr_mult=1.0), 'backbone': dict(lr_mult=0.1)}),
)
train_cfg = dict(max_epochs=100)
