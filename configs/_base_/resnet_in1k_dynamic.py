# ResNet-50 with its published weights learns to compute less on ImageNet: half of the dense network's multiply-adds on average,
# taught by the dense network. A config makes its backbone dynamic.
_base_ = ['./models/resnet_in1k.py', './datasets/imagenet.py', './schedules/dynamic_in1k.py', './cls_runtime.py']
custom_hooks = [dict(type='eff_plugins.BudgetHook', budget=0.5), dict(type='eff_plugins.DistillationHook')]
