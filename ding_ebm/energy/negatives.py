"""Negatives: actions that an energy learns to give more energy than the data's, (B, M, Tp, Da), normalized as those.

Which they are decides what the energy is good for, see :mod:`ding_ebm.energy.losses`. Samples of a policy need no
function here: they join others by :func:`mix`.

Letters: B batch, M negatives of a row, P pool, Tp predicted actions, Da action.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(action: Tensor, num: int, low: float | Tensor, high: float | Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in a box: the energy becomes -tau log p(a|s) + c(s) there.

    Args:
        action: The data's chunks, (B, Tp, Da), for shape, dtype and device.
        num: M.
        low: Lower bounds, one, (Da,) or (Tp, Da).
        high: Upper bounds, each above its lower one.
        generator: On the device of ``action``.

    Source:
        Florence et al. 2021 (arXiv:2109.00137).
    """
    low, high = (torch.as_tensor(x, dtype=action.dtype, device=action.device) for x in (low, high))
    if not bool((low < high).all()):
        raise ValueError(f"low must be below high in every dimension, got {low.tolist()} and {high.tolist()}")
    shape = _repeated(action, num).shape
    return low + (high - low) * torch.rand(shape, dtype=action.dtype, device=action.device, generator=generator)


def gaussian(action: Tensor, num: int, std: float | Tensor, generator: torch.Generator) -> Tensor:
    """The data's chunk with Gaussian noise: what tells apart actions that are near each other.

    Args:
        action: The data's chunks, (B, Tp, Da).
        num: M.
        std: Standard deviation, one or (Da,), >= 0.
        generator: On the device of ``action``.
    """
    chunks = _repeated(action, num)
    noise = torch.randn(chunks.shape, dtype=action.dtype, device=action.device, generator=generator)
    return chunks + torch.as_tensor(std, dtype=action.dtype, device=action.device) * noise


def time_shifted(action: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """The data's chunk rolled by 1 to Tp - 1 steps: right actions at wrong times.

    Args:
        action: The data's chunks, (B, Tp, Da), Tp >= 2. One whose actions are all the same is its own negative.
        num: M; shifts are drawn with replacement.
        generator: On the device of ``action``.
    """
    chunks = _repeated(action, num)
    steps = chunks.shape[2]
    if steps < 2:
        raise ValueError("a chunk of one action has no other time to shift it to")
    shifts = torch.randint(1, steps, (*chunks.shape[:2], 1), device=action.device, generator=generator)
    sources = (torch.arange(steps, device=action.device) - shifts) % steps  # (B, M, Tp)
    return chunks.gather(2, sources.unsqueeze(-1).expand_as(chunks))


def from_pool(pool: Tensor, batch: int, num: int, generator: torch.Generator) -> Tensor:
    """Chunks drawn with replacement: of the whole data, of other steps of an episode, or of a queue.

    Args:
        pool: Chunks, (P, Tp, Da), the same for all rows, or (B, P, Tp, Da).
        batch: B.
        num: M.
        generator: On the device of ``pool``.
    """
    if pool.ndim not in (3, 4) or (pool.ndim == 4 and len(pool) != batch) or pool.shape[-3] < 1:
        raise ValueError(f"the pool must be (P, Tp, Da) or (B, P, Tp, Da) with B = {batch}, got {tuple(pool.shape)}")
    drawn = torch.randint(pool.shape[-3], (batch, num), device=pool.device, generator=generator)
    if pool.ndim == 3:
        return pool[drawn]
    return pool[torch.arange(batch, device=pool.device).unsqueeze(1), drawn]


def mix(*negatives: Tensor) -> Tensor:
    """Negatives of several kinds as one, each (B, M_i, Tp, Da), as are samples of a policy; (B, sum of M_i, Tp, Da)."""
    shapes = [tuple(some.shape) for some in negatives]
    if not shapes or any(len(shape) != 4 or shape[:1] + shape[2:] != shapes[0][:1] + shapes[0][2:] for shape in shapes):
        raise ValueError(f"negatives must be (B, M, Tp, Da) with the same B, Tp and Da, got {shapes}")
    return torch.cat(negatives, dim=1)


def _repeated(action: Tensor, num: int) -> Tensor:
    """A view of the chunks (B, Tp, Da) as (B, num, Tp, Da)."""
    if action.ndim != 3 or num < 1:
        raise ValueError(f"negatives need chunks (B, Tp, Da) and num >= 1, got {tuple(action.shape)} and num = {num}")
    return action.unsqueeze(1).expand(-1, num, -1, -1)
