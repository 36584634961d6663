"""What a checkpoint must hold before a network is judged by it, through mmengine's own loading."""

import copy

import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import nn

from eff_plugins.engine.weights import all_weights_expected
from eff_plugins.models.spatial.lccl import LCCL


class Resized(nn.Module):
    """Fits its weight to its own size on loading, as embeddings of positions do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def _load_from_state_dict(self, state, prefix, *args):
        state[f'{prefix}weight'] = state.pop(f'{prefix}old')[:4]
        super()._load_from_state_dict(state, prefix, *args)


class Augmented(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


def load(model, state, policies=True):
    with all_weights_expected(model, 'a.pth', policies):
        _load_checkpoint_to_model(model, {'state_dict': state})


class Network(nn.ModuleDict):
    def test_step(self, data):
        return data


def network():
    return Network({'body': nn.Conv2d(3, 4, 1), 'norm': nn.BatchNorm2d(4), 'auxiliary_head': nn.Conv2d(4, 2, 1)})


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


def test_all_that_a_test_needs_is_enough():
    model, state = network(), network().state_dict()
    load(model, {f'module.{key}': value for key, value in state.items()} | {'more': torch.zeros(1)})
    torch.testing.assert_close(model['body'].weight.data, state['body.weight'])
    load(network(), without(without(state, 'auxiliary_head'), 'running'))  # serves training alone; buffers
    resized = nn.ModuleDict({'part': Resized()})
    load(resized, {'part.old': torch.arange(9.0), 'part.scale': torch.full((1,), 3.0)})
    assert resized['part'].weight.tolist() == [0, 1, 2, 3] and float(resized['part'].scale) == 3
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    load(tied, without(tied.state_dict(), '0.weight'))


@pytest.mark.parametrize('wrap', [lambda model: model, lambda model: Augmented(module=model)])
def test_what_would_stay_random_is_named(wrap):
    state = network().state_dict()
    with pytest.raises(ValueError, match=r'a.pth does not fit this config: 1 of the 6 .* such as body.bias;'):
        load(wrap(network()), without(state, 'body.bias'))
    with pytest.raises(ValueError, match='such as body.weight;'):
        load(wrap(network()), {**state, 'body.weight': torch.zeros(5, 3, 1, 1)})


def test_policies_may_be_absent_where_they_are_not_asked():
    model = LCCL(depth=18, base_channels=8)
    plain = without(model.state_dict(), '.dynamic.')
    load(copy.deepcopy(model), plain, policies=False)
    with pytest.raises(ValueError, match='a.pth is of a network without policies'):
        load(model, plain)


def test_nothing_is_checked_after_the_block_nor_in_a_copy():
    model = network()
    with all_weights_expected(model, 'a.pth'):
        average = copy.deepcopy(model)
        _load_checkpoint_to_model(average, {'state_dict': {}})
    for each in (model, average):
        _load_checkpoint_to_model(each, {'state_dict': {}})
