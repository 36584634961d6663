"""Metafiles and READMEs of the families follow from the zoo."""

import dataclasses
import shutil

import pytest
import yaml

from eff_plugins.hub import metafiles, weights_of
from eff_plugins.models.image.zoo import variant_of, variants


def test_they_agree_with_the_zoo(capsys):
    assert metafiles.main(['--check']) == 0, capsys.readouterr().err


def test_every_variant_is_listed_once_with_its_weights():
    listed = {}
    for folder in {metafiles.paper_of(name).folder for name in variants()}:
        content = yaml.safe_load((metafiles.ROOT / 'configs' / folder / 'metafile.yml').read_text())
        names = {collection['Name'] for collection in content['Collections']}
        for model in content['Models']:
            assert model['In Collection'] in names
            if 'Config' not in model:
                assert model['Name'] not in listed
                listed[model['Name']] = model['Metadata']['Weights']
        assert any('Config' in model for model in content['Models']), f'configs/{folder} has no config'
    assert listed.keys() == variants().keys()
    for name, weights in listed.items():
        want = [{'URI': row.uri, 'Licence': row.licence} for row in weights_of(name)]
        assert weights == (want or 'none') and all(row['Licence'] for row in want)


def test_a_change_is_noticed_and_written(tmp_path, monkeypatch, capsys):
    root = tmp_path / 'repository'
    shutil.copytree(metafiles.ROOT / 'configs', root / 'configs')
    shutil.copy(metafiles.ROOT / 'model-index.yml', root)
    changed = {**variants(), 'tinynet_f': dataclasses.replace(variants()['tinynet_e'], params=1.25)}
    monkeypatch.setattr(metafiles, 'variants', lambda: changed)
    assert metafiles.main(['--root', str(root)]) == 1
    assert 'tinynet/metafile.yml' in capsys.readouterr().err
    assert metafiles.main(['--root', str(root), '--write']) == 0
    assert '| tinynet_f | 1.25 |' in (root / 'configs/tinynet/README.md').read_text()
    assert metafiles.main(['--root', str(root)]) == 0


def test_papers_go_by_the_longest_prefix():
    assert metafiles.paper_of('fbnetv2_f1').name == 'FBNetV2' and metafiles.paper_of('fbnet_a').name == 'FBNet'
    assert metafiles.paper_of('regnetz_500mf').name == 'RegNetZ'
    with pytest.raises(ValueError, match=r'mynet_1: its paper is not in PAPERS'):
        metafiles.paper_of('mynet_1')


def test_a_backbone_config_leads_to_its_variant():
    assert variant_of(dict(type='eff_plugins.InvertedResidualNet', arch='fbnet_c', with_cp=True)) == 'fbnet_c'
    assert variant_of(dict(type='eff_plugins.InvertedResidualNet', arch='mine.json')) is None
