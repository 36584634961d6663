import pytest

from eff_plugins.config_host import host_model

HTC = 'mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py'


def test_changes_merge_as_over_a_base():
    pytest.importorskip('mmdet')
    model = host_model(HTC, dict(backbone=dict(_delete_=True, type='X'), neck=dict(out_channels=8)))
    assert model.type == 'HybridTaskCascade'
    assert model.backbone == dict(type='X')
    assert model.neck.type == 'FPN' and model.neck.out_channels == 8


def test_a_dict_reaches_every_head_of_a_cascade():
    pytest.importorskip('mmdet')
    model = host_model(HTC, dict(roi_head=dict(bbox_head=dict(in_channels='auto'))))
    heads = model.roi_head.bbox_head
    assert [head.in_channels for head in heads] == ['auto'] * 3
    assert [head.bbox_coder.target_stds[0] for head in heads] == [0.1, 0.05, 0.033]  # what was theirs stays


def test_a_config_without_a_model_or_that_does_not_exist_is_named():
    pytest.importorskip('mmdet')
    with pytest.raises(KeyError, match='default_runtime'):
        host_model('mmdet::_base_/default_runtime.py', {})
    with pytest.raises(FileNotFoundError, match='no_such'):
        host_model('mmdet::htc/no_such.py', {})
