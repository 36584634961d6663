"""Shared fixtures: one thread (the suite runs in parallel), native kernels or none, and the folder of real data."""

import importlib
import os
import random
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import eff_plugins  # noqa: F401
from eff_plugins.ops import native


def oracle(name: str) -> ModuleType:
    """Import the package that a test compares with (``'tv'``: torchvision), or skip the test where it is missing.

    With EFF_PLUGINS_NO_SKIP=1, as in CI, the test fails instead: there every comparison has to run.
    """
    name = {'tv': 'torchvision'}.get(name, name)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if os.environ.get('EFF_PLUGINS_NO_SKIP') == '1':
            pytest.fail(f'{error}; with EFF_PLUGINS_NO_SKIP=1 no comparison may be skipped: run `make setup`')
        pytest.skip(f'{error}; it is what this test compares with', allow_module_level=True)


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope='session')
def _no_ceremony():
    """Skip half of a tiny run's time: mmengine formats the config five times, sweeps the heap at each data set, and reads
    all metafiles of a framework for each config that is based on one of its own.
    """

    def unformatted(text: str, **_) -> tuple[str, bool]:
        compile(text, 'config', 'exec')  # what is not Python is refused, as by the formatter
        return text, True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.config.FormatCode', unformatted)
        patch.setattr('mmengine.dataset.base_dataset.gc', SimpleNamespace(collect=lambda: 0))
        patch.setattr('mmengine.config.utils.load', cache(importlib.import_module('mmengine.config.utils').load))
        yield


@pytest.fixture(autouse=True, scope='session')
def _closed_streams():
    """A logger that one test made writes to that test's streams, which are closed in the next: not to be told of there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('logging.raiseExceptions', False)
        yield


@pytest.fixture(autouse=True)
def _seed():
    """Each test draws the same numbers in any order and process, mmengine's seeds included, which come from NumPy."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _keep_scope():
    """Keep mmengine's global default scope from leaking."""
    from mmengine.registry import DefaultScope

    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


# around each test, and around each module for what its own fixtures set
_scope_of_test = pytest.fixture(autouse=True)(_keep_scope)
_scope_of_module = pytest.fixture(autouse=True, scope='module')(_keep_scope)


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get('EFF_PLUGINS_DATA')
    if not root or not Path(root).is_dir():
        pytest.skip('EFF_PLUGINS_DATA does not name a folder with the sample data')
    return Path(root)


@pytest.fixture(scope='module')
def tiny_root(tmp_path_factory):
    """A folder with a miniature of every data set, to which configs read for as long as a module's tests run."""
    from tests.tiny_data import write_tiny_data

    root = tmp_path_factory.mktemp('data')
    write_tiny_data(root)
    before = {name: os.environ.get(name) for name in ('EFF_PLUGINS_DATA', 'EFF_PLUGINS_CACHE')}
    os.environ['EFF_PLUGINS_DATA'] = str(root)
    os.environ['EFF_PLUGINS_CACHE'] = str(root / 'cache')
    yield root
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(params=[None, *native.levels_of(torch.float32)], ids=str)
def instruction_set(request, monkeypatch):
    """Plain torch, then every instruction set that this processor has."""
    monkeypatch.setenv('EFF_PLUGINS_NATIVE', request.param or '0')
    native._kernels.cache_clear()
    try:
        if request.param and native.kernels() is None:
            pytest.skip('no C++ compiler')
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    native._kernels.cache_clear()
