"""Resume a run exactly: the same batches with the same augmentation, and the same random numbers in the model."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook

from ..registry import HOOKS
from .randomness import MODEL, STAGE, Position, PositionedIterator, position_loader, samplers_of, seed_all
from .wrapped import unwrapped

KEY = 'resume_state'


@HOOKS.register_module()
class ResumeStateHook(Hook):
    """Make a resumed run go on as if it had not been interrupted, augmentation and dropout included.

    All randomness becomes a function of the run's seed and its position (see :mod:`eff_plugins.engine.randomness`): before
    each training iteration the main process is seeded from (seed, iteration), and each sample from (seed, rank, iteration,
    place in the batch), in whatever process it is loaded. So the random state that a checkpoint has to carry is the seed,
    those of the samplers, and the data position; it holds for every rank, any number of workers and any prefetching. A
    run without a fixed seed goes on with the one that it drew.

    With ``EpochBasedTrainLoop``, a checkpoint from the middle of an epoch continues with the next batch of that epoch;
    mmengine alone starts the epoch again. With ``IterBasedTrainLoop`` the skipped batches are not loaded. Gradients
    that are accumulated but not yet applied are stored too (in a single process).

    What cannot be restored: the memory of transforms that keep earlier samples (``CachedMosaic``, ``CachedMixUp``),
    generators that a transform seeds from the system's entropy, and iterable data sets. A changed number of processes or
    batch size is said in a warning.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict | None = None
        self._position: Position | None = None
        self._in_epoch = 0

    # ------------------------------------------------------------------------------------------------ the checkpoint
    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the seed, the data position and gradients in accumulation."""
        loader = runner.train_dataloader
        checkpoint[KEY] = {
            'version': 1,
            'seed': int(runner.seed),
            'sampler_seeds': [getattr(sampler, 'seed', None) for sampler in samplers_of(loader)],
            'world_size': get_world_size(),
            'batches_per_epoch': _length(loader),
            'epoch': checkpoint['meta']['epoch'],
            'iter': checkpoint['meta']['iter'],
            'batches_done': self._in_epoch,
            'gradients': self._gradients(runner),
        }

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the state until it is known, in ``before_train``, whether this is a resume."""
        self._loaded = {'meta': checkpoint.get('meta', {}), **checkpoint.get(KEY, {})}

    # ---------------------------------------------------------------------------------------------------- the run
    def before_train(self, runner: Any) -> None:
        """Take the position of the resumed checkpoint and put the loader there."""
        loop = runner.train_loop
        endless = hasattr(loop, 'dataloader_iterator')
        self._position = Position(int(runner.seed), get_rank(), endless)
        self._position.iteration = loop.iter
        state, self._loaded = self._loaded, None
        # load_from also comes through after_load_checkpoint, but leaves the loop at its begin
        meta = (state or {}).get('meta', {})
        if state and (loop.epoch or loop.iter) and (meta.get('epoch'), meta.get('iter')) == (loop.epoch, loop.iter):
            self._restore(runner, state, endless)
        if isinstance(loop.dataloader.dataset, torch.utils.data.IterableDataset):
            runner.logger.warning('an IterableDataset has no positions: a resume of this run will not be exact')
            self._position = None
            return
        position_loader(loop.dataloader, self._position)
        if endless:
            for sampler in samplers_of(loop.dataloader):
                if hasattr(sampler, '_indices_of_rank') and hasattr(sampler, 'indices'):
                    sampler.indices = sampler._indices_of_rank()  # the loop's constructor has prefetched from it
            loop.dataloader_iterator = PositionedIterator(loop.dataloader, self._position, lambda: loop.iter)

    def _restore(self, runner: Any, state: dict, endless: bool) -> None:
        loop = runner.train_loop
        length = _length(loop.dataloader)
        now = {'world_size': get_world_size(), 'batches_per_epoch': length}
        changed = [
            f'{key} was {state[key]}, now {value}' for key, value in now.items() if state.get(key, value) != value
        ]
        if changed:
            runner.logger.warning(f'the run cannot continue exactly: {"; ".join(changed)}')
        for sampler, seed in zip(samplers_of(loop.dataloader), state.get('sampler_seeds', []), strict=False):
            if seed is not None and hasattr(sampler, 'seed'):
                sampler.seed = seed
        if not endless and self._position is not None:
            # a checkpoint of mmengine's own hook has no position; its iteration tells it
            done = state.get('batches_done', loop.iter - loop.epoch * (length or 0))
            self._position.skip = min(max(done, 0), length or 0)
            if self._position.skip:
                runner.logger.info(f'epoch {loop.epoch + 1} continues after {self._position.skip} of {length} batches')
        self._set_gradients(runner, state.get('gradients'))

    def before_train_epoch(self, runner: Any) -> None:
        """Move the position to this epoch; in a resumed one, count its batches from where it stopped."""
        seed_all(int(runner.seed), STAGE, runner.epoch, devices=True)
        at = self._position
        if at is None or at.endless:
            return
        at.iteration, at.data_pass, offset = runner.iter, runner.epoch, at.skip
        self._in_epoch = offset
        if offset:
            loop = runner.train_loop
            run_iter = loop.run_iter
            loop.run_iter = lambda idx, data_batch: run_iter(idx + offset, data_batch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the main process for this iteration."""
        seed_all(int(runner.seed), MODEL, runner.iter, devices=True)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count."""
        self._in_epoch = batch_idx + 1

    def after_train_epoch(self, runner: Any) -> None:
        """Be at the begin of the next epoch."""
        self._in_epoch = 0
        if self._position is not None:
            self._position.skip = 0
        vars(runner.train_loop).pop('run_iter', None)

    # -------------------------------------------------------------------------------------------------- accumulation
    def _gradients(self, runner: Any) -> dict[str, torch.Tensor] | None:
        wrapper = runner.optim_wrapper
        count, every = getattr(wrapper, '_inner_count', 0), getattr(wrapper, '_accumulative_counts', 1)
        if every == 1 or count % every == 0:
            return None
        if get_world_size() > 1:
            runner.logger.warning(
                f'this checkpoint lies between two updates (accumulative_counts={every}), so a resume repeats none of the '
                f'{count % every} iterations since the last update and loses their gradients: choose an interval that '
                f'accumulative_counts divides'
            )
            return None
        return {n: p.grad.detach().cpu().clone() for n, p in _named(runner) if p.grad is not None}

    def _set_gradients(self, runner: Any, gradients: dict[str, torch.Tensor] | None) -> None:
        for name, parameter in _named(runner):
            if gradients and name in gradients:
                parameter.grad = gradients[name].to(parameter.device, parameter.dtype)


def _named(runner: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return list(unwrapped(runner.model).named_parameters())


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
