"""A loss that is no number stops the run with one clear error and spoils no checkpoint."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from toy import ToyModel, arguments, config

from eff_plugins.engine.finite_loss import NonFiniteLossError


def runner(tmp_path, *options):
    base = ['--work-dir', str(tmp_path), '--out', str(tmp_path / 'log'), '--seed', '1', *options]
    return Runner.from_cfg(Config({**config(arguments(base)), 'experiment_name': os.urandom(8).hex()}))


@pytest.mark.parametrize('value', ['nan', 'inf'])
def test_error_names_iteration_and_term(tmp_path, monkeypatch, value):
    forward = ToyModel.forward
    calls = []

    def bad(self, *args, **kwargs):
        losses = forward(self, *args, **kwargs)
        calls.append(1)
        return {
            **losses,
            'loss_box': losses['loss_fit'] * (float(value) if len(calls) == 14 else 1),
            'acc': torch.ones(()),
        }

    monkeypatch.setattr(ToyModel, 'forward', bad)
    with pytest.raises(NonFiniteLossError, match=rf'iteration 14 \(epoch 2\): loss_box = {value}\. .*lr=.*--amp'):
        runner(tmp_path).train()
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_1.pth'] and not list(tmp_path.glob('.*.partial'))


def test_spoilt_parameters_are_not_saved(tmp_path, monkeypatch):
    train = runner(tmp_path, '--save', 'iter', '--interval', '4')
    step = train.model.train_step
    calls = []

    def spoil(*args, **kwargs):
        outputs = step(*args, **kwargs)
        calls.append(1)
        if len(calls) == 8:  # the loss of this iteration was finite
            train.model.net[0].weight.data[0, 0] = float('nan')
        return outputs

    monkeypatch.setattr(train.model, 'train_step', spoil)
    with pytest.raises(NonFiniteLossError, match=r'net\.0\.weight is not finite after iteration 8'):
        train.train()
    assert [p.name for p in tmp_path.glob('*.pth')] == ['iter_4.pth'] and not list(tmp_path.glob('.*.partial'))
