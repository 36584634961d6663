"""Print what an environment has and lacks: ``python -m eff_plugins.collect_env``.

Every framework is imported in a process of its own, so that one that crashes or is absent does not hide the others; a
type of the suite is then built through that framework's registry. For what is missing the command that installs it is
printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .build_mmcv import cached_wheel_folder
from .version import __version__

MAKE_MMCV = 'python -m eff_plugins.build_mmcv'
# import name -> (what proves that the suite plugs in, the command that installs it)
_BUILD = "from {0}.registry import MODELS; MODELS.build(dict(type='eff_plugins.InvertedResidualNet'))"
FRAMEWORKS: dict[str, tuple[str, str]] = {
    'mmengine': (_BUILD.format('mmengine'), "pip install 'eff_plugins[engine]'"),
    'mmcv': ('import mmcv.ops', MAKE_MMCV),
    'mmdet': (_BUILD.format('mmdet'), f"pip install 'eff_plugins[det]' && {MAKE_MMCV}"),
    'mmseg': (_BUILD.format('mmseg'), f"pip install 'eff_plugins[seg]' && {MAKE_MMCV}"),
    'mmaction': (
        _BUILD.format('mmaction'),
        f"pip install 'eff_plugins[action]' && {MAKE_MMCV} && python -m eff_plugins.repair_hosts",
    ),
    'mmdet3d': (_BUILD.format('mmdet3d'), f"pip install 'eff_plugins[det3d]' && {MAKE_MMCV}"),
    'sklearn': ('import sklearn.datasets', "pip install 'eff_plugins[data]'"),
    'cv2': ('import cv2', "pip install 'eff_plugins[data]'"),
}


def _distribution(name: str) -> str:
    """``distribution version`` that provides an import name (official or fork), or an empty string."""
    found = importlib.metadata.packages_distributions().get(name, [])
    return ', '.join(sorted({f'{d} {importlib.metadata.version(d)}' for d in found}))


def _narrow(reason: str, remedy: str) -> str:
    """The one step that mends a framework which is installed but known to break, else its full installation."""
    if 'mmaction.models.localizers.drn' in reason:
        return 'python -m eff_plugins.repair_hosts'
    return MAKE_MMCV if 'mmcv._ext' in reason else remedy


def probe(name: str, timeout: float = 300) -> dict[str, str]:
    """Import one framework in a fresh process and build a type of the suite through it.

    Returns:
        ``name``, ``version`` (distribution and version), ``status`` (``ok``, ``missing`` or ``broken``), ``reason`` (the
        error's last line when broken) and ``remedy`` (a command; empty when ok).
    """
    code, remedy = FRAMEWORKS[name]
    if importlib.util.find_spec(name) is None:
        return dict(name=name, version='', status='missing', reason='not installed', remedy=remedy)
    row = dict(name=name, version=_distribution(name), status='ok', reason='', remedy='')
    # the parent's paths, so that the child sees the very same packages, a source checkout included
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p), 'PYTHONWARNINGS': 'ignore'}
    try:
        result = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return row | dict(status='broken', reason=f'did not import within {timeout:.0f} s')
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f'exit code {result.returncode}']
        row |= dict(status='broken', reason=lines[-1], remedy=_narrow(lines[-1], remedy))
    return row


def _first_line(command: list[str]) -> str:
    """First line that a command prints, or what is wrong with it."""
    if shutil.which(command[0]) is None:
        return 'not found'
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f'does not run ({error})'
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    if result.returncode != 0 or not lines:
        return 'does not run'
    return next((line.strip() for line in lines if 'release' in line), lines[0].strip())


def _cpu() -> str:
    """CPU model and the vector extensions that matter for inference."""
    model, flags = platform.processor() or platform.machine(), ''
    info = Path('/proc/cpuinfo')
    if info.is_file():
        fields = dict(line.split(':', 1) for line in info.read_text().splitlines() if ':' in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        model, flags = fields.get('model name', model), fields.get('flags', fields.get('Features', ''))
    wanted = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16', 'asimd', 'bf16', 'sve')
    features = ' '.join(name for name in wanted if name in flags.split())
    return f'{model}, {os.cpu_count()} logical cores, {features or "no vector extension that matters"}'


def machine() -> dict[str, str]:
    """Python, operating system, CPU, PyTorch, GPU, compilers and the mmcv wheel cache, in words."""
    import numpy
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    wheel = next(cached_wheel_folder().glob('mmcv-*.whl'), None)
    return {
        'eff_plugins': __version__,
        'Python': f'{platform.python_version()} ({sys.executable})',
        'OS': platform.platform(),
        'CPU': _cpu(),
        'torch': f'{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()} kernels',
        'GPU': ', '.join(gpus) or 'none visible to torch',
        'CUDA of torch': str(torch.version.cuda or 'none (CPU build)'),
        'numpy': numpy.__version__,
        'setuptools': _distribution('setuptools') or 'not installed',
        'C++ compiler': _first_line([os.environ.get('CXX', 'c++'), '--version']),
        'nvcc': _first_line(['nvcc', '--version']),
        'cached mmcv wheel': str(wheel or f'none ({cached_wheel_folder()})'),
        'EFF_PLUGINS_DATA': os.environ.get('EFF_PLUGINS_DATA', 'not set (configs look into ./data)'),
        'EFF_PLUGINS_CACHE': os.environ.get('EFF_PLUGINS_CACHE', 'not set (~/.cache/eff_plugins)'),
    }


def report(rows: list[dict[str, str]]) -> Iterator[str]:
    """The lines of the table of frameworks, with a remedy under each that does not work."""
    for row in rows:
        yield f'  {row["name"]:<10} {row["status"]:<8} {row["version"]}'.rstrip()
        if row['status'] != 'ok':
            yield f'  {"":<10} {row["reason"]}'
        if row['remedy']:
            yield f'  {"":<10} remedy: {row["remedy"]}'


def main(argv: list[str] | None = None) -> int:
    """Print the report; the exit code is 0 also where frameworks are missing."""
    parser = argparse.ArgumentParser(prog='python -m eff_plugins.collect_env', description='Print the environment.')
    parser.add_argument('--json', action='store_true', help='print one JSON object instead of a table')
    args = parser.parse_args(argv)
    facts, rows = machine(), [probe(name) for name in FRAMEWORKS]
    if args.json:
        print(json.dumps({'machine': facts, 'frameworks': rows}, indent=2))
        return 0
    for key, value in facts.items():
        print(f'{key:<18} {value}')
    print('\nWhere the suite plugs in (imported and a type built, each in its own process):')
    print('\n'.join(report(rows)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
