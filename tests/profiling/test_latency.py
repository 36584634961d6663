import time

import numpy as np
import pytest
import torch

from eff_plugins.profiling import latency
from eff_plugins.profiling.latency import (
    Latency,
    busy_note,
    mean_of_medians,
    mean_ratio,
    paired_ratio,
    threads,
    time_interleaved,
)


def test_rounds_alternate_and_warm_up_is_not_counted():
    order = []
    result = time_interleaved(
        {'a': lambda: order.append('a'), 'b': lambda: order.append('b')}, repeats=3, warmup=2, min_ms=0
    )
    assert order == ['a', 'b'] * 2 + ['a', 'b'] + ['a', 'b'] * 3  # warm-up, one to see how long a call takes, rounds
    assert {name: len(r.ms) for name, r in result.items()} == {'a': 3, 'b': 3}


def test_times_are_milliseconds_of_one_call_and_ratios_follow():
    result = time_interleaved({'slow': lambda: time.sleep(0.006), 'fast': lambda: time.sleep(0.002)}, 7, 0, min_ms=5)
    assert result['slow'].p50 >= 6 and result['fast'].p50 >= 2
    assert result['slow'].p50 <= result['slow'].p90
    ratio = paired_ratio(result['slow'], result['fast'])
    assert 1 < ratio.low <= ratio.median <= ratio.high


def test_a_short_function_is_called_more_than_once_a_measurement():
    calls = []
    # the call that tells how long one takes may be interrupted for a while
    time_interleaved({'a': lambda: calls.append(1)}, repeats=2, warmup=0, min_ms=50)
    assert len(calls) > 20


def test_nothing_is_recorded_for_gradients_and_threads_are_restored():
    weight = torch.ones(1, requires_grad=True)
    seen = []
    before = torch.get_num_threads()
    with threads(2):
        assert torch.get_num_threads() == 2
        time_interleaved({'a': lambda: seen.append((weight * 2).requires_grad)}, 1, 0, min_ms=0)
    assert torch.get_num_threads() == before and not any(seen)


def test_paired_ratio_is_immune_to_drift_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(40):
        drift = np.linspace(1, 3, 30)
        b = Latency(tuple(drift * rng.lognormal(0, 0.05, 30)))
        a = Latency(tuple(1.2 * drift * rng.lognormal(0, 0.05, 30)))
        ratio = paired_ratio(a, b, resamples=500, seed=trial)
        covered += ratio.low <= 1.2 <= ratio.high
    assert covered >= 34
    assert paired_ratio(a, b, seed=3) == paired_ratio(a, b, seed=3)


def test_busy_machine_is_named(monkeypatch):
    monkeypatch.setattr(latency.os, 'cpu_count', lambda: 4)
    monkeypatch.setattr(latency.os, 'getloadavg', lambda: (2.0, 0, 0))
    assert busy_note(2) == ''
    assert 'load average 2.0 on 4 cores, 3 wanted' in busy_note(3)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: time_interleaved({}), 'functions is empty'),
        (lambda: time_interleaved({'a': int}, repeats=0), 'repeats=0'),
        (lambda: time_interleaved({'a': int}, warmup=-1), 'warmup=-1'),
        (lambda: threads(0).__enter__(), 'threads=0'),
        (lambda: paired_ratio(Latency((1.0,)), Latency((1.0, 2.0))), '1 and 2 measurements'),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_depends_on_the_input_is_averaged_over_inputs():
    """Half of the batches cost nothing: half of the time is gone, though a median over all would say nothing is."""
    sparse = [Latency((1.0, 1.0, 1.2)), Latency((101.0, 99.0, 100.0)), Latency((100.0, 100.0, 100.0))]
    dense = [Latency((100.0, 100.0, 98.0))] * 3
    assert mean_of_medians(sparse) == pytest.approx(67.0)
    ratio = mean_ratio(sparse, dense)
    assert ratio.median == pytest.approx(0.67) and ratio.low <= ratio.median <= ratio.high
    assert ratio.high - ratio.low < 0.03
    with pytest.raises(ValueError, match='do not pair'):
        mean_ratio(sparse, dense[:2])


def test_what_makes_ready_is_called_before_each_measurement_and_not_counted():
    order = []
    result = time_interleaved(
        {'a': lambda: order.append('a'), 'b': lambda: order.append('b')},
        repeats=2,
        warmup=1,
        min_ms=0,
        before={'b': lambda: (order.append('ready'), time.sleep(0.01))},
    )
    assert order == ['a', 'ready', 'b'] * 4 and result['b'].p50 < 5
