"""The mmcv build: the patch on a fake source tree, and its errors."""

import sys
from pathlib import Path

import pytest

from eff_plugins import build_mmcv
from eff_plugins.build_mmcv import BuildError, build_wheel, cached_wheel_folder, patch_sources

CSRC = Path('mmcv/ops/csrc/pytorch')
ALONE = ('roi_align.cpp', 'roi_align_rotated.cpp', 'rotated_feature_align.cpp')


def fake_tree(root: Path, standard: str = 'c++17') -> Path:
    for name in ('pybind.cpp', 'nms.cpp', 'roi_align.cpp'):
        (root / CSRC).mkdir(parents=True, exist_ok=True)
        (root / CSRC / name).write_text(f'// {name}\n')
    (root / CSRC / 'cpu').mkdir()
    for name in (*ALONE, 'psamask.cpp', 'nms.cpp', 'voxelization.cpp'):
        (root / CSRC / 'cpu' / name).write_text(f'// cpu {name}\n')
    (root / 'setup.py').write_text(f"extra_compile_args = {{'cxx': ['-std={standard}']}}\n")
    return root


def test_patch_leaves_six_translation_units(tmp_path):
    tree = fake_tree(tmp_path)
    patch_sources(tree)
    units = {str(p.relative_to(tree / CSRC)) for p in (tree / CSRC).rglob('*.cpp')}
    assert units == {'pybind.cpp', 'operators.cpp', 'cpu/operators_cpu.cpp', *(f'cpu/{name}' for name in ALONE)}
    assert "'-std=c++20'" in (tree / 'setup.py').read_text()


def test_patch_includes_every_grouped_source_once_and_psamask_last(tmp_path):
    tree = fake_tree(tmp_path)
    patch_sources(tree)
    lines = (tree / CSRC / 'cpu' / 'operators_cpu.cpp').read_text().splitlines()
    assert lines == ['#include "nms.cpp.inc"', '#include "voxelization.cpp.inc"', '#include "psamask.cpp.inc"']
    for line in lines:
        assert (tree / CSRC / 'cpu' / line.split('"')[1]).is_file()
    assert (tree / CSRC / 'operators.cpp').read_text() == '#include "nms.cpp.inc"\n#include "roi_align.cpp.inc"\n'


def test_patch_refuses_another_version(tmp_path):
    tree = fake_tree(tmp_path, standard='c++14')
    with pytest.raises(BuildError, match=r'setup\.py does not ask for C\+\+17'):
        patch_sources(tree)
    assert (tree / CSRC / 'nms.cpp').is_file()  # nothing was moved


def test_missing_compiler_is_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(BuildError, match=r'no-such-compiler.*apt-get install g\+\+'):
        build_wheel(tmp_path / 'out', jobs=1)
    assert not (tmp_path / 'out').exists()


def test_missing_build_tool_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(build_mmcv, 'BUILD_TOOLS', ('setuptools', 'no_such_tool'))
    with pytest.raises(BuildError, match='no_such_tool.*pip install'):
        build_wheel(tmp_path / 'out', jobs=1)


def test_failing_command_shows_the_end_of_its_log(tmp_path):
    code = "import sys; print('line 1'); print('error: the last line', file=sys.stderr); sys.exit(3)"
    with pytest.raises(BuildError, match=r'(?s)compiling failed \(exit 3\).*error: the last line'):
        build_mmcv._run('compiling', [sys.executable, '-c', code], tmp_path / 'log')


def test_failed_download_leaves_no_wheel_and_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path / 'cache'))

    def fail(step, command, log, **kwargs):
        raise BuildError(f'{step} failed')

    monkeypatch.setattr(build_mmcv, '_run', fail)
    assert build_mmcv.main(['--no-install', '--force']) == 1
    assert 'downloading the mmcv sources with pip failed' in capsys.readouterr().err
    assert not list(tmp_path.rglob('*.whl'))


def test_cached_wheel_is_found_without_building(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))
    folder = cached_wheel_folder()
    folder.mkdir(parents=True)
    (folder / 'mmcv-2.1.0-test.whl').touch()
    assert build_mmcv.main(['--no-install']) == 0
    assert str(folder / 'mmcv-2.1.0-test.whl') in capsys.readouterr().out


def test_cache_is_kept_per_torch_and_python(monkeypatch):
    import torch

    before = cached_wheel_folder()
    assert sys.implementation.cache_tag in before.name
    monkeypatch.setattr(torch, '__version__', '9.9.9')
    assert cached_wheel_folder() != before
