# 12 epochs of 200 steps for the runs that overfit 16 images: AdamW with next to no decay.
_base_ = './adamw.py'
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=1e-4))
train_cfg = dict(max_epochs=12, val_interval=2)
