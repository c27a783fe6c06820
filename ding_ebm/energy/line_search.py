"""Energies with their gradients in the action, and steps that are shortened until no energy rises.

Letters: B rows, Tp actions of a chunk, Da dimensions of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Optional

import torch
from torch import Tensor

# Maps chunks (B, Tp, Da) to energies (B,).
EnergyFn = Callable[[Tensor], Tensor]
# Energies (B,), and their gradients (B, Tp, Da) where these are needed.
Point = tuple[Tensor, Optional[Tensor]]

# Attempts after the full step, each at a tenth to a half of the length of the one before.
_ATTEMPTS = 10


def evaluate(energy_fn: EnergyFn, x: Tensor, with_grad: bool) -> Point:
    """Energies at ``x``, and gradients where asked for; detached. Energies are the same numbers with and without.

    To be called without gradients, which are on meanwhile.

    Raises:
        ValueError: If the energies have another shape than (B,), or no gradient in ``x``.
    """
    if (own := getattr(energy_fn, "evaluate", None)) is not None:
        energy, grad = own(x, with_grad)
        return _checked(energy, x), grad
    with torch.enable_grad():  # also where no gradient is taken: products may round otherwise without
        x = x.detach().requires_grad_()
        energy = _checked(energy_fn(x), x)
        grad = None
        if with_grad and energy.requires_grad:
            (grad,) = torch.autograd.grad(energy, x, torch.ones_like(energy), allow_unused=True)
    if with_grad and grad is None:
        raise ValueError(
            "the energies have no gradient in the actions: energy_fn must compute them by differentiable operations, "
            "and outside of torch.no_grad() and torch.inference_mode()"
        )
    return energy.detach(), grad


def energies(energy_fn: EnergyFn, x: Tensor) -> Tensor:
    """Energies at ``x``, (B,).

    Raises:
        ValueError: If they have another shape.
    """
    return _checked(energy_fn(x), x)


def _checked(energy: Tensor, x: Tensor) -> Tensor:
    if energy.shape != x.shape[:1]:
        raise ValueError(
            f"energy_fn must return one energy a row, {tuple(x.shape[:1])} for actions {tuple(x.shape)}, got "
            f"{tuple(energy.shape)}"
        )
    return energy


class Rescaled:
    """An energy in other units of the action: E(scale a + shift).

    Args:
        energy_fn: E.
        scale: (Da,) or a number.
        shift: (Da,) or a number.
    """

    def __init__(self, energy_fn: EnergyFn, scale: Tensor | float, shift: Tensor | float) -> None:
        self.energy_fn: EnergyFn = energy_fn
        self.scale: Tensor | float = scale
        self.shift: Tensor | float = shift
        if isinstance(energy_fn, Rescaled):  # two changes of units are one
            self.energy_fn = energy_fn.energy_fn
            self.scale, self.shift = energy_fn.scale * scale, energy_fn.scale * shift + energy_fn.shift

    def __call__(self, x: Tensor) -> Tensor:
        """Energies, (B,), of chunks (B, Tp, Da)."""
        return self.energy_fn(x * self.scale + self.shift)

    def evaluate(self, x: Tensor, with_grad: bool) -> Point:
        """See :func:`evaluate`."""
        energy, grad = evaluate(self.energy_fn, x * self.scale + self.shift, with_grad)
        return energy, None if grad is None else grad * self.scale


def check_finite(visited: Sequence[tuple[Tensor, Point]], name: Callable[[int], str]) -> None:
    """Refuse actions, energies and gradients that are not finite.

    Args:
        visited: Chunks, (B, Tp, Da), and what was evaluated there.
        name: Of the chunks with a number.

    Raises:
        ValueError: Says where the first is.
    """
    chunks = torch.cat([part for x, (_, grad) in visited for part in (x, grad) if part is not None])
    energy = torch.cat([energy for _, (energy, _) in visited])
    if math.isfinite(float(chunks.sum()) + float(energy.sum())):
        return  # one number to look at
    for number, (x, (energy, grad)) in enumerate(visited):
        where = name(number)
        for what, values in ((where, x), (f"the energies of {where}", energy), (f"the gradients at {where}", grad)):
            if values is not None and not bool(torch.isfinite(values).all()):
                place = tuple(torch.nonzero(~torch.isfinite(values))[0].tolist())
                raise ValueError(f"{what} must be finite, got {float(values[place])} at {place}")


def backtrack(
    energy_fn: EnergyFn, start: tuple[Tensor, Tensor, Tensor], target: Tensor, point: Point
) -> tuple[Tensor, Point, int]:
    """Shorten the steps of rows whose energies rose until they do not; at the worst these rows stay at the start.

    Each attempt goes to the least of the parabola through both energies and the slope at the start. Rows whose energy
    the slope would lower by less than rounding are left where they are.

    Args:
        energy_fn: The energy.
        start: Where the step began, (B, Tp, Da), and energy and gradient there.
        target: Where the full step leads.
        point: Energy there, and gradient where the next step needs it.

    Returns:
        Where the steps lead now, what was evaluated there, and the number of rows whose step is the full one.
    """
    x, energy, grad = start
    lower = point[0] <= energy
    rose = ~lower  # what is not a number has risen
    fell = int(lower.sum())
    step = target - x
    slope = (grad * step).flatten(1).sum(dim=1)
    share, tried = torch.ones_like(energy), point[0]
    best, at_best = _choose(rose, x, target), _choose_point(rose, (energy, grad), point)
    rose = rose & (-slope > torch.finfo(energy.dtype).eps * energy.abs())
    for _ in range(_ATTEMPTS):
        if not bool(rose.any()):
            break
        least = -0.5 * share * slope / (tried - energy - share * slope)
        share = share * least.nan_to_num(nan=0.1).clamp(0.1, 0.5)
        trial = _choose(rose, x + share.view(-1, 1, 1) * step, best)
        there = evaluate(energy_fn, trial, at_best[1] is not None)
        tried = there[0]
        lower = rose & (tried <= energy)
        best, at_best = _choose(lower, trial, best), _choose_point(lower, there, at_best)
        rose = rose & ~lower
    return best, at_best, fell


def _choose(rows: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    """Rows of ``chosen`` where ``rows`` (B,) is true, else of ``others``; (B, ...)."""
    return torch.where(rows.view(-1, *(1,) * (chosen.ndim - 1)), chosen, others)


def _choose_point(rows: Tensor, chosen: Point, others: Point) -> Point:
    gradients = None if chosen[1] is None or others[1] is None else _choose(rows, chosen[1], others[1])
    return _choose(rows, chosen[0], others[0]), gradients
