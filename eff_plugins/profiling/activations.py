"""Count activations: what convolutions write, the figure that memory-bound latency follows (Dollar et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def count_activations(model: nn.Module, run: Callable[[], Any]) -> int:
    """Elements of the outputs of all convolutions of ``model`` during ``run()``.

    As defined in Radosavovic et al., "Designing Network Design Spaces", CVPR 2020: linear layers, norms and pooling do not
    count. A convolution that runs twice counts twice, and every picture of a
    batch counts.

    Args:
        model: Its convolution modules are counted; works on the meta device.
        run: Runs the model once, for instance ``lambda: model(x)``.
    """
    total = 0

    def add(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    handles = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, _ConvNd)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return total
