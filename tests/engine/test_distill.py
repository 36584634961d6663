"""Distillation: the teacher is the dense start, stays, and is kept for a resumed training."""

import pytest
import torch

from eff_plugins.engine.budget import BudgetHook
from eff_plugins.engine.distill import DistillationHook
from eff_plugins.registry import MODELS
from tests.engine.test_budget import BACKBONE, runner


def run_with(folder, epochs=2, **distill):
    run = runner(folder, dict(type='BudgetHook', budget=0.8), epochs)
    run.register_hook(DistillationHook(**distill))
    return run


def test_the_teacher_is_the_dense_start_and_its_loss_joins(tmp_path):
    run = run_with(tmp_path, alpha=1.0)
    run.model.init_weights()
    start = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.train()
    (hook,) = [hook for hook in run.hooks if isinstance(hook, DistillationHook)]
    assert all(torch.equal(value, start[key]) for key, value in hook.teacher.state_dict().items())
    assert not torch.equal(run.model.head.fc.weight, start['head.fc.weight'])  # it learns from the teacher alone
    logged = {key.split('/')[-1] for key in run.message_hub.log_scalars}
    assert {'loss_distill', 'loss_budget_gap', 'loss'} <= logged
    assert 'parse_losses' not in vars(run.model) and not any(m._forward_hooks for m in run.model.modules())
    checkpoint = {}
    hook.before_save_checkpoint(run, checkpoint)
    again = run_with(tmp_path)
    (second,) = [hook for hook in again.hooks if isinstance(hook, DistillationHook)]
    second.after_load_checkpoint(again, checkpoint)
    again._resume = True
    second.before_train(again)
    assert all(torch.equal(value, start[key]) for key, value in second.teacher.state_dict().items())


def test_a_student_that_equals_its_teacher_has_no_loss(tmp_path):
    run = run_with(tmp_path)
    (hook,) = [hook for hook in run.hooks if isinstance(hook, DistillationHook)]
    (budget,) = [hook for hook in run.hooks if isinstance(hook, BudgetHook)]
    hook.before_train(run)
    from eff_plugins.dynamic import set_execution

    set_execution(run.model, 'dense').eval()
    run.model(torch.randn(4, 3, 32, 32))
    losses = hook._mix({'loss': torch.tensor(2.0)})
    assert float(losses['loss_distill']) == pytest.approx(0, abs=1e-6) and float(losses['loss']) == 1.0
    assert budget.budget(0.3) == 0.8


def test_networks_with_other_losses_and_checkpoints_without_a_teacher_are_refused(tmp_path):
    run = run_with(tmp_path)
    (hook,) = [hook for hook in run.hooks if isinstance(hook, DistillationHook)]
    run._resume = True
    with pytest.raises(ValueError, match='holds no teacher'):
        hook.before_train(run)
    head = dict(type='LinearClsHead', in_channels=12, num_classes=3)
    run.model = MODELS.build(dict(type='DRNet', backbone=BACKBONE, head=head, resolutions=(64, 32)))
    with pytest.raises(TypeError, match='DRNet is none, or has other losses'):
        hook.before_train(run)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(temperature=0), 'must be positive and'),
        (dict(alpha=1.5), 'must be positive and'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationHook(**arguments)
