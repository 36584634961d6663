"""What the wheel carries, what the pins say, and the set-up script's decisions."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def extras() -> dict[str, list[str]]:
    """``extras_require`` of setup.py, without running a build."""
    import setuptools

    found: dict = {}
    original, here = setuptools.setup, os.getcwd()
    setuptools.setup = lambda **kwargs: found.update(kwargs)
    try:
        os.chdir(ROOT)
        exec(
            compile((ROOT / 'setup.py').read_text(), str(ROOT / 'setup.py'), 'exec'),
            {'__file__': str(ROOT / 'setup.py')},
        )
    finally:
        setuptools.setup = original
        os.chdir(here)
    return found['extras_require']


@pytest.fixture(scope='module')
def setup_env():
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel as ``pip install .`` builds it, from a copy of what git tracks or would track."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    skip = shutil_ignore('.venv', '.git', 'work_dirs', 'build', '__pycache__', '*.egg-info', 'data')
    import shutil

    shutil.copytree(ROOT, source / 'x', symlinks=True, ignore=skip)
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(out), '.']
    subprocess.run(command, cwd=source / 'x', check=True, capture_output=True)
    return next(out.glob('eff_plugins-*.whl'))


def shutil_ignore(*patterns):
    """``shutil.ignore_patterns`` for the top folder alone, so that ``eff_plugins/datasets`` and the like stay."""
    import fnmatch

    def ignore(folder, names):
        if Path(folder) != ROOT:
            return [n for n in names if n == '__pycache__']
        return [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]

    return ignore


@pytest.fixture(scope='module')
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('site')
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_wheel_carries_every_config_and_tool(unpacked):
    mim = unpacked / 'eff_plugins' / '.mim'
    for name in ('configs', 'tools'):
        wanted = {p.relative_to(ROOT) for p in (ROOT / name).rglob('*') if p.is_file() and '__pycache__' not in p.parts}
        assert wanted == {p.relative_to(mim) for p in (mim / name).rglob('*') if p.is_file()}
    assert (mim / 'model-index.yml').read_text() == (ROOT / 'model-index.yml').read_text()


def test_wheel_carries_every_module_and_no_tests(unpacked):
    modules = {p.relative_to(ROOT) for p in (ROOT / 'eff_plugins').rglob('*.py') if '.mim' not in p.parts}
    packed = {p.relative_to(unpacked) for p in unpacked.rglob('*.py') if '.mim' not in p.parts}
    assert (unpacked / 'eff_plugins/hub/published.json').is_file()
    assert packed == modules  # a folder without __init__.py would be missing here


def test_wheel_metadata(unpacked):
    text = next(unpacked.glob('*.dist-info')).joinpath('METADATA').read_text()
    required = re.findall(r'^Requires-Dist: ([\w-]+)(?!.*extra ==)', text, re.M)
    assert sorted(required) == ['numpy', 'torch']  # mmengine would overwrite its fork of the same import name
    assert re.search(r'^Requires-Python: (<3\.13,>=3\.10|>=3\.10,<3\.13)$', text, re.M)
    assert set(re.findall(r'^Provides-Extra: (\w+)$', text, re.M)) >= {'det', 'seg', 'action', 'det3d', 'data', 'all'}


@pytest.mark.parametrize('installed', [True, False], ids=['wheel', 'source'])
def test_base_of_the_suite_resolves(installed, unpacked, tmp_path):
    """``_base_ = 'eff_plugins::…'`` works from the unpacked wheel and from a source checkout."""
    config = tmp_path / 'mine.py'
    config.write_text("_base_ = 'eff_plugins::_base_/default_runtime.py'\nmine = 1\n")
    code = f"""
import eff_plugins
from mmengine.config import Config
from mmengine.config.config import Config as C
print(Config.fromfile({str(config)!r}).mine, C._get_cfg_path('eff_plugins::_base_/default_runtime.py', '')[0])
"""
    root = unpacked if installed else ROOT
    env = {**os.environ, 'PYTHONPATH': str(root)}
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    mine, path = result.stdout.split()
    assert mine == '1'
    if installed:
        assert path.startswith(str(unpacked))


def test_model_index_lists_every_metafile():
    listed = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert listed == sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*/metafile.yml'))


def test_metafiles_name_every_config_of_their_folder():
    for path in (ROOT / 'configs').glob('*/metafile.yml'):
        named = [model['Config'] for model in yaml.safe_load(path.read_text())['Models'] if 'Config' in model]
        assert named and sorted(named) == sorted(str(p.relative_to(ROOT)) for p in path.parent.glob('*.py'))


def test_results_in_metafiles_are_recorded():
    """Each figure of a metafile is in a file of `benchmarks/results` that names the config, a csv for those at a budget."""
    recorded = defaultdict(lambda: defaultdict(list))
    for path in (ROOT / 'benchmarks/results').glob('*.json'):
        content = json.loads(path.read_text())
        metrics = content.get('metrics') if isinstance(content, dict) else None
        if isinstance(metrics, dict):
            for name, value in metrics.items():
                recorded[metrics.get('config')][name].append(value)
    for path in (ROOT / 'benchmarks/results').glob('*.csv'):
        for row in csv.DictReader(path.read_text().splitlines()):
            subject = row.get('config') or row.get('model')
            if subject and row.get('policy') == 'learned':
                for name, value in row.items():
                    recorded[subject][f'{name} at {row["budget"]} of the multiply-adds'].append(value)
    claims = 0
    for path in (ROOT / 'configs').glob('*/metafile.yml'):
        for model in yaml.safe_load(path.read_text())['Models']:
            for claim in model.get('Results', []):
                for name, value in claim.get('Metrics', {}).items():
                    figures = recorded[model['Config']][name] + recorded[model['Name']][name]
                    close = [value == pytest.approx(float(f), rel=0, abs=1e-3 * min(1, value)) for f in figures]
                    assert any(close), (model['Config'], name, value, figures)
                    claims += 1
    assert claims


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', line) for line in lines)  # exact, no markers, no ranges
    return {line.partition('==')[0].lower().replace('_', '-'): line.partition('==')[2] for line in lines}


def test_pins_are_exact_and_disjoint():
    runtime, dev = pins('runtime.txt'), pins('dev.txt')
    assert not runtime.keys() & dev.keys()
    assert runtime['torch'] == pins('torch.txt')['torch'] == '2.13.0'
    assert int(runtime['setuptools'].split('.')[0]) < 82
    assert int(runtime['numpy'].split('.')[0]) < 2


def test_pins_satisfy_the_extras():
    from pkg_resources import Requirement

    pinned = pins('runtime.txt') | pins('dev.txt')  # timm is pinned among the tests' oracles
    for group in extras().values():
        for text in group:
            requirement = Requirement.parse(text)
            assert pinned[requirement.key.replace('_', '-')] in requirement, text


def test_all_is_the_union_of_the_extras():
    groups = extras()
    union = {requirement for name, group in groups.items() if name != 'all' for requirement in group}
    assert set(groups['all']) == union


class TestSetupEnv:
    def make(self, setup_env, tmp_path):
        setup = setup_env.Setup(tmp_path / 'venv')
        setup.stamps.mkdir(parents=True)
        return setup

    def test_step_runs_once_and_again_when_an_earlier_input_changes(self, setup_env, tmp_path):
        pin = tmp_path / 'pins.txt'
        ran = []

        def pass_through():
            setup = (
                self.make(setup_env, tmp_path)
                if not (tmp_path / 'venv').exists()
                else setup_env.Setup(tmp_path / 'venv')
            )
            setup.step('first', 'first', [pin], lambda: ran.append('first'))
            setup.step('second', 'second', [], lambda: ran.append('second'))

        pin.write_text('a==1')
        pass_through()
        pass_through()
        assert ran == ['first', 'second']
        pin.write_text('a==2')
        pass_through()
        assert ran == ['first', 'second'] * 2

    def test_failed_step_is_named_and_tried_again(self, setup_env, tmp_path):
        setup = self.make(setup_env, tmp_path)

        def fail():
            raise setup_env.SetupError('because')

        with pytest.raises(setup_env.SetupError, match='step "mmcv" failed: because'):
            setup.step('mmcv', 'building', [], fail)
        ran = []
        setup_env.Setup(tmp_path / 'venv').step('mmcv', 'building', [], lambda: ran.append(1))
        assert ran == [1]

    @pytest.mark.parametrize(
        ('output', 'hint'),
        [
            ('OSError: [Errno 28] No space left on device', 'disk is full'),
            ('NewConnectionError(...): [Errno 111]\nNo matching distribution found for torch', 'cannot be reached'),
            ('ERROR: Could not find a version ... (from versions: none)\nNo matching distribution', 'or does not have'),
            ('ERROR: No matching distribution found for torch==2.13.0', 'no wheel of that pin'),
            ('fatal error: Python.h: No such file or directory', 'apt-get install python3-dev'),
        ],
    )
    def test_cause_and_remedy_are_recognised(self, setup_env, output, hint):
        assert hint in setup_env.explain(output)

    def test_failing_command_shows_reason_and_log(self, setup_env, tmp_path):
        setup = self.make(setup_env, tmp_path)
        code = "print('[Errno 28] No space left on device'); raise SystemExit(2)"
        with pytest.raises(setup_env.SetupError, match=r'(?s)the disk is full.*exit 2; full log: .*setup\.log'):
            setup.call(sys.executable, '-c', code)

    def test_full_disk_is_noticed_before_the_download(self, setup_env, tmp_path, monkeypatch):
        from types import SimpleNamespace

        setup = self.make(setup_env, tmp_path)
        monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda path: SimpleNamespace(free=1e9))
        with pytest.raises(setup_env.SetupError, match=r'1\.0 GB free, the environment needs 5 GB'):
            setup.install_requirements()

    def test_unsupported_python_is_refused(self, setup_env, monkeypatch):
        monkeypatch.setattr(setup_env.sys, 'version_info', (3, 9, 0))
        monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
        with pytest.raises(setup_env.SetupError, match=r'no Python 3\.11 or 3\.12 found.*Python 3\.9'):
            setup_env.find_python()

    def test_environment_of_another_python_is_refused(self, setup_env, tmp_path, monkeypatch):
        monkeypatch.setattr(setup_env, 'python_version', lambda executable: (3, 13))
        with pytest.raises(setup_env.SetupError, match=r'has Python 3\.13.*delete'):
            setup_env.Setup(tmp_path / 'venv').run()
