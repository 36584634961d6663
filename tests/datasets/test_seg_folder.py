import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmseg')

from mmseg.utils import register_all_modules

from eff_plugins.datasets.loading import BadPictureError
from eff_plugins.datasets.seg_folder import SegFolderDataset


@pytest.fixture
def root(tmp_path):
    register_all_modules(init_default_scope=False)
    rng = np.random.default_rng(0)
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / 'images' / f'{i}.jpg')
        Image.fromarray(rng.integers(0, 2, (20, 24), dtype=np.uint8)).save(tmp_path / 'masks' / f'{i}.png')
    return tmp_path


def build(root, **kwargs):
    arguments = dict(
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=('road', 'sky')),
        pipeline=[dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
    )
    return SegFolderDataset(data_root=str(root), **{**arguments, **kwargs})


def test_reads_good_data(root):
    dataset = build(root)
    assert len(dataset) == 3
    assert dataset[0]['img'].shape == (20, 24, 3) and set(np.unique(dataset[0]['gt_seg_map'])) == {0, 1}


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (dict(data_root='nowhere'), FileNotFoundError, 'nowhere: no such folder'),
        (dict(metainfo=None), ValueError, 'names of the classes'),
        (dict(img_suffix='.bmp'), FileNotFoundError, "no pictures that end in '.bmp'"),
        (dict(seg_map_suffix='.tif'), FileNotFoundError, r'0\.tif: no such mask.*3 of 3'),
        (dict(metainfo=dict(classes=('road',))), ValueError, r'holds the values \[1\], but there are 1 classes'),
        (dict(data_prefix=dict(img_path='pics', seg_map_path='masks')), FileNotFoundError, 'pics: no such folder'),
    ],
)
def test_wrong_arguments_are_named(root, arguments, error, message):
    arguments = dict(arguments)
    with pytest.raises(error, match=message):
        build(arguments.pop('data_root', root), **arguments)


def test_ignored_pixels_are_no_foreign_values(root):
    Image.fromarray(np.full((20, 24), 255, np.uint8)).save(root / 'masks' / '0.png')
    assert len(build(root)) == 3


@pytest.mark.parametrize('damaged', ['images/1.jpg', 'masks/1.png'])
def test_bad_file(root, damaged):
    (root / damaged).write_bytes(b'nothing')
    sample = build(root)[1]
    assert not sample['img_path'].endswith('1.jpg')
    with pytest.raises(BadPictureError, match=damaged):
        build(root, test_mode=True)[1]
