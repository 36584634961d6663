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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from eff_plugins.cache import cache_folder

SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Variant:
    """How the kernels are compiled for an instruction set and a type of numbers.

    Attributes:
        level: What the processor must have; see ``LEVELS``.
        dtype: The type of maps.
        lanes: Floats in a vector register.
        flags: For the compiler.
        tile: Rows of a register tile and vectors in a row of it; that of bf16 has one size.
    """

    level: str
    dtype: torch.dtype
    lanes: int
    flags: tuple[str, ...] = ()
    tile: tuple[int, int] = (0, 0)

    @property
    def symbol(self) -> str:
        """What the names of its functions end with."""
        return f'{self.level}_bf16' if self.dtype == torch.bfloat16 else self.level

    def macros(self) -> list[str]:
        """What the sources read."""
        rows, vectors = self.tile
        bf16 = ['-DBF16'] if self.dtype == torch.bfloat16 else []
        return [f'-DISA={self.symbol}', f'-DLANES={self.lanes}', f'-DMR={rows}', f'-DNV={vectors}', *bf16]


# What processors have, the best last; the order is that of native/cpu.cpp
LEVELS = ('portable', 'avx2', 'avx512', 'avx512bf16', 'amx')
_AVX512 = ('-mavx512f', '-mavx512vl', '-mavx512dq', '-mfma', '-mprefer-vector-width=512')
VARIANTS = [
    Variant('portable', torch.float32, 4, (), (6, 2)),
    Variant('avx2', torch.float32, 8, ('-mavx2', '-mfma'), (6, 2)),
    Variant('avx512', torch.float32, 16, _AVX512, (6, 4)),
    Variant('portable', torch.bfloat16, 4),
    Variant('avx512bf16', torch.bfloat16, 16, (*_AVX512, '-mavx512bf16')),
    Variant('amx', torch.bfloat16, 16, (*_AVX512, '-mavx512bf16', '-mamx-tile', '-mamx-bf16')),
]
if platform.machine().lower() not in ('x86_64', 'amd64'):
    VARIANTS = [variant for variant in VARIANTS if not variant.flags]


def levels_of(dtype: torch.dtype) -> list[str]:
    """The levels that have kernels of their own for maps of ``dtype``, whatever this processor has."""
    return [variant.level for variant in VARIANTS if variant.dtype == dtype]


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, else the first of c++, g++, clang++ on the PATH, else None."""
    wanted = [os.environ['CXX']] if os.environ.get('CXX') else ['c++', 'g++', 'clang++']
    return next((found for found in map(shutil.which, wanted) if found), None)


def _commands(cxx: str, folder: Path, parallel: list[str], variants: list[Variant]) -> list[list[str]]:
    """What compiles each source, and last what links them."""
    common = [cxx, '-std=c++17', '-O3', '-fPIC', '-ffp-contract=fast', *parallel, '-c']
    sources: list[tuple[str, str, list[str]]] = [(name, f'{name}.o', []) for name in ('blocks', 'cpu', 'plan')]
    for variant in variants:
        flags = [*variant.flags, *variant.macros()]
        sources += [(name, f'{name}_{variant.symbol}.o', flags) for name in ('rows', 'scores', 'branch', 'interpolate')]
    commands = [[*common, *flags, str(SOURCES / f'{name}.cpp'), '-o', str(folder / to)] for name, to, flags in sources]
    objects = [command[-1] for command in commands]
    return [*commands, [cxx, '-shared', *parallel, *objects, '-o', str(folder / 'rows.so')]]


def _run(command: list[str]) -> str | None:
    """None, or the first error."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.splitlines() if 'error' in line] or ['no message']
    return f'{Path(command[-1]).name} did not compile with {command[0]}: {lines[0]}'


def _compile(commands: list[list[str]]) -> str | None:
    """None, or the first error."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for error in pool.map(_run, commands[:-1]):
            if error:
                pool.shutdown(cancel_futures=True)
                return error
    return _run(commands[-1])


def build(cxx: str) -> Path:
    """Compile the kernels into the cache, unless a library of the same sources and compiler lies there.

    Raises:
        RuntimeError: The compiler failed; the message has its first error.
    """
    version = subprocess.run([cxx, '--version'], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(version.encode() + repr(VARIANTS).encode())
    for source in sorted([*SOURCES.glob('*.cpp'), *SOURCES.glob('*.h')]):
        digest.update(source.read_bytes())
    target = cache_folder('native') / f'rows-{digest.hexdigest()[:16]}.so'
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    single = [variant for variant in VARIANTS if variant.dtype == torch.float32]
    # a compiler without OpenMP makes a library for one thread, one that is too old for bf16 one without that
    for parallel, variants in ((['-fopenmp'], VARIANTS), ([], VARIANTS), (['-fopenmp'], single), ([], single)):
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            error = _compile(_commands(cxx, Path(name), parallel, variants))
            if error is None:
                (Path(name) / 'rows.so').replace(target)
                return target
    raise RuntimeError(error)


class Kernels:
    """The library for one instruction set and type of maps.

    Attributes:
        name: As the functions' names end.
        dtype: The type of maps.
        columns: Products that make one number -> output channels that are packed together.
        depth_step: To a multiple of how many products weights are padded, and how many of them lie side by side.
    """

    def __init__(self, library: ctypes.CDLL, variant: Variant) -> None:
        self.name = name = variant.symbol
        self.dtype = variant.dtype
        self.depth_step = (32, 2) if variant.dtype == torch.bfloat16 else (1, 1)
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


def kernels(name: str | None = None, dtype: torch.dtype = torch.float32) -> Kernels | None:
    """The kernels for this processor, built at the first call; None where they cannot be had, with one line on stderr.

    Kernels for bf16 are there where the processor multiplies bf16, or where ``'portable'`` is asked for.

    Args:
        name: One of ``LEVELS`` in place of the processor's best; ``EFF_PLUGINS_NATIVE`` sets the default, and ``0`` there
            switches the kernels off.
        dtype: The type of maps.

    Raises:
        ValueError: A level that this processor does not have.
    """
    return _kernels(name, dtype)


@cache  # by the values of the arguments: there is one object for each
def _kernels(name: str | None, dtype: torch.dtype) -> Kernels | None:
    name = name or os.environ.get('EFF_PLUGINS_NATIVE')
    if name == '0':
        return None
    library = _library()
    if library is None:
        return None
    usable = LEVELS[: _best(library) + 1]
    if name is not None and name not in usable:
        raise ValueError(f'instruction set {name!r} is not one of {", ".join(usable)}, which this processor has')
    level = LEVELS.index(name or usable[-1])
    found = [v for v in VARIANTS if v.dtype == dtype and hasattr(library, f'columns_{v.symbol}')]
    if dtype == torch.bfloat16:  # products of another level's would be widened one by one
        found = [v for v in found if v.level == LEVELS[level] and (v.level != 'portable' or name)]
    found = [v for v in found if LEVELS.index(v.level) <= level]
    return Kernels(library, found[-1]) if found else None


def _best(library: ctypes.CDLL) -> int:
    """The place in ``LEVELS`` of the best that this processor has."""
    return library.best_instruction_set()


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with one line on stderr, where they cannot be had."""
    cxx = compiler()
    if cxx is None:
        print('eff_plugins: no C++ compiler found, sparse layers run in plain torch (slower)', file=sys.stderr)
        return None
    try:
        return ctypes.CDLL(str(build(cxx)))
    except (RuntimeError, OSError) as error:
        print(f'eff_plugins: {error}; sparse layers run in plain torch (slower)', file=sys.stderr)
        return None


def build_name() -> str:
    """Another one for other sources or another compiler; empty without kernels."""
    library = _library()
    return '' if library is None else Path(library._name).stem


def kernels_for(*maps: Tensor | None, weights: Iterable[Tensor | None] = ()) -> Kernels | None:
    """The kernels where they serve all tensors that are given: on a CPU, no gradient wanted; else None.

    Args:
        *maps: All in fp32 or all in bf16; under autocast in the type that it asks for.
        weights: What the kernels take in any type; they also serve a map in bf16 with weights in fp32.
    """
    gradients = torch.is_grad_enabled()
    dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None
    for t in maps:  # no generator: this is asked for each layer, in a cold interpreter
        if t is None:
            continue
        if not t.is_cpu or (gradients and t.requires_grad) or (dtype is not None and t.dtype is not dtype):
            return None
        dtype = t.dtype
    for t in weights:
        if t is not None and (not t.is_cpu or (gradients and t.requires_grad)):
            return None
    return _kernels(None, dtype) if dtype in (torch.float32, torch.bfloat16) else None
