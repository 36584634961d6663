"""Meet a budget without retraining: fit the knob of a model's policies on data, then turn it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import decisions, dynamic_modules, executing, is_dynamic
from eff_plugins.dynamic.policies import Knob, Policy
from eff_plugins.dynamic.recorder import record
from eff_plugins.files import atomic
from eff_plugins.profiling.macs import count_macs

# A tried setting that spends a wanted budget as nearly as this is near enough
_TOLERANCE = 0.005
# Neighbours on a curve are measured between, so often at most, where their shares differ by more than this
_GAP, _BETWEEN = 0.06, 12


@dataclass(frozen=True)
class Calibration:
    """Which knob spends which share of the network's multiply-adds, as measured on data.

    Attributes:
        kind: Kind of policy that it holds for, ``'learned'`` or ``'random'``.
        knobs: Tried values of the policies' knob, from everything on to nothing on: a threshold, a density, or one number
            an exit or choice.
        shares: Executed share of the dense network at each, descending.
        network_macs: Mean dense multiply-adds a sample of the data.
        fingerprint: Of the model's weights and settings, so that another model's calibration is noticed.
    """

    kind: str
    knobs: tuple[Knob, ...]
    shares: tuple[float, ...]
    network_macs: float
    fingerprint: str

    def knob(self, budget: float) -> Knob:
        """The knob that spends ``budget``, interpolated.

        Raises:
            ValueError: The budget is outside (0, 1] or below what the network spends with nothing on.
        """
        check_share(budget)
        floor, top = self.shares[-1], self.shares[0]
        if budget < floor - 1e-9:
            raise ValueError(
                f'budget={budget} is below the static floor of this network, {floor:.3f}: that is the minimum'
            )
        if budget >= top:
            return self.knobs[0]
        above = min(share for share in self.shares if share > budget)
        below = max((share for share in self.shares if share <= budget), default=floor)
        if above - below > 2 * _GAP and min(above - budget, budget - below) > _TOLERANCE:
            warnings.warn(
                f'budget={budget} lies between the measured shares {below:.3f} and {above:.3f}: what is spent may be far '
                f'from it; calibrate(..., budgets=({budget},)) measures there',
                stacklevel=3,
            )
        knobs = np.array(self.knobs[::-1])
        if knobs.ndim == 1:
            return float(np.interp(budget, self.shares[::-1], knobs))
        return tuple(float(np.interp(budget, self.shares[::-1], part)) for part in knobs.T)

    def save(self, path: str | Path) -> None:
        """Write as json, atomically."""
        with atomic(path) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + '\n')

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        try:
            data = json.loads(Path(path).read_text())
            knobs, shares = np.array(data['knobs'], float), np.array(data['shares'], float)
            if shares.ndim != 1 or not 1 < len(shares) == len(knobs) or (np.diff(shares) > 0).any():
                raise ValueError('it needs a knob for each of two or more shares, which descend')
            tried = tuple(tuple(knob) if knobs.ndim > 1 else knob for knob in knobs.tolist())
            return cls(**{**data, 'knobs': tried, 'shares': tuple(shares.tolist())})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} is no calibration: {error}') from error


def check_share(budget: float) -> None:
    """Raise ValueError where a budget is no share of the dense network: no number in (0, 1]."""
    if not isinstance(budget, Real) or not 0 < budget <= 1:
        raise ValueError(f'budget={budget!r} must lie in (0, 1], a share of the dense network')


def fingerprint(model: nn.Module) -> str:
    """Hash of the model's weights and of its dynamic modules' settings, whatever wraps the model.

    All weights count: what a policy decides depends on the maps that it reads.
    """
    digest = hashlib.sha256()
    for name, module in dynamic_modules(model):
        digest.update(f'{_unwrapped(name)}:{type(module).__name__}:{module.settings()}'.encode())
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f'{_unwrapped(key)}{tuple(value.shape)}'.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _unwrapped(name: str) -> str:
    """A dotted name without the parts that wrappers add."""
    return '.'.join(part for part in name.split('.') if part not in ('_orig_mod', 'module'))


def network_macs(model: nn.Module, run: Callable[[], Any], samples: int) -> float:
    """Dense multiply-adds of the whole network for one sample, counted by running it with everything on.

    Args:
        model: A model that contains dynamic modules.
        run: Runs it once, on ``samples`` samples.
        samples: Of that run.
    """
    with executing(model, 'dense'):
        return count_macs(model, run).get('', 0) / samples


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
    budgets: float | Sequence[float] = (),
) -> Calibration:
    """Measure what the present kind of policy spends at each setting of its knob, for :func:`set_budget`.

    All policies share one knob, such as a threshold. The model's masks, not its time, are measured, in evaluation mode.

    Args:
        model: A model that contains dynamic modules with policies.
        batches: Inputs of a fixed part of the training split; a few hundred samples are enough.
        forward: Runs the model on one of them; by default ``model(batch)``.
        budgets: Close in on these, in about half as many passes over the data as the whole curve takes; without, the curve
            is measured at fixed settings and serves any budget.

    Returns:
        The calibration, which is also kept with the model for ``set_budget``.

    Raises:
        ValueError: No data, no policy, a kind without a knob, a knob that changes nothing, or a budget outside (0, 1].
    """
    run = forward or (lambda network, batch: network(batch))
    steps = _alike(model)
    kind = steps[0].kind
    before = [step.knob for step in steps]
    data = list(batches)
    if not data or not any(map(_samples, data)):
        raise ValueError('batches is empty: a calibration needs data')
    wanted = np.atleast_1d(np.asarray(budgets, float)).tolist()
    for budget in wanted:
        check_share(budget)
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    curve: dict[float, float] = {}  # place in the list of knobs -> share

    def measure(place: float) -> float:
        if place not in curve:
            set_knob(model, _between(knobs, place))
            curve[place] = _mean_share(model, data, run, totals)
        return curve[place]

    try:
        with executing(model, 'masked'):
            totals, scores = _survey(model, data, run)
            knobs = steps[0].tried(scores)
            for place in (0, len(knobs) - 1) if wanted else range(len(knobs)):
                measure(place)
            for budget in wanted:
                _close_in(measure, len(knobs) - 1, budget)
            if not wanted:
                _fill_in(measure, curve)
    finally:
        for step, value in zip(steps, before, strict=True):
            step.knob = value
        for module, training in was_training:
            module.training = training
    if max(curve.values()) - min(curve.values()) < 1e-9:
        raise ValueError(
            f'the {kind} policy decides nothing here, so there is nothing to calibrate: are the decisions given from '
            'outside, as by use_mask(...)?'
        )
    places = sorted(curve)
    falling = np.minimum.accumulate([curve[place] for place in places])
    mean = float(sum(total * count for total, count in totals) / sum(count for _, count in totals))
    tried = tuple(_between(knobs, place) for place in places)
    calibration = Calibration(kind, tried, tuple(map(float, falling)), mean, _identity(model))
    _keep(model, {kind: calibration})
    return calibration


def _between(knobs: list[Knob], place: float) -> Knob:
    """The knob at a place of the list, which may lie between two."""
    low = min(int(place), len(knobs) - 2)
    pair = np.array(knobs[low : low + 2])
    knob = pair[0] + (place - low) * (pair[1] - pair[0])
    return float(knob) if knob.ndim == 0 else tuple(map(float, knob))


def _close_in(measure: Callable[[float], float], last: int, budget: float) -> None:
    """Measure at places ever nearer to what spends ``budget``: halving the list, then between two neighbours."""
    low, high = 0, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle) >= budget else (low, middle)
    on, off = float(low), float(high)
    for _ in range(3):
        above, below = measure(on), measure(off)
        if not above > budget > below or min(above - budget, budget - below) <= _TOLERANCE:
            return
        between = on + (off - on) * (above - budget) / (above - below)
        on, off = (between, off) if measure(between) >= budget else (on, between)


def _fill_in(measure: Callable[[float], float], curve: dict[float, float]) -> None:
    """Measure in the middle of the widest gap between neighbours on the curve, again and again."""
    for _ in range(_BETWEEN):
        # below an eighth of the way from setting to setting a gap is a step that no setting divides
        gaps = [(curve[a] - curve[b], a, b) for a, b in pairwise(sorted(curve)) if b - a > 1 / 8]
        gap, on, off = max(gaps, default=(0.0, 0.0, 0.0))
        if gap <= _GAP:
            return
        measure((on + off) / 2)


def _samples(batch: Any) -> int:
    """How many samples a batch has, as far as that can be told."""
    return len(batch) if hasattr(batch, '__len__') else 1


def _keep(model: nn.Module, calibrations: dict[str, Calibration]) -> None:
    model._calibrations = {**getattr(model, '_calibrations', {}), **calibrations}  # type: ignore[assignment]


def carry_calibrations(model: nn.Module, copy: nn.Module) -> None:
    """Let calibrations of ``model``, made or loaded, hold for ``copy``, the same network in another form (folded, cast).

    Weights differ between the two, decisions do not. On the meta device there are none.

    Args:
        model: Any model.
        copy: Made from a deep copy, so that it has the same calibrations.
    """
    if is_dynamic(model) and not any(weight.is_meta for weight in model.parameters()):
        copy._form_of = {fingerprint(copy): _identity(model)}  # type: ignore[assignment]


def _identity(model: nn.Module) -> str:
    """The fingerprint of the network that ``model`` is a form of, as long as its weights are that form's."""
    own = fingerprint(model)
    return getattr(model, '_form_of', {}).get(own, own)


def _alike(model: nn.Module) -> list[Policy]:
    """The model's policies; they share a knob, so they must be of one class."""
    steps = decisions(model)
    classes = sorted({type(step).__name__ for step in steps})
    if len(classes) > 1:
        raise ValueError(f'{type(model).__name__} mixes policies that share no knob: {", ".join(classes)}')
    return steps


def _survey(model: nn.Module, data: list, run: Callable) -> tuple[list[tuple[float, int]], list[Tensor]]:
    """(dense multiply-adds a sample, samples) of each batch, and the scores of all policies."""
    totals, scores = [], []
    for batch in data:
        with record(model) as stats:
            run(model, batch)
        totals.append((network_macs(model, partial(run, model, batch), stats.samples), stats.samples))
        scores += [entry.scores.float().cpu() for entry in stats.entries if entry.scores is not None]
    return totals, scores


def _mean_share(model: nn.Module, data: list, run: Callable, totals: list[tuple[float, int]]) -> float:
    spent = dense = 0.0
    for batch, (total, samples) in zip(data, totals, strict=True):
        with record(model) as stats:
            run(model, batch)
        spent += float(total - stats.saved_macs()) * samples
        dense += total * samples
    return spent / dense


def set_budget(model: nn.Module, budget: float, calibration: Calibration | None = None) -> Knob:
    """Let every policy of ``model`` spend ``budget`` in evaluation; returns the knob that does it.

    Args:
        model: A model that contains dynamic modules with policies.
        budget: Share of the whole network's dense multiply-adds, policies included, in (0, 1].
        calibration: In place of the one that :func:`calibrate` left with the model.

    Raises:
        ValueError: No calibration for the present kind of policy, another model's calibration, a budget out of reach, or a
            kind without a knob.
    """
    step = _alike(model)[0]
    _ = step.knob  # 'all' has none
    found = calibration or getattr(model, '_calibrations', {}).get(step.kind)
    if found is None:
        raise ValueError(
            f'no calibration for the {step.kind} policy of this model: call calibrate(model, batches) first'
        )
    check_calibration(model, found)
    knob = found.knob(budget)
    set_knob(model, knob)
    return knob


def check_calibration(model: nn.Module, calibration: Calibration) -> None:
    """Raise ValueError where a calibration is not one of ``model`` with its present kind of policy."""
    kind = _alike(model)[0].kind
    if calibration.kind != kind:
        raise ValueError(f'the calibration is for the {calibration.kind} policy, the model has {kind}')
    if calibration.fingerprint != _identity(model):
        raise ValueError('the calibration is of another model, of other weights or settings: calibrate this one')


def set_knob(model: nn.Module, knob: Knob) -> None:
    """Give every policy of ``model`` the setting that ``set_budget`` would: a threshold, a random density ..."""
    for step in decisions(model):
        step.knob = knob
