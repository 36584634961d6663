"""Draw a classifier's answer on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from eff_plugins.registry import HOOKS, VISUALIZERS
from eff_plugins.visualization.pictures import write_picture

_MIN_SIDE = 224  # small pictures are enlarged so that the text can be read


@VISUALIZERS.register_module()
class ClsVisualizer(Visualizer):
    """Writes the most probable classes, and the true one where it is known, over the picture."""

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: BaseDataElement,
        draw_gt: bool = True,
        out_file: str | None = None,
        step: int = 0,
        topk: int = 3,
        **_: object,
    ) -> None:
        """Draw one sample.

        Args:
            name: Name of the picture in the visualiser's back ends.
            image: (H, W, 3) uint8 RGB.
            data_sample: With ``pred_scores`` (num_classes,) and, for ``draw_gt``, ``gt_label``.
            draw_gt: Write the true class too.
            out_file: Save there instead of handing the picture to the back ends.
            step: Step of the back ends.
            topk: Classes to write.
        """
        import cv2

        scale = max(1, -(-_MIN_SIDE // min(image.shape[:2])))
        canvas = np.ascontiguousarray(image.repeat(scale, 0).repeat(scale, 1))
        classes = (self.dataset_meta or {}).get('classes')
        scores = data_sample.pred_scores
        names = [str(i) for i in range(len(scores))] if classes is None else list(classes)
        values, indices = scores.topk(min(topk, len(scores)))
        lines = [f'{names[i]} {100 * v:.1f} %' for v, i in zip(values.tolist(), indices.tolist(), strict=True)]
        if draw_gt and 'gt_label' in data_sample:
            lines.append(f'true: {names[data_sample.gt_label]}')
        for i, line in enumerate(lines):
            position = (6, 20 + 20 * i)
            cv2.putText(canvas, line, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 4, cv2.LINE_AA)
            cv2.putText(canvas, line, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        self.set_image(canvas)
        if out_file is not None:
            write_picture(out_file, canvas)
        else:
            self.add_image(name, canvas, step)


@HOOKS.register_module()
class ClsVisualizationHook(Hook):
    """Saves a drawing of every tested picture, or of the middle frame of every tested clip.

    Args:
        out_dir: Folder for the drawings.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        self._count = 0

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        inputs = (data_batch or {}).get('inputs', ())
        for image, sample in zip(inputs, outputs or (), strict=True):
            if image.ndim == 4:  # frames of a clip (T, 3, H, W)
                image = image[len(image) // 2]
                sample.pred_scores = sample.pred_score
            array = image.permute(1, 2, 0).cpu().numpy()
            runner.visualizer.add_datasample(
                'test', array, sample, out_file=str(self.out_dir / f'{runner.rank}_{self._count:05d}.png')
            )
            self._count += 1
