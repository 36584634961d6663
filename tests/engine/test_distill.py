"""Distillation: the teacher is the dense start or a network of its own, stays, and is kept for a resumed training."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from eff_plugins.dynamic import set_execution
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
    assert not {'losses', 'parse_losses'} & set(vars(run.model))
    assert not any(m._forward_hooks for m in run.model.modules())
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
    set_execution(run.model, 'dense').eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    plain = run.model.losses(images, labels)
    hook.before_train(run)
    losses = hook._mix(run.model.losses(images, labels))
    assert float(losses['loss_distill']) == pytest.approx(0, abs=1e-6)
    assert float(losses['loss']) == pytest.approx(float(plain['loss']) / 2)
    assert budget.budget(0.3) == 0.8


EXITS = dict(
    type='EarlyExitClassifier',
    num_classes=3,
    backbone=dict(type='RANet', scales=(1, 2), growth_factors=(2, 1), bottleneck_factors=(2, 1), blocks=1, step=1),
)
TEACHER = dict(
    type='ImageClassifier',
    backbone=BACKBONE,
    head=dict(type='LinearClsHead', in_channels=12, num_classes=3),
)


def test_another_network_teaches_every_exit(tmp_path):
    run = run_with(tmp_path)
    run.model = MODELS.build(EXITS)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    hook = DistillationHook(temperature=2.0, alpha=0.25, teacher=TEACHER)
    hook.before_train(run)
    run.model.eval()  # BatchNorm keeps its statistics
    losses = hook._mix({**run.model.losses(images, labels), 'loss_budget': torch.tensor(3.0)})
    assert float(losses.pop('loss_budget')) == 3.0  # the task's losses alone make room for the teacher's
    teacher = (hook.teacher(images) / 2).softmax(1)
    exits = list(run.model.backbone.anytime(images))
    assert len(exits) == 3
    divergence = sum((teacher * (teacher.log() - (logits / 2).log_softmax(1))).sum(1).mean() for logits in exits)
    torch.testing.assert_close(losses.pop('loss_distill'), 0.25 * 4 * divergence)
    wanted = {f'loss_exit{k}': 0.75 * cross_entropy(logits, labels) for k, logits in enumerate(exits)}
    torch.testing.assert_close(losses, wanted)
    run.model(images)  # a validation
    assert len(hook._logits) == 3
    hook.after_train(run)
    assert not any(m._forward_hooks for m in run.model.modules())


def test_a_teacher_of_other_inputs_is_refused(tmp_path):
    run = run_with(tmp_path)
    normalise = dict(type='ImgDataPreprocessor', mean=[128] * 3, std=[64] * 3)
    alike = dict(type='ImgDataPreprocessor', mean=[127] * 3, std=[64] * 3)
    swapped = dict(type='ImgDataPreprocessor', bgr_to_rgb=True)
    head = dict(type='LinearClsHead', in_channels=12, num_classes=4)
    for change, error, message in (
        (dict(data_preprocessor=normalise), ValueError, 'has data_preprocessor .* the student .*: they see the same'),
        (dict(data_preprocessor=swapped), ValueError, 'has data_preprocessor'),
        (dict(data_preprocessor=alike, head=head), ValueError, 'has num_classes 4, the student 3'),
    ):
        with pytest.raises(error, match=message):
            DistillationHook(teacher={**TEACHER, **change}).before_train(run)
    with pytest.raises(TypeError, match='is a InvertedResidualNet, no ImageClassifier'):
        DistillationHook(teacher=BACKBONE).before_train(run)


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
