"""Writes are atomic and the old file goes last, whatever fails."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.runner import Runner
from toy import arguments, config

from eff_plugins.engine.checkpoint import AtomicCheckpointHook, commit_file, partial_path


def run(tmp_path, *options, **changes):
    base = ['--work-dir', str(tmp_path / 'run'), '--out', str(tmp_path / 'log'), '--seed', '1']
    cfg = {**config(arguments([*base, *options])), 'experiment_name': os.urandom(8).hex(), **changes}
    runner = Runner.from_cfg(Config(cfg))
    runner.train()
    return runner


def test_order_of_steps(tmp_path, monkeypatch):
    steps = []
    replace, remove = os.replace, LocalBackend.remove
    monkeypatch.setattr(os, 'replace', lambda a, b: (steps.append(('rename', os.path.basename(b))), replace(a, b))[1])
    monkeypatch.setattr(os, 'fsync', lambda handle: steps.append(('sync', '')))
    monkeypatch.setattr(
        LocalBackend,
        'remove',
        lambda self, path: (steps.append(('remove', os.path.basename(path))), remove(self, path)),
    )
    run(tmp_path)
    saved = [
        ('sync', ''), ('rename', 'epoch_2.pth'), ('sync', ''),
        ('sync', ''), ('rename', 'last_checkpoint'), ('sync', ''),
        ('remove', 'epoch_1.pth'),
    ]  # fmt: skip
    assert steps[6:13] == saved
    assert sorted(p.name for p in (tmp_path / 'run').glob('*.pth')) == ['epoch_3.pth']


def test_failing_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    put = LocalBackend.put
    writes = []

    def full_disk(self, obj, filepath):
        writes.append(filepath)
        if len(writes) == 2:
            put(self, obj[:100], filepath)
            raise OSError(28, 'No space left on device')
        put(self, obj, filepath)

    monkeypatch.setattr(LocalBackend, 'put', full_disk)
    with pytest.raises(OSError, match='No space'):
        run(tmp_path)
    folder = tmp_path / 'run'
    assert [p.name for p in folder.glob('*.pth')] == ['epoch_1.pth'] and not list(folder.glob('.*.partial'))
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'epoch_1.pth')


def test_checkpoint_that_a_killed_run_had_still_to_delete_goes_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(AtomicCheckpointHook, '_remove', lambda self, path: None)
    run(tmp_path)
    monkeypatch.undo()
    folder = tmp_path / 'run'
    assert len(list(folder.glob('epoch_*.pth'))) == 3
    (folder / '.epoch_4.pth.partial').write_bytes(b'half')
    run(tmp_path, '--resume', train_cfg={'by_epoch': True, 'max_epochs': 4})
    assert 'epoch_2.pth' not in os.listdir(folder) and 'epoch_3.pth' not in os.listdir(folder)
    assert 'epoch_4.pth' in os.listdir(folder) and not list(folder.glob('.*.partial'))


def test_keeps_as_many_as_asked(tmp_path):
    cfg = config(arguments(['--work-dir', str(tmp_path), '--out', 'x']))['default_hooks']
    cfg['checkpoint']['max_keep_ckpts'] = 2
    runner = run(tmp_path, default_hooks=cfg)
    assert sorted(p.name for p in (tmp_path / 'run').glob('*.pth')) == ['epoch_2.pth', 'epoch_3.pth']
    assert runner.message_hub.get_info('keep_ckpt_ids') == [2, 3]


def test_best_checkpoint_is_the_last_best(tmp_path):
    run(tmp_path, '--best')
    folder = tmp_path / 'run'
    assert sorted(p.name for p in folder.glob('*.pth')) == ['best_toy_epoch_3.pth', 'epoch_3.pth']
    assert 'state_dict' in torch.load(folder / 'best_toy_epoch_3.pth', weights_only=False)


def test_out_dir_elsewhere(tmp_path):
    cfg = config(arguments(['--work-dir', str(tmp_path), '--out', 'x']))['default_hooks']
    cfg['checkpoint']['out_dir'] = str(tmp_path / 'elsewhere')
    run(tmp_path, default_hooks=cfg)
    assert (tmp_path / 'elsewhere' / 'run' / 'epoch_3.pth').exists()
    run(tmp_path, '--resume', default_hooks=cfg)


def test_commit_file_replaces(tmp_path):
    final = str(tmp_path / 'a.pth')
    for content in ('one', 'two'):
        with open(partial_path(final), 'w') as file:
            file.write(content)
        commit_file(partial_path(final), final)
        assert (tmp_path / 'a.pth').read_text() == content
    assert os.listdir(tmp_path) == ['a.pth']


def test_other_storage_is_written_by_its_backend():
    hook = AtomicCheckpointHook()
    hook.file_backend = SimpleNamespace()
    calls = []
    hook.save_atomically(SimpleNamespace(save_checkpoint=lambda *a, **k: calls.append(a)), 's3://b', 'epoch_1.pth')
    assert calls == [('s3://b', 'epoch_1.pth')]
