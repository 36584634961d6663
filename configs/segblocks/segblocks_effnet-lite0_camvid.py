# Blocks of 64 pixels in full or half resolution; 70 % of the dense network's multiply-adds, of which the head has 29 %.
_base_ = '../segformer_head/segformer-head_effnet-lite0_camvid.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='eff_plugins.SegBlocks',
        backbone={{_base_.model.backbone}},
        block_size=64,
        policy=dict(width=16),
    ),
)
# the tools add the hooks that every run needs
custom_hooks = [dict(type='eff_plugins.ChannelsLastHook'), dict(type='eff_plugins.ReinforceHook', budget=0.7)]
