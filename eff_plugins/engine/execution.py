"""How the tools run a dynamic network: execution, budget and policy, set after the weights are there, and what it spent."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from eff_plugins.dynamic.budget import check_share
from eff_plugins.dynamic.choices import OneOf
from eff_plugins.dynamic.module import decisions, is_dynamic, set_execution, set_policy
from eff_plugins.dynamic.watch import Spent, Watch
from eff_plugins.engine.calibration import SAMPLES, meet_budget
from eff_plugins.engine.runs import build_runner
from eff_plugins.engine.weights import all_weights_expected
from eff_plugins.engine.wrapped import unwrapped


@dataclass(frozen=True)
class Operation:
    """How a dynamic network is run; without any option as it was trained, sparse.

    Attributes:
        execution: ``'dense'``, ``'masked'`` or ``'sparse'``; None: sparse where the network is dynamic.
        budget: Share of the dense network's multiply-adds, in (0, 1]; None leaves the policies as they are.
        policy: Kind of all policies; None: learned. ``'fixed:2'`` is the third of several exits, resolutions or the like.
        calibration: File to read a calibration from, or to write it to where there is none yet.
        samples: Of the training split, to calibrate on.

    Raises:
        ValueError: A value out of range, or two that contradict each other.
    """

    execution: str | None = None
    budget: float | None = None
    policy: str | None = None
    calibration: str | None = None
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f'calibration-samples {self.samples}: must be at least 1')
        if self.budget is None:
            if self.calibration is not None:
                raise ValueError('a calibration serves a budget: give --budget as well')
            if self.policy == 'random':
                raise ValueError("policy 'random' spends what a budget tells it to: give --budget as well")
            if self.execution == 'dense' and self.policy is not None:
                raise ValueError("execution 'dense' computes everything, whatever a policy decides: leave --policy out")
            return
        check_share(self.budget)
        if self.execution == 'dense':
            raise ValueError("execution 'dense' computes everything: leave --budget out")
        if self.policy is not None and self.policy.partition(':')[0] in ('all', 'none', 'fixed'):
            raise ValueError(
                f"policy {self.policy!r} has no knob that could meet a budget; 'learned' and 'random' have"
            )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Operation:
        """From what :func:`add_dynamic_arguments` added."""
        return cls(args.execution, args.budget, args.policy, args.calibration, args.calibration_samples)

    def check(self, model: nn.Module) -> None:
        """Before anything is computed: whether ``model`` can be run like this; sets its execution and policies.

        Raises:
            ValueError: A static model that is asked to decide, or an unknown execution or policy.
        """
        if is_dynamic(model):
            set_execution(model, self.execution or 'sparse')
            if self.policy is not None:
                set_policy(model, *_parse(self.policy))
        elif self != Operation(samples=self.samples) and self != Operation('dense', samples=self.samples):
            raise ValueError(
                f'{type(model).__name__} contains no dynamic module: its only execution is dense, and it has no budget'
            )

    @property
    def needs_policies(self) -> bool:
        """Whether the policies' weights count: LCCL's multiply what random decisions leave."""
        return self.execution != 'dense' and self.policy in (None, 'learned', 'random')

    def apply(self, model: nn.Module, cfg: Config) -> None:
        """Run ``model`` like this from now on; its weights must be loaded, since a calibration depends on them."""
        self.check(model)
        if self.budget is not None:
            meet_budget(model, self.budget, cfg, self.calibration, self.samples)

    def labels(self, model: nn.Module) -> dict[str, Any]:
        """``execution``, ``budget`` and ``policy`` as benchmarks and metrics files write them."""
        execution = self.execution or ('sparse' if is_dynamic(model) else 'dense')
        return dict(execution=execution, budget=self.budget, policy=None if execution == 'dense' else _kind(model))


def _kind(model: nn.Module) -> str | None:
    """Kind of the policies; None where the network decides without one that could be replaced."""
    try:
        decide = decisions(model)[0]
    except ValueError:
        return None
    return f'fixed:{decide.index}' if decide.kind == 'fixed' else decide.kind


def _parse(policy: str) -> tuple[str, int | None]:
    """``'fixed:2'`` -> kind and index."""
    kind, _, index = policy.partition(':')
    if (kind == 'fixed') != index.isdecimal() or (kind == 'fixed') != (':' in policy):
        raise ValueError(
            f"policy {policy!r}: 'fixed' is followed by which of the network's exits or resolutions, counted from 0, as in "
            'fixed:2, and no other policy is'
        )
    return kind, int(index) if index else None


def add_dynamic_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the tools that run a model which may be dynamic."""
    group = parser.add_argument_group('dynamic networks')
    group.add_argument('--execution', metavar='E', help='dense, masked or sparse (default)')
    group.add_argument('--budget', type=float, metavar='B', help="share of the dense network's multiply-adds to spend")
    group.add_argument('--policy', metavar='P', help='learned (default), or a control: random, all, none, fixed:K')
    group.add_argument(
        '--calibration', metavar='JSON', help='read the calibration from here, or keep it here where there is none yet'
    )
    group.add_argument(
        '--calibration-samples', type=int, default=SAMPLES, metavar='N', help='samples of the training split'
    )


class ExecutionHook(Hook):
    """Applies an :class:`Operation` before a test, sums up what was spent during it, and hands that to TensorBoard.

    Last of the hooks before the test, so that weights which another one puts in (a moving average) are those calibrated.

    Args:
        operation: How the network is run.

    Attributes:
        watch: Of the test that is running, else None.
        spent: Of the last test, over all processes; None for a static network or dense execution.
    """

    priority = 'VERY_LOW'

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.watch: Watch | None = None
        self.spent: Spent | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        self.operation.apply(model, runner.cfg)
        self.spent = None
        if is_dynamic(model) and self.operation.execution != 'dense':
            self.spent = Spent(max((part.count for part in model.modules() if isinstance(part, OneOf)), default=0))
            self.watch = Watch(model, self.spent.add)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self.watch is not None and self.spent is not None:
            self.watch.remove()
            self.watch = None
            all_reduce(self.spent.sums)
            runner.visualizer.add_scalars({f'test/{name}': value for name, value in self.spent.scalars().items()})

    def record(self, runner: Runner) -> dict[str, Any]:
        """What a metrics file says of the last test besides its metrics."""
        found = self.operation.labels(unwrapped(runner.model))
        if self.spent is not None:
            found |= self.spent.scalars()
        return found


def test_as(cfg: Config, operation: Operation) -> tuple[Runner, ExecutionHook, dict[str, float]]:
    """Test a config's checkpoint (``load_from``), its network run as ``operation`` says.

    Returns:
        The runner, the hook that knows what was spent, and the metrics.

    Raises:
        ValueError: ``operation`` asks a static model to decide, or the checkpoint is of another network.
    """
    runner = build_runner(cfg)
    operation.check(runner.model)
    hook = ExecutionHook(operation)
    runner.register_hook(hook)
    with all_weights_expected(unwrapped(runner.model), str(cfg.load_from), operation.needs_policies):
        return runner, hook, runner.test()
