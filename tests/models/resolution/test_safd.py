"""Scale-aware detection around one of mmdet's detectors."""

import copy

import pytest
import torch

pytest.importorskip('mmdet')
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from eff_plugins import dynamic
from eff_plugins.dynamic.watch import Pass
from eff_plugins.profiling.macs import count_macs
from eff_plugins.testing.zooms import build_detector
from eff_plugins.visualization.compute import legend_lines


@pytest.fixture
def build():
    def make(**changes):
        torch.manual_seed(0)
        model = build_detector(**changes)
        model.init_weights()
        torch.nn.init.normal_(model.spn.bins.weight, std=2.0)
        model.eval()
        with torch.no_grad():  # so that the two pictures differ in what they ask for
            x, samples = batch()
            model.spn.bins.bias -= model.spn(model._pictures(x, samples)).mean(0)
        return model

    return make


def batch():
    """Two pictures of different shapes in one padded batch."""
    shapes = [(64, 50), (40, 64)]
    samples = []
    for height, width in shapes:
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height * 2, width * 2),
                scale_factor=(0.5, 0.5),
                batch_input_shape=(64, 64),
                pad_shape=(64, 64),
            )
        )
        boxes = torch.tensor([[4.0, 4, 14, 16], [10, 8, 40, 36]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
        samples.append(sample)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    x[0, :, :, 50:] = 0
    x[1, :, 40:] = 0
    return x, samples


def boxes_of(model):
    x, samples = batch()
    with torch.no_grad():
        return [s.pred_instances for s in model(x, copy.deepcopy(samples), mode='predict')]


def test_masked_equals_sparse_and_the_full_pyramid_is_dense(build):
    model = build()
    with dynamic.record(model) as stats:
        masked = boxes_of(dynamic.set_execution(model, 'masked'))
    densities = [float(entry.density) for entry in stats.entries]
    assert len(densities) == 2 and any(d > 0 for d in densities) and densities[0] != densities[1]
    for one, other in zip(masked, boxes_of(dynamic.set_execution(model, 'sparse')), strict=True):
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
    dense = boxes_of(dynamic.set_execution(model, 'dense'))
    everything = boxes_of(dynamic.set_policy(dynamic.set_execution(model, 'sparse'), 'all'))
    for one, other in zip(dense, everything, strict=True):
        assert len(one) > 0 and one.bboxes.max() <= 130
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
    assert [len(found) for found in boxes_of(dynamic.set_policy(model, 'none'))] == [0, 0]


def test_a_checkpoint_of_the_detector_alone_is_loaded_too(build):
    model, other = build(), build().detector
    torch.nn.init.ones_(other.bbox_head.retina_cls.bias)
    missing, unexpected = model.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected and all(key.startswith('spn.') for key in missing)
    assert torch.equal(model.detector.bbox_head.retina_cls.bias, other.bbox_head.retina_cls.bias)


def test_reported_multiply_adds_are_executed_and_a_budget_turns_them(build):
    model = dynamic.set_execution(build(), 'sparse')
    x, samples = batch()

    def run(network, _=None):
        return network(x, copy.deepcopy(samples), mode='predict')

    with dynamic.record(model) as stats, torch.no_grad():
        executed = count_macs(model, lambda: run(model))['']
    assert sum(float(entry.macs) for entry in stats.entries) == pytest.approx(executed, rel=1e-6)
    done, number = Pass(stats, (64, 64), stats.entries[0].dense_macs, 2), int(stats.entries[0].density > 0)
    assert legend_lines(done, 0)[1].startswith(('network: no zoom', 'network: zoom ')[number])
    assert sum(e.dense_macs for e in stats.entries) / 2 == dynamic.network_macs(model, lambda: run(model), 2)
    calibration = dynamic.calibrate(model, [None], run)
    spent = []
    for budget in (calibration.shares[0], sum(calibration.shares) / len(calibration.shares), calibration.shares[-1]):
        dynamic.set_budget(model, min(budget, 1.0))
        with dynamic.record(model) as stats, torch.no_grad():
            run(model)
        spent.append(float(stats.share(sum(e.dense_macs for e in stats.entries) / 2)))
    assert spent == sorted(spent, reverse=True) and spent[0] > 0.3
    assert spent[-1] == pytest.approx(calibration.shares[-1], rel=1e-4)  # nothing but the proposals
    with pytest.raises(ValueError, match='static floor'):
        dynamic.set_budget(model, 1e-6)


def test_training_crops_bring_an_object_into_the_range_and_every_parameter_gets_a_gradient(build):
    model = build().train()
    x, samples = batch()
    for seed in range(10):
        torch.manual_seed(seed)
        crop, sample = model._training_crop(x[0, :, :, :50], samples[0].gt_instances.bboxes, samples[0])
        assert crop.shape == (3, 64, 64)
        boxes = sample.gt_instances.bboxes
        assert len(boxes) + len(sample.ignored_instances.bboxes) >= 1
        assert boxes.numel() == 0 or (boxes.min() >= 0 and boxes.max() <= 64)
    losses = model(x, samples, mode='loss')
    assert {'loss_cls', 'loss_bbox', 'loss_scale'} <= set(losses)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    samples[1].gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    assert model.parse_losses(model(x, samples, mode='loss'))[0].isfinite()
    with pytest.raises(RuntimeError, match='training mode'):
        dynamic.set_execution(model, 'sparse')(x, samples, mode='predict')


def test_a_box_found_at_a_zoom_comes_back_in_the_pictures_coordinates(build):
    """A detector that returns one box of its middle size: each zoom must place it at the same corner, scaled back."""
    model = dynamic.set_policy(dynamic.set_execution(build(), 'sparse'), 'all')

    def predict(inputs, metas, rescale):
        side = model.middle
        for sample in metas:
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor([[0.0, 0, side, side], [0, 0, 500, 500]]),
                scores=torch.tensor([0.9, 0.8]),
                labels=torch.tensor([1, 1]),
            )
        return metas

    model.detector.predict = predict
    for found in boxes_of(model):
        sides = (found.bboxes[:, 2] / 128).log2().sort().values  # of the original picture's longer side
        wanted = model.spn.centres[model.policy.pyramid]
        torch.testing.assert_close(sides, wanted.float(), rtol=0, atol=1e-3)


def test_soft_nms_lowers_scores(build):
    boxes = torch.tensor([[4.0, 4, 20, 20], [4, 4, 21, 20], [4, 5, 20, 20]])
    parts = [InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.8, 0.7]), labels=torch.zeros(3, dtype=torch.long))]
    x, samples = batch()
    found = {}
    for kind in ('nms', 'soft_nms'):
        model = build(nms=dict(type=kind, iou_threshold=0.5))
        found[kind] = model._merge(parts, x, samples[0], False).scores
    assert found['nms'].tolist() == [pytest.approx(0.9)]
    assert float(found['soft_nms'][0]) == pytest.approx(0.9) and float(found['soft_nms'][1:].max()) < 0.5


def test_crowds_stay_ignored_in_crops(build):
    model, (x, samples) = build().train(), batch()
    sample, boxes = samples[0], samples[0].gt_instances.bboxes
    sample.ignored_instances = InstanceData(bboxes=torch.tensor([[0.0, 0, 50, 64]]))  # all of the picture
    crop, seen = model._training_crop(x[0, :, :, :50], boxes, sample)
    sides = seen.ignored_instances.bboxes[-1]
    assert sides.tolist() == [0, 0, *map(float, seen.img_shape[::-1])] and crop.shape[1:] == (64, 64)


def test_settings_that_do_not_fit_are_refused(build):
    with pytest.raises(ValueError, match=r'size_range=\(40, 20\)'):
        build(size_range=(40, 20))
