# Each picture skips the residual branches that it does not need; 60 % of the dense network's multiply-adds on average.
_base_ = '../image_classification/effnet-lite0_cifar10.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.LayerSkip', backbone={{_base_.model.backbone}}))
# the tools add the hooks that every run needs
custom_hooks = [dict(type='eff_plugins.ChannelsLastHook'), dict(type='eff_plugins.BudgetHook', budget=0.6)]
