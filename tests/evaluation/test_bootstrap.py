import contextlib
import io

import numpy as np
import pytest

from eff_plugins.evaluation.bootstrap import CocoPictures, draws, interval, mean_interval, resampled


def coco(pictures, boxes, times=None):
    """Annotations and predictions of random pictures, the i-th taken ``times[i]`` times."""
    from pycocotools.coco import COCO

    truth, found, number = COCO(), [], 0
    images, annotations = [], []
    for i, count in enumerate(np.ones(pictures, int) if times is None else times):
        for _ in range(count):
            number += 1
            images.append(dict(id=number))
            for kind, box, crowd in boxes[i]['truth']:
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=kind,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=crowd,
                    )
                )
            found += [dict(image_id=number, category_id=k, bbox=b, score=s) for k, b, s in boxes[i]['found']]
    truth.dataset = dict(images=images, annotations=annotations, categories=[dict(id=k) for k in (1, 2, 3)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, found


def boxes(pictures, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(pictures):
        truth = [
            (int(rng.integers(1, 3)), [*rng.uniform(0, 80, 2), *rng.uniform(10, 40, 2)], int(rng.random() < 0.1))
            for _ in range(0 if i == 0 else rng.integers(1, 5))
        ]
        near = [
            (k, [v + rng.normal(0, 2) for v in b], float(rng.random()))
            for k, b, _ in truth
            for _ in range(rng.integers(0, 3))
        ]
        far = [(int(rng.integers(1, 4)), [*rng.uniform(0, 80, 2), 20.0, 20.0], float(rng.random())) for _ in range(2)]
        rows.append(dict(truth=truth, found=near + far))
    return rows


def reference(truth, found):
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        one = COCOeval(truth, truth.loadRes(found), 'bbox')
        one.evaluate()
        one.accumulate()
        one.summarize()
    return one.stats[:3]


@pytest.mark.parametrize('seed', range(3))
def test_average_precision_of_a_draw_is_that_of_the_pictures_copied(seed):
    pytest.importorskip('pycocotools')
    rows = boxes(7, seed)
    pictures = CocoPictures(*coco(7, rows))
    everything = pictures.ap(np.ones(7, int))
    assert 0.05 < everything.mean() < 0.95
    assert CocoPictures(*coco(7, rows), [0.75, 0.5]).ap(np.ones(7, int)).tolist() == [everything[5], everything[0]]
    for times in (np.ones(7, int), draws(7)[seed], np.array([0, 3, 0, 1, 0, 0, 2])):
        ap = pictures.ap(times)
        np.testing.assert_allclose([ap.mean(), ap[0], ap[5]], reference(*coco(7, rows, times)), atol=1e-9)


def test_a_draw_without_objects_has_no_precision():
    pytest.importorskip('pycocotools')
    pictures = CocoPictures(*coco(3, boxes(3, 0)))
    assert pictures.ap(np.array([3, 0, 0])).tolist() == [0] * 10  # the first picture is empty


def test_interval_of_a_mean():
    values = np.random.default_rng(3).normal(0.3, 2, 400)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_draws_are_the_same_for_all_and_of_as_many_pictures():
    first = draws(5, 10)
    assert first.shape == (10, 5) and (first.sum(1) == 5).all()
    assert (first == draws(5, 10)).all() and (first != draws(5, 10, seed=1)).any()


def test_a_paired_difference_is_narrower_than_either():
    one = np.random.default_rng(0).normal(0, 1, 200)
    metrics = [lambda times, x=x: times @ x / times.sum() for x in (one, one + 0.1)]
    single, other = (resampled(metric, 200) for metric in metrics)
    low, high = interval(other - single)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1) and np.ptp(single) > 0.1
