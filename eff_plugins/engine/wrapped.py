"""Models inside what mmengine wraps around them, such as DistributedDataParallel."""

from __future__ import annotations

from typing import Any

from mmengine.model import is_model_wrapper


def unwrapped(model: Any) -> Any:
    """The model inside its wrapper; itself where it has none."""
    return model.module if is_model_wrapper(model) else model
