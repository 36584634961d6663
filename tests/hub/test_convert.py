"""Key tables work both ways and refuse what does not fit."""

import dataclasses

import pytest
import torch

from eff_plugins.hub import build_classifier, convert, from_ours, to_ours
from eff_plugins.hub.convert import keys, source_of
from eff_plugins.hub.export import export, main
from eff_plugins.models.image.zoo import variants
from eff_plugins.testing.oracles import build_oracle
from tests.conftest import oracle


def _smallest():
    """The smallest variant with an oracle of every family, source and naming method."""
    found = {}
    for name, row in sorted(variants().items(), key=lambda item: item[1].params):
        if row.oracle:
            found.setdefault((row.family, name.partition('_')[0], row.oracle.partition(':')[0]), name)
    return sorted(found.values())


@pytest.mark.parametrize('name', _smallest())
def test_there_and_back(name):
    """Ours -> theirs loads strictly into their network; back again it is what it was."""
    source = variants()[name].oracle.partition(':')[0]
    oracle(source)
    with torch.device('meta'):
        shapes = build_classifier(name).state_dict()
    theirs = build_oracle(variants()[name].oracle)
    ours = {key: torch.full(value.shape, float(i)).to(value.dtype) for i, (key, value) in enumerate(shapes.items())}
    exported = from_ours(name, ours, source)
    theirs.load_state_dict(exported, strict=True, assign=True)
    assert source_of(name, exported) == source and source_of(name, ours) is None
    back = to_ours(name, exported, source)
    assert back.keys() == ours.keys() and all(torch.equal(back[key], ours[key]) for key in ours)


def test_a_partial_checkpoint_is_refused_in_both_directions(monkeypatch):
    with torch.device('meta'):
        state = build_classifier('mobilenetv2_050').state_dict()
    theirs = from_ours('mobilenetv2_050', state, 'timm')
    for function, given in ((to_ours, theirs), (from_ours, state)):
        given = dict(given)
        first = next(iter(given))
        del given[first]
        given['foo.weight'] = torch.zeros(1)
        with pytest.raises(ValueError, match=rf'missing {first}[\s\S]*unexpected foo\.weight'):
            function('mobilenetv2_050', given, 'timm')
    auxiliary = dataclasses.replace(keys('mobilenetv2_050', 'timm'), dropped=('aux',))
    monkeypatch.setattr(convert, 'keys', lambda name, source: auxiliary)
    assert to_ours('mobilenetv2_050', theirs | {'aux.fc.weight': torch.zeros(1)}, 'timm').keys() == state.keys()
    without_counters = {key: value for key, value in theirs.items() if 'num_batches' not in key}
    assert len(to_ours('mobilenetv2_050', without_counters, 'timm')) == len(without_counters)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_export(suffix, tmp_path):
    oracle('timm')
    model = build_classifier('mobilenetv2_050', num_classes=5)
    torch.save({'state_dict': model.state_dict(), 'meta': {'epoch': 1}}, tmp_path / 'ours.pth')
    out = tmp_path / f'theirs{suffix}'
    assert main(['mobilenetv2_050', str(tmp_path / 'ours.pth'), str(out), '--to', 'timm']) == 0
    import timm

    theirs = timm.create_model('mobilenetv2_050', num_classes=5, checkpoint_path=str(out))
    torch.testing.assert_close(theirs.conv_stem.weight, model.backbone.stem.conv.weight)


def test_export_says_what_is_wrong_and_writes_nothing(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / 'other.pth')
    arguments = ['mobilenetv2_050', str(tmp_path / 'other.pth'), str(tmp_path / 'out.pth'), '--to', 'timm']
    assert main(arguments) == 1 and 'unexpected bias' in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()
    with pytest.raises(ValueError, match=r'must end with \.pth or \.safetensors'):
        export('mobilenetv2_050', tmp_path / 'other.pth', tmp_path / 'out.bin', 'timm')
    arguments[0] = 'mobilenetv2'
    assert main(arguments) == 1 and 'nearest: mobilenetv2_' in capsys.readouterr().err
