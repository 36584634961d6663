"""Writes a miniature of every real data set in its own layout, so that every config runs without the real data."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.kitti_layout import write_kitti

COCO_CLASSES = 80


def write_tiny_data(root: Path) -> None:
    """Fill ``root`` with bccd, coco_tiny, camvid, cifar10, imagenet, fight_clips, kitti_frames: a few random items each."""
    rng = np.random.default_rng(0)
    write_kitti(root / 'kitti_frames')
    _coco(root / 'bccd', {'train': 'images', 'val': 'images'}, 'annotations/{}.json', ['RBC', 'WBC', 'Platelets'], rng)
    _coco(
        root / 'coco_tiny',
        {'train2017': 'train2017', 'val2017': 'val2017'},
        'annotations/instances_{}.json',
        _coco_names(),
        rng,
    )
    for split in ('train', 'val'):
        for kind in ('images', 'masks'):
            (root / 'camvid' / split / kind).mkdir(parents=True)
        for i in range(2):
            _picture(rng, 120, 160).save(root / f'camvid/{split}/images/{i}.jpg')
            mask = rng.integers(0, 11, (6, 8), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
            mask[:5] = 255
            Image.fromarray(mask).save(root / f'camvid/{split}/masks/{i}.png')
        (root / 'cifar10').mkdir(exist_ok=True)
        images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        np.savez(root / 'cifar10' / f'{split}.npz', images=images, labels=np.arange(4))
        _clips(root / 'fight_clips', split, rng)
        _folders(root / 'imagenet' / split, rng)


def _picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)).resize((width, height))


def _coco_names() -> list[str]:
    """mmdet's names of the COCO classes where it is installed (its data set selects by name)."""
    try:
        from mmdet.datasets import CocoDataset
    except ImportError:
        return [str(i) for i in range(COCO_CLASSES)]
    return list(CocoDataset.METAINFO['classes'])


def _coco(root: Path, folders: dict[str, str], ann: str, names: list[str], rng: np.random.Generator) -> None:
    for number, (split, folder) in enumerate(folders.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(2):
            name = f'{number}{i}.jpg'
            _picture(rng, 96, 128).save(root / folder / name)
            images.append(dict(id=i, file_name=name, width=128, height=96))
            for k in range(3):
                x, y, w, h = 8 + 30 * k, 10 + 12 * k, 28, 40
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    dict(id=10 * i + k + 1, image_id=i, category_id=k % len(names) + 1, bbox=[x, y, w, h], area=w * h)
                    | dict(iscrowd=0, segmentation=[polygon])
                )
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
        path = root / ann.format(split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def _folders(root: Path, rng: np.random.Generator) -> None:
    """ImageNet's 1000 class folders, all of which are links to one with a single picture."""
    root.mkdir(parents=True)
    first, *others = (root / f'n{i:08d}' for i in range(1000))
    first.mkdir()
    _picture(rng, 72, 96).save(first / '0.jpg')
    for folder in others:
        folder.symlink_to(first.name)


def _clips(root: Path, split: str, rng: np.random.Generator) -> None:
    import cv2

    (root / split).mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(2):
        path = root / split / f'{i}.mp4'
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 12, (64, 64))
        for frame in rng.integers(0, 256, (16, 64, 64, 3), dtype=np.uint8):
            writer.write(frame)
        writer.release()
        lines.append(f'{split}/{path.name} {i}')
    (root / f'{split}.txt').write_text('\n'.join(lines) + '\n')
