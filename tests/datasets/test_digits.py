import hashlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('sklearn')

from eff_plugins.datasets.digits import KINDS, ensure_digits, generator, sources
from eff_plugins.datasets.digits.__main__ import main
from eff_plugins.datasets.digits.clips import MOTIONS, motion_states
from eff_plugins.datasets.digits.pictures import generate_detection, generate_segmentation


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def source_indices(kind: str, folder: Path) -> set[int]:
    if kind in ('detection', 'motion'):
        content = json.loads((folder / 'annotations.json').read_text())
        return {row['source_index'] for row in content['annotations' if kind == 'detection' else 'clips']}
    name = {'classification': 'images', 'points': 'points', 'views': 'views'}[kind]
    return set(np.load(folder / f'{name}.npz')['indices'].tolist())


@pytest.mark.parametrize('kind', KINDS)
def test_same_seed_same_bytes(kind, tmp_path):
    make = generator(kind)
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        make(tmp_path / name, 'val', seed=seed, count=3)
    first, again, other = (digest(tmp_path / name) for name in 'abc')
    assert first and first == again
    assert first.keys() == other.keys()
    pictures = [name for name in first if not name.endswith('annotations.json')]
    assert all(first[name] != other[name] for name in pictures)


@pytest.mark.parametrize('kind', ['detection', 'motion', 'segmentation'])
def test_count_does_not_change_the_first_items(kind, tmp_path):
    generator(kind)(tmp_path / 'few', 'train', count=2)
    generator(kind)(tmp_path / 'more', 'train', count=4)
    few, more = digest(tmp_path / 'few'), digest(tmp_path / 'more')
    few.pop('annotations.json', None)
    assert few.items() <= more.items()
    assert len(more) > len(few)


def test_splits_share_no_digit_and_no_background():
    from sklearn.datasets import load_digits

    train, val = (np.concatenate(sources.digit_indices(split)) for split in ('train', 'val'))
    assert sorted(np.concatenate([train, val])) == list(range(1797))
    images = load_digits().images
    assert not {images[i].tobytes() for i in train} & {images[i].tobytes() for i in val}
    assert all(len(rows) >= 30 for rows in sources.digit_indices('val'))
    for width in (427, 640):
        assert sources.photo_columns('train', width)[1] < sources.photo_columns('val', width)[0]


def test_backgrounds_come_from_their_own_columns(monkeypatch):
    """On a photograph whose red and green are the column's high and low part, every background shows its split's columns."""
    columns = np.arange(640)
    photo = np.zeros((427, 640, 3), np.uint8)
    photo[..., 0] = np.where(columns < sources.photo_columns('val', 640)[0], 200, 0)
    photo[..., 1] = np.where(columns >= sources.photo_columns('train', 640)[1], 200, 0)
    monkeypatch.setattr(sources, '_photos', lambda: [photo])
    for split, own, foreign in (('train', 0, 1), ('val', 1, 0)):
        for seed in range(30):
            picture = sources.background(np.random.default_rng(seed), split, 64)
            assert picture[..., own].min() > 60 and picture[..., foreign].max() < 20


@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'segmentation'])
def test_sets_use_digits_of_their_split(kind, tmp_path):
    for split in ('train', 'val'):
        generator(kind)(tmp_path / split, split, count=12, seed=5)
        allowed = set(np.concatenate(sources.digit_indices(split)).tolist())
        assert source_indices(kind, tmp_path / split) <= allowed


def test_detection_is_valid_coco(tmp_path):
    coco_module = pytest.importorskip('pycocotools.coco')
    generate_detection(tmp_path, 'val', count=6, size=256, digits=(4, 5), digit_size=(20, 60))
    coco = coco_module.COCO(tmp_path / 'annotations.json')
    assert [row['name'] for row in coco.loadCats(coco.getCatIds())] == [str(d) for d in range(10)]
    assert len(coco.getImgIds()) == 6
    for image in coco.loadImgs(coco.getImgIds()):
        assert cv2.imread(str(tmp_path / 'images' / image['file_name'])).shape == (256, 256, 3)
        rows = coco.loadAnns(coco.getAnnIds(image['id']))
        assert 4 <= len(rows) <= 5
        union = np.zeros((256, 256), int)
        for row in rows:
            mask = coco.annToMask(row)
            ys, xs = np.nonzero(mask)
            assert row['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert row['area'] == mask.sum()
            assert max(row['bbox'][2:]) <= 60
            union += mask
        assert union.max() == 1  # visible ink belongs to one digit


def test_digits_of_one_picture_may_be_bound_to_similar_sizes(tmp_path):
    generate_detection(tmp_path, 'val', count=12, size=160, digits=(2, 3), digit_size=(12, 96), digit_spread=2.0)
    data = json.loads((tmp_path / 'annotations.json').read_text())
    sides = {image['id']: [] for image in data['images']}
    for row in data['annotations']:
        sides[row['image_id']].append(max(row['bbox'][2:]))
    assert max(max(s) / min(s) for s in sides.values()) < 3  # a digit's visible ink may be a little smaller
    assert max(max(s) for s in sides.values()) > 3 * min(min(s) for s in sides.values())
    with pytest.raises(ValueError, match='digit_spread=0.5 must be at least 1'):
        generate_detection(tmp_path, 'val', count=1, digit_spread=0.5)


def test_default_detection_sizes():
    defaults = {n: p.default for n, p in inspect.signature(generate_detection).parameters.items()}
    assert (defaults['size'], defaults['digits'], defaults['digit_size']) == (320, (3, 8), (20, 80))


def test_digits_stay_mostly_visible(tmp_path):
    """Ink is hidden for at most 40 per cent: the visible area is at least 0.6 of that of an equal digit drawn alone."""
    from eff_plugins.datasets.digits import scenes
    from eff_plugins.datasets.digits.storage import rng_for

    stamps: list[int] = []
    place = scenes._place

    def spy(rng, scene, boxes, areas, stamp):
        done = place(rng, scene, boxes, areas, stamp)
        if done:
            stamps.append(int((stamp > 0.5).sum()))
        return done

    scenes._place = spy
    try:
        for number in range(10):
            stamps.clear()
            scene = scenes.compose(rng_for('t', 'train', 0, number), 'train', scenes.SceneSpec(160, (6, 8), (20, 60)))
            visible = np.bincount(scene.owner[scene.owner >= 0], minlength=len(stamps))
            assert (visible >= 0.6 * np.array(stamps)).all()
    finally:
        scenes._place = place


def test_segmentation_masks(tmp_path):
    generate_segmentation(tmp_path, 'train', count=8, size=128, digits=(2, 4), digit_size=(20, 50))
    values = set()
    for path in sorted((tmp_path / 'masks').glob('*.png')):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (128, 128) and mask.dtype == np.uint8
        assert (tmp_path / 'images' / f'{path.stem}.jpg').is_file()
        values |= set(np.unique(mask).tolist())
    assert 0 in values and values <= set(range(11)) and len(values) > 5


def test_classification_points_and_views(tmp_path):
    generator('classification')(tmp_path, 'val', count=20, size=48)
    with np.load(tmp_path / 'images.npz') as arrays:
        assert arrays['images'].shape == (20, 48, 48, 3) and arrays['images'].dtype == np.uint8
        assert np.bincount(arrays['labels']).tolist() == [2] * 10
    generator('points')(tmp_path, 'val', count=10, points=200)
    with np.load(tmp_path / 'points.npz') as arrays:
        points = arrays['points'].astype(np.float64)
    assert points.shape == (10, 200, 6)
    radius = np.linalg.norm(points[..., :3], axis=-1)
    assert radius.max() < 1.001 and (radius.max(1) > 0.99).all()
    assert np.allclose(np.linalg.norm(points[..., 3:], axis=-1), 1, atol=5e-3)
    assert (np.ptp(points[..., 2], axis=1) < np.ptp(points[..., 1], axis=1)).all()  # thinner than high
    # normals point outwards: front faces lie in front
    front = points[..., 5] > 0.9
    assert (points[..., 2][front] > 0).all() and front.any()
    generator('views')(tmp_path, 'val', count=3, size=32, views=4)
    with np.load(tmp_path / 'views.npz') as arrays:
        assert arrays['views'].shape == (3, 4, 32, 32, 3)
        assert all((arrays['views'][i, 0] != arrays['views'][i, 1]).any() for i in range(3))


def test_every_frame_has_the_same_distribution_for_all_motions():
    from scipy.stats import kstest

    for label, motion in enumerate(MOTIONS):
        states = np.stack([motion_states(np.random.default_rng([label, i]), motion, 8) for i in range(1500)])
        for frame in (0, 3, 7):
            for coordinate in range(4):
                assert kstest(states[:, frame, coordinate], 'uniform').pvalue > 1e-5, (motion, frame, coordinate)
            correlation = np.corrcoef(states[:, frame].T) - np.eye(4)
            assert np.abs(correlation).max() < 0.13


def test_motion_moves_one_coordinate_by_little_steps():
    for motion, coordinate, sign in zip(MOTIONS, (0, 0, 1, 1, 2, 2, 3, 3), (-1, 1, -1, 1, 1, -1, 1, -1), strict=True):
        steps = np.diff(motion_states(np.random.default_rng(0), motion, 16), axis=0)
        steps = (steps + 0.5) % 1 - 0.5
        assert (sign * steps[:, coordinate] > 0.02).all() and np.abs(steps).max() < 0.1
        assert np.allclose(np.delete(steps, coordinate, 1), 0)


def test_one_frame_is_near_chance_and_two_are_not(tmp_path):
    """A classifier on the rendered middle frame stays near 1/8; on the first difference of frames it does not."""
    from sklearn.ensemble import ExtraTreesClassifier

    data = {}
    for split, count in (('train', 480), ('val', 240)):
        generator('motion')(tmp_path / split, split, count=count, size=32, frames=4)
        content = json.loads((tmp_path / split / 'annotations.json').read_text())['clips']
        clips = np.stack([np.load(tmp_path / split / row['file'])['frames'] for row in content]).astype(np.float32)
        ink = np.abs(clips - np.median(clips, 1, keepdims=True)).mean(-1)
        data[split] = clips, ink, np.array([row['label'] for row in content])
    clips, _, labels = data['train']
    chance = 1 / len(MOTIONS)
    model = ExtraTreesClassifier(80, random_state=0).fit(clips[:, 1].reshape(len(clips), -1), labels)
    val, _, val_labels = data['val']
    assert abs((model.predict(val[:, 1].reshape(len(val), -1)) == val_labels).mean() - chance) < 0.09

    def moved(pair):  # change of the ink's amount and place between two frames
        before, after = np.abs(pair[:, 1] - pair[:, 0]).mean(-1), np.abs(pair[:, 2] - pair[:, 1]).mean(-1)
        profiles = [np.fft.fft2(f) for f in (before, after)]
        return np.fft.ifft2(profiles[1] * profiles[0].conj()).real.reshape(len(pair), -1)

    model = ExtraTreesClassifier(80, random_state=0).fit(moved(clips), labels)
    assert (model.predict(moved(val)) == val_labels).mean() > 0.25


def test_ensure_makes_once_and_by_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))
    first = ensure_digits('classification', 'val', count=2)
    stamp = (first / 'images.npz').stat().st_mtime_ns
    assert ensure_digits('classification', 'val', count=2, seed=0) == first  # a default said aloud is the same set
    assert (first / 'images.npz').stat().st_mtime_ns == stamp
    assert ensure_digits('classification', 'val', count=3) != first
    assert ensure_digits('classification', 'train', count=2) != first
    assert json.loads((first / 'generator.json').read_text())['count'] == 2


def test_a_failed_generation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))
    with pytest.raises(ValueError, match='do not fit'):
        ensure_digits('detection', 'val', count=2, size=40, digits=(40, 40), digit_size=(20, 20))
    assert not [p for p in (tmp_path / 'digits').iterdir() if p.is_dir()]


def test_two_processes_race(tmp_path):
    """Both get the whole set; it is made once, and a killed process's left-over goes."""
    code = (
        'from eff_plugins.datasets.digits import ensure_digits; '
        "print(ensure_digits('detection', 'val', count=12, size=96, digits=(1, 2), digit_size=(20, 40)))"
    )
    environment = {**os.environ, 'EFF_PLUGINS_CACHE': str(tmp_path), 'OMP_NUM_THREADS': '1'}
    running = [
        subprocess.Popen([sys.executable, '-c', code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    folders = {Path(out.decode().strip()) for out, _ in results}
    assert len(folders) == 1
    folder = folders.pop()
    assert len(list((folder / 'images').iterdir())) == 12
    assert sum(b'making' in err for _, err in results) == 1
    assert not list(folder.parent.glob('.*.part'))


@pytest.mark.parametrize(
    ('kind', 'split', 'arguments', 'message'),
    [
        ('cats', 'train', {}, 'unknown kind'),
        ('detection', 'test', {}, "'train' and 'val'"),
        ('detection', 'val', {'number': 3}, 'arguments: seed, count'),
        ('detection', 'val', {'count': 0}, 'count=0'),
        ('detection', 'val', {'seed': -1, 'count': 1}, 'seed=-1'),
        ('detection', 'val', {'size': 64}, 'digit_size'),
        ('detection', 'val', {'digits': (5, 3)}, 'digits'),
        ('motion', 'val', {'frames': 1}, 'frames=1'),
        ('points', 'val', {'points': 0}, 'points=0'),
    ],
)
def test_wrong_arguments_are_named(kind, split, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))
    with pytest.raises(ValueError, match=message):
        ensure_digits(kind, split, **arguments)


def test_command_line(tmp_path, capsys):
    main(['--kind', 'motion', '--split', 'val', '--count', '2', '--size', '32', '--out', str(tmp_path / 'out')])
    assert len(list((tmp_path / 'out' / 'clips').iterdir())) == 2
    with pytest.raises(SystemExit) as stop:
        main(['--kind', 'motion', '--out', str(tmp_path / 'out')])
    assert stop.value.code == 2 and 'not an empty folder' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['--kind', 'motion', '--digits', '1', '2', '--out', str(tmp_path / 'other')])
    assert '--digits' in capsys.readouterr().err and not (tmp_path / 'other').exists()
