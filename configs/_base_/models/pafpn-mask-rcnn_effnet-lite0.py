# Mask R-CNN with mmdet's PAFPN, which adds a bottom-up path to the pyramid.
_base_ = './mask-rcnn_effnet-lite0.py'
model = dict(neck=dict(type='PAFPN'))
