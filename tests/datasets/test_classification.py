import numpy as np
import pytest
from PIL import Image

from eff_plugins.datasets.transforms import read_image
from eff_plugins.registry import DATASETS, TRANSFORMS


def write_npz(path, count=6):
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), labels=np.arange(count) % 3)


def test_array_dataset(tmp_path):
    write_npz(tmp_path / 'a.npz')
    data = DATASETS.build(
        dict(
            type='ArrayImageDataset',
            data_root=str(tmp_path),
            ann_file='a.npz',
            pipeline=[dict(type='eff_plugins.PackClsInputs')],
        )
    )
    assert len(data) == 6 and data.metainfo['classes'] == ('0', '1', '2')
    item = data[4]
    assert item['inputs'].shape == (3, 8, 8) and item['data_samples'].gt_label == 1
    with np.load(tmp_path / 'a.npz') as arrays:
        np.testing.assert_array_equal(item['inputs'].permute(1, 2, 0).numpy(), arrays['images'][4])


def test_array_dataset_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'missing\.npz.*EFF_PLUGINS_DATA'):
        DATASETS.build(dict(type='ArrayImageDataset', ann_file=str(tmp_path / 'missing.npz')))
    np.savez(tmp_path / 'b.npz', x=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds \['x'\]"):
        DATASETS.build(dict(type='ArrayImageDataset', ann_file=str(tmp_path / 'b.npz')))


def test_folder_dataset(tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((6, 9, 3), 7, np.uint8)).save(tmp_path / name / 'x.png')
    pipeline = [dict(type='eff_plugins.LoadImage'), dict(type='eff_plugins.PackClsInputs')]
    data = DATASETS.build(dict(type='FolderImageDataset', data_root=str(tmp_path), pipeline=pipeline))
    assert data.metainfo['classes'] == ('cat', 'dog')
    assert data[1]['data_samples'].gt_label == 1 and data[1]['inputs'].shape == (3, 6, 9)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty: no picture files'):
        DATASETS.build(dict(type='FolderImageDataset', data_root=str(tmp_path), pipeline=pipeline))


def test_pictures_that_do_not_decode_are_named(tmp_path):
    path = tmp_path / 'bad.jpg'
    path.write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'bad\.jpg does not decode'):
        read_image(path)
    with pytest.raises(FileNotFoundError, match=r'none\.jpg'):
        read_image(tmp_path / 'none.jpg')


def test_transforms():
    image = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    assert TRANSFORMS.build(dict(type='ResizeShortSide', size=4)).apply(image).shape == (4, 6, 3)
    np.testing.assert_array_equal(TRANSFORMS.build(dict(type='CenterCrop', size=4)).apply(image), image[2:6, 4:8])
    np.testing.assert_array_equal(TRANSFORMS.build(dict(type='FlipImage', prob=1.0)).apply(image), image[:, ::-1])
    assert TRANSFORMS.build(dict(type='PadCrop', padding=2)).apply(image).shape == image.shape
    with pytest.raises(ValueError, match='smaller than the 20x20 crop'):
        TRANSFORMS.build(dict(type='CenterCrop', size=20)).apply(image)


def test_random_area_crop():
    """Windows lie inside, have the asked area and shape, and what does not fit becomes the central square."""
    from eff_plugins.datasets.transforms import RandomAreaCrop

    np.random.seed(0)
    crop = RandomAreaCrop(8, area=(0.2, 0.5))
    shares, ratios = [], []
    for _ in range(200):
        left, top, w, h = crop._window(60, 100)
        assert left >= 0 and top >= 0 and left + w <= 100 and top + h <= 60
        shares.append(w * h / 6000)
        ratios.append(w / h)
    assert min(shares) > 0.18 and max(shares) < 0.52 and max(shares) - min(shares) > 0.25
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.4
    assert RandomAreaCrop(8, area=(1.0, 1.0))._window(10, 100) == (45, 0, 10, 10)
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, 50:] = 200
    assert crop.apply(image).shape == (8, 8, 3)
    for wrong in (dict(area=(0.0, 1.0)), dict(ratio=(2.0, 1.0)), dict(interpolation='nearest')):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RandomAreaCrop(8, **wrong)
