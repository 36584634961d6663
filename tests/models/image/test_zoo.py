"""Every named network: the same maps as its oracle, the published size, a gradient for every parameter."""

import dataclasses

import pytest
import torch

from eff_plugins.hub import build_classifier
from eff_plugins.models.image import zoo
from eff_plugins.profiling.macs import count_macs, count_parameters
from eff_plugins.testing.oracles import differences
from tests.conftest import oracle

VARIANTS = zoo.variants()
ORACLES = {name: v.oracle for name, v in VARIANTS.items() if v.oracle}
# Networks of over 30 M parameters get small pictures: their size is what takes time.
SIZES = {False: [(96, 96), (65, 97)], True: [(64, 64), (33, 65)]}


@pytest.mark.parametrize('name', sorted(ORACLES))
def test_every_map_equals_the_oracles(name):
    oracle('timm')
    oracle('torchvision')
    assert differences(name, SIZES[VARIANTS[name].params > 30])['relative'] <= 1e-4


def test_a_different_network_is_noticed(monkeypatch):
    """The comparison can fail: an activation, a padding rule or a norm's epsilon that differs is seen."""
    oracle('timm')
    from eff_plugins.models.image import stages

    name = 'mnasnet_small'
    for change in (dict(act='relu6'), dict(padding='same'), dict(se_gate='hsigmoid'), dict(norm_eps=1e-3)):
        altered = dataclasses.replace(stages.archs()[name], **change)
        monkeypatch.setitem(stages.archs(), name, altered)
        assert differences(name, [(96, 96)])['relative'] > 2e-4, change
        monkeypatch.undo()


@pytest.mark.parametrize('name', sorted(VARIANTS))
def test_published_size(name):
    """Without an oracle the published figures are the evidence; with one they only have to be about right."""
    row = VARIANTS[name]
    with torch.device('meta'):
        model = build_classifier(name).eval()
        x = torch.empty(1, 3, row.input_size, row.input_size)
        macs = count_macs(model, lambda: model(x))['']
    for ours, published in ((count_parameters(model) / 1e6, row.params), (macs / 1e9, row.macs)):
        share = (0.01 if row.oracle is None else 0.06) * published
        decimals = len(str(published).partition('.')[2])
        assert ours == pytest.approx(published, abs=max(share, 0.5 * 10**-decimals)), published


@pytest.mark.parametrize('name', sorted(VARIANTS))
def test_every_parameter_gets_a_gradient(name):
    """What autograd reaches is a matter of the graph, not of values: zeros spare the initialisation."""
    with torch.device('meta'):
        model = build_classifier(name).train()
    model.to_empty(device='cpu')
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    logits = model(torch.zeros(2, 3, 64, 64))
    logits.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert logits.shape == (2, 1000)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match='nearest: mobilenetv3_large'):
        zoo.variant('mobilenet_v3_large')
    with pytest.raises(ValueError, match="unknown model 'None'"):
        zoo.variant(None)


def test_a_name_may_stand_once_only(monkeypatch):
    from eff_plugins.models.image import mobile

    zoo.variants.cache_clear()
    monkeypatch.setitem(mobile.VARIANTS, 'tinynet_a', VARIANTS['tinynet_a'])
    with pytest.raises(RuntimeError, match='tinynet_a'):
        zoo.variants()
    monkeypatch.undo()
    zoo.variants.cache_clear()
