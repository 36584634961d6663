from __future__ import annotations

import numpy as np
import pytest

from eff_plugins.evaluation.kitti_ap import Boxes, kitti_ap, overlap
from eff_plugins.ops.rotated_iou import rotated_iou, upright_box_iou

CAR = (0.0, 1.5, 20.0, 4.0, 1.5, 1.6, 0.3)  # x, y, z, l, h, w, ry
TALL, LOW = (100, 100, 200, 150), (100, 100, 200, 120)  # 50 and 20 pixels high


def at(x: float) -> tuple:
    return (x, *CAR[1:])


def objects(*entries: tuple) -> Boxes:
    """Each entry: name, camera box, 2D box[, occluded]."""
    return Boxes.make(
        [e[0] for e in entries],
        [e[2] for e in entries],
        [e[1] for e in entries],
        occluded=[e[3] if len(e) > 3 else 0 for e in entries],
    )


def detections(*entries: tuple) -> Boxes:
    """Each entry: name, camera box, 2D box, score."""
    return Boxes.make(
        [e[0] for e in entries], [e[2] for e in entries], [e[1] for e in entries], score=[e[3] for e in entries]
    )


def exact(obj, det, metric='3d', level=1, name='Car'):
    obj, det = (x if isinstance(x, list) else [x] for x in (obj, det))
    return kitti_ap(obj, det, [name], [metric], recall_sampling='exact')[name, metric, level]


def test_one_object_found_or_missed():
    obj = objects(('Car', CAR, TALL))
    assert exact(obj, detections(('Car', CAR, TALL, 0.9))) == (1.0, 1.0)
    assert exact(obj, detections()) == (0.0, 0.0)
    assert exact(obj, detections(('Pedestrian', CAR, TALL, 0.9))) == (0.0, 0.0)
    # shifted by 1 m of about 4: below 0.7 in space and on the ground
    assert exact(obj, detections(('Car', at(1.0), TALL, 0.9))) == (0.0, 0.0)


def test_false_positives_lower_precision():
    obj = objects(('Car', CAR, TALL), ('Car', at(30), TALL))
    hits = [('Car', CAR, TALL, 0.9), ('Car', at(30), TALL, 0.7)]
    # one false positive between the two: precision 1 up to recall 1/2, then 2/3
    assert exact(obj, detections(*hits, ('Car', at(60), TALL, 0.8))) == pytest.approx((5 / 6, (6 + 5 * 2 / 3) / 11))
    # a second detection of a found object is one as well; below the last hit it costs nothing
    assert exact(obj, detections(*hits, ('Car', CAR, TALL, 0.8)))[0] == pytest.approx(5 / 6)
    assert exact(obj, detections(*hits, ('Car', CAR, TALL, 0.1)))[0] == 1.0
    # only one of the two found
    assert exact(obj, detections(hits[0]))[0] == pytest.approx(0.5)


def test_difficulties():
    """50 pixels and largely occluded: hard only; missing it costs nothing at moderate, nor does finding it."""
    obj = objects(('Car', CAR, TALL), ('Car', at(30), TALL, 2))
    both = detections(('Car', CAR, TALL, 0.9), ('Car', at(30), TALL, 0.95))
    one = detections(('Car', CAR, TALL, 0.9))
    assert [exact(obj, both, level=i)[0] for i in range(3)] == [1.0, 1.0, 1.0]
    assert [exact(obj, one, level=i)[0] for i in range(3)] == [1.0, 1.0, 0.5]
    assert exact(objects(('Car', at(30), TALL, 2)), both, level=0) is None


def test_neighbour_class_and_low_detections_are_ignored():
    obj = objects(('Car', CAR, TALL), ('Van', at(30), TALL), ('Truck', at(60), TALL))
    hit = ('Car', CAR, TALL, 0.5)
    assert exact(obj, detections(hit, ('Car', at(30), TALL, 0.9)))[0] == 1.0  # on the van
    assert exact(obj, detections(hit, ('Car', at(60), TALL, 0.9)))[0] == 0.5  # on the truck
    assert exact(obj, detections(hit, ('Car', at(90), LOW, 0.9)))[0] == 1.0  # a false positive of 20 pixels
    assert exact(obj, detections(hit, ('Car', at(90), TALL, 0.9)))[0] == 0.5


def test_dontcare_excuses_in_the_image_only():
    region = ('DontCare', (-1000, -1000, -1000, -1, -1, -1, -10), (300, 80, 500, 200))
    obj = objects(('Car', CAR, TALL), region)
    det = detections(('Car', CAR, TALL, 0.5), ('Car', at(30), (320, 90, 400, 180), 0.9))
    assert exact(obj, det, 'bbox')[0] == 1.0
    assert exact(obj, det, 'bev')[0] == 0.5  # as in the development kit


def test_bev_ignores_height():
    obj = objects(('Car', CAR, TALL))
    det = detections(('Car', (CAR[0], CAR[1] - 1.0, *CAR[2:]), TALL, 0.9))
    assert exact(obj, det, 'bev')[0] == 1.0
    assert exact(obj, det, '3d')[0] == 0.0


def test_heading_turns_from_z_to_x():
    """A box with rotation_y = 0 lies along x; the front of one with a positive angle points towards -z."""
    long = np.array([0.0, 0.0, 0.0, 10.0, 1.0, 0.1, 0.5])
    tip = np.array([5 * np.cos(0.5), 0.0, -5 * np.sin(0.5), 0.5, 1.0, 0.5, 0.0])
    found = [overlap('bev', detections(('Car', long, TALL, 1.0)), objects(('Car', t, TALL)))[0, 0]
             for t in (tip, tip * [1, 1, -1, 1, 1, 1, 1])]  # fmt: skip
    assert found[0] > 0.01
    assert found[1] == pytest.approx(0, abs=1e-12)


def test_benchmark_sampling_needs_forty_objects():
    few = [objects(('Car', CAR, TALL))] * 10
    found = [detections(('Car', CAR, TALL, 0.9 - 0.01 * i)) for i in range(10)]
    assert kitti_ap(few, found, ['Car'], ['3d'])['Car', '3d', 0] == pytest.approx((9 / 40, 3 / 11))
    assert kitti_ap(few, found, ['Car'], ['3d'], recall_sampling='exact')['Car', '3d', 0] == (1.0, 1.0)
    many = [objects(('Car', CAR, TALL))] * 80
    found = [detections(('Car', CAR, TALL, 0.9 - 0.001 * i)) for i in range(80)]
    assert kitti_ap(many, found, ['Car'], ['3d'])['Car', '3d', 0] == pytest.approx((1.0, 1.0))


def scene(rng: np.random.Generator) -> tuple[Boxes, Boxes]:
    """Objects of all kinds, and detections that find some of them more or less well."""
    n = int(rng.integers(1, 9))
    camera = np.column_stack(
        [
            rng.uniform(-15, 15, n), rng.uniform(1.0, 2.0, n), rng.uniform(5, 50, n), rng.uniform(3.0, 4.5, n),
            rng.uniform(1.4, 1.8, n), rng.uniform(1.4, 1.8, n), rng.uniform(-3, 3, n),
        ]
    )  # fmt: skip
    corner = rng.uniform(0, 300, (n, 2))
    bbox = np.concatenate([corner, corner + rng.uniform(15, 90, (n, 2))], axis=1)
    names = rng.choice(
        ['Car', 'Pedestrian', 'Cyclist', 'Van', 'Person_sitting', 'DontCare'], n, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]
    )
    occluded, truncated = rng.integers(0, 4, n) * rng.integers(0, 2, n), rng.uniform(0, 0.6, n) * rng.integers(0, 2, n)
    truth = Boxes.make(names, bbox, np.where((names == 'DontCare')[:, None], -1000.0, camera), truncated, occluded)
    pick = rng.integers(0, n, int(rng.integers(1, 12)))
    noise = rng.normal(0, 0.15, (len(pick), 7)) * [1, 0.5, 1, 1, 0.5, 0.5, 0.5]
    shown = np.where(np.isin(names[pick], ['Car', 'Pedestrian', 'Cyclist']), names[pick], 'Car')
    shown = np.where(rng.random(len(pick)) < 0.1, 'Pedestrian', shown)
    found = Boxes.make(
        shown, bbox[pick] + rng.normal(0, 2, (len(pick), 4)), camera[pick] + noise, score=rng.random(len(pick))
    )
    return truth, found


def test_against_mmdet3d(monkeypatch):
    """Precision of mmdet3d's evaluation, given our overlaps instead of its CUDA ones."""
    theirs = pytest.importorskip('mmdet3d.evaluation.functional.kitti_utils.eval')

    def bev(boxes, others):
        return rotated_iou(*(b * [1, 1, 1, 1, -1] for b in (boxes, others)))

    def space(boxes, others):
        return upright_box_iou(
            *(np.stack([b[:, 0], b[:, 2], -b[:, 1], b[:, 3], b[:, 5], b[:, 4], -b[:, 6]], 1) for b in (boxes, others))
        )

    monkeypatch.setattr(theirs, 'bev_box_overlap', bev)
    monkeypatch.setattr(theirs, 'd3_box_overlap', lambda a, b: space(a, b))
    rng = np.random.default_rng(3)
    scenes = [scene(rng) for _ in range(60)]

    def record(boxes):
        return {
            'name': boxes.names.astype(str), 'bbox': boxes.bbox, 'alpha': np.zeros(len(boxes.names)),
            'truncated': boxes.truncated, 'occluded': boxes.occluded, 'location': boxes.camera[:, :3],
            'dimensions': abs(boxes.camera[:, 3:6]), 'rotation_y': boxes.camera[:, 6], 'score': boxes.score,
        }  # fmt: skip

    truth, found = [[record(s[i]) for s in scenes] for i in (0, 1)]
    names = ['Car', 'Pedestrian', 'Cyclist']
    limits = np.tile(np.array([[[0.7, 0.5, 0.5]]]), (1, 3, 1))
    ours = kitti_ap(*zip(*scenes, strict=True), names, ('bbox', 'bev', '3d'))
    nonzero = 0
    for i, metric in enumerate(('bbox', 'bev', '3d')):
        precision = theirs.eval_class(truth, found, [0, 1, 2], [0, 1, 2], i, limits)['precision']
        forty, eleven = theirs.get_mAP40(precision), theirs.get_mAP11(precision)
        for c, name in enumerate(names):
            for level in range(3):
                pair = ours[name, metric, level]
                assert pair is not None
                assert (forty[c, level, 0], eleven[c, level, 0]) == pytest.approx(
                    (100 * pair[0], 100 * pair[1]), abs=1e-9
                )
                nonzero += 5 < 100 * pair[0] < 95
    assert nonzero >= 9


def test_metric_on_data_samples():
    """The whole way: LiDAR boxes in data samples to named figures."""
    pytest.importorskip('mmdet3d')
    import torch
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample
    from mmengine.structures import InstanceData

    from eff_plugins.datasets.kitti_format import KittiObject
    from eff_plugins.evaluation.kitti import KittiAP

    lidar2cam = np.eye(4)
    lidar2cam[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    cam2img = np.eye(4)
    cam2img[:2, :3] = [[700, 0, 600], [0, 700, 180]]
    boxes = CameraInstance3DBoxes(torch.tensor([CAR])).convert_to(0, np.linalg.inv(lidar2cam).astype(np.float32))
    behind = boxes.tensor * torch.tensor([-1.0, 1, 1, 1, 1, 1, 1])
    sample = Det3DDataSample(
        pred_instances_3d=InstanceData(
            bboxes_3d=boxes.new_box(torch.cat([boxes.tensor, behind])),
            scores_3d=torch.tensor([0.5, 0.9]),
            labels_3d=torch.tensor([0, 0]),
        )
    )
    obj = KittiObject('Car', 0.0, 0, 0.0, (500, 150, 650, 240), (CAR[3], CAR[4], CAR[5]), CAR[:3], CAR[6])
    sample.eval_ann_info = dict(
        kitti_objects=[obj], lidar2cam=lidar2cam, lidar2img=cam2img @ lidar2cam, image_size=(375, 1242)
    )
    metric = KittiAP(recall_sampling='exact', metrics=('bbox', 'bev', '3d'))
    metric.dataset_meta = dict(classes=('Car', 'Cyclist'))
    metric.process(None, [sample.to_dict()])
    figures = metric.evaluate(1)
    # the detection behind the camera is in no picture and therefore no false positive
    assert figures['kitti/Car_3d_moderate_AP40'] == 100.0
    assert figures['kitti/Car_bev_easy_AP11'] == 100.0
    assert figures['kitti/mAP40_3d_moderate'] == 100.0
    assert not any('Cyclist' in key for key in figures)


def test_faulty_arguments():
    pytest.importorskip('mmdet3d')
    from eff_plugins.evaluation.kitti import KittiAP

    with pytest.raises(ValueError, match='choose from bbox, bev, 3d'):
        KittiAP(metrics=('aos',))
    with pytest.raises(ValueError, match='recall_sampling'):
        KittiAP(recall_sampling='other')
    metric = KittiAP()
    metric.dataset_meta = dict(classes=('Tram',))
    with pytest.raises(ValueError, match=r'RawKittiDataset'):
        metric.process(None, [dict(pred_instances_3d={})])
    metric.results.append((objects(), detections()))
    with pytest.raises(ValueError, match=r"no overlap for \['Tram'\]"):
        metric.evaluate(1)
