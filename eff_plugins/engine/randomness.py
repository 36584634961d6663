"""Randomness as a function of (seed, iteration) instead of history: what makes an exact resume possible.

A worker process is ahead of the main process by its prefetched batches, and workers split the batches among them, so no
stored state could bring back "the random state of the data" in mid-epoch. Instead each batch, and each sample in it, gets a
seed of its own from its position in the run; then it does not matter which process loads it and what was loaded before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import (
    _BaseDataLoaderIter,
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

# Which stream of random numbers a seed is for
MODEL, SAMPLE, BATCH, SAMPLER, STAGE = range(5)


def seed_all(*key: int, devices: bool = False) -> None:
    """Seed python's, numpy's and torch's global generators from ``key``.

    Args:
        *key: Non-negative integers, for instance seed, stream, rank, iteration.
        devices: Also seed torch's generators of the accelerators (never in a worker process).
    """
    words = np.random.SeedSequence(key).generate_state(5)
    random.seed(int(words[0]))
    np.random.seed(words[1:3])
    seed = int(words[3]) << 31 ^ int(words[4])
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class _Stream:
    """Global generators of its own for the code inside ``with stream:``; outside they are as they were."""

    def __init__(self, *key: int) -> None:
        self.key: tuple[int, ...] | None = key
        self.state: tuple = ()

    def _swap(self, state: tuple | None) -> tuple:
        before = (random.getstate(), np.random.get_state(), torch.default_generator.get_state())
        if state:
            random.setstate(state[0])
            np.random.set_state(state[1])
            torch.default_generator.set_state(state[2])
        return before

    def __enter__(self) -> None:
        self.outside = self._swap(self.state)
        if self.key is not None:
            seed_all(*self.key)
            self.key = None

    def __exit__(self, *exc: object) -> None:
        self.state = self._swap(self.outside)


class Position:
    """Where the run is in its data; shared by the hook, the loader and the train loop of one process.

    Attributes:
        seed: Seed of the run.
        rank: Of this process.
        iteration: Number of finished iterations: the position of the next batch.
        data_pass: Number of the pass through the data (the epoch).
        skip: Batches, counted from the begin of this pass, that are done already; the next iterator leaves them out
            without loading them.
        endless: Whether batches to skip may reach into later passes (``IterBasedTrainLoop``).
    """

    def __init__(self, seed: int, rank: int, endless: bool) -> None:
        self.seed = seed
        self.rank = rank
        self.endless = endless
        self.iteration = 0
        self.data_pass = 0
        self.skip = 0

    def next_pass(self, loader: DataLoader) -> None:
        """Go to the next pass, as mmengine's endless iterator does."""
        self.data_pass += 1
        for sampler in samplers_of(loader):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self.data_pass)


class _Tagged(NamedTuple):
    """An index for the data set, and the seed of its sample."""

    index: Any
    key: tuple[int, ...]


class _TaggedBatches:
    """The loader's index sampler, with a seed at each index, starting at the run's position."""

    def __init__(self, loader: DataLoader, position: Position) -> None:
        self.loader = loader
        self.position = position

    def __len__(self) -> int:
        return len(self.loader._index_sampler)

    def __iter__(self) -> Iterator[Any]:
        # Not a generator: the position is read now, not when the first batch is asked for. torch may call this twice
        return self._tag(self.position.iteration, self.position.skip)

    def _start_pass(self) -> tuple[_Stream, Iterator[Any]]:
        # a sampler may draw from the global generators at any time: they get a stream of their own for each pass
        stream = _Stream(self.position.seed, SAMPLER, self.position.data_pass)
        with stream:
            return stream, iter(self.loader._index_sampler)

    def _tag(self, iteration: int, skip: int) -> Iterator[Any]:
        stream, batches = self._start_pass()
        while True:
            with stream:
                batch = next(batches, self)
            if batch is self:
                if not skip or not self.position.endless:
                    return
                self.position.next_pass(self.loader)
                stream, batches = self._start_pass()
            elif skip:
                skip -= 1
            else:
                yield self._tag_batch(batch, iteration)
                iteration += 1

    def _tag_batch(self, batch: Any, iteration: int) -> Any:
        at = self.position
        if self.loader._auto_collation:
            return [_Tagged(i, (at.seed, SAMPLE, at.rank, iteration, slot)) for slot, i in enumerate(batch)]
        return _Tagged(batch, (at.seed, SAMPLE, at.rank, iteration, 0))


class _SeededFetch:
    """The data set as the loader's processes see it: seeds each sample by its position, then the collation."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # while it is unpickled in a spawned worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, tagged: _Tagged) -> Any:
        seed_all(*tagged.key)
        return self.dataset[tagged.index]

    def __getitems__(self, batch: Sequence[_Tagged]) -> Any:
        whole = getattr(self.dataset, '__getitems__', None)
        if whole:
            seed_all(*batch[0].key)
            samples = whole([tagged.index for tagged in batch])
        else:
            samples = [self[tagged] for tagged in batch]
        seed, _, rank, iteration, _ = batch[0].key
        seed_all(seed, BATCH, rank, iteration)  # collate_fn comes next in this process
        return samples


class _LoaderView:
    """A loader whose iterators see tagged batches and the seeding data set; all else is the loader's."""

    def __init__(self, loader: DataLoader, position: Position) -> None:
        self._loader = loader
        self.dataset = _SeededFetch(loader.dataset)
        self._index_sampler = _TaggedBatches(loader, position)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _get_iterator(loader: Any) -> _BaseDataLoaderIter:
    """``DataLoader._get_iterator`` of a positioned loader."""
    view: Any = _LoaderView(loader, loader._position)
    if loader.num_workers == 0:
        return _SingleProcessDataLoaderIter(view)
    return _MultiProcessingDataLoaderIter(view)


def position_loader(loader: DataLoader, position: Position) -> None:
    """Make every later iterator of ``loader`` start at ``position`` and seed its samples.

    Only how the loader makes its iterators changes; its attributes, which hooks read and change, stay untouched.

    Args:
        loader: A loader over a data set with indices; an iterable one has no positions.
        position: Shared with the caller, who moves it.
    """
    cls = type(loader)
    if getattr(loader, '_position', None) is None:
        # a class with one base has the layout of that base, which the assignment below asks for
        loader.__class__ = type(cls.__name__, (cls,), {'__module__': cls.__module__, '_get_iterator': _get_iterator})
        loader._iterator = None  # workers that were started without positions
    loader.__dict__['_position'] = position


def samplers_of(loader: DataLoader) -> list[Any]:
    """The samplers of ``loader`` and of what they wrap, each once."""
    found: list[Any] = []
    queue = [getattr(loader, 'batch_sampler', None), getattr(loader, 'sampler', None)]
    while queue:
        sampler = queue.pop(0)
        if sampler is not None and not any(sampler is other for other in found):
            found.append(sampler)
            queue.append(getattr(sampler, 'sampler', None))
    return found


class PositionedIterator:
    """In place of mmengine's endless iterator of ``IterBasedTrainLoop``: resumes by position.

    mmengine asks for the batches of all finished iterations before it goes on; those requests cost nothing here, and the
    first real one skips indices only.

    Args:
        loader: A loader treated by :func:`position_loader`.
        position: Its position.
        iteration: Gives the number of finished iterations.
    """

    def __init__(self, loader: DataLoader, position: Position, iteration: Callable[[], int]) -> None:
        self._loader = loader
        self._position = position
        self._iteration = iteration
        self._asked_in_vain = position.iteration
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> PositionedIterator:
        return self

    def skip_iter(self, num_iters: int) -> None:
        """How mmengine's fork (onedl-mmengine 0.10.12) asks for the batches of finished iterations."""
        for _ in range(num_iters):
            next(self)

    def __next__(self) -> Any:
        if self._asked_in_vain:
            self._asked_in_vain -= 1
            return None
        if self._iterator is None:
            self._position.skip = self._position.iteration
            self._iterator = iter(self._loader)
        batch = next(self._iterator, self)
        if batch is self:
            self._position.iteration, self._position.skip = self._iteration(), 0
            self._position.next_pass(self._loader)
            self._iterator = iter(self._loader)
            batch = next(self._iterator)
        return batch
