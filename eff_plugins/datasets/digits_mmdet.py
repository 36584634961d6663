"""The embedded digits for mmdetection."""

from __future__ import annotations

from typing import Any

from eff_plugins.compat import require

require('mmdet', 'DigitDetDataset')

from mmdet.datasets import CocoDataset  # noqa: E402

from eff_plugins.registry import DATASETS  # noqa: E402

from .digits import ensure_digits  # noqa: E402
from .palette import DIGIT_PALETTE  # noqa: E402


@DATASETS.register_module()
class DigitDetDataset(CocoDataset):
    """Digits over photographs with boxes and instance masks, generated at the first use.

    Args:
        split: ``'train'`` or ``'val'``; no source digit and no background is in both.
        generator: Arguments of :func:`eff_plugins.datasets.digits.pictures.generate_detection`, such as ``seed``,
            ``count`` and ``size``.
        **kwargs: Arguments of mmdet's ``CocoDataset`` (``pipeline``, ``filter_cfg``, ...).
    """

    METAINFO = {'classes': tuple(str(d) for d in range(10)), 'palette': list(DIGIT_PALETTE)}

    def __init__(self, split: str, generator: dict | None = None, **kwargs: Any) -> None:
        folder = ensure_digits('detection', split, **(generator or {}))
        super().__init__(
            ann_file=str(folder / 'annotations.json'), data_prefix={'img': str(folder / 'images')}, **kwargs
        )
