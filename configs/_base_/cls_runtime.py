_base_ = './default_runtime.py'
default_scope = 'eff_plugins'
visualizer = dict(type='ClsVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
