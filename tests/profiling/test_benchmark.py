"""The benchmark's core and its command line on tiny inputs."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from eff_plugins.deploy import Preparation
from eff_plugins.engine.runs import friendly
from eff_plugins.profiling.benchmark import SCHEMA, Settings, compare
from eff_plugins.profiling.macs import count_macs
from eff_plugins.profiling.subjects import Subject, find_subject, pictures, split_specs
from tests.tiny_data import write_tiny_data

ROOT = Path(__file__).parents[2]
CIFAR = 'configs/image_classification/effnet-lite0_cifar10.py'
BCCD = 'configs/retinanet/retinanet_effnet-lite0_bccd.py'
QUICK = ('--repeats', '2', '--warmup', '0')


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', ROOT / 'tools' / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool, monkeypatch, capsys):
    """Run the tool as from the shell, in the repository; returns its standard output, or its error when it fails."""
    monkeypatch.chdir(ROOT)

    def call(*arguments, fails=False):
        monkeypatch.setattr(sys, 'argv', ['tools/benchmark.py', *arguments])
        if fails:
            with pytest.raises(SystemExit) as stop:
                friendly(tool.main)
            assert stop.value.code == 1
        else:
            tool.main()
        call.printed, err = capsys.readouterr()
        return err if fails else call.printed

    return call


@pytest.fixture
def tiny_data(tmp_path, monkeypatch):
    write_tiny_data(tmp_path / 'data')
    monkeypatch.setenv('EFF_PLUGINS_DATA', str(tmp_path / 'data'))


def rows_of(folder):
    return json.loads((folder / 'benchmark.json').read_text())


def test_a_network_against_its_oracle(run, tmp_path):
    out = run(
        'mobilenetv3_small',
        '--against',
        'oracle',
        '--size',
        '32',
        '--batch-size',
        '1',
        '2',
        *QUICK,
        '--out',
        str(tmp_path),
    )
    rows = rows_of(tmp_path)
    assert [(row['model'], row['batch_size']) for row in rows] == [
        ('mobilenetv3_small', 1),
        ('tv:mobilenet_v3_small', 1),
        ('mobilenetv3_small', 2),
        ('tv:mobilenet_v3_small', 2),
    ]
    for row in rows:
        assert tuple(row) == SCHEMA
        assert row['execution'] == 'dense' and row['input_size'] == 32 and row['torch'] == torch.__version__
        assert row['policy'] is row['budget'] is row['t_dense_ms'] is row['realised_saving'] is row['density'] is None
        assert 0 < row['latency_ms_p50'] <= row['latency_ms_p90']
    model = find_subject('mobilenetv3_small').model
    wanted = count_macs(model, lambda: model(torch.zeros(1, 3, 32, 32)))['']
    assert {(row['macs_mean'], row['macs_std']) for row in rows} == {(wanted, 0)}
    assert 'ratio [95 %]' in out and 'tv:mobilenet_v3_small' in out
    with (tmp_path / 'benchmark.csv').open() as stream:
        table = list(csv.DictReader(stream))
    assert float(table[0]['ratio_low']) <= float(table[0]['ratio']) <= float(table[0]['ratio_high'])
    assert table[0]['against'] == 'tv:mobilenet_v3_small' and table[1]['against'] == ''
    assert table[0]['command'].startswith('python tools/benchmark.py mobilenetv3_small --against oracle')
    assert (tmp_path / 'benchmark.png').read_bytes()[:4] == b'\x89PNG'


def test_a_config_on_its_test_set_with_a_checkpoint(run, tiny_data, tmp_path):
    torch.save({'state_dict': find_subject(str(ROOT / CIFAR)).model.state_dict()}, tmp_path / 'a.pth')
    out = run(CIFAR, str(tmp_path / 'a.pth'), '--batch-size', '2', *QUICK, '--out', str(tmp_path))
    assert 'no checkpoint' not in out
    (row,) = rows_of(tmp_path)
    assert row['input_size'] == 96 and row['macs_mean'] > 1e7
    torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'b.pth')
    assert 'b.pth does not fit' in run(CIFAR, str(tmp_path / 'b.pth'), fails=True)


def test_noise_goes_through_the_pipeline_of_a_config(run, tmp_path):
    run(CIFAR, '--batch-size', '2', *QUICK, '--data', 'random', '--out', str(tmp_path))
    assert rows_of(tmp_path)[0]['input_size'] == '96x128'  # the short side as the pipeline makes it


def test_a_detector_on_its_pictures_and_on_photographs(run, tiny_data, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    own = run(BCCD, '--batch-size', '1', *QUICK, '--dtype', 'bfloat16', '--out', str(tmp_path / 'own'))
    assert 'no checkpoint, random weights' in own and 'photographs' not in own
    (row,) = rows_of(tmp_path / 'own')
    assert row['dtype'] == 'bfloat16' and row['macs_mean'] > 1e8
    monkeypatch.setenv('EFF_PLUGINS_DATA', str(tmp_path / 'nowhere'))
    elsewhere = run(BCCD, '--batch-size', '1', *QUICK, '--out', str(tmp_path / 'photos'))
    assert 'test set not found' in elsewhere and 'photographs instead' in elsewhere
    assert 'leave --size out' in run(BCCD, '--size', '64', fails=True)


def test_size_reaches_a_classifier_of_a_config(run, tmp_path):
    run(CIFAR, '--size', '33', '--batch-size', '1', *QUICK, '--no-fuse', '--no-channels-last', '--out', str(tmp_path))
    assert rows_of(tmp_path)[0]['input_size'] == 33


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['mobilenetv9'], "unknown model 'mobilenetv9'; nearest: mobilenetv"),
        (['timm:resnet5'], "unknown model 'timm:resnet5'; nearest: timm:resnet5"),
        (['tv:mobilnet_v2'], 'nearest: tv:mobilenet_v2'),
        (['hub:resnet'], 'hub:resnet: the prefix must be timm: or tv:'),
        (['absent.py'], 'absent.py: no such config file'),
        ([CIFAR, 'absent.pth'], 'absent.pth: no such checkpoint'),
        (['tinynet_e', 'a.pth'], 'a.pth: a checkpoint follows the config'),
        (['fbnet_a', '--against', 'oracle'], 'neither timm nor torchvision'),
        (['tinynet_e', '--batch-size', '0'], 'batch-size 0: must be at least 1'),
        (['tinynet_e', '--size', '-4'], 'size -4: must be at least 1'),
        (['tinynet_e', '--threads', '0'], 'threads 0'),
        (['tinynet_e', '--repeats', '0'], 'repeats 0'),
        (['tinynet_e', '--dtype', 'int3'], "dtype='int3': must be one of float32, bfloat16"),
        (['tinynet_e', '--data', 'imagenet'], "data 'imagenet': must be one of real, random"),
    ],
)
def test_bad_input_is_one_line_that_names_it(run, arguments, message):
    error = run(*arguments, fails=True)
    assert error.startswith('error: ') and message in error and 'Traceback' not in error


def test_repeats_are_spread_over_distinct_batches_and_multiply_adds_over_inputs():
    class Sometimes(torch.nn.Module):
        """Costs more where the first picture is bright."""

        def __init__(self):
            super().__init__()
            self.fc, self.seen = torch.nn.Linear(4, 4), []

        def forward(self, x):
            self.seen.append(float(x.sum()))
            return self.fc(x) if x.sum() > 0 else x

    class Three(Subject):
        def prepare(self, how):
            return self.model

        def batches(self, batch_size, size, data, count, how):
            return [torch.full((batch_size, 4), value) for value in (-1.0, 1.0, 2.0)]

        def input_size(self, batch):
            return None

    model = Sometimes().eval()
    (result,) = compare(Three('x', model), None, Settings((1,), repeats=5, warmup=0))
    assert set(model.seen) == {-4.0, 4.0, 8.0}
    assert result.row['macs_mean'] == pytest.approx(16 * 2 / 3) and result.row['macs_std'] > 0
    assert result.ratio is None and result.row['input_size'] is None


def test_pictures_are_photographs_or_noise_and_repeatable():
    for data in ('real', 'random'):
        batches = pictures(2, 20, data, 3)
        assert [tuple(batch.shape) for batch in batches] == [(2, 3, 20, 20)] * 3
        assert torch.equal(batches[1], pictures(2, 20, data, 3)[1])
        assert not torch.equal(batches[0], batches[1])
    # neighbouring pixels of a photograph are alike
    real, noise = (pictures(4, 32, data, 1)[0] for data in ('real', 'random'))
    assert real.diff(dim=3).abs().mean() < 0.5 * real.std() < noise.diff(dim=3).abs().mean()


def test_checkpoints_go_with_the_config_before_them():
    assert split_specs(['a.py', 'x.pth', 'b', 'mmdet::c.py', 'https://x/y.pth']) == [
        ('a.py', 'x.pth'),
        ('b', None),
        ('mmdet::c.py', 'https://x/y.pth'),
    ]


def test_compiled_backbone_of_a_config_needs_a_backbone():
    subject = find_subject(CIFAR)
    del subject.model.backbone
    with pytest.raises(ValueError, match='this model has none'):
        subject.prepare(Preparation(compile=True))
