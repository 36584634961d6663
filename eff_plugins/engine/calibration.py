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
from torch.utils.data import SequentialSampler, Subset

from eff_plugins.dynamic.budget import Calibration, calibrate, set_budget
from eff_plugins.dynamic.module import decisions

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
    dataset = _innermost(copy.deepcopy(cfg.train_dataloader.dataset))
    test = _innermost(cfg.test_dataloader.dataset)
    if dataset.type == test.type and 'pipeline' in test:
        dataset.pipeline = copy.deepcopy(test.pipeline)
    built = DATASETS.build(dataset)
    if hasattr(built, 'full_init'):
        built.full_init()
    chosen = np.random.default_rng(0).permutation(len(built))[:samples]
    part = Subset(built, sorted(map(int, chosen)))
    options = dict(num_workers=0, persistent_workers=False, dataset=part, sampler=SequentialSampler(part))
    options['batch_size'] = batch_size or cfg.test_dataloader.get('batch_size', 1)
    yield from Runner.build_dataloader({**cfg.test_dataloader, **options, 'drop_last': False})


def _innermost(dataset: Any) -> Any:
    """The config of the data set that reads files, below wrappers that repeat, mix or concatenate."""
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset


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
    else:
        kind = decisions(model)[0].kind
        print_log(f'Calibrating the {kind} policy on at most {samples} samples of the training split', 'current')
        batches = training_batches(cfg, samples)
        budgets = (budget,) if file is None else ()
        found = calibrate(model, batches, lambda network, batch: network.test_step(batch), budgets)  # type: ignore[operator]
        if file is not None:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            found.save(file)
    set_budget(model, budget, found)
    return found
