# The RetinaNet over EfficientNet-Lite0 on blood cells, with a dynamic network to be put in the backbone's place. Neck, head
# and the blocks that change size, 75 % of the multiply-adds, are always computed.
_base_ = '../retinanet/retinanet_effnet-lite0_bccd.py'
# the tools add the hooks that every run needs
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=dict(start=1.0, end=0.85, form='linear', finish=0.5),
        losses=dict(gap=50.0, bounds=10.0),
    ),
]
