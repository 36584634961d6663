"""Train a dynamic network towards a budget, in any framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eff_plugins.dynamic.budget import check_share
from eff_plugins.dynamic.losses import LOSSES, Situation, budget_loss
from eff_plugins.dynamic.module import decisions, set_execution
from eff_plugins.dynamic.recorder import Stats, record
from eff_plugins.dynamic.sampling import Schedule
from eff_plugins.engine.extra_losses import change_losses
from eff_plugins.engine.wrapped import unwrapped
from eff_plugins.registry import HOOKS


@HOOKS.register_module()
class BudgetHook(Hook):
    """Adds the budget's losses to the task's, anneals the decisions, and logs what is spent.

    The losses join those of the model where mmengine sums them (``parse_losses``), so detectors, segmentors and classifiers
    stay as they are. The dense network's multiply-adds are counted in the forward pass of the first iteration of each
    input size (of each iteration where the input is no tensor), with all that runs in training, such as auxiliary heads:
    a test, which leaves these out, finds the same decisions to be another share of a smaller network. Logged a training
    iteration: ``budget_target`` and ``budget_share`` (of the dense network), ``budget_macs`` (expected multiply-adds a
    sample), ``budget_density`` (mean of the modules), ``budget_temperature``, and of networks that take one of several, such
    as resolutions, ``budget_choice_<k>`` (share of the samples that took the k-th).

    Args:
        budget: Target share of the whole network's dense multiply-adds, policies included, in (0, 1]; or a
            :class:`Schedule` of it, such as ``dict(start=1.0, end=0.5, form='linear', finish=0.5)``.
        losses: Term -> weight; see ``eff_plugins.dynamic.losses``.
        temperature: :class:`Schedule` of the Gumbel samples over the training.
        slack: Schedule from 0 (every module bound to the budget) to 1 (free), for the term ``bounds``.

    Raises:
        ValueError: ``budget`` outside (0, 1] or an unknown loss; in training, one below what the network spends at least.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        budget: float | dict,
        losses: dict[str, float] | None = None,
        temperature: dict | None = None,
        slack: dict | None = None,
    ) -> None:
        self.budget = Schedule(**budget) if isinstance(budget, dict) else Schedule(budget, budget, 'constant')
        for share in (self.budget.start, self.budget.end):
            check_share(share)
        self.losses = dict(gap=10.0, bounds=10.0) if losses is None else dict(losses)
        unknown = sorted(set(self.losses) - set(LOSSES))
        if unknown:
            raise ValueError(f'unknown budget loss {", ".join(unknown)}; known: {", ".join(LOSSES)}')
        self.temperature = Schedule(**(temperature or dict(start=5.0, end=0.1)))
        self.slack = Schedule(**(slack or dict(start=0.0, end=1.0, form='cosine', finish=1 / 3)))
        self._network_macs: dict[tuple[int, ...] | None, float] = {}
        self._undo: list[Callable[[], None]] = []

    def before_train(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        set_execution(model, 'masked')
        self._decisions = decisions(model)

        def add(losses: dict) -> dict:
            return {**losses, **self._extra(runner)}

        handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True, always_call=True),  # after an error, too
        ]
        self._undo = [change_losses(model, add), *(handle.remove for handle in handles)]

    def after_train(self, runner: Runner) -> None:
        for undo in self._undo:
            undo()
        self._undo = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.progress = runner.iter / max(runner.max_iters, 1)
        for decide in self._decisions:
            decide.temperature = self.temperature(self.progress)

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Open the recording, and the counter for an input size that is new."""
        self._stats: Stats | None = None
        if not model.training or not torch.is_grad_enabled():
            return
        inputs = args[0] if args else kwargs.get('inputs')
        self._size = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else None
        self._recording = record(model)
        self._stats = self._recording.__enter__()
        self._counter = None
        if self._size is None or self._size not in self._network_macs:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def _end(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if self._stats is None:
            return
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
        self._recording.__exit__(None, None, None)
        if output is None:  # the pass failed
            self._stats = None
        elif self._counter is not None:
            counted = self._counter.get_total_flops() / 2
            self._network_macs[self._size] = (counted - self._stats.masked_beyond()) / max(self._stats.samples, 1)

    def _extra(self, runner: Runner) -> dict[str, Tensor]:
        """The budget's losses of the forward pass at hand; logs what it spent."""
        stats = self._stats
        if stats is None or not stats.entries:
            raise ValueError(
                'BudgetHook: no dynamic module of the model decided anything in this training iteration; networks with exits '
                'are trained without a budget, and calibrated to one'
            )
        network = self._network_macs[self._size]
        densities = list(stats.densities().values())
        avoidable = sum((entry.dense_macs - entry.floor_macs) * len(entry.macs) for entry in stats.entries)
        floor = 1 - avoidable / stats.samples / network
        lowest = min(self.budget.start, self.budget.end)
        if lowest < floor:
            raise ValueError(
                f'BudgetHook: budget={lowest} is below the static floor of this network, {floor:.3f}: that is the minimum'
            )
        share, target = stats.share(network), self.budget(self.progress)
        situation = Situation(share, floor, densities, target, self.slack(self.progress), stats.ponders())
        spent = float(share.detach())
        logged = {
            'target': target,
            'share': spent,
            'macs': spent * network,
            'density': float(torch.stack(densities).mean().detach()),
            'temperature': self.temperature(self.progress),
        }
        for step, choice in zip(self._decisions, stats.choices().values(), strict=False):
            shares = choice.bincount(minlength=step.count) / len(choice)  # type: ignore[arg-type]
            logged |= {f'choice_{k}': part for k, part in enumerate(shares.tolist())}
        for name, value in logged.items():
            runner.message_hub.update_scalar(f'train/budget_{name}', value)
        return budget_loss(self.losses, situation)
