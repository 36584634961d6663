"""Downloads over loopback: verified by hash, nothing half-written, one line where there is no network."""

import hashlib
import urllib.error

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

from eff_plugins.compat.loading import CorruptCheckpointError, UnsafeCheckpointError
from eff_plugins.hub import FetchError, fetch, load_backbone_weights
from eff_plugins.hub.fetch import fetch_url, sha256_of
from eff_plugins.models.image.inverted_residual import InvertedResidualNet


@pytest.fixture
def over_http(monkeypatch):
    monkeypatch.setattr(fetch, '_SCHEME', 'http')


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_hashed_address_loads_by_every_route(suffix, cache, served, over_http):
    folder, host = served
    net = InvertedResidualNet('mobilenetv2_050', out_indices=(0,))
    path = folder / f'net{suffix}'
    if suffix == '.pth':
        torch.save({'state_dict': net.state_dict(), 'meta': {'epoch': 3}}, path)
    else:
        pytest.importorskip('safetensors.torch').save_file(net.state_dict(), path)
    uri = f'https+sha256://{sha256_of(path)}@{host}/net{suffix}'
    for route in (
        lambda copy: load_backbone_weights(copy, uri),
        lambda copy: load_checkpoint(copy, uri, strict=True),
        lambda copy: load_backbone_weights(copy, str(path)),
        lambda copy: load_checkpoint(copy, str(path), strict=True),
    ):
        copy = InvertedResidualNet('mobilenetv2_050', out_indices=(0,))
        route(copy)
        torch.testing.assert_close(copy.state_dict(), net.state_dict())
    assert _names(cache) == [f'{sha256_of(path)[:8]}-net{suffix}']
    path.unlink()  # from now on only the cache has it
    assert CheckpointLoader.load_checkpoint(uri)


def test_no_prefix_of_mmengine_changes():
    loaders = {uri: CheckpointLoader._get_checkpoint_loader(uri).__name__ for uri in ('https://h/x', 'torchvision://r')}
    assert loaders == {'https://h/x': 'load_from_http', 'torchvision://r': 'load_from_torchvision'}
    assert CheckpointLoader._get_checkpoint_loader('https+sha256://0@h/x').__name__ == 'load_from_hashed'


def test_another_file_than_promised_leaves_nothing(cache, served, over_http):
    folder, host = served
    (folder / 'a.pth').write_bytes(b'other')
    digest = hashlib.sha256(b'promised').hexdigest()
    with pytest.raises(FetchError, match=f'expected {digest}; removed, try again') as caught:
        fetch.fetch_hashed(f'https+sha256://{digest}@{host}/a.pth')
    assert len(str(caught.value).splitlines()) == 1 and _names(cache) == []


def test_a_connection_that_ends_early_leaves_nothing(cache, monkeypatch):
    class Answer:
        headers = {'Content-Length': '10'}
        blocks = [b'half', b'']

        def read(self, size):
            return self.blocks.pop(0)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

    monkeypatch.setattr(fetch.urllib.request, 'urlopen', lambda *args, **kwargs: Answer())
    with pytest.raises(FetchError, match='ended after 4 of 10 bytes'):
        fetch_url('timm://x', 'https://example.invalid/x.pth', 'x.pth')
    assert _names(cache) == []


def test_a_published_hash_finds_a_damaged_file(cache, served, capsys):
    """As torchvision's names carry it: a damaged file is removed, reported and downloaded again."""
    folder, host = served
    (folder / 'a.pth').write_bytes(b'right')
    prefix = hashlib.sha256(b'right').hexdigest()[:8]
    (cache / 'a.pth').write_bytes(b'wrong')
    path = fetch_url('tv://a', f'http://{host}/a.pth', 'a.pth', prefix)
    assert path.read_bytes() == b'right' and 'was damaged' in capsys.readouterr().err
    assert _names(cache) == ['a.pth']
    assert fetch_url('tv://a', 'http://127.0.0.1:1/a.pth', 'a.pth', prefix) == path


def test_without_a_published_hash_the_first_use_counts(cache, served, capsys):
    folder, host = served
    (folder / 'm.safetensors').write_bytes(b'right')
    url = f'http://{host}/m.safetensors'
    path = fetch_url('timm://m', url, 'm.safetensors')
    note = cache / 'm.safetensors.sha256'
    assert note.read_text() == f'{hashlib.sha256(b"right").hexdigest()}  m.safetensors\n'
    path.write_bytes(b'wrong')
    assert fetch_url('timm://m', url, 'm.safetensors').read_bytes() == b'right'
    assert 'was damaged' in capsys.readouterr().err
    # a file put there by hand is used, and its hash kept, too
    (cache / 'hand.pth').write_bytes(b'mine')
    assert fetch_url('timm://hand', 'http://127.0.0.1:1/', 'hand.pth').read_bytes() == b'mine'
    assert (cache / 'hand.pth.sha256').exists()


@pytest.mark.parametrize(
    ('uri', 'file'),
    [
        ('timm://mobilenetv2_100', 'mobilenetv2_100_ra-b33bc2c4.pth'),
        ('timm://tinynet_e', 'tinynet_e.in1k.safetensors'),
        ('tv://mobilenet_v2', 'mobilenet_v2-7ebf99e0.pth'),
        (f'https+sha256://{"a" * 64}@example.invalid/some/net.pth', 'aaaaaaaa-net.pth'),
    ],
)
def test_no_network_is_one_line_with_the_cache_path(uri, file, cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError('Name or service not known')

    monkeypatch.setattr(fetch.urllib.request, 'urlopen', refuse)
    with pytest.raises(FetchError) as caught:
        CheckpointLoader.load_checkpoint(uri)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.endswith(str(cache / file))
    assert 'Name or service not known' in message and _names(cache) == []


def test_a_missing_file_on_the_server_is_said(cache, served):
    with pytest.raises(FetchError, match=r'\(HTTP Error 404'):
        fetch_url('timm://m', f'http://{served[1]}/m', 'm')


@pytest.mark.parametrize(
    'uri', ['https+sha256://abc@h/x.pth', f'https+sha256://{"a" * 64}@h', 'https+sha256://h/x.pth']
)
def test_malformed_addresses_are_named(uri):
    with pytest.raises(ValueError, match='64 hex digits'):
        CheckpointLoader.load_checkpoint(uri)


def test_nothing_of_a_download_is_executed(cache, served, over_http):
    class Trap:
        def __reduce__(self):
            return print, ('executed',)

    folder, host = served
    torch.save({'state_dict': Trap()}, folder / 'trap.pth')
    with pytest.raises(UnsafeCheckpointError):
        CheckpointLoader.load_checkpoint(f'https+sha256://{sha256_of(folder / "trap.pth")}@{host}/trap.pth')
    (cache / 'tinynet_e.in1k.safetensors').write_bytes(b'\0' * 20)
    with pytest.raises(CorruptCheckpointError):
        CheckpointLoader.load_checkpoint('timm://tinynet_e')


def test_a_damaged_file_of_unknown_hash_does_not_stay(cache):
    """Its first use notes the hash of what lies there; loading shows the damage, and both go."""
    from eff_plugins.hub.weights import find_weights

    _, row = find_weights('timm://tinynet_e')
    assert not row.sha256
    cache.mkdir(parents=True, exist_ok=True)
    (cache / row.file).write_bytes(b'a truncated checkpoint')
    with pytest.raises(CorruptCheckpointError, match='removed from the cache, the next call downloads it'):
        CheckpointLoader.load_checkpoint(row.uri)
    assert _names(cache) == []
