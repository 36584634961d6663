"""Transforms for classification on mmengine alone: they map a dict with ``img``, an (H, W, 3) uint8 RGB array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from eff_plugins.registry import TRANSFORMS


def read_image(path: str | Path) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It does not decode; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such picture')
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert('RGB'))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f'{path} does not decode as a picture ({error}); replace or remove the file') from error


@TRANSFORMS.register_module()
class LoadImage:
    """Read ``results['img_path']`` into ``results['img']``."""

    def __call__(self, results: dict) -> dict:
        results['img'] = read_image(results['img_path'])
        return results


class _ImageTransform:
    """A transform of the picture alone."""

    def __call__(self, results: dict) -> dict:
        results['img'] = self.apply(results['img'])
        return results

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> (H', W', 3), both uint8."""
        raise NotImplementedError(f'{type(self).__name__} must define apply')


def _interpolation(name: str) -> str:
    if name not in ('bicubic', 'bilinear'):
        raise ValueError(f"interpolation={name!r} must be 'bicubic' or 'bilinear'")
    return name


@TRANSFORMS.register_module()
class ResizeShortSide(_ImageTransform):
    """Resize so that the short side is ``size`` pixels, with antialiasing, aspect ratio kept.

    Args:
        size: Pixels.
        interpolation: ``'bicubic'`` or ``'bilinear'``.
    """

    def __init__(self, size: int, interpolation: str = 'bicubic') -> None:
        self.size = size
        self.interpolation = _interpolation(interpolation)

    def apply(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        height, width = image.shape[:2]
        if height <= width:
            shape = (int(self.size * width / height), self.size)
        else:
            shape = (self.size, int(self.size * height / width))
        if shape == (width, height):
            return image
        return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling[self.interpolation.upper()]))


@TRANSFORMS.register_module()
class CenterCrop(_ImageTransform):
    """Cut the central ``size`` x ``size`` pixels.

    Raises:
        ValueError: The picture is smaller than the crop.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def apply(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if min(height, width) < self.size:
            raise ValueError(
                f'a {width}x{height} picture is smaller than the {self.size}x{self.size} crop; resize it first'
            )
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return image[top : top + self.size, left : left + self.size]


@TRANSFORMS.register_module()
class PadCrop(_ImageTransform):
    """Pad by ``padding`` zeros on every side and cut a random window of the original size (the CIFAR augmentation)."""

    def __init__(self, padding: int = 4) -> None:
        self.padding = padding

    def apply(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        padded = np.pad(image, ((self.padding,) * 2, (self.padding,) * 2, (0, 0)))
        top, left = np.random.randint(0, 2 * self.padding + 1, 2)
        return padded[top : top + height, left : left + width]


@TRANSFORMS.register_module()
class RandomAreaCrop(_ImageTransform):
    """Cut a random window and resize it to ``size`` x ``size``, as Szegedy et al. (CVPR 2015, section 6) do.

    Args:
        size: Pixels.
        area: Range of the window's area as a share of the picture's.
        ratio: Range of its width / height, drawn evenly on a logarithmic scale.
        interpolation: ``'bicubic'`` or ``'bilinear'``.
    """

    def __init__(
        self,
        size: int,
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = 'bilinear',
    ) -> None:
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f'area={tuple(area)} must ascend within (0, 1]')
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f'ratio={tuple(ratio)} must ascend and be positive')
        self.size, self.area, self.ratio = size, area, ratio
        self.interpolation = _interpolation(interpolation)

    def _window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, width and height; after ten windows that do not fit, the largest central square."""
        for _ in range(10):
            pixels = np.random.uniform(*self.area) * height * width
            ratio = np.exp(np.random.uniform(*np.log(self.ratio)))
            w, h = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                return np.random.randint(width - w + 1), np.random.randint(height - h + 1), w, h
        side = min(height, width)
        return (width - side) // 2, (height - side) // 2, side, side

    def apply(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        left, top, w, h = self._window(*image.shape[:2])
        window = Image.fromarray(np.ascontiguousarray(image[top : top + h, left : left + w]))
        return np.asarray(window.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()]))


@TRANSFORMS.register_module()
class FlipImage(_ImageTransform):
    """Mirror horizontally with probability ``prob``."""

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def apply(self, image: np.ndarray) -> np.ndarray:
        return image[:, ::-1] if np.random.rand() < self.prob else image


@TRANSFORMS.register_module()
class PackClsInputs:
    """Make ``inputs`` (3, H, W) uint8 and a data sample with ``gt_label`` and, where known, ``img_path``."""

    def __call__(self, results: dict) -> dict:
        sample = BaseDataElement(metainfo={'img_path': results.get('img_path')})
        if 'gt_label' in results:
            sample.gt_label = int(results['gt_label'])
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        return {'inputs': torch.from_numpy(image), 'data_samples': sample}
