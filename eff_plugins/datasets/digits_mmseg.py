"""The embedded digits for mmsegmentation."""

from __future__ import annotations

from typing import Any

from eff_plugins.compat import require

require('mmseg', 'DigitSegDataset')

from mmseg.datasets import BaseSegDataset  # noqa: E402

from eff_plugins.registry import DATASETS  # noqa: E402

from .digits import ensure_digits  # noqa: E402
from .palette import DIGIT_PALETTE  # noqa: E402


@DATASETS.register_module()
class DigitSegDataset(BaseSegDataset):
    """Digits over photographs with semantic masks, 11 classes with the background, generated at the first use.

    Args:
        split: ``'train'`` or ``'val'``; no source digit and no background is in both.
        generator: Arguments of :func:`eff_plugins.datasets.digits.pictures.generate_segmentation`, such as ``seed``,
            ``count`` and ``size``.
        **kwargs: Arguments of mmseg's ``BaseSegDataset``, such as ``pipeline``.
    """

    METAINFO = {
        'classes': ('background', *(str(d) for d in range(10))),
        'palette': [[0, 0, 0], *(list(colour) for colour in DIGIT_PALETTE)],
    }

    def __init__(self, split: str, generator: dict | None = None, **kwargs: Any) -> None:
        folder = ensure_digits('segmentation', split, **(generator or {}))
        super().__init__(
            data_root=str(folder),
            data_prefix={'img_path': 'images', 'seg_map_path': 'masks'},
            img_suffix='.jpg',
            seg_map_suffix='.png',
            **kwargs,
        )
