"""One model, several threads: what a forward pass keeps for itself is its thread's own."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from eff_plugins import dynamic
from eff_plugins.dynamic.per_thread import PerThread
from eff_plugins.testing.conformance import difference, tensors, varied
from eff_plugins.testing.dynamic_types import DYNAMIC


class Holder:
    value = PerThread(7)


def test_a_value_a_thread():
    holder = Holder()
    holder.value = 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: holder.value).result() == 7
    assert holder.value == 1 and Holder().value == 7
    assert copy.deepcopy(holder).value == 7 and pickle.loads(pickle.dumps(holder)).value == 7


@pytest.mark.parametrize('label', ['DRNet', 'SBNet', 'LASNet', 'SFSI', 'LCCL'])
def test_threads_do_not_disturb_each_other(label):
    net, x = varied(DYNAMIC[label])
    dynamic.set_execution(net, 'sparse')
    batches = [x, x.flip(0).contiguous()]

    def run(batch):
        with torch.no_grad():
            return [tensor.clone() for tensor in tensors(net(batch))]

    want = [run(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, batches * 4))
    assert all(difference(got, want[i % 2]) < 1e-4 for i, got in enumerate(found))
