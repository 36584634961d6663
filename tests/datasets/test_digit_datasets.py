import numpy as np
import pytest

pytest.importorskip('sklearn')

from eff_plugins.registry import DATASETS


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))


def test_detection():
    pytest.importorskip('mmdet')
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = DATASETS.build(
        dict(
            type='eff_plugins.DigitDetDataset',
            split='val',
            generator=dict(count=3, size=96, digits=(2, 3), digit_size=(20, 40)),
            pipeline=[
                dict(type='mmdet.LoadImageFromFile'),
                dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='mmdet.PackDetInputs'),
            ],
        )
    )
    assert len(dataset) == 3 and dataset.metainfo['classes'] == tuple('0123456789')
    for sample in dataset:
        assert sample['inputs'].shape == (3, 96, 96)
        truth = sample['data_samples'].gt_instances
        assert 2 <= len(truth.bboxes) == len(truth.masks) <= 3
        for box, mask in zip(truth.bboxes.tensor.numpy(), truth.masks.masks, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_segmentation():
    pytest.importorskip('mmseg')
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = DATASETS.build(
        dict(
            type='eff_plugins.DigitSegDataset',
            split='val',
            generator=dict(count=3, size=96, digit_size=(20, 30)),
            pipeline=[
                dict(type='mmseg.LoadImageFromFile'),
                dict(type='mmseg.LoadAnnotations'),
                dict(type='mmseg.PackSegInputs'),
            ],
        )
    )
    assert len(dataset) == 3 and len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
    for sample in dataset:
        mask = sample['data_samples'].gt_sem_seg.data
        assert mask.shape == (1, 96, 96) and 0 < mask.max() <= 10


def test_motion():
    pytest.importorskip('mmaction')
    from mmaction.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    dataset = DATASETS.build(
        dict(
            type='eff_plugins.DigitMotionDataset',
            split='val',
            generator=dict(count=9, size=32, frames=6),
            pipeline=[
                dict(type='eff_plugins.LoadClip'),
                dict(type='mmaction.SampleFrames', clip_len=1, frame_interval=1, num_clips=3),
                dict(type='mmaction.ArrayDecode'),
                dict(type='mmaction.FormatShape', input_format='NCHW'),
                dict(type='mmaction.PackActionInputs'),
            ],
        )
    )
    assert len(dataset) == 9 and len(dataset.metainfo['classes']) == 8
    assert [dataset.get_data_info(i)['label'] for i in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 3, 32, 32)
    assert (sample['inputs'][0] != sample['inputs'][2]).any()


def test_classification():
    dataset = DATASETS.build(
        dict(
            type='eff_plugins.DigitClsDataset',
            split='val',
            generator=dict(count=11, size=28),
            pipeline=[dict(type='eff_plugins.PackClsInputs')],
        )
    )
    assert len(dataset) == 11
    assert dataset[10]['inputs'].shape == (3, 28, 28) and dataset[10]['data_samples'].gt_label == 0
