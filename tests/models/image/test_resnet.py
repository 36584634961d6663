"""ResNet equals mmdet's, mmseg's and torchvision's with their own keys; CIFAR ResNets load their published weights."""

import pytest
import torch

from eff_plugins.models.image.cifar_resnet import CifarResNet
from eff_plugins.models.image.resnet import ResNet
from eff_plugins.testing.oracles import randomise
from tests.conftest import oracle

CASES = {
    'basic': ('mmdet', dict(depth=18)),
    'bottleneck': ('mmdet', dict(depth=50, base_channels=16, out_indices=(1, 3))),
    'caffe-deep-avg': ('mmdet', dict(depth=50, base_channels=16, style='caffe', deep_stem=True, avg_down=True)),
    'group-norm': ('mmdet', dict(depth=34, base_channels=16, norm_cfg=dict(type='GN', num_groups=8))),
    'three-stages': (
        'mmdet',
        dict(depth=50, base_channels=16, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,)),
    ),
    'deformable': (
        'mmdet',
        dict(
            depth=50,
            base_channels=16,
            dcn=dict(type='DCNv2', deform_groups=1),
            stage_with_dcn=(False, True, True, True),
        ),
    ),
    'plugins': (
        'mmdet',
        dict(
            depth=50,
            base_channels=16,
            plugins=[
                dict(
                    cfg=dict(type='ContextBlock', ratio=0.25),
                    stages=(False, True, True, True),
                    position='after_conv3',
                )
            ],
        ),
    ),
    'dilated': (
        'mmseg',
        dict(
            depth=50,
            base_channels=16,
            stem_channels=16,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            contract_dilation=True,
            multi_grid=(1, 2, 4),
        ),
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_equals_the_frameworks_resnet(case):
    framework, arguments = CASES[case]
    theirs = oracle(f'{framework}.models.backbones.resnet').ResNet(**arguments)
    theirs.eval()
    randomise(theirs)
    ours = ResNet(**arguments)
    state = {key: value for key, value in theirs.state_dict().items() if ours.own_key(key)}
    ours.load_state_dict(state)
    ours.eval()
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        pairs = list(zip(ours(x), theirs(x), strict=True))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert ours.out_channels == tuple(b.shape[1] for _, b in pairs)
    assert [-(-65 // s) for s in ours.out_strides] == [b.shape[2] for _, b in pairs]


@pytest.mark.parametrize('framework', ['mmdet', 'mmseg'])
def test_takes_every_argument_of_the_frameworks_resnet(framework):
    import inspect

    theirs = oracle(f'{framework}.models.backbones.resnet').ResNet
    assert set(inspect.signature(theirs).parameters) <= set(inspect.signature(ResNet).parameters)


def test_a_torchvision_checkpoint_loads_strictly(tmp_path):
    theirs = oracle('torchvision').models.resnet18(weights=None)
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / 'resnet18.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet18.pth'))
    ours = ResNet(18, out_indices=(1,), init_cfg=init)
    ours.init_weights()
    assert torch.equal(ours.layer2[1].conv2.weight, theirs.layer2[1].conv2.weight)
    with pytest.raises(ValueError, match='layer1'):
        ResNet(34, out_indices=(1,), init_cfg=init).init_weights()


def test_every_parameter_gets_a_gradient_and_stages_freeze():
    net = ResNet(50, base_channels=8, frozen_stages=1, norm_eval=True, with_cp=True)
    net.init_weights()
    net.train()
    sum(y.square().mean() for y in net(torch.randn(2, 3, 64, 64, requires_grad=True))).backward()
    missing = {name.split('.')[0] for name, p in net.named_parameters() if p.grad is None}
    assert missing == {'conv1', 'bn1', 'layer1'}
    assert all(not m.training for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert float(net.layer2[0].bn3.weight.abs().max()) == 0  # blocks begin as their shortcut


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(depth=49), 'depth=49'),
        (dict(strides=(1, 2)), r'strides=\(1, 2\)'),
        (dict(out_indices=(3, 2)), 'must ascend'),
        (dict(style='tf'), "style='tf'"),
        (dict(frozen_stages=5), 'frozen_stages=5'),
        (dict(depth=18, plugins=[dict(cfg={}, position='after_conv2')]), 'bottleneck'),
        (dict(multi_grid=(1, 2)), 'multi_grid'),
        (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained')), 'leave pretrained out'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def test_cifar_resnets():
    net = CifarResNet(32, out_indices=(0, 1)).eval()
    assert [tuple(y.shape) for y in net(torch.randn(2, 3, 32, 33))] == [(2, 32, 16, 17), (2, 64, 8, 9)]
    with pytest.raises(ValueError, match='6 n'):
        CifarResNet(30)


def test_published_cifar_weights_load(data_root):
    path = data_root / 'weights' / 'cifar10_resnet20.pth'
    net = CifarResNet(20, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    net.init_weights()
    state = torch.load(path, weights_only=True)
    assert torch.equal(net.stages[2][2].conv2.weight, state['layer3.2.conv2.weight'])
