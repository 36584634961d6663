"""Distillation: the teacher is the dense start, stays, and is kept for a resumed training."""

import pytest
import torch

from eff_plugins.engine.budget import BudgetHook
from eff_plugins.engine.distill import DistillationHook
from tests.engine.test_budget import runner


def run_with(folder, epochs=2, **distill):
    run = runner(folder, dict(type='BudgetHook', budget=0.5), epochs)
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
    assert budget.budget(0.3) == 0.5


def test_teacher_and_student_see_the_same_blends(tmp_path):
    run = run_with(tmp_path, alpha=1.0, mixup=0.8)
    (hook,) = [hook for hook in run.hooks if isinstance(hook, DistillationHook)]
    hook.before_train(run)
    seen = {}
    for name, network in (('student', run.model), ('teacher', hook.teacher)):
        network.backbone.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    x = torch.randn(4, 3, 32, 32)
    run.model.train()(inputs=x)
    assert float(hook._mix({'loss': torch.tensor(2.0)})['loss']) == 0
    assert torch.equal(seen['student'], seen['teacher']) and not torch.equal(seen['student'], x)
    low, high = x.amin(0) - 1e-5, x.amax(0) + 1e-5
    assert bool(((seen['student'] >= low) & (seen['student'] <= high)).all())
    run.model.eval()(x)
    assert seen['student'] is x


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(temperature=0), 'must be positive and'),
        (dict(alpha=1.5), 'must be positive and'),
        (dict(mixup=0.5), 'takes alpha=1'),
        (dict(alpha=1.0, mixup=-1.0), 'must not be negative'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationHook(**arguments)
