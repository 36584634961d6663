"""Native kernels: shipped as source, compiled for this processor at the first use, optional."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from eff_plugins.cache import cache_folder

SOURCES = Path(__file__).parent
# name -> (floats in a vector register, rows of a register tile, vectors in a row of it, compiler flags), the best last
_INSTRUCTION_SETS: dict[str, tuple[int, int, int, tuple[str, ...]]] = {'portable': (4, 6, 2, ())}
if platform.machine().lower() in ('x86_64', 'amd64'):
    _INSTRUCTION_SETS |= {
        'avx2': (8, 6, 2, ('-mavx2', '-mfma')),
        'avx512': (16, 6, 4, ('-mavx512f', '-mavx512vl', '-mavx512dq', '-mfma', '-mprefer-vector-width=512')),
    }


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, else the first of c++, g++, clang++ on the PATH, else None."""
    wanted = [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++', 'clang++']
    return next((found for found in map(shutil.which, wanted) if found), None)


def _commands(cxx: str, folder: Path, parallel: list[str]) -> list[list[str]]:
    common = [cxx, '-std=c++17', '-O3', '-fPIC', '-ffp-contract=fast', *parallel, '-c']
    commands = [
        [*common, str(SOURCES / f'{name}.cpp'), '-o', str(folder / f'{name}.o')] for name in ('blocks', 'cpu', 'plan')
    ]
    for name, (lanes, rows, vectors, flags) in _INSTRUCTION_SETS.items():
        macros = [f'-DISA={name}', f'-DLANES={lanes}', f'-DMR={rows}', f'-DNV={vectors}']
        for source in ('rows', 'scores', 'branch', 'interpolate'):
            target = str(folder / f'{source}_{name}.o')
            commands.append([*common, *flags, *macros, str(SOURCES / f'{source}.cpp'), '-o', target])
    objects = [command[-1] for command in commands]
    return [*commands, [cxx, '-shared', *parallel, *objects, '-o', str(folder / 'rows.so')]]


def _compile(commands: list[list[str]]) -> str | None:
    """None, or the first error."""
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if 'error' in line] or ['no message']
            return f'{Path(command[-1]).name} did not compile with {command[0]}: {lines[0]}'
    return None


def build(cxx: str) -> Path:
    """Compile the kernels into the cache, unless a library of the same sources and compiler lies there.

    Raises:
        RuntimeError: The compiler failed; the message has its first error.
    """
    version = subprocess.run([cxx, '--version'], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(version.encode() + repr(_INSTRUCTION_SETS).encode())
    for source in sorted([*SOURCES.glob('*.cpp'), *SOURCES.glob('*.h')]):
        digest.update(source.read_bytes())
    target = cache_folder('native') / f'rows-{digest.hexdigest()[:16]}.so'
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        # a compiler without OpenMP makes a library for one thread
        error = _compile(_commands(cxx, folder, ['-fopenmp'])) and _compile(_commands(cxx, folder, []))
        if error:
            raise RuntimeError(error)
        (folder / 'rows.so').replace(target)
    return target


class Kernels:
    """The library for one instruction set.

    Attributes:
        name: ``'portable'``, ``'avx2'`` or ``'avx512'``.
        columns: Output channels that are packed together.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.columns = library[f'columns_{name}']
        self.columns.argtypes, self.columns.restype = [number], number
        self.convolve = library[f'convolve_{name}']
        self.convolve.argtypes = [pointer, number, *[pointer] * 3, number, *[pointer] * 5]
        self.convolve.restype = None
        self.run_branch = library[f'run_branch_{name}']
        self.run_branch.argtypes = [pointer, ctypes.c_float, *[pointer] * 4, number, number, pointer, pointer]
        self.run_branch.restype = number
        self.interpolate = library[f'interpolate_{name}']
        self.interpolate.argtypes = [pointer] * 6
        self.interpolate.restype = None
        self.convolve_blocks = library[f'convolve_blocks_{name}']
        self.convolve_blocks.argtypes = [pointer, number, *[pointer] * 9]
        self.convolve_blocks.restype = None
        self.max_blocks = library[f'max_blocks_{name}']
        self.max_blocks.argtypes = [pointer] * 6
        self.max_blocks.restype = None
        self.block_codes = library.block_codes
        self.block_codes.argtypes = [*[pointer] * 3, number, pointer, *[number] * 6, pointer, pointer]
        self.block_codes.restype = ctypes.c_int64
        self.combine_blocks = library.combine_blocks
        self.combine_blocks.argtypes = [*[pointer] * 3, number, pointer, number, pointer]
        self.combine_blocks.restype = None
        self.plan_rows = library.plan_rows
        self.plan_rows.argtypes = [pointer, *[number] * 5, pointer, number, pointer, pointer]
        self.plan_rows.restype = None
        self.other_rows = library.other_rows
        self.other_rows.argtypes = [pointer, number, number, pointer]
        self.other_rows.restype = number
        self.rows_above = library.rows_above
        self.rows_above.argtypes = [pointer, number, ctypes.c_float, pointer]
        self.rows_above.restype = number
        self.patch_scores = library[f'patch_scores_{name}']
        self.patch_scores.argtypes = [pointer, *[number] * 5, *[pointer] * 3]
        self.patch_scores.restype = None
        self.conv_scores = library[f'conv_scores_{name}']
        self.conv_scores.argtypes = [pointer, *[number] * 6, *[pointer] * 4]
        self.conv_scores.restype = None


@cache
def kernels(name: str | None = None) -> Kernels | None:
    """The kernels for this processor, built at the first call; None where they cannot be had, with one line on stderr.

    Args:
        name: An instruction set in place of the processor's best; ``EFF_PLUGINS_NATIVE`` sets the default, and ``0`` there
            switches the kernels off.

    Raises:
        ValueError: An instruction set that this processor or this build does not have.
    """
    name = name or os.environ.get('EFF_PLUGINS_NATIVE')
    if name == '0':
        return None
    cxx = compiler()
    if cxx is None:
        print('eff_plugins: no C++ compiler found, sparse layers run in plain torch (slower)', file=sys.stderr)
        return None
    try:
        library = ctypes.CDLL(str(build(cxx)))
    except (RuntimeError, OSError) as error:
        print(f'eff_plugins: {error}; sparse layers run in plain torch (slower)', file=sys.stderr)
        return None
    usable = list(_INSTRUCTION_SETS)[: library.best_instruction_set() + 1]
    if name is not None and name not in usable:
        raise ValueError(f'instruction set {name!r} is not one of {", ".join(usable)}, which this processor has')
    return Kernels(library, name or usable[-1])


def kernels_for(*tensors: Tensor | None) -> Kernels | None:
    """The kernels where they serve all of ``tensors`` that are given: fp32 on a CPU, no gradient wanted; else None.

    Under autocast, which asks for another type, they do not.
    """
    if torch.is_autocast_enabled('cpu'):
        return None
    gradients = torch.is_grad_enabled()
    for t in tensors:  # no generator: this is asked for each layer, in a cold interpreter
        if t is not None and not (t.is_cpu and t.dtype == torch.float32 and not (gradients and t.requires_grad)):
            return None
    return kernels()
