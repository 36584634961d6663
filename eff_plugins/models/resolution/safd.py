"""SAFD: a picture is zoomed so that its objects fall into the range of a detector that knows one size.

Source: Hao et al., "Scale-Aware Face Detection", CVPR 2017, https://arxiv.org/abs/1706.09876.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from eff_plugins.compat import require

require('mmdet', 'ScaleAwareDetector')

from mmcv.ops import batched_nms  # noqa: E402
from mmdet.models.detectors.base import BaseDetector  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.bbox import get_box_tensor  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from eff_plugins.dynamic.module import DynamicModule, WrapsStatic  # noqa: E402
from eff_plugins.dynamic.recorder import emit, recording  # noqa: E402
from eff_plugins.models.resolution.resample import resize  # noqa: E402
from eff_plugins.models.resolution.scale_proposal import ScaleProposalNetwork, ZoomPolicy  # noqa: E402
from eff_plugins.profiling.macs import count_macs  # noqa: E402
from eff_plugins.registry import MODELS  # noqa: E402

DIVISOR = 32  # zoomed pictures are padded to a multiple of it
MARGIN = 0.5  # octaves beyond the detector's range in which its boxes are still believed


@MODELS.register_module()
class ScaleAwareDetector(WrapsStatic, DynamicModule, BaseDetector):
    """Any box detector of mmdet, shown each picture at the zooms that its objects need, and at no other.

    A :class:`ScaleProposalNetwork` reads a small resample of the picture and says which sizes of objects are there; the
    picture is resized so that these come to the middle of ``size_range``, detected once a zoom, and the boxes are merged
    by NMS. In training both learn: the sizes from the boxes' sizes, the detector from crops around an object at a zoom that
    brings it into its range; objects outside the range are ignored (where the detector's assigner heeds ignored boxes).

    ``'dense'`` is the fixed pyramid of zooms that covers all sizes, ``'sparse'`` the zooms that the policy chose,
    ``'masked'`` all zooms there are, of which the chosen ones' boxes are kept.

    Args:
        detector: Config of the detector; boxes alone, no masks.
        size_range: Least and greatest side (square root of the area) in pixels of the objects that it is to see.
        proposal: Arguments of :class:`ScaleProposalNetwork`.
        threshold: Of the histogram, for a zoom.
        crop: Side in pixels of the crops in training.
        proposal_weight: Weight of the histogram's loss.
        nms: Arguments of mmcv's NMS that merges the zooms.
        max_per_img: Boxes that are kept of a picture.
        data_preprocessor: By default the detector's.

    Raises:
        ValueError: An empty ``size_range``, or a detector of masks.
    """

    wrapped = 'detector'

    def __init__(
        self,
        detector: dict,
        size_range: tuple[float, float] = (32, 64),
        proposal: dict | None = None,
        threshold: float = 0.4,
        crop: int = 320,
        proposal_weight: float = 0.1,
        nms: dict | None = None,
        max_per_img: int = 100,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or detector.get('data_preprocessor'), init_cfg)
        low, high = size_range
        if not 0 < low < high:
            raise ValueError(
                f'size_range={tuple(size_range)} must be (least, greatest) side in pixels with 0 < least < greatest'
            )
        self.detector: Any = MODELS.build(detector)
        if self.detector.with_mask:
            raise ValueError(
                f'{detector["type"]} predicts masks, which are not merged over zooms; use a detector of boxes'
            )
        self.spn = ScaleProposalNetwork(**(proposal or {}))
        self.middle = math.sqrt(low * high)
        self.reach = math.log2(high / low) / 2
        self.policy = ZoomPolicy(self.spn.centres, self.reach, MARGIN, threshold)
        self.crop, self.proposal_weight = crop, proposal_weight
        self.nms = dict(nms or dict(type='nms', iou_threshold=0.5))
        self.max_per_img = max_per_img
        self.execution = 'sparse'  # training decides nothing, and validating all zooms would take hours
        self._known_costs: dict[tuple[int, int], float] = {}
        self._proposal_macs = 0.0  # counted when it is first asked for

    def settings(self) -> tuple:
        return self.middle, self.reach

    # Training

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict[str, Any]:
        """The detector's losses on zoomed crops, and ``loss_scale`` of the histogram."""
        pictures, boxes = self._pictures(batch_inputs, batch_data_samples), []
        for sample in batch_data_samples:
            boxes.append(get_box_tensor(sample.gt_instances.bboxes))
        sizes = [_sides(b).log2() - math.log2(max(p.shape[1:])) for b, p in zip(boxes, pictures, strict=True)]
        crops = [self._training_crop(*pair) for pair in zip(pictures, boxes, batch_data_samples, strict=True)]
        losses = dict(self.detector.loss(torch.stack([c for c, _ in crops]), [sample for _, sample in crops]))
        losses['loss_scale'] = self.proposal_weight * self.spn.loss(self.spn(pictures), sizes)
        return losses

    def _training_crop(self, picture: Tensor, boxes: Tensor, sample: DetDataSample) -> tuple[Tensor, DetDataSample]:
        """A zoom that brings one of the objects into the range, and a crop that holds it."""
        height, width = picture.shape[1:]
        zoom, centre = 1.0, (width * _uniform(), height * _uniform())
        if len(boxes):
            box = boxes[int(torch.randint(len(boxes), ()))]
            octaves = (2 * _uniform() - 1) * self.reach
            zoom = self.middle * 2**octaves / float(_sides(box[None]).clamp(min=1))
            centre = (float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2)
        side = self.crop / zoom  # of the window in the picture
        left, top = (
            min(max(middle - side * _uniform(), 0.0), max(extent - side, 0.0))
            for middle, extent in zip(centre, (width, height), strict=True)
        )
        left, top = int(left), int(top)
        window = picture[:, top : math.ceil(top + side), left : math.ceil(left + side)]
        out = picture.new_zeros(3, self.crop, self.crop)
        zoomed = _zoomed(window, zoom)[:, : self.crop, : self.crop]
        out[:, : zoomed.shape[1], : zoomed.shape[2]] = zoomed
        return out, self._cropped(sample, boxes, (left, top), zoom, zoomed.shape[1:])

    def _cropped(
        self, sample: DetDataSample, boxes: Tensor, corner: tuple[int, int], zoom: float, size: torch.Size
    ) -> DetDataSample:
        """The annotations of a crop; objects outside of the detector's range are ignored."""
        shift = boxes.new_tensor([*corner, *corner])
        limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])

        def placed(corners: Tensor) -> tuple[Tensor, Tensor]:
            moved = (corners - shift) * zoom
            return moved, torch.minimum(moved.clamp(min=0), limit)

        moved, clipped = placed(boxes)
        extent = clipped[:, 2:] - clipped[:, :2]
        seen = (extent.prod(1) > 0.3 * (moved[:, 2:] - moved[:, :2]).prod(1)) & (extent > 1).all(1)
        inside = (_sides(moved) / self.middle).log2().abs() <= self.reach + 1e-3
        new = DetDataSample(
            metainfo={**sample.metainfo, 'img_shape': tuple(size), 'batch_input_shape': (self.crop,) * 2,
                      'pad_shape': (self.crop,) * 2, 'scale_factor': (1.0, 1.0)}
        )  # fmt: skip
        labels = sample.gt_instances.labels
        new.gt_instances = InstanceData(bboxes=clipped[seen & inside], labels=labels[seen & inside])
        ignored = [clipped[seen & ~inside]]
        if 'ignored_instances' in sample:  # crowds
            _, crowds = placed(get_box_tensor(sample.ignored_instances.bboxes))
            ignored.append(crowds[(crowds[:, 2:] - crowds[:, :2] > 1).all(1)])
        new.ignored_instances = InstanceData(bboxes=torch.cat(ignored))
        return new

    # Inference

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Boxes of each picture in ``pred_instances``; with ``rescale`` in the coordinates of the original picture."""
        self.check_execution()
        pictures = self._pictures(batch_inputs, batch_data_samples)
        if self.execution == 'dense':
            on = self.policy.pyramid.expand(len(pictures), -1)
        else:
            scores = self.policy.scores(self.spn(pictures))
            on = self.policy(scores) > 0
            if recording():
                self._report(pictures, scores, on)
        computed = torch.ones_like(on) if self.execution == 'masked' else on
        found = self._detect(pictures, batch_data_samples, computed)
        for index, sample in enumerate(batch_data_samples):
            parts = [part for (i, k), part in found.items() if i == index and bool(on[index, k])]
            sample.pred_instances = self._merge(parts, batch_inputs, sample, rescale)
        return batch_data_samples

    def zoom(self, picture: Tensor, number: int) -> float:
        """What bin ``number`` asks a picture (3, H, W) to be scaled by."""
        return self.middle / (2 ** float(self.policy.centres[number]) * max(picture.shape[1:]))

    def _detect(
        self, pictures: list[Tensor], samples: list[DetDataSample], wanted: Tensor
    ) -> dict[tuple[int, int], InstanceData]:
        """(picture, bin) -> boxes in the picture's own coordinates; zoomed pictures of one shape go through together."""
        groups: dict[tuple[int, int], list[tuple[int, int, Tensor]]] = {}
        for index, number in wanted.nonzero().tolist():
            zoomed = _zoomed(pictures[index], self.zoom(pictures[index], number))
            groups.setdefault(_pad_to(tuple(zoomed.shape[1:])), []).append((index, number, zoomed))
        found = {}
        for shape, members in groups.items():
            inputs = pictures[0].new_zeros(len(members), 3, *shape)
            metas = []
            for row, (index, _, zoomed) in enumerate(members):
                size = tuple(zoomed.shape[1:])
                inputs[row, :, : size[0], : size[1]] = zoomed
                meta = {**samples[index].metainfo, 'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0)}
                metas.append(DetDataSample(metainfo={**meta, 'batch_input_shape': shape, 'pad_shape': shape}))
            results = self.detector.predict(inputs, metas, rescale=False)
            for (index, number, _), result in zip(members, results, strict=True):
                found[index, number] = self._believed(result.pred_instances, self.zoom(pictures[index], number))
        return found

    def _believed(self, boxes: InstanceData, zoom: float) -> InstanceData:
        """Boxes of about the size that the detector knows, in the picture's own coordinates."""
        corners = get_box_tensor(boxes.bboxes)
        near = (_sides(corners) / self.middle).log2().abs() <= self.reach + MARGIN
        return InstanceData(bboxes=corners[near] / zoom, scores=boxes.scores[near], labels=boxes.labels[near])

    def _merge(self, parts: list[InstanceData], inputs: Tensor, sample: DetDataSample, rescale: bool) -> InstanceData:
        if not parts:
            labels = torch.zeros(0, dtype=torch.long, device=inputs.device)
            return InstanceData(bboxes=inputs.new_zeros(0, 4), scores=inputs.new_zeros(0), labels=labels)
        merged = InstanceData.cat(parts)
        if len(merged):
            kept, keep = batched_nms(merged.bboxes.float(), merged.scores.float(), merged.labels, dict(self.nms))
            merged = merged[keep]
            merged.scores = kept[:, 4].to(merged.scores.dtype)  # soft NMS lowers some
            merged = merged[: self.max_per_img]
        if rescale:
            factor = merged.bboxes.new_tensor(sample.scale_factor)
            merged.bboxes = merged.bboxes / factor.repeat(2)
        return merged

    def _pictures(self, inputs: Tensor, samples: list[DetDataSample]) -> list[Tensor]:
        """The pictures of a batch without the padding that made them one."""
        return [x[:, : s.img_shape[0], : s.img_shape[1]] for x, s in zip(inputs, samples, strict=True)]

    # Statistics

    def _report(self, pictures: list[Tensor], scores: Tensor, on: Tensor) -> None:
        """One entry a picture, because pictures may differ in size and so in what a zoom costs."""
        if not self._proposal_macs:
            with _disable_current_modes(), torch.no_grad():
                twin = deepcopy(self.spn).eval()
                self._proposal_macs = float(count_macs(twin, lambda: twin(pictures[:1]))[''])
        for index, picture in enumerate(pictures):
            taken = on[index].nonzero().flatten().tolist()
            chosen = sum(self.zoom_macs(picture, k) for k in taken)
            dense = sum(self.zoom_macs(picture, k) for k in self.policy.pyramid.nonzero().flatten().tolist())
            emit(
                self,
                dense_macs=float(dense),
                macs=torch.tensor([chosen + self._proposal_macs]),
                policy_macs=self._proposal_macs,
                density=torch.tensor([chosen / dense]),
                scores=scores[index : index + 1].detach(),
                labels=tuple(f'zoom {self.zoom(picture, k):.2g}' for k in taken) or ('no zoom',),
            )

    def zoom_macs(self, picture: Tensor, number: int) -> float:
        """Multiply-adds of detecting a picture (3, H, W) at the zoom of a bin, counted on an empty picture, once a shape."""
        shape = _pad_to(_zoomed_size(picture, self.zoom(picture, number)))
        if shape not in self._known_costs:
            twin = deepcopy(self.detector).eval()
            parameter = next(self.detector.parameters())
            inputs = torch.zeros(1, 3, *shape, device=parameter.device, dtype=parameter.dtype)
            meta = dict(
                img_shape=shape, ori_shape=shape, batch_input_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0)
            )
            # outside of a counter that may watch the forward pass at hand
            with _disable_current_modes(), torch.no_grad():
                run = lambda: twin.predict(inputs, [DetDataSample(metainfo=meta)], rescale=False)  # noqa: E731
                self._known_costs[shape] = float(count_macs(twin, run)[''])
        return self._known_costs[shape]

    # The rest of a detector's interface

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """The detector's maps, at the zoom at which the pictures come."""
        return self.detector.extract_feat(batch_inputs)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample] | None = None) -> Any:
        return self.detector._forward(batch_inputs, batch_data_samples)


def _uniform() -> float:
    return float(torch.rand(()))


def _sides(boxes: Tensor) -> Tensor:
    """Square roots of the areas of boxes (n, 4), at least a thousandth of a pixel so that they have a logarithm."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3).prod(1).sqrt()


def _zoomed_size(picture: Tensor, zoom: float) -> tuple[int, int]:
    height, width = (max(1, round(side * zoom)) for side in picture.shape[1:])
    return height, width


def _zoomed(picture: Tensor, zoom: float) -> Tensor:
    """(3, H, W) -> (3, H', W')."""
    return resize(picture[None], _zoomed_size(picture, zoom))[0]


def _pad_to(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = (-(-side // DIVISOR) * DIVISOR for side in size)
    return height, width
