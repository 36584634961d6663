"""Whether a checkpoint holds the weights that a model is about to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from eff_plugins.dynamic.module import policy_prefixes


@contextmanager
def all_weights_expected(model: nn.Module, checkpoint: str, policies: bool = True) -> Iterator[None]:
    """Weights loaded into ``model`` within the block must be all of its parameters.

    mmengine warns among its log lines of what is absent and goes on: a checkpoint of another architecture then gives the
    metrics of random weights. Buffers may be absent, as they are from old checkpoints, and a checkpoint may hold more.

    Args:
        model: Not wrapped.
        checkpoint: Named in the error.
        policies: Whether those of dynamic modules are needed; dense execution and the controls do without.

    Raises:
        ValueError: On loading: a parameter is absent or has another shape.
    """
    given: dict[str, Any] = {}

    def before(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        given.update(state)

    def after(module: nn.Module, keys: Any) -> None:
        absent = set(keys.missing_keys)
        own = dict(model.named_parameters())
        left = [name for name in own if name in absent or (name in given and given[name].shape != own[name].shape)]
        prefixes = policy_prefixes(model)
        network = [name for name in left if not name.startswith(prefixes)]
        if network:
            raise ValueError(
                f'{checkpoint} does not fit this config: {len(left)} of the {len(own)} parameters of '
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
