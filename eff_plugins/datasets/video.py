"""Opening videos for mmaction2's pipelines."""

from __future__ import annotations

from eff_plugins.compat import require
from eff_plugins.registry import TRANSFORMS

require('mmaction', 'OpenVideo')
from mmaction.datasets.transforms import OpenCVInit  # noqa: E402


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
