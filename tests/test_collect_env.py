"""The environment's report, with frameworks present, absent and broken."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from eff_plugins import collect_env


@pytest.fixture
def two_frameworks(monkeypatch):
    table = {
        'json': ('import json', 'never shown'),
        'eff_no_such_framework': ('import eff_no_such_framework', "pip install 'eff_plugins[det]'"),
    }
    monkeypatch.setattr(collect_env, 'FRAMEWORKS', table)


def test_report_names_what_is_missing_and_its_command(two_frameworks, capsys):
    assert collect_env.main([]) == 0
    out = capsys.readouterr().out
    assert 'json       ok' in out
    assert 'eff_no_such_framework missing' in out
    assert "remedy: pip install 'eff_plugins[det]'" in out
    for fact in ('torch', 'OS', 'CPU', 'GPU', 'C++ compiler', 'nvcc', 'cached mmcv wheel'):
        assert any(line.startswith(fact) for line in out.splitlines()), fact


@pytest.mark.parametrize('command', ['collect_env', 'build_mmcv --help', 'repair_hosts'])
def test_commands_that_get_what_is_missing_run_without_mmengine(command, tmp_path):
    """In a new environment nothing but torch and numpy is there; a plain import still says so."""
    (tmp_path / 'sitecustomize.py').write_text(
        'from importlib.machinery import PathFinder as P\n'
        'original = P.find_spec\n'
        "hidden = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmaction', 'mmdet3d', 'torchvision'}\n"
        'P.find_spec = lambda name, path=None, target=None: None if name.split(".")[0] in hidden else '
        'original(name, path, target)\n'
    )
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    run = dict(env=env, capture_output=True, text=True, timeout=120)
    result = subprocess.run([sys.executable, '-m', *f'eff_plugins.{command}'.split()], **run)
    assert result.returncode == 0, result.stderr
    if command == 'collect_env':
        assert 'mmengine   missing' in result.stdout and "remedy: pip install 'eff_plugins[engine]'" in result.stdout
    plain = subprocess.run([sys.executable, '-c', 'import eff_plugins'], **run)
    assert plain.returncode != 0 and "pip install 'eff_plugins[engine]'" in plain.stderr


def test_json_carries_the_same(two_frameworks, capsys):
    assert collect_env.main(['--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row['status'] for row in report['frameworks']] == ['ok', 'missing']
    assert report['machine']['eff_plugins'] == '0.1.0'


def test_broken_framework_gives_the_reason(monkeypatch):
    monkeypatch.setitem(collect_env.FRAMEWORKS, 'json', ("raise RuntimeError('no kernel image')", 'reinstall it'))
    row = collect_env.probe('json')
    assert row['status'] == 'broken'
    assert row['reason'] == 'RuntimeError: no kernel image'
    assert row['remedy'] == 'reinstall it'


def test_crash_and_hang_are_contained(monkeypatch):
    monkeypatch.setitem(collect_env.FRAMEWORKS, 'json', ('import os; os.kill(os.getpid(), 9)', 'x'))
    assert collect_env.probe('json')['reason'] == 'exit code -9'
    monkeypatch.setitem(collect_env.FRAMEWORKS, 'json', ('import time; time.sleep(60)', 'x'))
    assert 'did not import within 0 s' in collect_env.probe('json', timeout=0.2)['reason']


def test_missing_tool_is_reported_not_raised():
    assert collect_env._first_line(['no-such-compiler', '--version']) == 'not found'
    assert collect_env._first_line(['false']) == 'does not run'


@pytest.mark.parametrize('name', list(collect_env.FRAMEWORKS))
def test_remedies_are_commands_of_extras_that_exist(name):
    from tests.test_packaging import extras

    words = shlex.split(collect_env.FRAMEWORKS[name][1])
    wanted = [word for word in words if word.startswith('eff_plugins[')]
    assert all(word[len('eff_plugins[') : -1] in extras() for word in wanted)
    assert wanted or 'eff_plugins.build_mmcv' in words
