"""Every dynamic type goes through the conformance suite by being registered."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from eff_plugins.dynamic.budget import Calibration
from eff_plugins.testing import conformance
from eff_plugins.testing.conformance import Case
from eff_plugins.testing.dynamic_types import DYNAMIC, MOBILE, dynamic_types


def test_every_registered_dynamic_type_is_in_the_table():
    missing = dynamic_types() - {label.split()[0] for label in DYNAMIC}
    assert not missing, f'add {missing} to eff_plugins/testing/dynamic_types.py'
    assert {'LASNet', 'DynConv', 'LayerSkip'} <= dynamic_types()


@pytest.mark.parametrize(('label', 'name'), conformance.pairs(DYNAMIC))
def test_conformance(label, name):
    conformance.check(DYNAMIC[label], name)


def test_two_processes_train_every_type_without_find_unused_parameters():
    conformance.check_ddp('eff_plugins.testing.dynamic_types:DYNAMIC')


def broken(change, label='LASNet on InvertedResidualNet'):
    """A case, LASNet on a small network by default, with something wrong."""

    def build():
        net = conformance.build(DYNAMIC[label].model)
        change(net)
        return net

    return replace(DYNAMIC[label], model=build)


def gates(net):
    return [block.dynamic for block in net.modules() if getattr(block, 'dynamic', None) is not None]


def stray_parameter(net):
    net.stray = nn.Parameter(torch.zeros(1))


def zero_times_a_parameter(net):
    stray_parameter(net)
    net.register_forward_hook(lambda net, args, out: tuple(y + 0 * net.stray.sum() for y in out))


def cut_off(blocks):
    for block in blocks:
        block.masked = lambda x, on, block=block: type(block).masked(block, x, on.detach())


def cut_off_policies(net):
    cut_off(block for block in net.modules() if getattr(block, 'dynamic', None) is not None)


def cut_off_one_policy(net):
    cut_off([next(block for block in net.modules() if getattr(block, 'dynamic', None) is not None)])


def drift_in_bf16(net):
    def drift(net, args, out):
        return tuple(7 * y + 3 for y in out) if args[0].dtype == torch.bfloat16 else out

    net.register_forward_hook(drift)


def stop_before_the_last_exit(net):
    net.walk = lambda x, alive: islice(type(net).walk(net, x, alive), net.policy.count - 1)


def zoom_less(net):
    net.policy.pyramid[0] = False


def misreport(net):
    for gate in gates(net):
        gate._policy_macs = lambda module, size: -1e5


def compute_all_when_sparse(net):
    for gate in gates(net):
        gate.rows.run = lambda block, x, *_: block.run(x)


@pytest.mark.parametrize(
    ('change', 'name', 'message'),
    [
        (stray_parameter, 'keys', 'no policy'),
        (stray_parameter, 'gradients', '1 parameters get no gradient'),
        (zero_times_a_parameter, 'gradients', '1 parameters always get a gradient of zero'),
        (cut_off_policies, 'task_gradients', '8 parameters of policies get no gradient from the outputs'),
        (cut_off_one_policy, 'task_gradients', '2 parameters of policies get no gradient from the outputs'),
        (drift_in_bf16, 'bf16', 'in bfloat16 and in float32: they differ'),
        (misreport, 'macs', 'MACs reported'),
        (compute_all_when_sparse, 'sparse', 'sparse and masked execution: they differ'),
        (compute_all_when_sparse, 'odd_size', 'sparse and masked execution: they differ'),
        (compute_all_when_sparse, 'selections', 'none on: they differ'),
    ],
)
def test_a_broken_promise_is_named(change, name, message):
    with pytest.raises(AssertionError, match=message):
        conformance.check(broken(change), name)


@pytest.mark.parametrize(
    ('label', 'change', 'name', 'message'),
    [
        ('RANet', stray_parameter, 'keys', 'no policy'),
        ('RANet', stop_before_the_last_exit, 'dense', 'dense execution and the dense reference: they differ'),
        ('ScaleAwareDetector', stray_parameter, 'keys', 'no policy'),
        ('ScaleAwareDetector', zoom_less, 'dense', 'dense execution and the dense reference: they differ'),
    ],
)
def test_what_exits_and_zooms_are_compared_with_is_not_the_network_itself(label, change, name, message):
    if label not in DYNAMIC:
        pytest.skip('needs mmdet')
    with pytest.raises(AssertionError, match=message):
        conformance.check(broken(change, label), name)


@pytest.mark.parametrize('label', ['LASNet on InvertedResidualNet', 'LayerSkip on InvertedResidualNet'])
def test_a_knob_that_misses_the_budget_is_named(label, monkeypatch):
    knob = Calibration.knob
    missed = lambda self, budget: knob(self, self.shares[-1] + 0.4 * (budget - self.shares[-1]))  # noqa: E731
    monkeypatch.setattr(Calibration, 'knob', missed)
    with pytest.raises(AssertionError, match='of the range off'):
        conformance.check(DYNAMIC[label], 'budget')


def test_the_last_of_many_samples_is_looked_at():
    def wrong_in_a_batch(net, args, out):
        return torch.cat([out[:-1], 2 * out[-1:]]) if len(out) > 1 else out

    case = broken(lambda net: net.register_forward_hook(wrong_in_a_batch), 'RANet')
    with pytest.raises(AssertionError, match='sample 11 in a batch and alone'):
        conformance.check(replace(case, vary=lambda net, x: None), 'samples')


def test_exceptions_need_a_known_check_and_a_reason():
    kept = dict(model=MOBILE['backbone'], reference=MOBILE['backbone'])
    with pytest.raises(ValueError, match='unknown conformance check speed'):
        conformance.check(Case(**kept), 'speed')
    with pytest.raises(ValueError, match='unknown conformance check speed'):
        conformance.check(Case(**kept, exceptions={'speed': 'slow'}), 'keys')
    with pytest.raises(ValueError, match='needs its reason'):
        conformance.check(Case(**kept, exceptions={'keys': ''}), 'keys')
