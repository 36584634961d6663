"""The command-line tools as a user runs them, on miniature data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eff_plugins.visualization.pictures import write_picture
from tests.tiny_data import write_tiny_data

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/image_classification/effnet-lite0_cifar10.py'
SMALL = [
    'train_cfg.max_epochs=1',
    'model.backbone.init_cfg=None',
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
]


@pytest.fixture(scope='module')
def env(tmp_path_factory):
    root = tmp_path_factory.mktemp('tools')
    write_tiny_data(root / 'data')
    return {
        **os.environ,
        'EFF_PLUGINS_DATA': str(root / 'data'),
        'OMP_NUM_THREADS': '1',
        'PYTHON': sys.executable,
        'WORK': str(root / 'work'),
    }


def run(env, *command, check=True):
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def tool(env, name, *args, check=True):
    return run(env, sys.executable, '-W', 'ignore', f'tools/{name}.py', *args, check=check)


@pytest.fixture(scope='module')
def trained(env):
    tool(env, 'train', CONFIG, '--work-dir', env['WORK'], '--amp', '--cfg-options', 'tensorboard=True', *SMALL)
    return Path(env['WORK']) / 'epoch_1.pth'


def test_train_writes_a_checkpoint_and_tensorboard_files(trained, env):
    assert trained.is_file()
    assert list(Path(env['WORK']).glob('**/events.out.tfevents*'))


def test_test_prints_a_table_writes_metrics_and_pictures(trained, env, tmp_path):
    out, show = tmp_path / 'metrics.json', tmp_path / 'show'
    result = tool(
        env, 'test', CONFIG, str(trained), '--out', str(out), '--show-dir', str(show), '--cfg-options', *SMALL
    )
    metrics = json.loads(out.read_text())
    assert {'acc/top1', 'acc/top5', 'config', 'checkpoint_sha256', 'execution', 'budget', 'policy'} == set(metrics)
    assert metrics['acc/top5'] >= metrics['acc/top1'] and len(metrics['checkpoint_sha256']) == 64
    assert 'acc/top1' in result.stdout.splitlines()[-2]
    assert len(list(show.glob('*.png'))) == 4


def test_infer_draws_on_pictures(trained, env, tmp_path):
    pictures = sorted(map(str, (Path(env['EFF_PLUGINS_DATA']) / 'camvid/val/images').glob('*.jpg')))
    tool(env, 'infer', CONFIG, str(trained), *pictures, '--out', str(tmp_path), '--grid', str(tmp_path / 'grid.png'))
    assert {p.name for p in tmp_path.glob('*.png')} == {'0.png', '1.png', 'grid.png'}


def test_infer_keeps_pictures_of_one_name_apart(trained, env, tmp_path):
    root = Path(env['EFF_PLUGINS_DATA']) / 'camvid'
    pictures = [str(root / split / 'images/0.jpg') for split in ('train', 'val')]
    tool(env, 'infer', CONFIG, str(trained), *pictures, '--out', str(tmp_path))
    assert {p.name for p in tmp_path.glob('*.png')} == {'0.png', '0_1.png'}


def test_infer_names_a_file_that_does_not_decode(trained, env, tmp_path):
    bad, good, out = tmp_path / 'bad.jpg', tmp_path / 'good.png', tmp_path / 'out'
    bad.write_text('no picture')
    write_picture(good, np.zeros((40, 50, 3), np.uint8))
    result = tool(env, 'infer', CONFIG, str(trained), str(bad), str(good), '--out', str(out), check=False)
    assert result.returncode == 1 and 'bad.jpg does not decode' in result.stderr
    assert [path.name for path in out.iterdir()] == ['good.png']  # the other file is none the worse for it
    absent = tool(env, 'infer', CONFIG, str(trained), str(good), 'none.jpg', '--out', str(tmp_path / 'no'), check=False)
    assert 'error: none.jpg: no such file' in absent.stderr and not (tmp_path / 'no').exists()


def test_print_model_counts(env):
    result = tool(env, 'print_model', CONFIG, '--shape', '64', '64')
    total = result.stdout.splitlines()[-1].split()
    assert total[0] == 'total' and float(total[1]) == pytest.approx(2.959, abs=0.001)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('train', 'configs/none.py'), 'configs/none.py: no such config file'),
        (('test', CONFIG, 'none.pth'), 'none.pth: no such checkpoint'),
        (('train', CONFIG, '--work-dir', '{tmp}', '--cfg-options', 'data_root=/nowhere/', *SMALL,
          'train_dataloader.dataset.data_root=/nowhere/'), '/nowhere/train.npz: no such file'),
        (('train', CONFIG, '--work-dir', '{tmp}', '--cfg-options', *SMALL, 'model.head.num_classes=2'), 'num_classes=2'),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_clear_line(env, tmp_path, args, message):
    args = [a.format(tmp=tmp_path) if '{tmp}' in a else a for a in args]
    result = tool(env, *args, check=False)
    assert result.returncode == 1
    line = next(line for line in result.stderr.splitlines() if line.startswith('error: '))
    assert message in line
    assert not list(tmp_path.glob('**/*.pth'))


def test_two_processes_train(env, tmp_path):
    pytest.importorskip('torch.distributed')
    run(env, 'bash', 'tools/dist_train.sh', CONFIG, '2', '--work-dir', str(tmp_path), '--cfg-options', *SMALL)
    log = next(tmp_path.glob('2*/*.log')).read_text()
    assert (tmp_path / 'epoch_1.pth').is_file()
    assert '[1/1]' in log or 'Epoch(train) [1][1/1]' in log or 'Saving checkpoint at 1 epochs' in log
