"""The reward puts the resolution where the task is hard, within the budget."""

import os

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn

from eff_plugins.dynamic import record
from eff_plugins.engine.reinforce import ReinforceHook


class Loss(nn.Module):
    def forward(self, logits, labels, ignore_index=255):
        return nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index)


@MODELS.register_module()
class ToySegmentor(BaseModel):
    """The class of a pixel is the sign of the picture there."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(16, 2, 1)
        self.loss = Loss()

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = nn.functional.interpolate(self.head(self.backbone(inputs)[0]), inputs.shape[2:], mode='bilinear')
        return {'loss_task': self.loss(logits, labels, ignore_index=255)} if mode == 'loss' else logits


@DATASETS.register_module()
def toy_segmentation(count=32):
    """Left: one value a picture. Right: noise, which no map of stride 2 can follow."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 1, 1, generator=generator).sign().expand(count, 3, 32, 64).clone()
    x[..., 32:] = torch.randn(count, 1, 32, 32, generator=generator)
    return [dict(inputs=picture, labels=(picture[0] > 0).long()) for picture in x]


def runner(folder, hook, epochs):
    arch = dict(stages=[dict(channels=16, repeats=2, expand=4, stride=1)], stem_channels=16)
    backbone = dict(type='eff_plugins.InvertedResidualNet', arch=arch, out_indices=(0,))
    cfg = dict(
        model=dict(
            type='ToySegmentor',
            backbone=dict(type='eff_plugins.SegBlocks', backbone=backbone, block_size=32, policy=dict(width=2)),
        ),
        train_dataloader=dict(
            batch_size=8,
            collate_fn=dict(type='default_collate'),
            dataset=dict(type='toy_segmentation'),
            sampler=dict(type='DefaultSampler', shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01)),
        default_hooks=dict(checkpoint=None),
        custom_hooks=[hook],
        work_dir=str(folder),
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name=os.urandom(8).hex(),
    )
    return Runner.from_cfg(Config(cfg))


def test_hard_blocks_get_the_resolution(tmp_path):
    run = runner(tmp_path, dict(type='eff_plugins.ReinforceHook', budget=0.65, loss='loss'), epochs=15)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    run.train()
    assert [name for name, value in run.model.named_parameters() if torch.equal(value, before[name])] == []
    x = torch.stack([sample['inputs'] for sample in toy_segmentation()])
    with record(run.model.eval()) as stats, torch.no_grad():
        run.model(x)
    easy, hard = stats.entries[0].scores.mean((0, 1, 2)).tolist()
    assert hard > 0 > easy
    shares = run.message_hub.get_scalar('train/budget_share').data[0]
    assert np.mean(shares[-20:]) == pytest.approx(0.65, abs=0.1)
    assert np.isfinite(run.message_hub.get_scalar('train/loss_policy').data[0]).all()
    assert 'parse_losses' not in vars(run.model) and not run.model.loss._forward_hooks


def test_the_network_is_counted_whole(tmp_path):
    """Though masked execution leaves blocks out, the share is of the dense network."""
    from eff_plugins.dynamic import network_macs

    run = runner(tmp_path, dict(type='eff_plugins.ReinforceHook', budget=0.75, loss='loss'), epochs=1)
    run.train()
    (hook,) = [hook for hook in run.hooks if isinstance(hook, ReinforceHook)]
    model, x = run.model.eval(), torch.zeros(1, 3, 32, 64)
    assert hook._network_macs == {(3, 32, 64): pytest.approx(network_macs(model, lambda: model(x), 1))}


@pytest.mark.parametrize(
    ('loss', 'match'), [('head.loss', "ToySegmentor has no module 'head.loss'"), ('head', "'head' was called")]
)
def test_a_loss_that_cannot_be_seen_is_named(tmp_path, loss, match):
    run = runner(tmp_path, dict(type='eff_plugins.ReinforceHook', budget=0.75, loss=loss), epochs=1)
    with pytest.raises(ValueError, match=match):
        run.train()
