"""Draw a classifier's answer on the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor

from eff_plugins.registry import HOOKS, VISUALIZERS
from eff_plugins.visualization.compute import add_panel
from eff_plugins.visualization.hooks import DrawingHook
from eff_plugins.visualization.pictures import write_picture

_MIN_SIDE = 224  # small pictures are enlarged so that the text can be read


def draw_classes(
    image: np.ndarray, scores: Tensor, classes: Sequence[str] | None = None, truth: int | None = None, topk: int = 3
) -> np.ndarray:
    """Write the most probable classes, and the true one where it is known, over a picture.

    Args:
        image: (H, W, 3) uint8 RGB; small ones are enlarged.
        scores: (num_classes,) probabilities.
        classes: Class names; numbers stand for them where there are none.
        truth: Index of the true class.
        topk: Classes to write.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    import cv2

    scale = max(1, -(-_MIN_SIDE // min(image.shape[:2])))
    canvas = np.ascontiguousarray(image.repeat(scale, 0).repeat(scale, 1))
    names = [str(i) for i in range(len(scores))] if classes is None else list(classes)
    values, indices = scores.topk(min(topk, len(scores)))
    lines = [f'{names[i]} {100 * v:.1f} %' for v, i in zip(values.tolist(), indices.tolist(), strict=True)]
    if truth is not None:
        lines.append(f'true: {names[truth]}')
    for i, line in enumerate(lines):
        position = (6, 20 + 20 * i)
        cv2.putText(canvas, line, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 4, cv2.LINE_AA)
        cv2.putText(canvas, line, position, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


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
        truth = data_sample.gt_label if draw_gt and 'gt_label' in data_sample else None
        canvas = draw_classes(image, data_sample.pred_scores, (self.dataset_meta or {}).get('classes'), truth, topk)
        self.set_image(canvas)
        if out_file is not None:
            write_picture(out_file, canvas)
        else:
            self.add_image(name, canvas, step)


@HOOKS.register_module()
class ClsVisualizationHook(DrawingHook):
    """Saves a drawing of every tested picture."""

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Draw the batch as the network saw it; beside it where a dynamic one computed."""
        pairs = zip((data_batch or {}).get('inputs', ()), outputs or (), strict=True)
        for i, (image, sample) in enumerate(pairs):
            picture = image.permute(1, 2, 0).cpu().numpy()
            out = self.next_file(runner, sample.img_path)
            runner.visualizer.add_datasample('test', picture, sample, out_file=str(out))
            add_panel(out, picture, self.last_pass(runner), i, dict(img_shape=picture.shape[:2]))


@HOOKS.register_module()
class ClipVisualizationHook(DrawingHook):
    """Saves the middle frame of every clip that mmaction2 tests, with the classes written over it."""

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Draw the batch as the network saw it: frames (T, 3, H, W), or clips of frames (N, 3, T, H, W)."""
        classes = runner.test_dataloader.dataset.metainfo.get('classes')
        for clip, sample in zip((data_batch or {}).get('inputs', ()), outputs or (), strict=True):
            frame = clip[len(clip) // 2]
            if frame.ndim == 4:
                frame = frame[:, frame.shape[1] // 2]
            label = sample.get('gt_label')
            # -1 stands for a clip without a label; a clip with several has no one true class
            known = label is not None and label.numel() == 1 and int(label) >= 0
            picture = frame.permute(1, 2, 0).cpu().numpy()
            canvas = draw_classes(picture, sample.pred_score, classes, int(label) if known else None)
            write_picture(self.next_file(runner), canvas)
