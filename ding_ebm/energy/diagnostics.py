"""What an energy is worth before anything is corrected by it: sweeps, slices, and its order beside true errors.

Functions of one energy of chunks; what else it depends on, such as observations, the caller has bound.

Letters: B rows, Tp actions of a chunk, Da dimensions of an action, A lengths of a step, L sizes of noise, W points of
an axis, n numbers of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ding_ebm.energy.correction import Bounds, correct
from ding_ebm.energy.line_search import EnergyFn, check_finite, energies, evaluate
from ding_ebm.model.energy_protocol import eval_mode


@dataclass(frozen=True)
class AlphaSweep:
    """Corrections by steps of several lengths, each a mean over rows.

    Attributes:
        alphas: Lengths of a step, (A,).
        energy: Energy of the corrected chunks, (A,).
        rose: Share of the rows whose energy is higher than before, (A,).
        displacement: Norm of what was added, over Tp and Da, (A,).
        clip_rate: Share of all rows' steps that the clip shortened, (A,).
        error: Distance of the corrected chunks to the expert's, (A,); None where no expert was given.
    """

    alphas: Tensor
    energy: Tensor
    rose: Tensor
    displacement: Tensor
    clip_rate: Tensor
    error: Tensor | None


def alpha_sweep(
    energy_fn: EnergyFn,
    action: Tensor,
    alphas: Sequence[float],
    *,
    steps: int = 1,
    clip: str | None = None,
    clip_frac: float = 0.2,
    bounds: Bounds = None,
    expert: Tensor | None = None,
) -> AlphaSweep:
    """What T plain gradient steps do to the energy for each length of a step, without a line search.

    Without clip and bounds the curve is that of the landscape; with a clip it flattens where ``clip_rate`` is 1, and
    says nothing of the landscape there.

    Args:
        energy_fn: See :func:`~ding_ebm.energy.correction.correct`.
        action: Chunks to correct, (B, Tp, Da).
        alphas: Lengths of a step, at least one, each >= 0.
        steps: T.
        clip: See there.
        clip_frac: See there.
        bounds: See there.
        expert: Chunks that would have been right, (B, Tp, Da).

    Raises:
        ValueError: As :func:`~ding_ebm.energy.correction.correct`, so too if a step is so long that the energy behind
            it is not finite; if there is no length, or the shape of ``expert`` is not that of ``action``.
    """
    if len(alphas) == 0:
        raise ValueError("alphas must hold at least one length of a step, got none")
    if expert is not None and expert.shape != action.shape:
        raise ValueError(f"expert must be of the shape of action, {tuple(action.shape)}, got {tuple(expert.shape)}")
    found = []
    for alpha in alphas:
        corrected, info = correct(
            energy_fn,
            action,
            steps=steps,
            alpha=alpha,
            clip=clip,
            clip_frac=clip_frac,
            bounds=bounds,
            line_search=False,
        )
        numbers = [info.energy_after, (info.energy_after > info.energy_before).to(action.dtype), info.displacement]
        numbers += [torch.full_like(info.displacement, info.clip_rate)]
        numbers += [] if expert is None else [_norm(corrected - expert)]
        found.append(torch.stack(numbers).mean(dim=1))
    energy, rose, displacement, clip_rate, *error = torch.stack(found, dim=1)
    lengths = torch.tensor([float(alpha) for alpha in alphas], dtype=torch.float64)
    return AlphaSweep(lengths, energy, rose, displacement, clip_rate, error[0] if error else None)


@dataclass(frozen=True)
class Landscape:
    """The energy over a plane in the space of chunks: at center + axis[j] directions[0] + axis[i] directions[1].

    Attributes:
        axis: Coordinates, the same along both directions, (W,).
        energy: (W, W), the second direction first, as pictures have it.
    """

    axis: Tensor
    energy: Tensor


def plane(chunk: Tensor, first: tuple[int, int], second: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The plane of two numbers of a chunk: a center and two directions for :func:`landscape`.

    The coordinates on it are the two numbers themselves, since the center has zeros there; the others are the chunk's.

    Args:
        chunk: (Tp, Da).
        first: Action and dimension of the number along the first direction.
        second: The same along the second.

    Returns:
        Center, (Tp, Da), and directions, (2, Tp, Da).

    Raises:
        ValueError: If the two are the same number.
    """
    if first == second:
        raise ValueError(f"a plane needs two different numbers of a chunk, got {first} twice")
    center, directions = chunk.clone(), torch.zeros(2, *chunk.shape, dtype=chunk.dtype, device=chunk.device)
    for direction, place in zip(directions, (first, second)):
        center[place], direction[place] = 0.0, 1.0
    return center, directions


@torch.no_grad()
def landscape(energy_fn: EnergyFn, center: Tensor, directions: Tensor, extent: float, points: int) -> Landscape:
    """Energies over a square of the plane through a chunk.

    Args:
        energy_fn: Maps chunks (W^2, Tp, Da) to energies (W^2,), of one state.
        center: A chunk, (Tp, Da).
        directions: (2, Tp, Da), linearly independent.
        extent: Coordinates go from minus this to this, > 0, in lengths of the directions.
        points: W, at least 2.

    Raises:
        ValueError: If an argument is out of range, or the energies have another shape or are not finite.
    """
    if center.ndim != 2 or directions.shape != (2, *center.shape):
        raise ValueError(
            f"center must be (Tp, Da) and directions (2, Tp, Da), got {tuple(center.shape)} and "
            f"{tuple(directions.shape)}"
        )
    if not extent > 0.0 or points < 2:
        raise ValueError(f"extent must be above 0 and points at least 2, got {extent} and {points}")
    axis = torch.linspace(-extent, extent, points, dtype=center.dtype, device=center.device)
    row, column = (part.reshape(-1, 1, 1) for part in torch.meshgrid(axis, axis, indexing="ij"))
    chunks = center + column * directions[0] + row * directions[1]
    with eval_mode(energy_fn):
        energy = energies(energy_fn, chunks)
    check_finite([(chunks, (energy, None))], lambda _: "the points of the plane")
    return Landscape(axis, energy.view(points, points))


@dataclass(frozen=True)
class ErrorProfile:
    """An energy beside the true error, for chunks of an expert that were moved by noise of L sizes.

    Attributes:
        noise: Standard deviations, (L,).
        energy: Energies of the expert's chunks, (B,), and
        moved_energy: of the moved ones, (L, B).
        error: Distances between the two, over Tp and Da, (L, B).
        cosine: Cosine between the direction of steepest descent and the way back to the expert's chunk, (L, B); not a
            number where the error is 0.
        spearman: Rank correlation of energy and error within each row, averaged; an energy's arbitrary offset by state
            is without effect. Not a number if an energy is the same for all of a row's chunks.
        pooled_spearman: The same over all rows together, where an offset by state counts as an error does.
    """

    noise: Tensor
    energy: Tensor
    moved_energy: Tensor
    error: Tensor
    cosine: Tensor
    spearman: float
    pooled_spearman: float


@torch.no_grad()
def error_profile(
    energy_fn: EnergyFn, action: Tensor, noise: Sequence[float], generator: torch.Generator, bounds: Bounds = None
) -> ErrorProfile:
    """Whether energies order chunks by their error, and whether their gradients point back.

    Both can hold near the data while the minimum lies elsewhere: look at small noise, too.

    Args:
        energy_fn: Maps chunks (B, Tp, Da) to energies (B,), each of its own row alone.
        action: The expert's chunks, (B, Tp, Da).
        noise: L standard deviations, at least two, each > 0.
        generator: Of the noise, on the device of ``action``.
        bounds: Lowest and highest action that noise may lead to, or None.

    Raises:
        ValueError: If there are fewer than two sizes or one is not positive and finite, or the energies have another
            shape, are not finite, or have no gradient.
    """
    if len(noise) < 2 or not all(0.0 < std < math.inf for std in noise):
        raise ValueError(f"noise must hold at least two standard deviations above 0, got {list(noise)}")
    moved_energy, error, cosine, visited = [], [], [], []
    with eval_mode(energy_fn):
        energy = energies(energy_fn, action)
        check_finite([(action, (energy, None))], lambda _: "the expert's chunks")
        for std in noise:
            draw = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
            moved = action + std * draw
            moved = moved if bounds is None else torch.clamp(moved, *bounds)
            point = evaluate(energy_fn, moved, with_grad=True)
            assert point[1] is not None
            visited.append((moved, point))
            back = (action - moved).flatten(1)
            distance = back.norm(dim=1)
            moved_energy.append(point[0])
            error.append(distance)
            similarity = F.cosine_similarity(-point[1].flatten(1), back, dim=1, eps=torch.finfo(back.dtype).tiny)
            cosine.append(torch.where(distance > 0.0, similarity, torch.nan))
    check_finite(visited, lambda number: f"the chunks moved by noise of {noise[number]:g}")
    of_energy, of_error = torch.stack(moved_energy), torch.stack(error)
    return ErrorProfile(
        noise=torch.tensor([float(std) for std in noise], dtype=torch.float64),
        energy=energy,
        moved_energy=of_energy,
        error=of_error,
        cosine=torch.stack(cosine),
        spearman=float(spearman(of_energy.T, of_error.T).mean()),
        pooled_spearman=float(spearman(of_energy.flatten(), of_error.flatten())),
    )


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Rank correlation over the last axis, (...) from two (..., n); ties have the mean of their ranks.

    Not a number where all of ``x`` or all of ``y`` are the same.
    """
    a, b = (rank - rank.mean(dim=-1, keepdim=True) for rank in (_ranks(x), _ranks(y)))
    return (a * b).sum(dim=-1) / (a.square().sum(dim=-1) * b.square().sum(dim=-1)).sqrt()


def _ranks(x: Tensor) -> Tensor:
    """Ranks from 0 over the last axis, ties averaged, float64."""
    values, x = x.sort(dim=-1).values.contiguous(), x.contiguous()
    below, up_to = (torch.searchsorted(values, x, right=right) for right in (False, True))
    return 0.5 * (below + up_to - 1).to(torch.float64)


def _norm(x: Tensor) -> Tensor:
    """(B,) from (B, Tp, Da)."""
    return x.flatten(1).norm(dim=1)
