"""RANet: its published sizes, exits that really leave computation out, budgets, training."""

import copy
import pickle

import pytest
import torch
from mmengine.structures import BaseDataElement

from eff_plugins import dynamic
from eff_plugins.deploy import fuse_conv_bn
from eff_plugins.engine.execution import Operation
from eff_plugins.models.resolution.ranet import EarlyExitClassifier, RANet
from eff_plugins.profiling.macs import count_macs, count_parameters
from eff_plugins.registry import MODELS

TINY = dict(
    scales=(1, 2, 2), channels=4, growth_rate=4, growth_factors=(2, 1, 1), bottleneck_factors=(2, 1, 1), step=1,
    classifier_channels=8,
)  # fmt: skip
IMAGENET = dict(
    num_classes=1000, step=8, step_mode='even', growth_rate=16, channels=32, scales=(1, 2, 3, 4), large_stem=True,
    growth_factors=(4, 2, 2, 1), bottleneck_factors=(4, 2, 2, 1), classifier_channels=None,
)  # fmt: skip


def network(seed=0, **changes):
    torch.manual_seed(seed)
    net = RANet(**{**TINY, **changes})
    net.init_weights()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=3.0)
    return net.eval()


def assert_close(ours, reference, tolerance=1e-5):
    assert float((ours - reference).abs().max()) <= tolerance * float(reference.abs().max())


def pictures(batch=12, size=(20, 17)):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


# Parameters of the authors' code with the same options; its 7x7 convolution has a bias (32) that BatchNorm takes away.
@pytest.mark.parametrize(
    ('settings', 'exits', 'parameters'),
    [
        (dict(), 6, 2_547_601),
        (
            dict(
                step=4,
                step_mode='even',
                scales=(1, 2, 3, 3),
                growth_factors=(4, 2, 1, 1),
                bottleneck_factors=(4, 2, 1, 1),
            ),
            8,
            3_261_830,
        ),
        (IMAGENET, 8, 131_123_991 - 32),
    ],
)
def test_parameters_and_exits_are_those_of_the_authors_code(settings, exits, parameters):
    with torch.device('meta'):
        net = RANet(**settings)
    assert count_parameters(net) == parameters
    assert len(net.classifiers) == exits == net.policy.count


def test_exits_cost_more_and_more():
    net = RANet().eval()
    x = torch.randn(1, 3, 32, 32)
    costs = []
    for number in range(6):
        dynamic.set_policy(dynamic.set_execution(net, 'sparse'), 'fixed', number)
        with torch.no_grad():
            costs.append(count_macs(net, lambda: net(x))[''])
    assert costs == sorted(costs) and costs[-1] > 4 * costs[0]
    assert dynamic.network_macs(net, lambda: net(x), 1) == costs[-1]


@pytest.mark.parametrize('size', [(32, 32), (20, 17), (9, 24)])
def test_masked_equals_sparse_and_all_on_equals_dense(size):
    net = network()
    x = pictures(size=size)
    with torch.no_grad():
        confidences = torch.stack([part.softmax(1).amax(1) for part in net.anytime(x)], 1)
        net.policy.thresholds = tuple(map(float, confidences[:, :-1].quantile(0.5, 0)))
        with dynamic.record(net) as stats:
            masked = dynamic.set_execution(net, 'masked')(x)
        sparse = dynamic.set_execution(net, 'sparse')(x)
        assert_close(sparse, masked)
        assert len(stats.choices()[''].unique()) > 2  # samples of one batch decide for themselves
        dense = dynamic.set_execution(net, 'dense')(x)
        for mode in ('masked', 'sparse'):
            all_on = dynamic.set_policy(dynamic.set_execution(net, mode), 'all')(x)
            assert_close(all_on, dense)


def test_reported_multiply_adds_are_what_is_executed():
    net = network()
    x = pictures()
    net.policy.thresholds = tuple(0.7 for _ in net.policy.thresholds)
    dynamic.set_execution(net, 'sparse')
    with dynamic.record(net) as stats, torch.no_grad():
        executed = count_macs(net, lambda: net(x))['']
    assert len(stats.choices()[''].unique()) > 1
    assert float(stats.entries[0].macs.sum()) == pytest.approx(executed, rel=1e-6)
    assert stats.entries[0].dense_macs == dynamic.network_macs(net, lambda: net(x), len(x))


@pytest.mark.parametrize('kind', ['learned', 'random'])
def test_a_budget_is_met_and_one_below_the_first_exit_is_refused(kind, tmp_path):
    net = network()
    dynamic.set_policy(net, kind)
    data = [pictures(24), pictures(24, (16, 16))]
    torch.manual_seed(0)
    calibration = dynamic.calibrate(net, data)
    calibration.save(tmp_path / 'calibration.json')
    calibration = dynamic.Calibration.load(tmp_path / 'calibration.json')
    dynamic.set_execution(net, 'sparse')
    spent = []
    floor = calibration.shares[-1]
    for budget in (0.9, 0.7, floor + 0.05):
        dynamic.set_budget(net, budget, calibration)
        shares = []
        for x in data:
            with dynamic.record(net) as stats, torch.no_grad():
                net(x)
            shares.append(float(stats.share(stats.entries[0].dense_macs)))
        spent.append(sum(shares) / 2)
        assert spent[-1] == pytest.approx(budget, abs=0.06)
    assert spent == sorted(spent, reverse=True)
    with pytest.raises(ValueError, match=rf'static floor of this network, {floor:.3f}: that is the minimum'):
        dynamic.set_budget(net, floor - 0.02)
    with pytest.raises(ValueError, match='another model'):
        dynamic.set_budget(dynamic.set_policy(network(seed=5), kind), 0.9, calibration)


def classifier():
    torch.manual_seed(0)
    config = dict(
        type='eff_plugins.EarlyExitClassifier',
        backbone=dict(type='RANet', **TINY),
        num_classes=4,
        data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', mean=[128] * 3, std=[64] * 3),
    )
    return MODELS.build(config)


def test_the_three_modes_and_a_gradient_for_every_parameter():
    model = classifier()
    model.init_weights()
    x = pictures(4)
    samples = [BaseDataElement(gt_label=i) for i in range(4)]
    losses = model.train()(x, samples, mode='loss')
    assert list(losses) == [f'loss_exit{k}' for k in range(6)]
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    assert model(x).shape == (4, 4)
    predicted = model(x, mode='predict')
    assert all(float(sample.pred_scores.sum()) == pytest.approx(1, abs=1e-5) for sample in predicted)
    image = torch.zeros(17, 20, 3, dtype=torch.uint8).numpy()
    assert dynamic.set_execution(model, 'sparse').predict([image, image]).shape == (2, 4)
    with pytest.raises(ValueError, match='labels run from 4 to 4'):
        model(x, [BaseDataElement(gt_label=4)] * 4, mode='loss')


def test_copies_pickles_bf16_channels_last_and_folded_form():
    net = network()
    x = pictures(4)
    dynamic.calibrate(net, [x])
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert dynamic.set_budget(twin, 0.9) == dynamic.set_budget(net, 0.9)
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad():
        wanted = net(x)
        for other in (dynamic.set_execution(twin, 'sparse'), fuse_conv_bn(net)):
            assert_close(other(x), wanted, 1e-4)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert_close(last, wanted, 1e-4)
        half = dynamic.set_policy(copy.deepcopy(net), 'all').bfloat16()(x.bfloat16()).float()
    assert half.isfinite().all()
    assert_close(half, dynamic.set_policy(net, 'all')(x), 0.1)
    with pytest.raises(RuntimeError, match='training mode'):
        net.train()(x)


def test_the_tools_fix_an_exit():
    net = network()
    operation = Operation(policy='fixed:1')
    operation.check(net)
    assert operation.labels(net) == dict(execution='sparse', budget=None, policy='fixed:1')
    x = pictures(2)
    with torch.no_grad():
        assert_close(net(x), list(net.anytime(x))[1])
    with pytest.raises(ValueError, match='index=9 must lie in 0..'):
        Operation(policy='fixed:9').check(net)
    with pytest.raises(ValueError, match="policy 'fixed:1' has no knob"):
        Operation(budget=0.5, policy='fixed:1')
    with pytest.raises(ValueError, match="policy 'random' spends what a budget tells it to: give --budget"):
        Operation(policy='random')


def test_settings_that_do_not_fit_are_refused():
    for changes, message in (
        (dict(scales=(1, 3, 3)), r'scales=\(1, 3, 3\) must start at 1'),
        (dict(scales=(1, 2)), 'one number a sub-network'),
        (dict(scales=()), r'scales=\(\) must start at 1'),
        (dict(blocks=0), 'blocks=0 must be at least 1'),
        (dict(block_step=0), 'block_step=0 must be at least 1'),
        (dict(step=0), 'step=0 must be at least 1'),
        (dict(low_share=2), r'low_share=2 in \(0, 1\)'),
        (dict(step_mode='log'), "'even' or 'lg'"),
    ):
        with pytest.raises(ValueError, match=message):
            RANet(**{**TINY, **changes})
    with pytest.raises(TypeError, match='InvertedResidualNet has no exits'):
        EarlyExitClassifier(dict(type='InvertedResidualNet', arch='mobilenetv2_w1.0'), num_classes=4)


def test_a_stored_calibration_fits_the_folded_form_and_the_other_way_round():
    net, x = network(), pictures()
    fused = fuse_conv_bn(net)
    stored = dynamic.calibrate(net, [x])
    budget = (1 + stored.shares[-1]) / 2
    assert dynamic.set_budget(fused, budget, stored) == dynamic.set_budget(net, budget)
    dynamic.set_budget(net, budget, dynamic.calibrate(fused, [x]))
    next(fused.parameters()).data.zero_()
    with pytest.raises(ValueError, match='of another model'):
        dynamic.set_budget(fused, budget, stored)
