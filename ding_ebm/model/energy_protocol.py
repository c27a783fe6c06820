"""What an energy is to the rest of the package: its signature, the check of a user's own, and pairs from any of them.

Letters: B batch, N actions, M actions a context, To observation history, Tp predicted actions, Do observation,
Da action.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Pairs that go through a network together: on a CPU what they leave behind should stay in its cache.
_BLOCK_ROWS = {"cpu": 4096}
_BLOCK_ROWS_ELSEWHERE = 1 << 18


class Energy(Protocol):
    """Any callable, most often a module, that gives the energy of an action chunk in a context; low is preferred."""

    def __call__(self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, views: Any = None) -> Tensor:
        """Energies, (B,), each of its own row alone.

        Args:
            obs: Observation histories or context tokens, (B, To, Do), normalized.
            action: Action chunks, (B, Tp, Da), normalized.
            k_idx: Denoising indices, (B,) int64, from 0, the clean action, to K, pure noise; None: 0. The package
                passes it on only where it is given, so an energy of clean actions need not take it.
            views: Further inputs of the caller's own.
        """
        ...


def check_energy(
    energy: Energy, obs: Tensor, action: Tensor, *, k_idx: Tensor | None = None, need_gradient: bool = False
) -> None:
    """Refuse an energy that breaks the protocol, before anything is trained on it.

    A module is evaluated in eval mode; its modes, parameters and gradients stay as they are.

    Args:
        energy: What is checked.
        obs: A batch of (B, To, Do); 8 rows are enough, and 2 are needed to see whether rows depend on each other.
        action: (B, Tp, Da).
        k_idx: (B,) int64 for an energy that takes it, else None.
        need_gradient: Whether it must be differentiable in the action.

    Raises:
        ValueError: The energies are not (B,), not finite or not floating-point, one changes when it is evaluated
            without the others, or there is no gradient, or one that is not finite or zero everywhere.
    """
    action = action.detach().clone().requires_grad_(need_gradient)
    with eval_mode(energy), torch.set_grad_enabled(need_gradient):
        values = _call(energy, obs, action, k_idx)
        _check_values(values, len(obs))
        if need_gradient:
            _check_gradient(values, action)
        alone = _call(energy, obs[:1], action[:1], None if k_idx is None else k_idx[:1])
    _check_values(alone, 1)
    allowed = torch.finfo(values.dtype).eps ** 0.5 * (1.0 + float(values.detach().abs().max()))
    if (difference := float((values[0] - alone[0]).detach().abs())) > allowed:
        raise ValueError(
            f"the energy of a row must depend on that row alone, but that of row 0 changes by {difference:.3g} when it "
            f"is evaluated without the other {len(obs) - 1} (a normalization over the batch does this)"
        )


def _check_values(values: Any, batch: int) -> None:
    if not isinstance(values, Tensor):
        raise ValueError(f"the energy must return a tensor of shape (B,) = ({batch},), got {type(values).__name__}")
    if values.shape != (batch,):
        raise ValueError(f"the energy must have the shape (B,) = ({batch},), got {tuple(values.shape)}")
    if not values.is_floating_point():
        raise ValueError(f"the energy must be floating-point, got {values.dtype}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"the energy must be finite, got {int((~values.isfinite()).sum())} of {batch} that are not")


def _check_gradient(values: Tensor, action: Tensor) -> None:
    if not values.requires_grad:
        raise ValueError("the energy must be differentiable in the action, but was computed without gradients")
    (grad,) = torch.autograd.grad(values.sum(), action, allow_unused=True, retain_graph=True)
    if grad is None:
        raise ValueError("the energy must be differentiable in the action, but does not depend on it")
    if not bool(grad.isfinite().all()):
        raise ValueError("the gradient of the energy in the action must be finite, got NaN or infinity")
    if not bool(grad.any()):
        raise ValueError("the energy must depend on the action, but its gradient in the action is zero in every row")


def eval_mode(energy: Any) -> contextlib.AbstractContextManager[None]:
    """Every part of a module in eval mode, and each as it was afterwards; other functions as they are."""
    return _all_in_eval_mode(energy) if isinstance(energy, nn.Module) else _AS_IT_IS


_AS_IT_IS = contextlib.nullcontext()


@contextlib.contextmanager
def _all_in_eval_mode(module: nn.Module) -> Iterator[None]:
    parts = list(module.modules())
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes):
            part.training = mode


class FlatEnergy(nn.Module):
    """An energy from a network of flat candidates, such as the host's ``EBM`` for implicit behavioral cloning.

    Args:
        net: Maps observations (B, M, To * Do) and actions (B, M, Tp * Da) to energies (B, M).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, views: Any = None) -> Tensor:
        """Energies (B,), see :class:`Energy`; those of clean actions only."""
        return self.candidate_energy(obs, action.unsqueeze(1), k_idx).squeeze(1)

    def candidate_energy(self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None) -> Tensor:
        """Energies (B, M) of actions (B, M, Tp, Da)."""
        if k_idx is not None:
            raise ValueError("a network of flat candidates takes no k_idx")
        energies: Tensor = self.net(obs.flatten(1).unsqueeze(1).expand(-1, action.shape[1], -1), action.flatten(2))
        return energies


def pair_energy(energy: Energy, obs: Tensor, action: Tensor, k_idx: Tensor | None = None) -> Tensor:
    """Energies of every action in every context, (B, N), of any energy.

    One that has a ``pair_energy`` of its own is asked for it; any other is evaluated on repeated contexts and actions,
    some thousand pairs at a time.

    Args:
        energy: See :class:`Energy`.
        obs: (B, To, Do).
        action: (N, Tp, Da).
        k_idx: Denoising indices of the actions, (N,) int64, or None.
    """
    if (own := getattr(energy, "pair_energy", None)) is not None:
        pairs: Tensor = own(obs, action) if k_idx is None else own(obs, action, k_idx)
        return pairs
    return _by_repetition(energy, obs, action.unsqueeze(0), None if k_idx is None else k_idx.unsqueeze(0))


def candidate_energy(energy: Energy, obs: Tensor, action: Tensor, k_idx: Tensor | None = None) -> Tensor:
    """Energies of M actions for each context, (B, M), of any energy; see :func:`pair_energy`.

    Args:
        energy: See :class:`Energy`.
        obs: (B, To, Do).
        action: (B, M, Tp, Da).
        k_idx: Denoising indices, (B,) or (B, M) int64, or None.
    """
    if len(obs) != len(action):
        raise ValueError(f"obs and action must have the same number of rows, got {len(obs)} and {len(action)}")
    if (own := getattr(energy, "candidate_energy", None)) is not None:
        energies: Tensor = own(obs, action) if k_idx is None else own(obs, action, k_idx)
        return energies
    if k_idx is not None and k_idx.ndim == 1:
        k_idx = k_idx.unsqueeze(1)
    return _by_repetition(energy, obs, action, k_idx)


def in_blocks(pairs_of_a_row: int, rows: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Rows of tensors, so many at a time as should go through a network together.

    Args:
        pairs_of_a_row: How many pairs come of a row.
        rows: (B, ...).
        others: Each (B, ...), or (1, ...) for what all rows share, or None, which stays None.
    """
    size = max(1, _BLOCK_ROWS.get(rows.device.type, _BLOCK_ROWS_ELSEWHERE) // max(1, pairs_of_a_row))
    # Split, not sliced: the gradient of each slice would be as large as the whole.
    parts = [itertools.repeat(other) if other is None or len(other) == 1 else other.split(size) for other in others]
    return zip(rows.split(size), *parts)


def _by_repetition(energy: Energy, obs: Tensor, action: Tensor, k_idx: Tensor | None) -> Tensor:
    """(B, M) from actions (B or 1, M, Tp, Da) and indices (B or 1, M or 1)."""
    num = action.shape[1]
    blocks = []
    for some, chunks, k in in_blocks(num, obs, action, k_idx):
        chunks = chunks.expand(len(some), *action.shape[1:]).flatten(0, 1)
        k = None if k is None else k.expand(len(some), num).flatten()
        energies = _call(energy, some.repeat_interleave(num, dim=0), chunks, k)
        if energies.shape != (len(chunks),):
            raise ValueError(f"the energy must have the shape (B,) = ({len(chunks)},), got {tuple(energies.shape)}")
        blocks.append(energies.view(len(some), num))
    return torch.cat(blocks)


def _call(energy: Energy, obs: Tensor, action: Tensor, k_idx: Tensor | None) -> Tensor:
    return energy(obs, action) if k_idx is None else energy(obs, action, k_idx)
