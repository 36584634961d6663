"""Mixed precision that also works on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """bf16 autocast on a CPU; with an accelerator, mmengine's ``AmpOptimWrapper`` with the same arguments.

    mmengine's wrapper asserts an accelerator. bf16 has the exponent range of fp32, so no loss scaling is needed here.

    Args:
        loss_scale: Passed on to ``AmpOptimWrapper``; without an accelerator nothing is scaled.
        dtype: ``'bfloat16'`` (default on a CPU) or, with an accelerator, any type of ``AmpOptimWrapper``.
        **kwargs: As for ``mmengine.optim.OptimWrapper``: ``optimizer``, ``clip_grad``, ``accumulative_counts`` ...

    Raises:
        ValueError: Another ``dtype`` than bfloat16 on a CPU.
    """

    def __new__(cls, loss_scale: Any = 'dynamic', dtype: Any = None, **kwargs: Any) -> Any:
        """Give the wrapper that fits the machine."""
        if is_cuda_available() or is_npu_available() or is_mlu_available() or is_musa_available():
            return AmpOptimWrapper(loss_scale=loss_scale, dtype=dtype, **kwargs)
        return super().__new__(cls)

    def __init__(self, loss_scale: Any = 'dynamic', dtype: Any = None, **kwargs: Any) -> None:
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise ValueError(f"dtype={dtype!r} cannot be trained on a CPU: use dtype='bfloat16' or leave it out")
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast to bf16 around the forward pass, with the gradient synchronisation of ``OptimWrapper``."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield

    def load_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state; the loss scale of a run on a GPU is left out."""
        state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)
