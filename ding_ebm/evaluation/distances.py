"""Distances between two samples, and the distance that two samples of one law have anyway.

Letters: n and m points, D dimension, P projections.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sliced_wasserstein(x: Tensor, y: Tensor, num_projections: int = 128, seed: int = 0) -> float:
    """Sliced 1-Wasserstein distance, in the unit of the points.

    The mean over P unit directions of W_1 between the projections; in one dimension W_1 is the mean distance of the
    sorted points. The directions are the same for the same seed and D, so distances can be compared.

    Args:
        x: (n, D).
        y: (n, D), as many points.
        num_projections: P.
        seed: Seed of the directions.

    Raises:
        ValueError: If the shapes differ or a number is not finite.

    Source:
        Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures" (there with W_2, whose noise
        between two draws of a law with rare modes is twice as large as that of W_1).
    """
    x, y = _checked(x, y)
    if len(x) != len(y):
        raise ValueError(f"both samples must have the same number of points, got {len(x)} and {len(y)}")
    directions = torch.randn(x.shape[1], num_projections, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    directions = (directions / directions.norm(dim=0)).to(x.device)
    difference = (x @ directions).sort(0).values - (y @ directions).sort(0).values
    return float(difference.abs().mean())


def squared_mmd(x: Tensor, y: Tensor, bandwidths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)) -> float:
    """Squared maximum mean discrepancy, unbiased: zero on average, and as often below, if both laws are the same.

    The kernel is the mean of exp(-|x - y|^2 / (2 h^2)) over ``bandwidths``, which are fixed and not taken from the
    samples, so that values for different samplers can be compared. The default suits points spread over a few units.

    Args:
        x: (n, D), n >= 2.
        y: (m, D), m >= 2.
        bandwidths: h, in the unit of the points.

    Raises:
        ValueError: If the dimensions differ, a sample has fewer than two points or a number is not finite.

    Source:
        Gretton et al. 2012, "A kernel two-sample test", eq. 3.
    """
    x, y = _checked(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"both samples must have at least two points, got {len(x)} and {len(y)}")
    n, m = len(x), len(y)
    # The diagonal, a point with itself, has kernel 1 and does not count.
    within_x = (_kernel_sum(x, x, bandwidths) - n) / (n * (n - 1))
    within_y = (_kernel_sum(y, y, bandwidths) - m) / (m * (m - 1))
    return within_x + within_y - 2.0 * _kernel_sum(x, y, bandwidths) / (n * m)


def two_draw_floor(
    draw: Callable[[int], Tensor], distance: Callable[[Tensor, Tensor], float], n: int, repeats: int
) -> Tensor:
    """Distances between two independent draws of one law: what a perfect sampler would get.

    Args:
        draw: Maps n to a fresh sample, (n, D).
        distance: Of two samples.
        n: Number of points of each sample.
        repeats: Number of pairs.

    Returns:
        (repeats,), float64.
    """
    return torch.tensor([distance(draw(n), draw(n)) for _ in range(repeats)], dtype=torch.float64)


def _kernel_sum(x: Tensor, y: Tensor, bandwidths: tuple[float, ...]) -> float:
    """Sum of the kernel over all pairs, by blocks of rows."""
    total = 0.0
    for start in range(0, len(x), 512):
        rows = x[start : start + 512]
        squares = torch.cdist(rows, y, compute_mode="donot_use_mm_for_euclid_dist").square()
        total += sum(float(torch.exp(squares * (-0.5 / h**2)).sum()) for h in bandwidths)
    return total / len(bandwidths)


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"samples must be (n, D) and (m, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise ValueError("samples must be finite")
    return x.to(torch.float64), y.to(torch.float64)
