"""Folding BatchNorm: what it must fold, what it must leave, and that nothing changes but rounding."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eff_plugins.deploy import fuse_conv_bn
from eff_plugins.deploy.export import max_difference
from eff_plugins.hub import build_classifier
from eff_plugins.models.layers.conv import ConvNormAct, SamePadConv2d
from eff_plugins.testing.families import families
from eff_plugins.testing.oracles import build_oracle, randomise
from tests.conftest import oracle

NORM = dict(type='BN', eps=1e-3)


def norms(model):
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def check(model, *shape, left=0):
    """Fuse, and compare with the model, which must stay what it was."""
    model.eval()
    randomise(model)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    fused = fuse_conv_bn(model)
    with torch.no_grad():
        wanted, found = model(x), fused(x)
    assert max_difference(found, wanted) <= 1e-4
    assert norms(fused) == left
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return fused


@pytest.mark.parametrize('family', families())
def test_one_variant_of_each_family(family):
    fused = check(build_classifier(families()[family][0]), 1, 3, 49, 65)
    assert fused.predict([]).shape == (0, 1000)  # still the classifier, with its methods


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('family', ['resnet', 'efficientnet_lite'])
def test_folds_where_no_gradient_is_recorded_too(family, mode):
    with mode():
        fused = fuse_conv_bn(build_classifier(families()[family][0]))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())


@pytest.mark.parametrize(
    'name',
    [
        'timm:tf_mobilenetv3_small_minimal_100',  # TensorFlow's padding, BatchNorm with activation
        'timm:resnet14t',  # a stem whose last convolution ends a sequence and whose BatchNorm follows that
        'tv:mobilenet_v3_small',
        'tv:shufflenet_v2_x0_5',
        'tv:googlenet',
    ],
)
def test_models_of_others(name):
    oracle(name.partition(':')[0])
    check(build_oracle(name), 1, 3, 65, 81)


def test_pre_activation_keeps_the_norms_that_no_convolution_feeds():
    oracle('timm')
    check(build_oracle('timm:resnetv2_18'), 1, 3, 64, 64, left=9)


@pytest.mark.parametrize('padding', ['symmetric', 'same'])
@pytest.mark.parametrize('act', ['relu6', None])
def test_our_blocks_become_plain_steps_of_their_sequence(padding, act):
    block = ConvNormAct(4, 6, 3, 2, norm_cfg=NORM, act=act, padding=padding)
    fused = check(nn.Sequential(block, ConvNormAct(6, 6, 3, groups=6, norm_cfg=NORM, act='hswish')), 2, 4, 9, 12)
    assert not any(isinstance(module, ConvNormAct) for module in fused.modules())
    assert isinstance(fused[0], SamePadConv2d) == (padding == 'same') and fused[0].bias is not None


class ByName(nn.Module):
    """Convolution and BatchNorm side by side as attributes, behind a branch that a tracer follows only with the default."""

    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x, normalise=True):
        x = self.conv(x)
        return F.relu(self.norm(x)) if normalise else x


def test_all_dimensions_no_affine_terms_and_a_bias():
    check(ByName(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), 2, 3, 9)
    check(ByName(nn.Conv3d(3, 4, 2, groups=1), nn.BatchNorm3d(4, affine=False)), 2, 3, 5, 6, 7)
    check(ByName(nn.Conv2d(4, 4, 3, groups=2, dilation=2), nn.SyncBatchNorm(4)), 2, 4, 9, 9)


class Twice(ByName):
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class SharedConv(nn.Module):
    """One convolution, a BatchNorm for each of two inputs (as detection heads have for their levels)."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 3, 3)
        self.levels = nn.ModuleList(nn.Sequential(conv, nn.BatchNorm2d(3)) for _ in range(2))

    def forward(self, x):
        return self.levels[0](x) + self.levels[1](x)


class Standardised(nn.Conv2d):
    """Not linear in its weight."""

    def forward(self, x):
        weight = self.weight / self.weight.std()
        return F.conv2d(x, weight, self.bias)


@pytest.mark.parametrize(
    'make',
    [
        lambda: Twice(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        SharedConv,
        lambda: ByName(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        lambda: ByName(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)),
    ],
    ids=['read twice', 'shared convolution', 'standardised weight', 'transposed'],
)
def test_what_cannot_be_folded_is_left(make):
    model = make()
    check(model, 2, 3, 8, 8, left=norms(model))


def test_a_norm_of_the_batch_s_statistics_is_left():
    assert norms(fuse_conv_bn(ByName(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4, track_running_stats=False)))) == 1


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = ByName(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.inner(x) if float(x.sum()) > 1e9 else self.inner(2 * x)


def test_children_of_an_untraceable_forward_are_folded_and_the_copy_pickles():
    fused = check(Untraceable(), 1, 3, 8, 8)
    assert isinstance(pickle.loads(pickle.dumps(fused)).inner.norm, nn.Identity)
