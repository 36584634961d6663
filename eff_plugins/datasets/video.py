"""Opening videos and looking at their motion, in mmaction2's pipelines."""

from __future__ import annotations

import numpy as np

from eff_plugins.compat import require
from eff_plugins.registry import TRANSFORMS

require('mmaction', 'OpenVideo')
from mmaction.datasets.transforms import OpenCVInit  # noqa: E402
from mmcv.transforms import BaseTransform  # noqa: E402


@TRANSFORMS.register_module()
class OpenVideo(OpenCVInit):
    """mmaction2's ``OpenCVInit``, which takes a damaged file for a video without frames, with an error that names it.

    Needs ``filename``; gives ``video_reader``, ``total_frames`` and ``new_path``. ``OpenCVDecode`` comes after it.
    """

    def transform(self, results: dict) -> dict:
        """Open the file and look at its first frame.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It does not decode.
        """
        results = super().transform(results)
        # The number of frames comes from the file's header; that they decode is known only by decoding.
        if results['total_frames'] < 1 or results['video_reader'][0] is None:
            raise ValueError(
                f'{results["filename"]}: this video does not decode with OpenCV; convert it (for instance: ffmpeg -i IN '
                '-c:v libx264 OUT.mp4) or take its line out of the list file'
            )
        return results


@TRANSFORMS.register_module()
class FrameDifference(BaseTransform):
    """Replace every clip of two frames by their difference, so that what does not move becomes an even grey.

    The RGB difference of Wang et al., "Temporal Segment Networks", ECCV 2016, as an 8-bit picture: 127 + gain * (second
    - first), limited to 0-255. With a still camera it keeps a network from learning the places by heart, which a few
    hundred clips would let it. Comes after the decoding, with ``SampleFrames(clip_len=2, frame_interval=...)``.

    Args:
        gain: Multiplies the difference; 1 keeps the scale of the pictures.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def transform(self, results: dict) -> dict:
        """Halve ``imgs``: 2 * T arrays (H, W, 3) uint8 become T.

        Raises:
            ValueError: The clips were not sampled with two frames each.
        """
        if results['clip_len'] != 2:
            raise ValueError(f'FrameDifference needs SampleFrames with clip_len=2, not clip_len={results["clip_len"]}')
        frames = np.asarray(results['imgs'], dtype=np.float32)
        pictures = np.clip(127 + self.gain * (frames[1::2] - frames[::2]), 0, 255).round().astype(np.uint8)
        results['imgs'] = list(pictures)
        results['clip_len'] = 1
        return results
