"""Six two-dimensional data sets with energies, on which guided sampling can be compared with the truth.

The tilted law is p(x) ~ q(x) exp(-beta * energy): a low energy is preferred. The sets come from work that labels them
with a reward, mostly in [0, 1]; **energy = -reward** here. Where the reward belongs to how a point was made (its
center, ring, moon or arc) and not to where noise moved it, the energy is random given the point; guidance is defined
all the same, through E[exp(-beta energy) | x_t].

Letters: n points.

Source:
    Lu et al. 2023 (arXiv:2304.12824), two-dimensional experiments; constants as in the published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_POOL = 1 << 20  # clean points from which the tilted law resamples


@dataclass(frozen=True)
class Toy:
    """A point is a clean point plus isotropic noise; its reward is a label plus ``curvature`` times |point|^2.

    Attributes:
        clean: Maps (n, generator) to clean points, (n, 2), and labels, (n,).
        std: Standard deviation of the noise.
        curvature: Factor of the squared norm in the reward.
    """

    clean: Callable[[int, torch.Generator | None], tuple[Tensor, Tensor]]
    std: float
    curvature: float = 0.0


def sample_toy(name: str, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Independent draws from a toy set.

    ============  ===============================================================  =================================
    name          points                                                           reward (= -energy)
    ============  ===============================================================  =================================
    8gaussians    centers on a circle of radius 4, std 0.5, all over 1.414         index / 7, from the top, leftwards
    rings         radii 0.75, 1.5, 2.25, 3, std 0.08                               0, 1, 1/3, 2/3
    moons         two half circles, std 0.1, times 2, moved by (-1, -0.2)          1 on the lower moon
    checkerboard  eight squares of side 2 in [-4, 4]^2                             1 in columns 1 and 3 of four
    2spirals      two arms of 1.5 turns, over 3, std 0.1                           1 - arc / 10, arc in [0, 3 pi]
    swissroll     one arm from 0.75 to 2.25 turns, std 1, over 5                   (x^2 + y^2) / 9 of the noisy point
    ============  ===============================================================  =================================

    Args:
        name: One of :data:`TOYS`.
        n: Number of points, >= 1.
        generator: CPU generator.

    Returns:
        Points, (n, 2), and their energies, (n,); float64.

    Raises:
        ValueError: If the name is unknown or ``n`` is below 1.
    """
    toy = _toy(name, n)
    points, label = toy.clean(n, generator)
    points = points + toy.std * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    return points, -(label + toy.curvature * points.square().sum(1))


def sample_tilted_toy(name: str, beta: float, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws from p ~ q exp(-beta * energy), the truth that guided sampling should reach.

    Clean points are resampled by their weight; the noise, whose tilted law is Gaussian, is drawn anew. With noise
    variance s^2, curvature k and u = 1 - 2 beta k s^2, a clean point m has the weight exp(beta (label + k |m|^2 / u))
    and its points follow N(m / u, s^2 / u).

    Args:
        name: One of :data:`TOYS`.
        beta: Inverse temperature.
        n: Number of points, >= 1.
        generator: CPU generator.

    Returns:
        (n, 2), float64.

    Raises:
        ValueError: If the name is unknown, ``n`` is below 1, the tilted law has no finite integral, or the weights
            leave fewer than ``n`` effective clean points.
    """
    toy = _toy(name, n)
    shrink = 1.0 - 2.0 * beta * toy.curvature * toy.std**2
    if shrink <= 0.0:
        limit = 1.0 / (2.0 * toy.curvature * toy.std**2)
        raise ValueError(f"{name} cannot be tilted with beta = {beta:g}; beta must be below {limit:g}")
    clean, label = toy.clean(_POOL, generator)
    weights = torch.softmax(beta * (label + toy.curvature / shrink * clean.square().sum(1)), 0)
    effective = 1.0 / float(weights.square().sum())
    if effective < n:
        raise ValueError(f"{n} draws of {name} at beta = {beta:g} need as many clean points, {effective:.0f} are left")
    # The inverse of the cumulative weights is many times faster than torch.multinomial.
    uniform = torch.rand(n, dtype=torch.float64, generator=generator)
    chosen = torch.searchsorted(weights.cumsum(0), uniform).clamp_(max=_POOL - 1)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    return clean[chosen] / shrink + toy.std / math.sqrt(shrink) * noise


def _toy(name: str, n: int) -> Toy:
    if name not in TOYS:
        raise ValueError(f"toy set must be one of {tuple(TOYS)}, got {name!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return TOYS[name]


def _eight_gaussians(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    index = torch.randint(8, (n,), generator=generator).to(torch.float64)
    return 4.0 / 1.414 * _on_circle((2.0 + index) * (math.pi / 4.0)), index / 7.0


def _rings(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    ring = torch.randint(4, (n,), generator=generator)
    reward = torch.tensor([0.0, 1.0, 1.0 / 3.0, 2.0 / 3.0], dtype=torch.float64)
    return 0.75 * (ring + 1).unsqueeze(1) * _on_circle(2.0 * math.pi * _uniform(n, generator)), reward[ring]


def _moons(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    lower = torch.randint(2, (n,), generator=generator).to(torch.float64)
    arc = _on_circle(math.pi * _uniform(n, generator))
    flipped = torch.tensor([1.0, 0.5], dtype=torch.float64) - arc
    points = torch.where(lower.unsqueeze(1) > 0, flipped, arc)
    return 2.0 * points + torch.tensor([-1.0, -0.2], dtype=torch.float64), lower


def _checkerboard(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    x = 4.0 * _uniform(n, generator) - 2.0
    lower = torch.randint(2, (n,), generator=generator)
    column = torch.floor(x)  # -2, -1, 0, 1
    y = _uniform(n, generator) - 2.0 * lower + column % 2
    return 2.0 * torch.stack([x, y], 1), (column % 2 == 0).to(torch.float64)


def _two_spirals(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    arc = 3.0 * math.pi * _uniform(n, generator).sqrt()
    jitter = 0.5 * torch.rand(n, 2, dtype=torch.float64, generator=generator)
    points = arc.unsqueeze(1) * _on_circle(math.pi - arc) + jitter
    arm = 1.0 - 2.0 * torch.randint(2, (n, 1), generator=generator)
    return arm * points / 3.0, 1.0 - arc / 10.0


def _swissroll(n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    arc = 1.5 * math.pi * (1.0 + 2.0 * _uniform(n, generator))
    return arc.unsqueeze(1) * _on_circle(arc) / 5.0, torch.zeros(n, dtype=torch.float64)


def _on_circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1)


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=generator)


TOYS = {
    "8gaussians": Toy(_eight_gaussians, std=0.5 / 1.414),
    "rings": Toy(_rings, std=0.08),
    "moons": Toy(_moons, std=0.2),
    "checkerboard": Toy(_checkerboard, std=0.0),
    "2spirals": Toy(_two_spirals, std=0.1),
    "swissroll": Toy(_swissroll, std=0.2, curvature=1.0 / 9.0),
}
