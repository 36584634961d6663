# RetinaNet whose EfficientNet-Lite0 samples its residual blocks and interpolates between the samples.
_base_ = '../retinanet/retinanet_effnet-lite0_bccd.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.SFSI', window=5, backbone={{_base_.model.backbone}}))
# the tools add the hooks that every run needs; neck and head are always computed, the blocks that change size, too
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=dict(start=1.0, end=0.85, form='linear', finish=0.5),
        losses=dict(gap=50.0, bounds=10.0),
    ),
]
