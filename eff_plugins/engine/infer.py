"""Run a trained model of any framework on a user's own files and draw the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import MODELS, VISUALIZERS
from mmengine.runner import load_checkpoint

from eff_plugins.dynamic.module import is_dynamic
from eff_plugins.dynamic.watch import Watch
from eff_plugins.engine.execution import Operation
from eff_plugins.engine.runs import DRAWING
from eff_plugins.engine.weights import all_weights_expected
from eff_plugins.visualization.compute import add_panel
from eff_plugins.visualization.pictures import write_picture

# Transforms that read the truth, which a user's own files do not have.
_TRUTH = ('LoadAnnotations', 'LoadAnnotations3D')


def picture_pipeline(cfg: Config) -> Compose:
    """The test pipeline of a config without the steps that read the truth; it takes what :func:`data_info` gives."""
    steps = [t for t in cfg.test_dataloader.dataset.pipeline if t['type'].split('.')[-1] not in _TRUTH]
    own = cfg.get('default_scope', 'eff_plugins') == 'eff_plugins'
    if own and steps[0]['type'].split('.')[-1] != 'LoadImage':
        steps.insert(0, dict(type='LoadImage'))
    return Compose(steps)


def data_info(scope: str, path: str) -> dict[str, Any]:
    """What a pipeline of the framework ``scope`` starts from for one file."""
    if scope == 'mmaction':
        return dict(filename=path, label=-1, start_index=0, modality='RGB')
    if scope == 'mmdet3d':
        from mmdet3d.structures import get_box_type

        box_type, box_mode = get_box_type('LiDAR')
        return dict(lidar_points=dict(lidar_path=path), lidar_path=path, box_type_3d=box_type, box_mode_3d=box_mode)
    return dict(img_path=path, img_id=0)


class Inferencer:
    """A model, its test pipeline and its visualiser.

    Args:
        cfg: Config prepared by ``load_config``.
        checkpoint: Path or URL of trained weights.
        operation: How a dynamic network is run.
    """

    def __init__(self, cfg: Config, checkpoint: str, operation: Operation | None = None) -> None:
        self.cfg = cfg
        self.model: BaseModel = MODELS.build(cfg.model)
        operation = operation or Operation()
        with all_weights_expected(self.model, checkpoint, operation.needs_policies):
            meta = load_checkpoint(self.model, checkpoint, map_location='cpu').get('meta', {})
        self.model.eval()
        operation.apply(self.model, cfg)
        self.watch = Watch(self.model) if is_dynamic(self.model) else None
        dataset = cfg.test_dataloader.dataset
        self.scope = cfg.get('default_scope', 'eff_plugins')
        self.pipeline = picture_pipeline(cfg)
        visualizer = cfg.get('visualizer') or dict(type=DRAWING[self.scope][1])
        self.visualizer = VISUALIZERS.build({'name': 'infer', **visualizer})
        self.visualizer.dataset_meta = meta.get('dataset_meta') or dict(dataset.get('metainfo') or {})

    def __call__(self, path: str) -> Any:
        """The framework's data sample for one file, predictions included.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It does not decode.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f'{path}: no such file')
        try:
            data = self.pipeline(data_info(self.scope, path))
        except (AttributeError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise ValueError(f'{path} could not be read by the test pipeline: {error}') from error
        if data is None:
            raise ValueError(f'{path} does not decode; is it a damaged or foreign file?')
        self._seen = data['inputs']
        return self.model.test_step(pseudo_collate([data]))[0]

    def draw(self, path: str, sample: Any, out: Path) -> None:
        """Draw ``sample`` over the file and save it at ``out`` (a picture); beside it where a dynamic network computed.

        A classifier's map lies over what it saw: the picture resized and cropped.
        """
        if self.scope == 'mmdet3d':
            from eff_plugins.visualization.bev import draw_bev_file

            draw_bev_file(path, sample, out, self.cfg.test_dataloader.dataset.get('metainfo', {}).get('classes'))
            return
        if self.scope == 'mmaction':
            from eff_plugins.visualization.classification import draw_classes

            classes = dict(self.visualizer.dataset_meta or {}).get('classes')
            write_picture(out, draw_classes(_middle_frame(path), sample.pred_score, classes))
            return
        options = dict(pred_score_thr=0.3) if self.scope == 'mmdet' else {}
        picture = _read(path)
        self.visualizer.add_datasample('infer', picture, sample, draw_gt=False, out_file=str(out), **options)
        if self.watch is not None:
            metainfo = sample.metainfo
            if self.scope == 'eff_plugins':
                picture = self._seen.permute(1, 2, 0).numpy()
                metainfo = dict(img_shape=picture.shape[:2])
            add_panel(out, picture, self.watch.last, 0, metainfo)


def _read(path: str) -> np.ndarray:
    from eff_plugins.datasets.transforms import read_image

    return read_image(path)


def _middle_frame(path: str) -> np.ndarray:
    """The frame in the middle of a video, or of a clip in an npz file, (H, W, 3) uint8 RGB."""
    if Path(path).suffix == '.npz':
        from eff_plugins.datasets.digits.storage import read_clip

        clip = read_clip(path)
        return clip[len(clip) // 2]
    import cv2

    video = cv2.VideoCapture(path)
    video.set(cv2.CAP_PROP_POS_FRAMES, video.get(cv2.CAP_PROP_FRAME_COUNT) // 2)
    ok, frame = video.read()
    if not ok:
        raise ValueError(f'{path} does not decode as a video')
    return np.ascontiguousarray(frame[..., ::-1])


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Tile pictures of one size (H, W, 3) row by row; the last row is filled with white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + height, left : left + width] = picture
    return canvas
