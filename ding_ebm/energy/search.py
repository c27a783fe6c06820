"""A search for the actions of least energy that needs no policy and no gradient.

Letters: B batch, N candidates, Tp predicted actions, Da action.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def derivative_free_minimum(
    energy: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int, int],
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    bound: float = 1.0,
    rounds: int = 3,
    std: float = 0.33,
    shrink: float = 0.5,
) -> Tensor:
    """The best of N candidates, which begin uniform and are resampled and disturbed in each round, (B, Tp, Da).

    Args:
        energy: From candidates (B, N, Tp, Da) to energies (B, N).
        shape: (B, N, Tp, Da).
        generator: Of the candidates; they are made on its device.
        temperature: Candidates are resampled by exp(-E / temperature).
        bound: They are from -bound to bound.
        rounds: Evaluations of all candidates.
        std: Standard deviation of the first disturbance.
        shrink: Its factor from round to round.

    Source:
        Florence et al. 2021 (arXiv:2109.00137), algorithm 1.
    """
    batch, num = shape[:2]
    device = generator.device
    candidates = bound * (2.0 * torch.rand(shape, generator=generator, device=device) - 1.0)
    row = torch.arange(batch, device=device).unsqueeze(1)
    energies = energy(candidates)
    for i in range(rounds - 1):
        chosen = torch.multinomial(
            torch.softmax(-energies / temperature, dim=1), num, replacement=True, generator=generator
        )
        # The best one stays as it is, so that the least energy never rises.
        best = energies.argmin(dim=1)
        kept = candidates[row.squeeze(1), best]
        noise = torch.randn(shape, generator=generator, device=device)
        candidates = (candidates[row, chosen] + std * shrink**i * noise).clamp(-bound, bound)
        candidates[:, 0] = kept
        energies = energy(candidates)
    return candidates[row.squeeze(1), energies.argmin(dim=1)]
