"""DRNet: grouped execution, one BatchNorm a resolution, budgets, dense weights, training."""

import copy
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.dynamic.losses import Situation, budget_loss
from eff_plugins.hub.load import load_strict
from eff_plugins.models.resolution.norm import at_resolution
from eff_plugins.profiling.macs import count_macs
from eff_plugins.registry import MODELS

ARCH = dict(
    stages=[dict(channels=8, repeats=2, expand=2, stride=2), dict(channels=12, repeats=1, stride=2, expand=2)],
    stem_channels=8,
)
HOST = dict(
    backbone=dict(type='InvertedResidualNet', arch=ARCH, out_indices=(2,)),
    head=dict(type='LinearClsHead', in_channels=12, num_classes=5),
)
SIDES = (64, 48, 32)


def randomise(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def network(seed=0, **changes):
    torch.manual_seed(seed)
    net = MODELS.build(
        dict(type='DRNet', resolutions=SIDES, predictor=dict(size=16, channels=(8, 8)), **HOST, **changes)
    )
    net.init_weights()
    torch.nn.init.normal_(net.predictor.fc.weight, std=4)
    randomise(net).eval()
    with torch.no_grad():  # so that pictures of one batch differ in their choice
        net.predictor.fc.bias -= net.predictor(pictures()).mean(0)
    return net


def dense_host(seed=0):
    torch.manual_seed(seed)
    host = MODELS.build(dict(type='ImageClassifier', **HOST))
    host.init_weights()
    return randomise(host).eval()


def pictures(batch=12, size=(64, 64)):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(ours, reference, tolerance=1e-5):
    assert float((ours - reference).abs().max()) <= tolerance * float(reference.abs().max())


@pytest.mark.parametrize('size', [(64, 64), (51, 70)])
def test_masked_equals_sparse_and_each_picture_is_computed_at_its_resolution(size):
    net = network()
    x = pictures(size=size)
    with torch.no_grad():
        with dynamic.record(net) as stats:
            masked = dynamic.set_execution(net, 'masked')(x)
        sparse = dynamic.set_execution(net, 'sparse')(x)
        assert_close(sparse, masked)
        choice = stats.choices()['']
        assert len(choice.unique()) == 3
        for index, side in enumerate(SIDES):
            host = at_resolution(torch.nn.Sequential(net.backbone, net.head), index)
            assert not any(type(m).__name__ == 'ResolutionBatchNorm' for m in host.modules())
            small = torch.nn.functional.interpolate(
                x, [round(s * side / 64) for s in size], mode='bilinear', antialias=True
            )
            assert_close(sparse[choice == index], host(small)[choice == index])
        dense = dynamic.set_execution(net, 'dense')(x)
        for mode in ('masked', 'sparse'):
            assert_close(dynamic.set_policy(dynamic.set_execution(net, mode), 'all')(x), dense)


@pytest.mark.parametrize(('kind', 'index'), [('learned', None), ('random', None), ('none', None), ('fixed', 1)])
def test_reported_multiply_adds_are_what_is_executed(kind, index):
    net = network()
    x = pictures()
    dynamic.set_policy(dynamic.set_execution(net, 'sparse'), kind, index)
    with dynamic.record(net) as stats, torch.no_grad():
        executed = count_macs(net, lambda: net(x))['']
    assert float(stats.entries[0].macs.sum()) == pytest.approx(executed, rel=1e-5)
    assert stats.entries[0].dense_macs == dynamic.network_macs(net, lambda: net(x), len(x))
    dynamic.set_execution(net, 'masked')
    with torch.no_grad():
        assert count_macs(net, lambda: net(x))[''] == pytest.approx(stats.entries[0].masked_macs * len(x), rel=1e-6)


@pytest.mark.parametrize('kind', ['learned', 'random'])
def test_a_budget_is_met_and_one_below_the_smallest_resolution_is_refused(kind):
    net = network()
    dynamic.set_policy(net, kind)
    torch.manual_seed(0)
    calibration = dynamic.calibrate(net, [pictures(64)])
    dynamic.set_execution(net, 'sparse')
    for budget in (0.8, 0.6, 0.4):
        dynamic.set_budget(net, budget)
        with dynamic.record(net) as stats, torch.no_grad():
            net(pictures(64))
        assert float(stats.share(stats.entries[0].dense_macs)) == pytest.approx(budget, abs=0.06)
    with pytest.raises(ValueError, match=rf'static floor of this network, {calibration.shares[-1]:.3f}'):
        dynamic.set_budget(net, 0.1)


def test_dense_weights_load_and_are_copied_to_every_resolution():
    host, net = dense_host(), network(seed=3)
    state = host.state_dict()
    assert {key: net.state_dict()[key].shape for key in state} == {key: value.shape for key, value in state.items()}
    assert all('.others.' in key or key.startswith('predictor.') for key in set(net.state_dict()) - set(state))
    load_strict(net, state, 'dense weights')
    x = pictures(3)
    with torch.no_grad():
        assert torch.equal(dynamic.set_execution(net, 'dense')(x), host(x))
        small = torch.nn.functional.interpolate(x, (32, 32), mode='bilinear', antialias=True)
        dynamic.set_policy(dynamic.set_execution(net, 'sparse'), 'none')
        assert_close(net(x), host(small))
    own = network(seed=4).state_dict()
    load_strict(net, own, 'own weights')
    assert all(torch.equal(net.state_dict()[key], value) for key, value in own.items())


def test_training_gives_every_parameter_a_gradient_and_the_hinge_pulls_towards_small_pictures():
    net = network()
    torch.nn.init.normal_(net.predictor.fc.weight, std=0.01)
    samples = [BaseDataElement(gt_label=i % 5) for i in range(8)]
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items() if k.endswith('running_mean')}
    with dynamic.record(net) as stats:
        losses = net(pictures(8), samples, mode='loss')
    assert list(losses) == ['loss', 'loss_64', 'loss_48', 'loss_32']
    sum(losses.values()).backward(retain_graph=True)
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert all(not torch.equal(v, net.state_dict()[k]) for k, v in before.items())  # each resolution's statistics move
    net.zero_grad()
    entry = stats.entries[0]
    floor = entry.floor_macs / entry.dense_macs
    situation = Situation(stats.share(entry.dense_macs), floor, list(stats.densities().values()), target=floor)
    sum(budget_loss(dict(hinge=1.0), situation).values()).backward()
    slope = net.predictor.fc.bias.grad
    assert slope[0] > 0 > slope[2]  # a step down the slope favours the smallest


def test_a_budget_hook_drives_a_training(tmp_path):
    dataset = dict(
        type='DigitClsDataset',
        split='train',
        generator=dict(count=16),
        pipeline=[dict(type='ResizeShortSide', size=32), dict(type='PackClsInputs')],
    )
    cfg = dict(
        default_scope='eff_plugins',
        model=dict(type='DRNet', resolutions=(32, 16), predictor=dict(size=16, channels=(4,)), **copy.deepcopy(HOST)),
        train_dataloader=dict(batch_size=8, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler')),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type='BudgetHook', budget=0.5, losses=dict(hinge=1.0))],
        work_dir=str(tmp_path),
        experiment_name='drnet_hook',
        log_level='WARNING',
    )
    cfg['model']['head']['num_classes'] = 10
    cfg['model']['data_preprocessor'] = dict(type='ImgDataPreprocessor', mean=[128] * 3, std=[64] * 3)
    runner = Runner.from_cfg(Config(cfg))
    runner.train()
    scalars = runner.message_hub.log_scalars
    share = scalars['train/budget_share'].current()
    full, small = (_macs(runner.model, side) for side in (32, 16))
    predictor = runner.model._predictor_macs(runner.model.predictor, (3, 32, 32)) / full
    assert (small / full + predictor) * (1 - 1e-5) <= share <= (1 + predictor) * (1 + 1e-5)  # shares are float32
    assert 'train/loss_budget_hinge' in scalars
    assert scalars['train/budget_target'].current() == 0.5
    assert scalars['train/budget_macs'].current() == pytest.approx(share * full, rel=1e-3)
    assert sum(scalars[f'train/budget_choice_{k}'].current() for k in range(2)) == pytest.approx(1)


def _macs(model, side):
    return model._host_macs(torch.nn.Sequential(model.backbone, model.head), (3, side, side))


def test_specialised_form_folds_every_norm_and_gives_the_same():
    net = network()
    x = pictures()
    form = prepare(net, Preparation(prepack=True))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in form.modules())
    assert not net.networks  # the model itself is left as it is
    with torch.no_grad():
        assert_close(dynamic.set_execution(form, 'sparse')(x), dynamic.set_execution(net, 'sparse')(x), 1e-4)
        assert_close(dynamic.set_execution(form, 'dense')(x), dynamic.set_execution(net, 'dense')(x), 1e-4)


def test_a_specialised_form_specialises_to_itself_and_keeps_its_calibration():
    net, x = network(), torch.randn(4, 3, 64, 64)
    dynamic.calibrate(net, [x], budgets=[0.8])
    once = net.specialise()
    dynamic.set_budget(once, 0.8)
    for copied in (once, once.specialise()):
        dynamic.set_policy(dynamic.set_execution(copied, 'sparse'), 'fixed', 1)
    with torch.no_grad():
        torch.testing.assert_close(once.specialise()(x), once(x))


def test_all_but_the_dense_network_is_policy_also_in_the_specialised_form():
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    for net in (network(), network().specialise()):
        policies = {id(p) for m in net.modules() if getattr(m, 'is_policy', False) for p in m.parameters()}
        assert sum(p.numel() for p in net.parameters() if id(p) not in policies) == count(dense_host())


def test_norms_that_know_one_resolution_are_refused():
    net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network().train())
    with pytest.raises(RuntimeError, match='leave sync_bn out'):
        net.losses(pictures(4), torch.zeros(4, dtype=torch.long))


def test_copies_pickles_predictions_and_bf16():
    net = network(data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', mean=[128] * 3, std=[64] * 3))
    x = pictures(4)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    for model in (net, twin):
        dynamic.set_execution(model, 'sparse')
    with torch.no_grad():
        assert torch.equal(net(x), twin(x))
        twin.switch.index = 2
        assert net.switch.index == 0
        wanted = dynamic.set_policy(net, 'fixed', 1)(x)
        assert_close(net.bfloat16()(x.bfloat16()).float(), wanted, 0.1)
    assert net.float().predict([torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()]).shape == (1, 5)
    assert net(x[:0]).shape == (0, 5)
    with pytest.raises(RuntimeError, match='training mode'):
        net.train()(x)


def test_settings_that_do_not_fit_are_refused():
    for changes, message in (
        (dict(resolutions=(32, 64)), r'resolutions=\(32, 64\) must be at least two positive numbers that descend'),
        (dict(resolutions=(32, 0)), r'resolutions=\(32, 0\) must be at least two positive numbers'),
        (dict(predictor=dict(size=8)), 'size=8 must be at least 16'),
        (dict(backbone={**HOST['backbone'], 'with_cp': True}), 'with_cp=True'),
        (dict(backbone={**HOST['backbone'], 'norm_cfg': dict(type='GN', num_groups=2)}), 'has no BatchNorm2d'),
        (dict(backbone={**HOST['backbone'], 'norm_cfg': dict(type='SyncBN')}), 'is SyncBatchNorm'),
    ):
        with pytest.raises(ValueError, match=message):
            MODELS.build(dict(type='DRNet') | HOST | changes)
