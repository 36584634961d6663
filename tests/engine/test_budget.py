"""The budget joins the losses of any model, pulls, and is logged."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner

from eff_plugins.dynamic.budget import network_macs
from eff_plugins.dynamic.recorder import recording
from eff_plugins.engine.budget import BudgetHook

BACKBONE = dict(
    type='eff_plugins.InvertedResidualNet',
    arch=dict(
        stages=[dict(channels=8, repeats=3, expand=2, stride=2), dict(channels=12, repeats=3, stride=2, expand=2)],
        stem_channels=8,
    ),
    out_indices=(2,),
)


def runner(folder, hook, epochs=6, **more):
    rng = np.random.default_rng(0)
    np.savez(
        folder / 'train.npz', images=rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), labels=np.arange(16) % 3
    )
    dataset = dict(type='ArrayImageDataset', ann_file=str(folder / 'train.npz'), pipeline=[dict(type='PackClsInputs')])
    cfg = dict(
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(type='ImgDataPreprocessor', mean=[127.0] * 3, std=[64.0] * 3),
            backbone=dict(type='eff_plugins.LayerSkip', backbone=BACKBONE, keep_first=1),
            head=dict(type='LinearClsHead', in_channels=12, num_classes=3),
        ),
        train_dataloader=dict(batch_size=8, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.05)),
        default_hooks=dict(checkpoint=None),
        custom_hooks=[hook],
        default_scope='eff_plugins',
        work_dir=str(folder),
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name=os.urandom(8).hex(),
    )
    cfg |= more
    return Runner.from_cfg(Config(cfg))


def test_training_meets_the_budget_and_logs_it(tmp_path):
    run = runner(tmp_path, dict(type='BudgetHook', budget=0.8, losses=dict(gap=50.0)), epochs=25)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    run.train()
    hub = run.message_hub
    share = hub.get_scalar('train/budget_share').data[0]
    assert share[0] > 0.85 and np.mean(share[-10:]) == pytest.approx(0.8, abs=0.05)
    assert hub.get_scalar('train/loss_budget_gap').current() >= 0
    temperature = hub.get_scalar('train/budget_temperature').data[0]
    assert temperature[0] == 5.0 and temperature[-1] < 0.2
    moved = [name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) == len(before)
    assert 'parse_losses' not in vars(run.model)  # nothing stays behind


def test_what_is_spent_reaches_terminal_and_tensorboard(tmp_path, monkeypatch):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    backends = dict(
        type='Visualizer',
        name=os.urandom(8).hex(),
        vis_backends=[dict(type='TensorboardVisBackend')],
        save_dir=str(tmp_path),
    )
    run = runner(
        tmp_path,
        dict(type='BudgetHook', budget=dict(start=1.0, end=0.8, form='linear')),
        epochs=2,
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
        visualizer=backends,
    )
    lines = []
    monkeypatch.setattr(run.logger, 'info', lambda line, *_: lines.append(str(line)))
    run.train()
    run.visualizer.close()
    (file,) = tmp_path.rglob('events.out.tfevents*')
    written = events.EventAccumulator(str(file)).Reload()
    for name in ('target', 'share', 'macs', 'density', 'temperature'):
        values = [scalar.value for scalar in written.Scalars(f'budget_{name}')]
        assert len(values) == 4 and values == pytest.approx(run.message_hub.get_scalar(f'train/budget_{name}').data[0])
        assert any(f'budget_{name}: ' in line for line in lines)


def test_a_budget_below_the_static_floor_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'budget=0.01 is below the static floor of this network, 0\.\d+: that is the'):
        runner(tmp_path, dict(type='BudgetHook', budget=0.01), epochs=1).train()


def test_the_share_is_that_of_the_whole_network(tmp_path):
    """What the hook counts in a training step equals a count of the static network."""
    run = runner(tmp_path, dict(type='BudgetHook', budget=0.8), epochs=1)
    run.train()
    (hook,) = [hook for hook in run.hooks if isinstance(hook, BudgetHook)]
    model = run.model.eval()
    x = torch.zeros(1, 3, 32, 32)
    assert hook._network_macs == {(3, 32, 32): network_macs(model, lambda: model(x), 1)}


def test_an_error_in_a_training_pass_leaves_nothing_open(tmp_path):
    run = runner(tmp_path, dict(type='BudgetHook', budget=0.8), epochs=1)
    (hook,) = [hook for hook in run.hooks if isinstance(hook, BudgetHook)]
    hook.before_train(run)
    with pytest.raises(RuntimeError):
        run.model.train()(torch.zeros(2, 5, 32, 32))  # the backbone wants three channels
    assert not recording() and not torch._C._len_torch_dispatch_stack()
    hook.after_train(run)


class OfDicts(BaseModel):
    """Takes its pictures in a dict, as mmdet3d's models do."""

    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(dict(type='eff_plugins.LayerSkip', backbone=BACKBONE))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return {'loss_fit': self.backbone(inputs['img'])[0].square().mean()}


def test_inputs_that_are_no_tensor_are_counted_each_time():
    model, hook = OfDicts().train(), BudgetHook(0.8)
    stub = SimpleNamespace(model=model, iter=0, max_iters=1, message_hub=MessageHub.get_instance('of_dicts'))
    hook.before_train(stub)
    for size in (32, 64):
        hook.before_train_iter(stub, 0)
        x = torch.zeros(2, 3, size, size)
        _, logs = model.parse_losses(model({'img': x}))
        assert 'loss_budget_gap' in logs
        counted = network_macs(model, lambda x=x: model.backbone(x), 2)
        assert hook._network_macs == {None: pytest.approx(counted)}
    hook.after_train(stub)


def test_static_weights_load_into_the_dynamic_network(tmp_path):
    static = MODELS.build(BACKBONE)
    torch.save(static.state_dict(), tmp_path / 'static.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'static.pth'))
    skip = MODELS.build(dict(type='eff_plugins.LayerSkip', backbone=dict(BACKBONE, init_cfg=init)))
    skip.init_weights()
    assert torch.equal(skip.stem.conv.weight, static.stem.conv.weight)
    gates = [module.gate for module in skip.modules() if hasattr(module, 'gate')]
    assert gates and all(float(gate.fc.bias) == 2.0 for gate in gates)
    skip = MODELS.build(dict(type='eff_plugins.LayerSkip', backbone=BACKBONE))
    skip.init_weights()
    assert all(float(module.gate.fc.bias) == 2.0 for module in skip.modules() if hasattr(module, 'gate'))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(dict(budget=0.0), r'budget=0.0 must lie'), (dict(budget=0.5, losses=dict(gab=1.0)), 'unknown budget loss gab')],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BudgetHook(**arguments)


def test_a_static_model_is_refused(tmp_path):
    run = runner(tmp_path, dict(type='BudgetHook', budget=0.8), epochs=1)
    run.model.backbone = MODELS.build(BACKBONE)
    with pytest.raises(ValueError, match='contains no policy|no dynamic module'):
        run.train()
