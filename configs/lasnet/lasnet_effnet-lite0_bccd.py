# RetinaNet whose EfficientNet-Lite0 computes its residual blocks in patches of 4 pixels.
_base_ = '../retinanet/retinanet_effnet-lite0_bccd.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.LASNet', granularity=4, backbone={{_base_.model.backbone}}))
# the tools add the hooks that every run needs; neck and head are always computed, the blocks that change size, too
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=dict(start=1.0, end=0.85, form='linear', finish=0.5),
        losses=dict(gap=50.0, bounds=10.0),
    ),
]
