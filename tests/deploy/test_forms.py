"""Channels-last, bf16, ONNX and torch.compile against eager."""

import os
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from eff_plugins.deploy import Preparation, export_onnx, onnx_difference, prepare
from eff_plugins.deploy.export import max_difference
from eff_plugins.dynamic import set_execution, set_policy
from eff_plugins.models.image.zoo import variant
from eff_plugins.models.spatial.lasnet import LASNet
from eff_plugins.registry import MODELS
from eff_plugins.testing.families import families
from eff_plugins.testing.oracles import randomise
from tests.conftest import oracle


@pytest.fixture
def onnx():
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        oracle(package)


def small_backbone(family, maps):
    """The family's smallest network up to its first ``maps`` maps of stride 4 and more."""
    config = variant(families()[family][0]).backbone
    strides = MODELS.build(dict(config)).out_strides
    first = next(i for i, stride in enumerate(strides) if stride >= 4)
    indices = MODELS.build(dict(config)).out_indices[first : first + maps]
    model = MODELS.build({**config, 'out_indices': indices}).eval()
    randomise(model)
    return model


@pytest.mark.parametrize('family', families())
def test_channels_last_and_bf16(family):
    model = small_backbone(family, 3)
    x = torch.randn(2, 3, 49, 65)
    with torch.no_grad():
        wanted = model(x)
        how = Preparation(fuse=False)
        prepared = prepare(model, how)
        assert max_difference(prepared(how.inputs(x)), wanted) <= 1e-4
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in prepared.parameters() if w.dim() == 4)
        low = Preparation(dtype='bfloat16')
        found = prepare(model, low)(low.inputs(x))
        assert {y.dtype for y in found} == {torch.bfloat16}
        assert max_difference(found, wanted) <= 0.1


@pytest.mark.parametrize('family', families())
def test_onnx(family, tmp_path, onnx):
    model = small_backbone(family, 2)
    x = torch.randn(1, 3, 49, 65)
    path = export_onnx(model, x, tmp_path / 'network.onnx')
    assert onnx_difference(path, model, x) <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ['network.onnx']


def test_onnx_difference_sees_another_network(tmp_path, onnx):
    model, other = (nn.Conv2d(3, 2, 1).eval() for _ in range(2))
    x = torch.randn(1, 3, 4, 4)
    path = export_onnx(model, x, tmp_path / 'a.onnx')
    assert onnx_difference(path, model, x) <= 1e-6 < 1e-2 < onnx_difference(path, other, x)


def test_a_dynamic_network_is_exported_dense(tmp_path, onnx):
    model = set_policy(LASNet(depth=18, base_channels=8, out_indices=(0,)).eval(), 'all')
    x = torch.randn(1, 3, 33, 49)
    with pytest.raises(ValueError, match='ResNet is in sparse execution'):
        export_onnx(set_execution(model, 'sparse'), x, tmp_path / 'a.onnx')
    path = export_onnx(set_execution(model, 'dense'), x, tmp_path / 'a.onnx')
    assert onnx_difference(path, set_execution(model, 'sparse'), x) <= 1e-4


def test_a_failed_export_leaves_nothing_and_the_mode_is_kept(tmp_path, onnx):
    class Fails(nn.Module):
        def forward(self, x):
            return x if np.prod(x.detach().numpy().shape) < 0 else torch.from_numpy(np.sort(x.numpy()))

    model = Fails().train()
    with pytest.raises(Exception, match='.'):
        export_onnx(model, torch.randn(1, 3, 4, 4), tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir()) and model.training


@pytest.mark.slow
@pytest.mark.parametrize('family', families())
def test_compile(family):
    """Up to the first map only, on a tiny image: compilation on a CPU takes its time."""
    if not any(map(shutil.which, (os.environ.get('CXX') or 'g++', 'clang++'))):
        pytest.skip('torch.compile needs a C++ compiler: install g++')
    torch._dynamo.reset()
    model, x, how = small_backbone(family, 1), torch.randn(1, 3, 32, 32), Preparation(compile=True, fuse=False)
    with torch.no_grad():
        assert max_difference(prepare(model, how)(how.inputs(x)), model(x)) <= 1e-4


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(dtype='float64'), "dtype='float64': must be one of float32, bfloat16"),
        (dict(device='gpu'), "device='gpu'"),
        (dict(device='cuda'), 'no CUDA device'),
    ],
)
def test_bad_preparations_are_named(options, message):
    if options.get('device') == 'cuda' and torch.cuda.is_available():
        pytest.skip('there is a CUDA device')
    with pytest.raises(ValueError, match=message):
        Preparation(**options)
