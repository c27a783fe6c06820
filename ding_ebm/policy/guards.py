"""What stops a run whose numbers are no longer finite: in its losses, and before a checkpoint is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MAY_BE_EMPTY = ("energy_scaler",)


def check_losses(losses: Mapping[str, float], train_iter: int, data: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse to go on after a batch whose loss is NaN or infinite.

    Args:
        losses: What the batch gave, by name.
        train_iter: Training iterations that were complete before it.
        data: The batch, which is looked into only where a loss is not finite.
        model: What was trained; the same.

    Raises:
        FloatingPointError: Names the loss, the iteration, and the first tensors that are not finite, with their rows.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at iteration {train_iter}; the run cannot go on. Not finite are: "
                f"{', '.join(_culprits(data, model)) or 'no values of the batch, gradients or parameters'}"
            )


def check_state(state: Mapping[str, Any], train_iter: int) -> None:
    """Refuse to write a state with tensors that are not finite in place of a good one.

    Statistics that are NaN where nothing has been seen yet are left out.

    Raises:
        FloatingPointError: Names the first such tensors and the iteration.
    """
    learned = {name: part for name, part in state.items() if name not in _MAY_BE_EMPTY}
    bad = [f"{name} ({_count(tensor)})" for name, tensor in _tensors(learned, "") if not _is_finite(tensor)]
    if bad:
        raise FloatingPointError(
            f"no checkpoint is written at iteration {train_iter}: {', '.join(bad[:3])}"
            f"{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} hold NaN or Inf; the last good one is kept"
        )


def _culprits(data: Mapping[str, Any], model: nn.Module) -> list[str]:
    """The first tensors that are not finite: of the batch, else of the gradients and of the parameters."""
    found = [f"{name} of the batch ({_count(tensor)})" for name, tensor in data.items() if not _is_finite(tensor)]
    if found:
        return found[:3]
    named = list(model.named_parameters())
    found = [
        f"the gradient of {n} ({_count(p.grad)})" for n, p in named if p.grad is not None and not _is_finite(p.grad)
    ]
    return (found[:3] + [f"parameter {n} ({_count(p)})" for n, p in named if not _is_finite(p)])[:4]


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _count(tensor: Tensor) -> str:
    """How many elements are not finite, and the row of the first."""
    bad = torch.nonzero(~torch.isfinite(tensor.detach()))
    row = f", first in row {int(bad[0, 0])}" if tensor.ndim else ""
    return f"{len(bad)} of {tensor.numel()} elements{row}"


def _tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _tensors(inner, f"{place}.{key}" if place else str(key))
