"""Writing pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_picture(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB; the ending says the format and the folder is made.

    Raises:
        OSError: It could not be written; OpenCV itself says nothing then.
    """
    import cv2

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image[..., ::-1]):
        raise OSError(f'{path} could not be written: is the disk full, the folder read-only, or the ending unknown?')
