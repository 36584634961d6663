"""Export to ONNX, and a check of what was exported with onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from eff_plugins.compat import require
from eff_plugins.dynamic.module import dynamic_modules
from eff_plugins.files import atomic


def export_onnx(model: nn.Module, x: Tensor, path: str | Path) -> Path:
    """Write ``model`` in eval mode as one ONNX file for inputs of the shape of ``x``.

    Args:
        model: Backbone or classifier: (B, C, H, W) -> a tensor or a tuple of tensors. Fold BatchNorm first where the run
            time at hand does not do it by itself (onnxruntime does).
        x: An example input.
        path: File to write; its folder is made, and nothing half-written stays.

    Returns:
        The path. The graph's input is called ``input``, its outputs ``output0``, ``output1``, ...

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ValueError: A dynamic network in sparse execution.
    """
    require('onnx', 'deploy.export_onnx')
    require('onnxscript', 'deploy.export_onnx')
    if any(module.execution == 'sparse' for _, module in dynamic_modules(model)):
        raise ValueError(
            f'{type(model).__name__} is in sparse execution, which branches on its input, and an ONNX graph does not: export '
            "the plain network, set_execution(model, 'dense')"
        )
    path = Path(path)
    was_training = model.training
    model.eval()
    try:
        with atomic(path) as partial, torch.no_grad(), _quiet():
            outputs = len(_as_tuple(model(x)))
            torch.onnx.export(
                model,
                (x,),
                partial,
                dynamo=True,
                external_data=False,  # one file, which can be moved
                verbose=False,
                input_names=['input'],
                output_names=[f'output{i}' for i in range(outputs)],
            )
    finally:
        model.train(was_training)
    return path


@torch.no_grad()
def onnx_difference(path: str | Path, model: nn.Module, x: Tensor) -> float:
    """Largest difference between onnxruntime (one CPU thread) and ``model``, relative to each output's largest value.

    Args:
        path: File of :func:`export_onnx`.
        model: What was exported, in eval mode.
        x: Input of the shape that it was exported for.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    runtime = require('onnxruntime', 'deploy.onnx_difference')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    found = session.run(None, {'input': x.numpy()})
    return max_difference(tuple(torch.from_numpy(y) for y in found), model(x))


def max_difference(found: Tensor | tuple[Tensor, ...], wanted: Tensor | tuple[Tensor, ...]) -> float:
    """Largest absolute difference of outputs, relative to the largest absolute value of each wanted one."""
    pairs = zip(_as_tuple(found), _as_tuple(wanted), strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12)) for a, b in pairs)


def _as_tuple(outputs: Tensor | tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own progress and deprecations from the terminal."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
