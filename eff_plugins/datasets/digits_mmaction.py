"""The embedded clips of moving digits for mmaction2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eff_plugins.compat import require

require('mmaction', 'DigitMotionDataset')

from mmaction.datasets import BaseActionDataset  # noqa: E402

from eff_plugins.registry import DATASETS, TRANSFORMS  # noqa: E402

from .digits import ensure_digits  # noqa: E402
from .digits.storage import read_clip  # noqa: E402


@DATASETS.register_module()
class DigitMotionDataset(BaseActionDataset):
    """Clips of one moving digit; the class is the motion, and one frame says nothing about it.

    A pipeline begins with ``eff_plugins.LoadClip``, ``SampleFrames`` and ``ArrayDecode``. Mirroring would change the class.

    Args:
        split: ``'train'`` or ``'val'``; no source digit and no background is in both.
        generator: Arguments of :func:`eff_plugins.datasets.digits.clips.generate_motion`, such as ``seed``, ``count``,
            ``size`` and ``frames``.
        **kwargs: Arguments of mmaction's ``BaseActionDataset``, such as ``pipeline``.
    """

    def __init__(self, split: str, generator: dict | None = None, **kwargs: Any) -> None:
        folder = ensure_digits('motion', split, **(generator or {}))
        super().__init__(ann_file=str(folder / 'annotations.json'), **kwargs)

    def load_data_list(self) -> list[dict]:
        """One row a clip: ``filename``, ``label`` and ``total_frames``."""
        path = Path(self.ann_file)
        content = json.loads(path.read_text())
        self._metainfo['classes'] = tuple(content['classes'])
        return [
            {'filename': str(path.parent / row['file']), 'label': row['label'], 'total_frames': row['frames']}
            for row in content['clips']
        ]


@TRANSFORMS.register_module()
class LoadClip:
    """Read the npz file ``results['filename']`` (its ``frames``, (T, H, W, 3) uint8 RGB) into ``results['array']``.

    mmaction's ``SampleFrames`` and ``ArrayDecode`` go on from there.
    """

    def __call__(self, results: dict) -> dict:
        results['array'] = read_clip(results['filename'])
        results['total_frames'] = len(results['array'])
        return results
