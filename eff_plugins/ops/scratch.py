"""Buffers that stay between calls."""

from __future__ import annotations

import threading
from collections.abc import Hashable

import torch
from torch import Tensor

_local = threading.local()


def scratch(name: Hashable, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised channels-last map (B, C, H, W) that lives until the next call with this name on this thread.

    A buffer that stays is warm in the cache, a fresh one is faulted in. Of a subclass of tensors nothing is kept.
    """
    if type(like) is not Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    batch, channels, height, width = shape
    count = batch * channels * height * width
    key = (name, like.dtype, like.device, torch.is_inference_mode_enabled())
    buffers = _local.__dict__.setdefault('buffers', {})
    if key not in buffers or buffers[key].numel() < count:
        buffers[key] = torch.empty(count, dtype=like.dtype, device=like.device)
    return buffers[key][:count].view(batch, height, width, channels).permute(0, 3, 1, 2)
