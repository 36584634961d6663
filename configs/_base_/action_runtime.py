_base_ = './default_runtime.py'
default_scope = 'mmaction'
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
