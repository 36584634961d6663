"""Whether a checkpoint holds the weights that a model is about to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.model import BaseTTAModel
from torch import nn

from eff_plugins.dynamic.module import policy_prefixes


@contextmanager
def all_weights_expected(model: nn.Module, checkpoint: str, policies: bool = True) -> Iterator[None]:
    """Weights loaded into ``model`` within the block must be all that its test needs.

    mmengine warns among its log lines of what is absent and goes on: a checkpoint of another architecture then gives the
    metrics of random weights. Buffers may be absent, as they are from old checkpoints, and so may auxiliary heads
    (``aux...``), which serve training alone; a checkpoint may hold more.

    Args:
        model: Not wrapped, but for test-time augmentation.
        checkpoint: Named in the error.
        policies: Whether those of dynamic modules are needed; dense execution does without.

    Raises:
        ValueError: On loading: a parameter is absent or has another shape.
    """
    while isinstance(model, BaseTTAModel):
        model = model.module
    faults: list[str] = []

    def before(module: nn.Module, state: Any, prefix: str, metadata: Any, strict: bool, *lists: list[str]) -> None:
        nonlocal faults
        faults = lists[
            -1
        ]  # to which every module adds the shapes that do not fit, once it has renamed and reshaped its own

    def after(module: nn.Module, keys: Any) -> None:
        if module is not model:  # a copy, such as a moving average's
            return
        absent, misfits = set(keys.missing_keys), '\n'.join(faults)
        names: dict[int, list[str]] = {}  # a parameter that is shared has several
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        left = [
            each[0]
            for each in names.values()
            if all(name in absent or f' {name}: ' in misfits or f'"{name}"' in misfits for name in each)
            and not any(part.startswith('aux') for part in each[0].split('.'))
        ]
        prefixes = policy_prefixes(model)
        network = [name for name in left if not name.startswith(prefixes)]
        if network:
            raise ValueError(
                f'{checkpoint} does not fit this config: {len(left)} of the {len(names)} parameters of '
                f'{type(model).__name__} are absent or of another shape, such as {network[0]}; give the config that it was '
                'trained with'
            )
        if left and policies:
            raise ValueError(
                f'{checkpoint} is of a network without policies ({left[0]} is absent): train this config, or leave the '
                'policies out with --execution dense or --policy all'
            )

    handles = model.register_load_state_dict_pre_hook(before), model.register_load_state_dict_post_hook(after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
