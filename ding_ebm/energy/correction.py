"""Correction of a policy's actions by an energy at test time: descent that never climbs, and the best of N samples.

Any function of an action that is low where the action is good will do: a trained energy, minus a critic, a cost. What
else it depends on, such as observations, the caller has bound.

A low energy is not yet a good action: descend only energies whose minimum is where the expert acts. One that was
trained by telling an expert's actions from those of other states overshoots it.

Letters: B rows, Tp actions of a chunk, Da dimensions of an action, N candidates, T steps.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from ding_ebm.energy.line_search import EnergyFn, backtrack, check_finite, energies, evaluate
from ding_ebm.model.energy_protocol import eval_mode

Bounds = Optional[tuple[Any, Any]]

CLIPS = ("range", "original_norm", "current_norm", None)


@dataclass(frozen=True)
class CorrectionInfo:
    """What a correction did.

    Attributes:
        energy_before: Energies of the actions that were given, (B,).
        energy_after: Energies of those that are returned, (B,).
        displacement: Norm of what was added to each row, over Tp and Da, (B,).
        clip_rate: Share of all rows' steps that the clip shortened.
        accept_rate: Share of all rows' steps that were made at full length; 1 without a line search.
        milliseconds: Wall time.
    """

    energy_before: Tensor
    energy_after: Tensor
    displacement: Tensor
    clip_rate: float
    accept_rate: float
    milliseconds: float


@torch.no_grad()
def correct(
    energy_fn: EnergyFn,
    action: Tensor,
    *,
    steps: int,
    alpha: float,
    clip: str | None = "range",
    clip_frac: float = 0.2,
    bounds: Bounds = (-1.0, 1.0),
    first_only: bool = False,
    dims: Sequence[bool] | Tensor | None = None,
    line_search: bool = True,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, CorrectionInfo]:
    """Descend an energy in T steps a <- a - alpha grad E(a), each clipped, and kept within bounds.

    With the line search no row's energy rises, whatever alpha is: a row whose full step would climb takes a shorter
    one in the same direction, or none. Nothing else changes: no gradient is left in parameters, and a module is in the
    mode that it was in. T gradients and one value are computed, and what the line search adds.

    Args:
        energy_fn: Maps chunks (B, Tp, Da) to energies (B,), each of its own row alone, the same at every call. A
            torch module is evaluated in its eval mode; of other functions that is the caller's to see to. One that has
            a method ``evaluate`` (chunks, whether gradients are needed) is asked by it for energies (B,) and gradients
            (B, Tp, Da) or None, instead of by autograd.
        action: Chunks, (B, Tp, Da).
        steps: T.
        alpha: Step length, in squared units of an action by those of the energy.
        clip: Bound on what a step moves. ``range``: each number by ``clip_frac`` of the width of its bounds.
            ``original_norm`` and ``current_norm``: each row by ``clip_frac`` of the norm of what is corrected of it,
            as it was given or as it is; a row that is zero does not move. None: no bound.
        clip_frac: See ``clip``.
        bounds: Lowest and highest action, two numbers or two (Da,), or None. What lies outside does not move further
            out.
        first_only: Whether to correct the first action of a chunk only.
        dims: Which dimensions of an action to correct, (Da,), bool; None: all. A gripper that opens or closes has no
            gradient worth following.
        line_search: See above.
        noise: Temperature of Langevin dynamics: each step adds sqrt(2 alpha noise) times a standard normal before the
            clip. Needs ``line_search=False``.
        generator: Of this noise, on the device of ``action``.

    Returns:
        Corrected chunks, (B, Tp, Da), detached, bit by bit those given where ``steps`` or ``alpha`` is 0; and what was
        done.

    Raises:
        ValueError: If an argument is out of range, or the energies have another shape than (B,), are not finite, or
            have no gradient in the actions.
    """
    start = time.perf_counter()
    _check_action(action, "(B, Tp, Da)", 3)
    _check_search(steps, line_search, noise, generator)
    x = given = action.detach() if action.requires_grad else action
    propose = _Step(given, alpha, clip, clip_frac, bounds, _mask(given, first_only, dims), noise, generator)
    steps = steps if alpha > 0.0 else 0
    shortened, full = [], 0  # what the clip took off each step, and the number of rows' steps at full length
    with eval_mode(energy_fn):
        point = evaluate(energy_fn, x, with_grad=steps > 0)
        visited = [(x, point)]
        heights = [point[0].tolist()]  # energies as numbers: to compare these costs less
        before = point[0]
        for step in range(1, steps + 1):
            energy, grad = point
            assert grad is not None
            target, cut = propose(x, grad)
            point = evaluate(energy_fn, target, with_grad=step < steps)
            shortened.append(cut)
            heights.append(point[0].tolist())
            fell = len(x)
            if line_search and not all(map(operator.le, heights[-1], heights[-2])):
                target, point, fell = backtrack(energy_fn, (x, energy, grad), target, point)
                heights[-1] = point[0].tolist()
            full += fell
            visited.append((target, point))
            x = target
    # At once and at the end: each look at a number costs as much as a step of the descent's arithmetic. An action or a
    # followed gradient that is not finite leaves such a difference.
    norms = _norm(torch.cat([x - given, *shortened]))
    lengths = norms.tolist()
    if not math.isfinite(sum(lengths) + sum(map(sum, heights))):
        check_finite(visited, lambda step: f"the actions after step {step}" if step else "the given actions")
    info = CorrectionInfo(
        energy_before=before,
        energy_after=point[0],
        displacement=norms[: len(x)],
        clip_rate=1.0 - lengths[len(x) :].count(0.0) / (steps * len(x)) if steps else 0.0,
        accept_rate=full / (steps * len(x)) if steps else 1.0,
        milliseconds=1e3 * (time.perf_counter() - start),
    )
    return (x if steps else x.clone()), info


@torch.no_grad()
def best_of_n(energy_fn: EnergyFn, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of N candidates for each row the one of least energy, the first of several.

    Args:
        energy_fn: As in :func:`correct`; it needs no gradient.
        candidates: Chunks, (N, B, Tp, Da).

    Returns:
        The chosen chunks (B, Tp, Da), their numbers (B,), int64, and all energies (N, B).

    Raises:
        ValueError: If there is no candidate, or the energies have another shape than (B,) or are not finite.
    """
    _check_action(candidates, "(N, B, Tp, Da) with N >= 1", 4)
    with eval_mode(energy_fn):
        found = torch.stack([energies(energy_fn, one) for one in candidates])
    check_finite([(x, (energy, None)) for x, energy in zip(candidates, found)], "candidate {}".format)
    index = found.argmin(dim=0)
    return candidates[index, torch.arange(len(index), device=index.device)], index, found


class _Step:
    """The full step from a point: descent, noise, clip and bounds; see :func:`correct`."""

    def __init__(
        self,
        action: Tensor,
        alpha: float,
        clip: str | None,
        clip_frac: float,
        bounds: Bounds,
        mask: Tensor | None,
        noise: float,
        generator: torch.Generator | None,
    ) -> None:
        if not 0.0 <= alpha < math.inf:
            raise ValueError(f"alpha must be finite and at least 0, got {alpha}")
        if clip not in CLIPS or not clip_frac > 0.0:
            raise ValueError(f"clip must be one of {CLIPS} and clip_frac above 0, got {clip!r} and {clip_frac}")
        if clip == "range" and bounds is None:
            raise ValueError("clip='range' needs bounds, of whose width clip_frac is a share")
        self.alpha, self.clip, self.clip_frac, self.mask = alpha, clip, clip_frac, mask
        self.std, self.generator = math.sqrt(2.0 * alpha * noise), generator
        self.range: tuple[Tensor, Tensor] | None = None
        if bounds is not None:
            low, high = bounds
            if not bool((low < high).all() if isinstance(low, Tensor) else low < high):
                raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
            self.range = action.clamp(max=low), action.clamp(min=high)
            self.limit = clip_frac * (high - low)
        if clip == "original_norm":
            self.allowed = clip_frac * self._norm(action)

    def __call__(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Where the step from ``x`` leads, and what the clip took off it, both (B, Tp, Da)."""
        move = grad * self.alpha
        if self.std:
            noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
            move = move - self.std * noise
        if self.mask is not None:
            move = torch.where(self.mask, move, 0.0)
        shorter = self._clipped(move, x)
        target = x - shorter
        return (target if self.range is None else torch.clamp(target, *self.range)), move - shorter

    def _clipped(self, move: Tensor, x: Tensor) -> Tensor:
        if self.clip is None:
            return move
        if self.clip == "range":
            return move.clamp(-self.limit, self.limit)
        allowed = self.allowed if self.clip == "original_norm" else self.clip_frac * self._norm(x)
        length = _norm(move)
        return move * torch.where(length > allowed, allowed / length, 1.0).view(-1, 1, 1)

    def _norm(self, x: Tensor) -> Tensor:
        """Of what is corrected, (B,)."""
        return _norm(x if self.mask is None else torch.where(self.mask, x, 0.0))


def _norm(x: Tensor) -> Tensor:
    """(B,) from (B, Tp, Da)."""
    return torch.linalg.vector_norm(x, dim=(1, 2))


def _mask(action: Tensor, first_only: bool, dims: Sequence[bool] | Tensor | None) -> Tensor | None:
    """Which numbers of a chunk are corrected, (Tp, Da), bool; None: all."""
    if dims is None and not first_only:
        return None
    mask = torch.ones(action.shape[1:], dtype=torch.bool, device=action.device)
    if dims is not None:
        chosen = torch.as_tensor(dims, device=action.device)
        if chosen.dtype != torch.bool or chosen.shape != action.shape[-1:]:
            raise ValueError(
                f"dims must be {action.shape[-1]} of True and False, one for each dimension of an action, got {dims}"
            )
        mask &= chosen
    if first_only:
        mask[1:] = False
    return mask


def _check_action(action: Tensor, shape: str, ndim: int) -> None:
    if action.ndim != ndim or action.numel() == 0 or not action.is_floating_point():
        raise ValueError(f"actions must be {shape}, floating point, got {tuple(action.shape)} {action.dtype}")


def _check_search(steps: int, line_search: bool, noise: float, generator: torch.Generator | None) -> None:
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if not 0.0 <= noise < math.inf:
        raise ValueError(f"noise must be finite and at least 0, got {noise}")
    if noise > 0.0 and line_search:
        raise ValueError("noise needs line_search=False: no step of a line search raises the energy, as noise must")
    if noise > 0.0 and generator is None:
        raise ValueError("noise needs a generator")
