"""The statistics of benchmarks/scaling_latency.py, on made-up and on the recorded measurements."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def study():
    spec = importlib.util.spec_from_file_location('scaling_latency', ROOT / 'benchmarks' / 'scaling_latency.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fit_recovers_exponents(study):
    rng = np.random.default_rng(0)
    rows = [dict(macs=10 ** rng.uniform(8, 10), activations=10 ** rng.uniform(6, 7)) for _ in range(30)]
    for row in rows:
        row['ms'] = 3e-6 * row['macs'] ** 0.5 * row['activations'] ** 0.3
    correlation, rank, exponents, residual = study.fit(rows, ('macs', 'activations'), 'ms')
    assert exponents == pytest.approx([0.5, 0.3]) and correlation == pytest.approx(1) == rank and residual < 1e-6
    assert study.fit(rows, ('activations',), 'ms')[0] < 0.9


def test_groups_compare_networks_of_equal_multiply_adds(study):
    rows = [dict(group='b0 x2', activations=a, ms=t) for a, t in ((1, 5), (2, 6), (3, 7))]
    rows += [dict(group='b0 x0.5', activations=a, ms=t) for a, t in ((1, 7), (2, 6), (3, 5))]
    rows += [dict(group='published', activations=a, ms=1) for a in range(5)]
    assert study.within_groups(rows, 'activations', 'ms') == (0.0, 2)


def test_recorded_latency_follows_both(study):
    with (ROOT / 'benchmarks' / 'results' / 'scaling_latency.csv').open() as stream:
        rows = [
            {key: float(row[key]) for key in ('macs', 'activations', 'cpu_ms_p50')} for row in csv.DictReader(stream)
        ]
    macs, activations, both = (
        study.fit(rows, keys, 'cpu_ms_p50') for keys in (('macs',), ('activations',), ('macs', 'activations'))
    )
    assert len(rows) == 25
    assert activations[1] > macs[1] + 0.1  # activations order the networks better
    assert both[3] < min(macs[3], activations[3]) / 2 and min(both[2]) > 0.3
