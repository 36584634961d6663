"""Every dynamic type goes through the conformance suite by being registered."""

import pytest
import torch
from torch import nn

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


def broken(change):
    """LASNet on a small network with something wrong."""

    def build():
        net = conformance.build(DYNAMIC['LASNet on InvertedResidualNet'].model)
        change(net)
        return net

    return Case(build, MOBILE['backbone'], MOBILE['shape'], MOBILE['odd'])


def gates(net):
    return [block.dynamic for block in net.modules() if getattr(block, 'dynamic', None) is not None]


def stray_parameter(net):
    net.stray = nn.Parameter(torch.zeros(1))


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
        (misreport, 'macs', 'MACs reported'),
        (compute_all_when_sparse, 'sparse', 'sparse and masked execution: they differ'),
        (compute_all_when_sparse, 'odd_size', 'sparse and masked execution: they differ'),
        (compute_all_when_sparse, 'selections', 'none on: they differ'),
    ],
)
def test_a_broken_promise_is_named(change, name, message):
    with pytest.raises(AssertionError, match=message):
        conformance.check(broken(change), name)


def test_exceptions_need_a_known_check_and_a_reason():
    kept = dict(model=MOBILE['backbone'], reference=MOBILE['backbone'])
    with pytest.raises(ValueError, match='unknown conformance check speed'):
        conformance.check(Case(**kept), 'speed')
    with pytest.raises(ValueError, match='unknown conformance check speed'):
        conformance.check(Case(**kept, exceptions={'speed': 'slow'}), 'keys')
    with pytest.raises(ValueError, match='needs its reason'):
        conformance.check(Case(**kept, exceptions={'keys': ''}), 'keys')
