import json
import logging

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmdet')

from mmdet.utils import register_all_modules
from mmengine.logging import MMLogger

from eff_plugins.datasets.coco import CocoDataset, clean_annotations
from eff_plugins.datasets.loading import BadPictureError, LoadPicture, picture_problem
from eff_plugins.registry import DATASETS

CLASSES = ('cat', 'dog')
PIPELINE = [dict(type='mmdet.LoadImageFromFile'), dict(type='mmdet.LoadAnnotations', with_bbox=True)]


@pytest.fixture(autouse=True)
def _modules():
    register_all_modules(init_default_scope=False)


@pytest.fixture
def log(caplog):
    """mmengine's log lines: its loggers do not propagate by themselves."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.handler.setLevel(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def data(tmp_path):
    """Four 40x30 pictures; write(boxes) makes the annotation file: (picture, category, bbox) rows."""
    (tmp_path / 'images').mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / 'images' / f'{i}.png')

    def write(rows, names=CLASSES):
        content = {
            'images': [{'id': i, 'file_name': f'{i}.png', 'width': 40, 'height': 30} for i in range(4)],
            'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(names)],
            'annotations': [
                {'id': i, 'image_id': image, 'category_id': category, 'bbox': box, 'area': 9, 'iscrowd': 0}
                for i, (image, category, box) in enumerate(rows)
            ],
        }
        (tmp_path / 'ann.json').write_text(json.dumps(content))
        return tmp_path

    return write


GOOD = [(i, 1 + i % 2, [5, 6, 10, 12]) for i in range(4)]


def build(root, **kwargs):
    arguments = dict(
        ann_file='ann.json', data_prefix=dict(img='images'), metainfo=dict(classes=CLASSES), pipeline=PIPELINE
    )
    return CocoDataset(data_root=str(root), **{**arguments, **kwargs})


def test_reads_good_data_like_mmdet(data):
    dataset = DATASETS.build(
        dict(
            type='eff_plugins.CocoDataset',
            data_root=str(data(GOOD)),
            ann_file='ann.json',
            pipeline=PIPELINE,
            data_prefix=dict(img='images'),
            metainfo=dict(classes=CLASSES),
        )
    )
    assert len(dataset) == 4
    sample = dataset[1]
    assert sample['img'].shape == (30, 40, 3)
    assert sample['gt_bboxes'].tensor.tolist() == [[5, 6, 15, 18]] and sample['gt_bboxes_labels'].tolist() == [1]


def test_boxes_are_clipped_and_dropped_and_counted(data, log):
    root = data(
        [
            *GOOD,
            (0, 1, [-5, -5, 20, 20]),
            (1, 1, [35, 25, 50, 50]),
            (2, 1, [3, 3, 0, 5]),
            (2, 1, [100, 100, 5, 5]),
            (3, 1, [1, 2, float('nan'), 4]),
            (3, 1, [1, 2, 3]),
            (9, 1, [1, 1, 5, 5]),
            (3, 7, [1, 1, 5, 5]),
        ]
    )
    dataset = build(root)
    boxes = [[instance['bbox'] for instance in dataset.get_data_info(i)['instances']] for i in range(4)]
    assert boxes[0] == [[5, 6, 15, 18], [0, 0, 15, 15]]
    assert boxes[1] == [[5, 6, 15, 18], [35, 25, 40, 30]]
    assert boxes[2] == boxes[3] == [[5, 6, 15, 18]]
    assert '2 boxes clipped' in log.text
    assert '4 boxes without a pixel inside' in log.text
    assert '1 boxes of pictures that the file does not list' in log.text
    assert '1 boxes of categories that the file does not list' in log.text


def test_area_is_filled():
    content = {
        'images': [{'id': 0, 'width': 40, 'height': 30}],
        'categories': [{'id': 1, 'name': 'cat'}],
        'annotations': [{'id': i, 'image_id': 0, 'category_id': 1, 'bbox': [0, 0, 4, 5], **extra}
                        for i, extra in enumerate([{}, {'area': 0}, {'area': 7}])],
    }  # fmt: skip
    assert not clean_annotations(content)
    assert [row['area'] for row in content['annotations']] == [20, 20, 7]


@pytest.mark.parametrize(('filter_cfg', 'kept'), [(None, 4), (dict(filter_empty_gt=True), 2)])
def test_pictures_without_boxes(data, log, filter_cfg, kept):
    """A picture whose only box is unusable counts as one without boxes."""
    root = data([GOOD[0], GOOD[1], (2, 1, [3, 3, 0, 0])])
    assert len(build(root, filter_cfg=filter_cfg)) == kept
    assert f'{4 - kept} of 4 pictures dropped' in log.text
    assert f'{2 if filter_cfg is None else 0} pictures without a box kept' in log.text


def test_no_usable_box(data, log):
    root = data([(0, 1, [3, 3, 0, 0])])
    with pytest.raises(ValueError, match=r'ann\.json: none of its 4 pictures has a usable box.*cat, dog'):
        build(root)
    assert len(build(root, test_mode=True)) == 4
    assert 'AP will be undefined' in log.text


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(data_root='nowhere'), FileNotFoundError, 'nowhere: no such folder.*EFF_PLUGINS_DATA'),
        (dict(ann_file='none.json'), FileNotFoundError, r'none\.json: no such annotation file'),
        (dict(data_prefix=dict(img='pictures')), FileNotFoundError, 'pictures: no such image folder'),
        (dict(data_prefix=dict(img='')), FileNotFoundError, r'0\.png: no such picture.*data_prefix'),
        (
            dict(metainfo=dict(classes=('cat', 'cow'))),
            ValueError,
            r'2 categories: cat, dog.*cat, cow.*Not in the file: cow',
        ),
        (dict(metainfo=dict(classes=('cat', 'dog', 'cow'))), ValueError, 'names 3 classes.*num_classes'),
        (dict(metainfo=None), ValueError, 'Not in the file: person'),
        (dict(metainfo=dict(classes=('dog', 'cat'))), ValueError, 'same order'),
    ],
)
def test_wrong_arguments_are_named(data, arguments, error, message):
    root = data(GOOD)
    arguments = dict(arguments)
    root = arguments.pop('data_root', root)
    with pytest.raises(error, match=message):
        build(root, **arguments)


def test_a_subset_of_the_classes_is_fine(data):
    dataset = build(data(GOOD), metainfo=dict(classes=('dog',)))
    assert [len(dataset.get_data_info(i)['instances']) for i in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ('text', 'message'),
    [('{"images": [', 'not a json file'), ('{"images": [], "annotations": []}', "'categories' is missing"),
     ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "'width' is missing")],
)  # fmt: skip
def test_damaged_annotation_file(data, text, message):
    root = data(GOOD)
    (root / 'ann.json').write_text(text)
    with pytest.raises(ValueError, match=rf'ann\.json: .*{message}'):
        build(root)


@pytest.mark.parametrize('loader', ['mmdet.LoadImageFromFile', 'eff_plugins.LoadPicture'])
@pytest.mark.parametrize('damage', ['missing', 'empty', 'text'])
def test_bad_picture(data, log, loader, damage):
    """Training skips and counts it, testing names it."""
    root = data(GOOD)
    bad = root / 'images' / '2.png'
    bad.unlink()
    if damage != 'missing':
        bad.write_bytes(b'' if damage == 'empty' else b'not a picture')
    pipeline = [dict(type=loader), PIPELINE[1]]
    dataset = build(root, pipeline=pipeline)
    for _ in range(3):
        assert dataset[2]['img_id'] != 2
    assert log.text.count('skipped bad picture number 1') == 1 and '2.png' in log.text
    with pytest.raises(BadPictureError, match=r'2\.png: .*(no such file|empty|does not decode)'):
        build(root, pipeline=pipeline, test_mode=True)[2]


def test_all_pictures_bad(data):
    root = data(GOOD)
    for path in (root / 'images').iterdir():
        path.write_bytes(b'nothing')
    with pytest.raises(BadPictureError, match=r'all of the first 4 pictures \(of 4\) are bad.*data_prefix'):
        build(root)[0]


def test_other_errors_are_not_swallowed(data):
    def broken(results):
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError, match='a bug'):
        build(data(GOOD), pipeline=[PIPELINE[0], broken])[0]


def test_load_picture(tmp_path):
    path = tmp_path / 'a.png'
    Image.new('RGB', (5, 4), (255, 0, 0)).save(path)
    assert picture_problem(str(path)) is None
    assert LoadPicture()({'img_path': str(path)})['img'][0, 0].tolist() == [0, 0, 255]
    with pytest.raises(BadPictureError, match='there is no such file'):
        LoadPicture()({'img_path': str(tmp_path / 'b.png')})
