# Each picture at 96, 72 or 48 pixels, half of the dense network's multiply-adds on average.
_base_ = '../image_classification/effnet-lite0_cifar10.py'
model = dict(type='DRNet', resolutions=(96, 72, 48), predictor=dict(size=32, channels=(16, 32, 64)))
# the tools add the hooks that every run needs
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=0.5,
        losses=dict(hinge=2.0),
        temperature=dict(start=1.0, end=1.0, form='constant'),
    ),
]
