"""An energy trained, or watched, beside a policy.

The energy sees the state through a context: the observations themselves, or features that the policy makes of them. In
the latter case its gradient reaches the policy too, unless the context is detached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ding_ebm.model.energy_protocol import eval_mode

MODES = ("monitor", "joint", "energy_only")
Metrics = dict[str, Tensor]


def combined_loss(
    mode: str,
    policy_loss: Tensor,
    energy: Any,
    energy_loss: Callable[[Tensor], tuple[Tensor, Metrics]],
    context: Tensor,
    *,
    weight: float = 0.1,
    detach_context: bool = False,
) -> tuple[Tensor, Metrics]:
    """What to differentiate, a scalar, and what the energy's loss says of itself, detached.

    - ``monitor``: the policy's loss itself. The energy is in eval mode, gets no gradient and gives none, and the global
      random streams go on as if it were not there; a generator of the loss's own must be no one else's.
    - ``joint``: policy_loss + weight * energy_loss.
    - ``energy_only``: the energy's loss, of the detached context; the policy gets no gradient.

    Args:
        mode: One of ``MODES``.
        policy_loss: Scalar.
        energy: The energy; a module, or any other callable.
        energy_loss: From the context to a loss, scalar, and what to log.
        context: What the energy sees of the states, (B, ...).
        weight: Of the energy's loss in ``joint``.
        detach_context: Whether to keep the gradient of ``joint`` from what makes the context.

    Raises:
        ValueError: If the mode is unknown, or a loss is no scalar.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "monitor":
        devices = [context.device] if context.is_cuda else []
        with torch.random.fork_rng(devices), eval_mode(energy):
            loss, metrics = energy_loss(context.detach())
    else:
        loss, metrics = energy_loss(context.detach() if mode == "energy_only" or detach_context else context)
    if loss.ndim or policy_loss.ndim:
        raise ValueError(f"losses must be scalars, got {tuple(policy_loss.shape)} and {tuple(loss.shape)}")
    total = policy_loss if mode == "monitor" else loss if mode == "energy_only" else policy_loss + weight * loss
    return total, {name: value.detach() for name, value in metrics.items()}
