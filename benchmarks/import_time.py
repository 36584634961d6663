"""Measure what ``import eff_plugins`` costs over importing torch, mmengine and numpy.

In each of several fresh processes both imports are timed one after the other; medians. One process before them warms the
disk cache. ``python benchmarks/import_time.py [--runs 11] [--out benchmarks/results/import_time.csv]``
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
CODE = f"""
import time
t0 = time.perf_counter()
{BASE}
t1 = time.perf_counter()
import eff_plugins, eff_plugins.registry
print(t1 - t0, time.perf_counter() - t1)
"""


def seconds() -> tuple[float, float]:
    """Wall-clock seconds of the base's import and then of the suite's, in a fresh process, interpreter start excluded."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, '-W', 'ignore', '-c', CODE]
    base, suite = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split()
    return float(base), float(suite)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=11)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    seconds()
    pairs = [seconds() for _ in range(args.runs)]
    import torch

    row = {
        'base_s_p50': f'{statistics.median(b for b, _ in pairs):.3f}',
        'suite_s_p50': f'{statistics.median(s for _, s in pairs):.3f}',
        'suite_s_max': f'{max(s for _, s in pairs):.3f}',
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
