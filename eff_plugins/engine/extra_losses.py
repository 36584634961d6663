"""Change a model's losses from outside, in any framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Losses = dict[str, Any]


def change_losses(model: nn.Module, change: Callable[[Losses], Losses]) -> Callable[[], None]:
    """Let ``change`` see and replace the dict of losses before mmengine's ``parse_losses`` sums and logs it.

    Several changes may be in force at once; they apply in the order in which they were made.

    Args:
        model: An mmengine model.
        change: Losses -> losses.

    Returns:
        What takes this change back.
    """
    changes: list[Callable[[Losses], Losses]] | None = model.__dict__.get('_loss_changes')
    if changes is None:
        changes, original = [], model.parse_losses
        model.__dict__['_loss_changes'] = in_force = changes

        def parse_losses(losses: Losses) -> Any:
            for each in in_force:
                losses = each(losses)
            return original(losses)  # type: ignore[operator]

        model.__dict__['parse_losses'] = parse_losses
    active = changes
    active.append(change)

    def undo() -> None:
        active.remove(change)
        if not active:
            del model.__dict__['_loss_changes'], model.__dict__['parse_losses']

    return undo
