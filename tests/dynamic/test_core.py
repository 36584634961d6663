"""The core on a small network whose residual branches may be skipped."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eff_plugins import dynamic
from eff_plugins.dynamic.budget import fingerprint
from eff_plugins.dynamic.losses import Situation, budget_loss
from eff_plugins.dynamic.module import dynamic_modules
from eff_plugins.dynamic.policies import Decide, HardDecide, random_decisions
from eff_plugins.dynamic.sampling import Schedule, gumbel_sigmoid, gumbel_softmax
from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.spatial.lasnet import LASNet, PatchMasker
from eff_plugins.registry import MODELS
from eff_plugins.testing.conformance import build, difference, tensors, varied
from eff_plugins.testing.dynamic_types import DYNAMIC

TINY = dict(
    stages=[dict(channels=8, repeats=3, expand=2, stride=2), dict(channels=12, repeats=3, stride=2, expand=2)],
    stem_channels=8,
)


def network(seed=0):
    torch.manual_seed(seed)
    net = InvertedResidualNet(TINY, out_indices=(2,))
    static = copy.deepcopy(net)
    dynamic.skip_layers(net)
    for _, module in dynamic_modules(net):
        torch.nn.init.normal_(module.gate.fc.weight, std=4.0)
        torch.nn.init.zeros_(module.gate.fc.bias)
    return net.eval(), static.eval()


def pictures(batch=16, size=33):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_dense_networks_multiply_adds_are_counted_whatever_the_execution():
    net, static = network()
    x = pictures()
    dynamic.set_execution(net, 'sparse')
    total = dynamic.network_macs(net, lambda: net(x), len(x))
    with FlopCounterMode(display=False) as counter:
        static(x)
    assert total == counter.get_total_flops() / 2 / len(x)
    with dynamic.record(net) as stats, torch.no_grad():
        net(x)
    assert stats.samples == len(x) and all(module.execution == 'sparse' for _, module in dynamic_modules(net))


@pytest.mark.parametrize('kind', ['learned', 'random'])
def test_a_calibrated_budget_is_met_and_less_budget_computes_less(kind, tmp_path):
    net, _ = network()
    dynamic.set_policy(net, kind)
    data = [pictures(), pictures(8, 48)]
    torch.manual_seed(0)
    calibration = dynamic.calibrate(net, data)
    calibration.save(tmp_path / 'calibration.json')
    assert dynamic.Calibration.load(tmp_path / 'calibration.json') == calibration
    dynamic.set_execution(net, 'sparse')
    spent = []
    for budget in (0.9, 0.75, 0.6):
        dynamic.set_budget(net, budget)
        shares = []
        for x in data * 4:
            total = dynamic.network_macs(net, lambda x=x: net(x), len(x))
            with dynamic.record(net) as stats, torch.no_grad():
                net(x)
            shares.append(float(stats.share(total)))
        spent.append(sum(shares) / len(shares))
        assert spent[-1] == pytest.approx(budget, abs=0.06)
    assert spent == sorted(spent, reverse=True)


def test_budgets_that_cannot_be_met_are_refused():
    net, _ = network()
    with pytest.raises(ValueError, match='no calibration for the learned policy'):
        dynamic.set_budget(net, 0.5)
    calibration = dynamic.calibrate(net, [pictures()])
    for budget in (0.0, 1.5, -1):
        with pytest.raises(ValueError, match=r'must lie in \(0, 1\]'):
            dynamic.set_budget(net, budget)
        with pytest.raises(ValueError, match=r'must lie in \(0, 1\]'):
            dynamic.calibrate(net, [pictures()], budgets=[0.8, budget])
    with pytest.raises(ValueError, match="budget='0.8' must lie in"):
        dynamic.set_budget(net, '0.8')
    with pytest.raises(ValueError, match=r'static floor of this network, 0\.\d+: that is the minimum'):
        dynamic.set_budget(net, 0.05)
    with pytest.raises(ValueError, match='another model'):
        dynamic.set_budget(network(seed=3)[0], 0.8, calibration)
    with pytest.raises(ValueError, match='for the learned policy, the model has random'):
        dynamic.set_budget(dynamic.set_policy(net, 'random'), 0.8, calibration)
    with pytest.raises(ValueError, match='has no knob'):
        dynamic.calibrate(dynamic.set_policy(net, 'all'), [pictures()])
    with pytest.raises(ValueError, match='batches is empty'):
        dynamic.calibrate(dynamic.set_policy(net, 'learned'), [])


def test_the_budget_pulls_towards_less():
    net, _ = network()
    net.train()
    dynamic.set_execution(net, 'masked')
    x = pictures(4)
    with dynamic.record(net) as stats:
        out = net(x)[0]
    total = dynamic.network_macs(net.eval(), lambda: net(x), len(x))
    net.train()
    situation = Situation(stats.share(total), 0.4, list(stats.densities().values()), target=0.45, slack=0.0)
    losses = budget_loss(dict(gap=1.0, bounds=1.0, hinge=1.0, ratios=1.0), situation)
    (out.square().mean() + sum(losses.values())).backward()
    assert all(module.gate.fc.bias.grad > 0 for _, module in dynamic_modules(net))  # towards less
    with pytest.raises(ValueError, match='unknown budget loss nothing'):
        budget_loss(dict(nothing=1.0), situation)


def test_sparse_training_unknown_modes_and_static_models_are_refused():
    net, static = network()
    with pytest.raises(RuntimeError, match='training mode'):
        dynamic.set_execution(net, 'sparse').train()(pictures(2))
    with pytest.raises(ValueError, match="'fast' must be one of dense, masked, sparse"):
        dynamic.set_execution(net, 'fast')
    with pytest.raises(ValueError, match='no dynamic module'):
        dynamic.set_execution(static, 'dense')
    with pytest.raises(ValueError, match="policy 'best'"):
        dynamic.set_policy(net, 'best')
    for keep_first in (-1, 99):
        with pytest.raises(ValueError, match='must be at least 0 and leave one to skip'):
            dynamic.skip_layers(network()[1], keep_first=keep_first)


def test_a_calibration_goes_with_copies_and_pickles():
    net, _ = network()
    dynamic.calibrate(net, [pictures(2)])
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert dynamic.set_budget(twin, 0.8) == dynamic.set_budget(net, 0.8)


def test_recordings_nest_and_foreign_modules_are_left_out():
    net, _ = network()
    other, _ = network()
    with dynamic.record(net) as outer:
        net(pictures(2))
        with dynamic.record(other) as inner:
            other(pictures(2))
    assert len(outer.entries) == len(inner.entries) == len(list(dynamic_modules(net)))
    with pytest.raises(ValueError, match='nothing was recorded'), dynamic.record(other) as stats:
        stats.saved_macs()


def test_gumbel_samples_have_the_right_frequencies_and_soft_gradients():
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.0, 2.0]).repeat(20000, 1).requires_grad_()
    hard = gumbel_sigmoid(logits, 0.5)
    assert set(hard.detach().unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(hard.detach().mean(0), torch.sigmoid(torch.tensor([-1.0, 0.0, 2.0])), atol=0.02, rtol=0)
    hard.sum().backward()
    assert (logits.grad > 0).float().mean() > 0.9
    one_hot = gumbel_softmax(logits, 1.0)
    assert torch.equal(one_hot.detach().sum(1), torch.ones(20000))
    torch.testing.assert_close(one_hot.detach().mean(0), logits[0].detach().softmax(0), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match='temperature=0'):
        gumbel_sigmoid(logits, 0)


@pytest.mark.parametrize('shape', [(1000, 1, 1, 1), (8, 1, 7, 5)])
def test_random_decisions_spend_exactly_their_density(shape):
    torch.manual_seed(0)
    on = random_decisions(torch.zeros(shape), 0.3)
    count = on[0].numel()
    assert on.flatten(1).sum(1).sub(0.3 * count).abs().max() < 1
    assert float(on.mean()) == pytest.approx(0.3, abs=0.03)


def test_schedules():
    exp = Schedule(5.0, 0.1, 'exp', begin=0.2, finish=0.8)
    assert exp(0.0) == 5.0 and exp(1.0) == pytest.approx(0.1) and exp(0.5) == pytest.approx((5 * 0.1) ** 0.5)
    assert Schedule(0, 1, 'cosine')(0.5) == pytest.approx(0.5) and Schedule(0, 4, 'linear')(0.25) == 1
    for bad in (dict(form='steps'), dict(end=0.0), dict(begin=0.9, finish=0.1)):
        with pytest.raises(ValueError, match='must'):
            Schedule(**dict(start=1.0, end=2.0) | bad)


def test_decide_switches_between_training_and_evaluation():
    decide = Decide()
    scores = torch.full((4, 1, 3, 3), 0.5)
    decide.eval()
    decide.threshold = 0.6
    assert decide(scores).sum() == 0
    decide.threshold = 0.4
    assert decide(scores).mean() == 1


@pytest.mark.parametrize('kind', Decide.KINDS)
@pytest.mark.parametrize(
    ('make', 'threshold'), [(Decide, 0.3), (lambda: HardDecide(0.3), 0.3), (lambda: HardDecide(0.3), -0.2)]
)
def test_what_kernels_compare_are_the_decisions(make, threshold, kind):
    decide, scores = make().eval(), torch.randn(4, 1, 3, 3)
    decide.kind, decide.threshold, decide.density = kind, threshold, 0.5
    torch.manual_seed(0)
    values, threshold = decide.cut(scores)
    torch.manual_seed(0)
    assert torch.equal((values > threshold).float(), decide(scores))


@pytest.mark.parametrize('kind', ['learned', 'random'])
def test_closing_in_on_a_budget_takes_fewer_passes_than_the_whole_curve(kind):
    net, _ = network()
    dynamic.set_policy(net, kind)
    data, passes = [pictures(32)], []

    def forward(model, batch):
        passes.append(1)
        return model(batch)

    torch.manual_seed(0)
    dynamic.calibrate(net, data, forward)
    whole = len(passes)
    calibration = dynamic.calibrate(net, data, forward, budgets=[0.7])
    assert len(passes) - whole < 0.7 * whole and len(calibration.knobs) < 10
    dynamic.set_execution(net, 'sparse')
    dynamic.set_budget(net, 0.7)
    total = dynamic.network_macs(net, lambda: net(data[0]), 32)
    with dynamic.record(net) as stats, torch.no_grad():
        net(data[0])
    assert float(stats.share(total)) == pytest.approx(0.7, abs=0.02 if kind == 'learned' else 0.06)
    with pytest.raises(ValueError, match='that is the minimum'):
        dynamic.calibrate(net, data, forward, budgets=[0.01]).knob(0.01)


def test_a_curve_has_no_wide_gaps_where_scores_are_bimodal():
    net, x = varied(DYNAMIC['LASNet on CifarResNet'])
    for module in net.modules():
        if isinstance(module, PatchMasker):  # scores lie in two far groups
            module.register_forward_hook(lambda _, args, scores: scores + 50 * (scores > scores.median()))
    shares = dynamic.calibrate(net, [x]).shares
    total = dynamic.network_macs(net, lambda: net(x), len(x))
    dynamic.set_execution(net, 'sparse')
    middle = (shares[0] + shares[-1]) / 2
    for budget in (middle - 0.1, middle, middle + 0.1):
        dynamic.set_budget(net, budget)
        with dynamic.record(net) as stats, torch.no_grad():
            net(x)
        assert float(stats.share(total)) == pytest.approx(budget, abs=0.05)
    dynamic.calibrate(net, [x], budgets=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # it was measured there
        dynamic.set_budget(net, 0.9)
    with pytest.warns(UserWarning, match='lies between the measured shares'):
        dynamic.set_budget(net, middle)


def test_calibration_leaves_the_modes_of_modules_alone():
    net, _ = network()
    net.train()
    frozen = next(module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    dynamic.calibrate(net, [pictures(4)], budgets=[0.7])
    assert net.training and not frozen.training
    with pytest.raises(ValueError, match='a calibration needs data'):
        dynamic.calibrate(net, [pictures(0)])


@pytest.mark.parametrize('label', ['SegBlocks', 'LASNet', 'LCCL'])
def test_weights_that_change_behind_autograd_are_seen_after_eval(label):
    net, x = varied(DYNAMIC[label])
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad():
        net(x)
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.data.copy_(parameter.data * 0.9)
        net.train()
        net.eval()
        assert difference(tensors(net(x)), tensors(copy.deepcopy(net)(x))) < 1e-5


def test_a_calibration_is_of_one_granularity_and_knows_wrapped_models():
    x = torch.randn(2, 3, 64, 64)
    nets = [LASNet(depth=18, base_channels=8, granularity=size).eval() for size in (2, 4)]
    nets[1].load_state_dict(nets[0].state_dict())
    calibration = dynamic.calibrate(nets[0], [x], budgets=[0.9])
    with pytest.raises(ValueError, match='of another model'):
        dynamic.set_budget(nets[1], 0.9, calibration)
    dynamic.set_budget(torch.nn.ModuleDict({'module': nets[0]}), 0.9, calibration)


@pytest.mark.parametrize('label', sorted(DYNAMIC))
def test_a_calibration_is_of_all_weights(label):
    net = build(DYNAMIC[label].model)
    other = copy.deepcopy(net)
    weights = [p for p in other.parameters() if p.ndim == 4]
    assert fingerprint(net) == fingerprint(other)
    weights[0].data[0, 0, 0, 0] += 1  # of the static network
    assert fingerprint(net) != fingerprint(other)


@pytest.mark.parametrize(
    ('label', 'changed'),
    [
        ('SBNet', dict(block_size=128)),
        ('SegBlocks', dict(block_size=64)),
        ('SFSI', dict(window=3)),
        ('DRNet', dict(resolutions=(64, 56, 32))),
    ],
)
def test_a_calibration_is_of_one_setting(label, changed):
    nets = [MODELS.build({**DYNAMIC[label].model, **new}) for new in ({}, changed)]
    nets[1].load_state_dict(nets[0].state_dict())
    assert fingerprint(nets[0]) == fingerprint(copy.deepcopy(nets[0])) != fingerprint(nets[1])


def test_a_file_that_is_no_calibration_is_named(tmp_path):
    rest = ', "kind": "learned", "network_macs": 1, "fingerprint": "x"}'
    for content in (
        '{}',
        '[1]',
        'x',
        '{"knobs": [1], "shares": [1]}',
        '{"knobs": [1, 2], "shares": [0.5]' + rest,
        '{"knobs": [1, 2], "shares": [0.5, 0.9]' + rest,
        '{"knobs": ["a", "b"], "shares": [0.9, 0.5]' + rest,
    ):
        (tmp_path / 'c.json').write_text(content)
        with pytest.raises(ValueError, match=r'c\.json is no calibration'):
            dynamic.Calibration.load(tmp_path / 'c.json')
