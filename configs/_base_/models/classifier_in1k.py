# A classifier with 1000 classes, trained from scratch; a config names its backbone and what its head has.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(type='eff_plugins.InvertedResidualNet', out_strides=(32,)),
    head=dict(type='LinearClsHead', in_channels='auto', num_classes=1000, dropout=0.2, label_smoothing=0.1),
)
