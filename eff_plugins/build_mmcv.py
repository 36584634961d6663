"""Build mmcv 2.1.0 with its operators against the installed PyTorch and install it.

``python -m eff_plugins.build_mmcv`` exists because mmcv publishes no wheel for a current PyTorch, and its source
distribution neither compiles (it asks for C++17; torch's headers need C++20, open-mmlab/mmcv#3341) nor compiles soon:
77 files each parse torch's headers for 13-20 s. Here the operators' sources are grouped into six translation units,
which takes minutes instead of half an hour and yields the same operators. The wheel is kept in a cache folder per
mmcv, torch, CUDA, Python and platform, so that the next environment on the machine only installs it.

With a GPU visible to torch and ``nvcc`` at hand the CUDA operators are compiled too, for that GPU alone. That route has
not been tried on a GPU yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

from eff_plugins.cache import cache_folder
from eff_plugins.files import atomic

MMCV_VERSION = '2.1.0'
# These redefine each other's helper functions, so each is a translation unit of its own.
_ALONE = ('roi_align.cpp', 'roi_align_rotated.cpp', 'rotated_feature_align.cpp')
# psamask.cpp defines the macros `min` and `max`; whatever follows it would not compile.
_LAST = 'psamask.cpp'
# mmcv's setup.py imports pkg_resources, which setuptools 82 dropped
BUILD_TOOLS = ('setuptools', 'pkg_resources', 'wheel', 'ninja')
_CSRC = Path('mmcv/ops/csrc/pytorch')


class BuildError(RuntimeError):
    """A step of the build failed; the message names the step, the reason and the remedy."""


def _gpu_arch() -> str | None:
    """Compute capability of the GPU at hand as torch spells it (``'9.0'``), or None without GPU or ``nvcc``."""
    import torch

    if not torch.cuda.is_available() or shutil.which('nvcc') is None:
        return None
    major, minor = torch.cuda.get_device_capability()
    return f'{major}.{minor}'


def cached_wheel_folder() -> Path:
    """The cache folder for exactly this combination of mmcv, torch, CUDA, Python and platform."""
    import torch

    tag = f'mmcv{MMCV_VERSION}-torch{torch.__version__}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}'
    arch = _gpu_arch()
    if arch is not None:
        tag += f'-cuda{torch.version.cuda}-sm{arch}'
    return cache_folder('wheels') / tag


def _run(step: str, command: list[str], log: Path, **kwargs) -> None:
    """Run ``command`` with its output appended to ``log``; raise with the log's end when it fails."""
    with log.open('ab') as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False, **kwargs).returncode
    if code != 0:
        kept = Path(tempfile.gettempdir()) / 'eff_plugins_build_mmcv.log'
        shutil.copyfile(log, kept)
        tail = '\n'.join(log.read_text(errors='replace').splitlines()[-25:])
        raise BuildError(f'{step} failed (exit {code}). The end of {kept}:\n{tail}')


def _download(folder: Path, log: Path) -> Path:
    """Fetch and unpack mmcv's source distribution with pip; returns the source tree."""
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-build-isolation']
    env = {**os.environ, 'MMCV_WITH_OPS': '1'}
    command = [*pip, '--no-binary', 'mmcv', '--dest', str(folder), f'mmcv=={MMCV_VERSION}']
    _run('downloading the mmcv sources with pip', command, log, env=env)
    archive = next(folder.glob('mmcv-*.tar.gz'))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter='data')
    return folder / f'mmcv-{MMCV_VERSION}'


def _group_sources(folder: Path, name: str, alone: tuple[str, ...]) -> None:
    """Replace the ``*.cpp`` of ``folder`` by one file ``name`` that includes them all, but for those in ``alone``.

    The originals keep their place under the ending ``.inc``, which setup.py's globs do not match.
    """
    grouped = sorted(p for p in folder.glob('*.cpp') if p.name not in alone)
    grouped.sort(key=lambda p: p.name == _LAST)
    lines = []
    for source in grouped:
        included = source.with_suffix('.cpp.inc')
        source.rename(included)
        lines.append(f'#include "{included.name}"\n')
    (folder / name).write_text(''.join(lines))


def patch_sources(tree: Path) -> None:
    """Ask for C++20 and group the operators' sources into six translation units, in place."""
    setup = tree / 'setup.py'
    text = setup.read_text()
    if "'-std=c++17'" not in text:
        raise BuildError(f'{setup} does not ask for C++17 as mmcv {MMCV_VERSION} does: is this another version?')
    setup.write_text(text.replace("'-std=c++17'", "'-std=c++20'"))
    _group_sources(tree / _CSRC, 'operators.cpp', ('pybind.cpp',))
    _group_sources(tree / _CSRC / 'cpu', 'operators_cpu.cpp', _ALONE)


def _check_tools() -> None:
    """Raise, with the remedy, when something that the build needs is absent; the build's own message says less."""
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler) is None:
        raise BuildError(
            f'no C++ compiler found ({compiler}). Install one that knows C++20 (Debian, Ubuntu: apt-get install g++) '
            'or point the environment variable CXX at it.'
        )
    absent = [name for name in BUILD_TOOLS if importlib.util.find_spec(name) is None]
    if absent:
        raise BuildError(f"not installed: {', '.join(absent)}. pip install 'setuptools<82' wheel ninja")


def build_wheel(out: Path, jobs: int) -> Path:
    """Build the wheel into ``out`` (created atomically: a broken build leaves nothing there) and return its path."""
    _check_tools()
    arch = _gpu_arch()
    env = {**os.environ, 'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(jobs), 'CFLAGS': '-O2 -g0'}
    if arch is not None:
        env |= {'TORCH_CUDA_ARCH_LIST': arch, 'FORCE_CUDA': '1'}
    else:
        # A GPU without nvcc must not make mmcv's set-up script ask for a CUDA toolkit.
        env |= {'CUDA_VISIBLE_DEVICES': '', 'FORCE_CUDA': '0'}
    with tempfile.TemporaryDirectory(prefix='eff_plugins_mmcv_') as tmp:
        log = Path(tmp) / 'build.log'
        tree = _download(Path(tmp), log)
        patch_sources(tree)
        command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', tmp]
        _run('compiling mmcv', [*command, str(tree)], log, env=env)
        wheel = next(Path(tmp).glob('mmcv-*.whl'))
        with atomic(out / wheel.name) as partial:
            shutil.copyfile(wheel, partial)
        return out / wheel.name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--force', action='store_true', help='build even if a wheel for this environment is cached')
    parser.add_argument('--no-install', action='store_true', help='build (or find) the wheel and print its path only')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='compilers to run side by side')
    args = parser.parse_args(argv)
    try:
        import torch
    except ImportError:
        print('build_mmcv: PyTorch is not installed; install it first (pip install torch)', file=sys.stderr)
        return 1
    folder = cached_wheel_folder()
    wheel = next(folder.glob('mmcv-*.whl'), None)
    try:
        if wheel is None or args.force:
            kind = f'CUDA operators for compute capability {_gpu_arch()}' if _gpu_arch() else 'CPU operators'
            print(
                f'build_mmcv: building mmcv {MMCV_VERSION} ({kind}) for torch {torch.__version__}, {args.jobs} jobs; '
                'about 2 minutes on 2 cores',
                flush=True,
            )
            start = time.monotonic()
            wheel = build_wheel(folder, args.jobs)
            print(f'build_mmcv: built in {time.monotonic() - start:.0f} s', flush=True)
        else:
            print(f'build_mmcv: using the wheel built before, {wheel}', flush=True)
        if not args.no_install:
            pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--force-reinstall', str(wheel)]
            with tempfile.TemporaryDirectory() as tmp:
                _run('installing the mmcv wheel', pip, Path(tmp) / 'install.log')
    except BuildError as error:
        print(f'build_mmcv: {error}', file=sys.stderr)
        return 1
    print(f'build_mmcv: {wheel}' if args.no_install else f'build_mmcv: mmcv {MMCV_VERSION} is installed')
    return 0


if __name__ == '__main__':
    sys.exit(main())
