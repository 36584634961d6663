"""Shared fixtures: one thread (the suite runs in parallel) and the folder of real data, where there is one."""

import os
from pathlib import Path

import pytest
import torch

import eff_plugins  # noqa: F401


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_scope():
    """Keep mmengine's global default scope from leaking between tests."""
    from mmengine.registry import DefaultScope

    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get('EFF_PLUGINS_DATA')
    if not root or not Path(root).is_dir():
        pytest.skip('EFF_PLUGINS_DATA does not name a folder with the sample data')
    return Path(root)
