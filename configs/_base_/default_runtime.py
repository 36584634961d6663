# What every config of the suite runs with. `--cfg-options tensorboard=True` adds TensorBoard.
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='eff_plugins.AtomicCheckpointHook', interval=1, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='eff_plugins.ResumeStateHook'),
    dict(type='eff_plugins.FiniteLossHook'),
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(type='eff_plugins.ClassCountHook'),
]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
randomness = dict(seed=0)
tensorboard = False
log_level = 'INFO'
load_from = None
resume = False
