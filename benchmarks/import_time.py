"""Measure what ``import eff_plugins`` costs over importing torch, mmengine and numpy.

Fresh processes in pairs, alternating; the median of the differences is what counts. One process more before the first
pair warms the disk cache. ``python benchmarks/import_time.py [--runs 11] [--out benchmarks/results/import_time.csv]``
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

# mmengine.registry is what `import mmengine` alone leaves out and every user of a framework loads
BASE = 'import torch, numpy, mmengine, mmengine.registry'
CODE = 'import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)'


def seconds(statement: str) -> float:
    """Wall-clock seconds that the statement takes in a fresh process, interpreter start excluded."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, '-W', 'ignore', '-c', CODE.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=11)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    seconds(f'{BASE}, eff_plugins, eff_plugins.registry')
    pairs = [(seconds(BASE), seconds(f'{BASE}, eff_plugins, eff_plugins.registry')) for _ in range(args.runs)]
    import torch

    row = {
        'base_s_p50': f'{statistics.median(b for b, _ in pairs):.3f}',
        'with_suite_s_p50': f'{statistics.median(s for _, s in pairs):.3f}',
        'cost_s_p50': f'{statistics.median(s - b for b, s in pairs):.3f}',
        'cost_s_max': f'{max(s - b for b, s in pairs):.3f}',
        'runs': args.runs,
        'python': platform.python_version(),
        'torch': torch.__version__,
        'command': f'python {shlex.join(sys.argv)}',
    }
    print(', '.join(f'{key} {value}' for key, value in row.items()))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open('w', newline='') as stream:
            writer = csv.DictWriter(stream, row.keys(), lineterminator='\n')
            writer.writeheader()
            writer.writerow(row)


if __name__ == '__main__':
    main()
