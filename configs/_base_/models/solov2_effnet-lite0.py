# SOLOv2 with the full depth of its head (four convolutions; the light one has two).
_base_ = './solov2-light_effnet-lite0.py'
model = dict(mask_head=dict(stacked_convs=4, mask_feature_head=dict(out_channels=128)))
