"""Data to calibrate on: a fixed part of a config's training split, seen as in a test."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import ConcatDataset, SequentialSampler, Subset

from eff_plugins.dynamic.budget import Calibration, calibrate, check_calibration, set_knob
from eff_plugins.dynamic.module import decisions
from eff_plugins.files import check_writable

SAMPLES = 256


def training_batches(cfg: Config, samples: int = SAMPLES, batch_size: int | None = None) -> Iterator[Any]:
    """Batches of a fixed, evenly mixed part of the training split, through the test pipeline.

    Where training and test data sets are of different types, the pipelines may not fit each other: then the training's own is
    used.

    Args:
        cfg: With ``train_dataloader`` and ``test_dataloader``.
        samples: At most so many.
        batch_size: By default that of the test.

    Raises:
        ValueError: The config has no training data.
    """
    if cfg.get('train_dataloader') is None:
        raise ValueError('the config has no train_dataloader: a budget is calibrated on a part of the training split')
    test = _innermost(cfg.test_dataloader.dataset)[0]
    parts = []
    for dataset in _innermost(copy.deepcopy(cfg.train_dataloader.dataset)):
        if dataset.type == test.type and 'pipeline' in test:
            dataset.pipeline = copy.deepcopy(test.pipeline)
        parts.append(DATASETS.build(dataset))
        if hasattr(parts[-1], 'full_init'):
            parts[-1].full_init()
    whole: ConcatDataset = ConcatDataset(parts)
    chosen = np.random.default_rng(0).permutation(len(whole))[:samples]
    part = Subset(whole, sorted(map(int, chosen)))
    size = batch_size or cfg.test_dataloader.get('batch_size', 1)
    options = dict(batch_size=size, drop_last=False, dataset=part, sampler=SequentialSampler(part))
    yield from Runner.build_dataloader(in_process(cfg.test_dataloader) | options)


def in_process(dataloader: Any) -> dict[str, Any]:
    """The config of a data loader that reads in this process, without what workers alone have."""
    kept = {key: value for key, value in dataloader.items() if key not in ('prefetch_factor', 'timeout')}
    return {**kept, 'num_workers': 0, 'persistent_workers': False}


def _innermost(dataset: Any) -> list[Any]:
    """The configs of the data sets that read files, below wrappers that repeat, mix or concatenate."""
    if 'datasets' in dataset:
        return [inner for part in dataset['datasets'] for inner in _innermost(part)]
    return _innermost(dataset['dataset']) if 'dataset' in dataset else [dataset]


def meet_budget(
    model: nn.Module, budget: float, cfg: Config, file: str | None = None, samples: int = SAMPLES
) -> Calibration:
    """Set ``model``'s policies to ``budget``, by a calibration on the training split or one that was stored.

    Args:
        model: Of mmengine's kind (``test_step``), with its weights loaded and the kind of its policies set.
        budget: Share of the dense network's multiply-adds, in (0, 1].
        cfg: Its config.
        file: Calibration to read; where it does not exist, one for all budgets is made and written there.
        samples: To calibrate on.

    Raises:
        ValueError: The budget is out of reach, or the file's calibration is of another model.
    """
    if file is not None and Path(file).is_file():
        found = Calibration.load(file)
        try:
            check_calibration(model, found)
        except ValueError as error:
            raise ValueError(f'{file}: {error}; each network and policy needs a file of its own') from error
        print_log(f'Using the calibration in {file}', 'current')
    else:
        if file is not None:
            check_writable(file)  # before the time is spent
        kind = decisions(model)[0].kind
        budgets = (budget,) if file is None else ()
        passes = 'about ten passes' if budgets else '20 passes or more'
        what = f'at most {samples} samples of the training split, {passes} over them'
        print_log(f'Calibrating the {kind} policy on {what}', 'current')
        batches = training_batches(cfg, samples)
        found = calibrate(model, batches, lambda network, batch: network.test_step(batch), budgets)  # type: ignore[operator]
        if file is not None:
            found.save(file)
    set_knob(model, found.knob(budget))
    return found
