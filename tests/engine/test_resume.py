"""Killed with SIGKILL in mid-epoch, mid-save or by torchrun, a run goes on with the losses of the unbroken one."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from eff_plugins.engine.randomness import Position, position_loader

TOY = str(Path(__file__).with_name('toy.py'))
TOLERANCE = 1e-5


def environment():
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}


@pytest.fixture(scope='module')
def server():
    """A process with everything imported, which forks a new one for each run: real processes to kill, started fast."""
    process = subprocess.Popen(
        [sys.executable, TOY],
        env={**environment(), 'TOY_SERVE': '1'},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    # Not by closing its stdin: a loader's worker that was forked meanwhile may hold the other end.
    process.kill()
    process.communicate()


def command_line(folder, name, options):
    return ['--work-dir', str(folder / name), '--out', str(folder / f'{name}.log'), *options]


def train(server, folder, name, *options, code=0):
    """Run ``toy.py``; returns what it printed."""
    log = folder / f'{name}.txt'
    log.unlink(missing_ok=True)
    command = {'argv': command_line(folder, name, options), 'log': str(log), 'environment': {}}
    server.stdin.write(json.dumps(command) + '\n')
    server.stdin.flush()
    assert int(server.stdout.readline()) == code, log.read_text()[-3000:]
    return log.read_text()


def losses(folder, name, rank=0):
    """Iteration -> (loss, batch_idx); an iteration that was repeated after a resume counts with its last value."""
    rows = [json.loads(line) for line in (folder / f'{name}.log.{rank}').read_text().splitlines()]
    return {row[0]: (row[1], row[2]) for row in rows}


def assert_same_run(folder, rank=0):
    whole, resumed = losses(folder, 'whole', rank), losses(folder, 'killed', rank)
    assert sorted(whole) == sorted(resumed)
    for iteration, (loss, batch_idx) in whole.items():
        assert resumed[iteration][0] == pytest.approx(loss, rel=TOLERANCE), iteration
        assert resumed[iteration][1] == batch_idx
    assert len({loss for loss, _ in whole.values()}) == len(whole)  # losses differ, so a shift would be seen


MID_EPOCH = ['--save', 'iter', '--interval', '4', '--workers', '2', '--persistent']
CASES = {
    'epoch, saved by epoch': [],
    'epoch, saved in mid-epoch, workers': MID_EPOCH,
    'epoch, gradients in accumulation': ['--save', 'iter', '--interval', '5', '--accumulate', '3'],
    'iterations, endless sampler, workers': ['--loop', 'iter', '--sampler', 'infinite', *MID_EPOCH],
    'iterations over several passes': ['--loop', 'iter', '--save', 'iter', '--interval', '3'],
}


@pytest.mark.parametrize('case', CASES)
def test_killed_in_mid_epoch(server, tmp_path, case):
    options = ['--seed', '3', *CASES[case]]
    train(server, tmp_path, 'whole', *options)
    train(server, tmp_path, 'killed', *options, '--kill-after', '11', code=-9)
    assert max(losses(tmp_path, 'killed')) == 10
    assert 'resumed epoch' in train(server, tmp_path, 'killed', *options, '--resume')
    assert_same_run(tmp_path)
    assert len(list((tmp_path / 'killed').glob('*.pth'))) == 1


def test_aspect_ratio_batches(server, tmp_path):
    pytest.importorskip('mmdet')
    options = ['--seed', '3', '--sampler', 'aspect', '--save', 'iter', '--interval', '4']
    train(server, tmp_path, 'whole', *options)
    train(server, tmp_path, 'killed', *options, '--kill-after', '11', code=-9)
    train(server, tmp_path, 'killed', *options, '--resume')
    assert_same_run(tmp_path)


@pytest.mark.parametrize('best', [[], ['--best']], ids=['plain', 'save_best'])
def test_killed_in_mid_save_with_one_checkpoint(server, tmp_path, best):
    options = ['--seed', '3', *best]
    train(server, tmp_path, 'whole', *options)
    # with save_best each epoch writes three files: the checkpoint, the best one, the checkpoint again
    for write in (4, 5, 6) if best else (2, 3):
        folder = tmp_path / 'killed'
        (tmp_path / 'killed.log.0').unlink(missing_ok=True)
        for old in folder.glob('*') if folder.exists() else ():
            if old.is_file():
                old.unlink()
        train(server, tmp_path, 'killed', *options, '--kill-in-save', str(write), code=-9)
        assert list(folder.glob('.*.pth.partial'))  # the kill did come inside a write
        last = Path((folder / 'last_checkpoint').read_text())
        assert torch.load(last, weights_only=False)['meta']['iter'] > 0
        train(server, tmp_path, 'killed', *options, '--resume')
        assert_same_run(tmp_path)
        assert not list(folder.glob('.*.partial'))
        assert len(list(folder.glob('epoch_*.pth'))) == 1
        # a best checkpoint that no later one knows of, since the kill came before it was recorded, is not thrown away
        assert len(best) <= len(list(folder.glob('best_*.pth'))) <= 2 * len(best)


def test_drawn_seed_goes_on(server, tmp_path):
    """Without a fixed seed the resumed run takes over the one that was drawn: compare with a rerun of that seed."""
    train(server, tmp_path, 'killed', '--kill-after', '18', code=-9)
    last = Path((tmp_path / 'killed' / 'last_checkpoint').read_text())
    seed = torch.load(last, weights_only=False)['resume_state']['seed']
    first = losses(tmp_path, 'killed')
    train(server, tmp_path, 'killed', '--resume')
    # iterations 16 and 17 were done twice, once before the kill and once after the resume
    again = losses(tmp_path, 'killed')
    for iteration in (16, 17):
        assert again[iteration][0] == pytest.approx(first[iteration][0], rel=TOLERANCE)
    assert torch.load(tmp_path / 'killed' / 'epoch_3.pth', weights_only=False)['resume_state']['seed'] == seed


def test_two_processes_train_and_resume(tmp_path):
    def launch(name, *extra):
        command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone', TOY]
        options = [
            '--seed',
            '3',
            '--save',
            'iter',
            '--interval',
            '3',
            '--workers',
            '1',
            '--launcher',
            'pytorch',
            *extra,
        ]
        command += command_line(tmp_path, name, options)
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)

    done = launch('whole')
    assert done.returncode == 0, done.stderr[-5000:]
    assert launch('killed', '--kill-after', '7').returncode != 0
    done = launch('killed', '--resume')
    assert done.returncode == 0, done.stderr[-5000:]
    for rank in (0, 1):
        assert_same_run(tmp_path, rank)
    assert losses(tmp_path, 'whole', 0) != losses(tmp_path, 'whole', 1)


def test_load_from_is_no_resume(tmp_path):
    from argparse import Namespace

    sys.path.insert(0, str(Path(TOY).parent))
    from mmengine.config import Config
    from mmengine.runner import Runner
    from toy import arguments, config

    options: Namespace = arguments(['--work-dir', str(tmp_path), '--out', str(tmp_path / 'log'), '--seed', '1'])
    Runner.from_cfg(Config({**config(options), 'experiment_name': f'first{tmp_path.name}'})).train()
    fine = config(arguments(['--work-dir', str(tmp_path / 'b'), '--out', str(tmp_path / 'log2'), '--seed', '9']))
    runner = Runner.from_cfg(
        Config({**fine, 'load_from': str(tmp_path / 'epoch_3.pth'), 'experiment_name': f'second{tmp_path.name}'})
    )
    runner.train()
    assert runner.train_dataloader.sampler.seed == 9
    assert len((tmp_path / 'log2.0').read_text().splitlines()) == 24


class Draws(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return torch.tensor([i, random.random(), np.random.rand(), float(torch.rand(()))], dtype=torch.float64)


def read(workers, skip=0, iteration=0, rank=0, **options):
    loader = DataLoader(Draws(), batch_size=3, num_workers=workers, shuffle=True, **options)
    position = Position(seed=1, rank=rank, endless=False)
    position.iteration, position.skip = iteration, skip
    position_loader(loader, position)
    assert isinstance(loader, DataLoader) and isinstance(loader.dataset, Draws)
    return list(loader)


def test_samples_do_not_depend_on_workers_history_or_start():
    whole = read(0)
    assert len(whole) == 4 and len(torch.cat(whole).unique()) == 40
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    for other in (read(2), read(1, persistent_workers=True, prefetch_factor=3), [*whole[:2], *read(2, 2, 2)]):
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_ranks_and_iterations_draw_differently():
    first, other_rank, later = read(0)[0], read(0, rank=1)[0], read(0, iteration=4)[0]
    assert torch.equal(first[:, 0], other_rank[:, 0])
    assert not torch.isclose(first[:, 1:], other_rank[:, 1:]).any()
    assert not torch.isclose(first[:, 1:], later[:, 1:]).any()


def test_skipped_batches_are_not_loaded():
    loaded = []

    class Counted(Draws):
        def __getitem__(self, i):
            loaded.append(i)
            return super().__getitem__(i)

    loader = DataLoader(Counted(), batch_size=3)
    position = Position(seed=1, rank=0, endless=False)
    position.skip = position.iteration = 3
    position_loader(loader, position)
    assert len(list(loader)) == 1 and loaded == [9]
