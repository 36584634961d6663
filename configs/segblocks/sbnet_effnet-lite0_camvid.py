# Residual branches in the blocks of 128 pixels that need them; the head and the strided layers see the whole picture.
_base_ = '../segformer_head/segformer-head_effnet-lite0_camvid.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='eff_plugins.SBNet',
        backbone={{_base_.model.backbone}},
        block_size=128,
        policy=dict(width=16),
    ),
)
# the tools add the hooks that every run needs
custom_hooks = [dict(type='eff_plugins.ChannelsLastHook'), dict(type='eff_plugins.BudgetHook', budget=0.85)]
