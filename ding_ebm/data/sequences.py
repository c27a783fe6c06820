"""Sequences of steps as arithmetic on row numbers: nothing here looks at one episode, window or row at a time.

Letters: N rows, W windows, B batch, L steps of an episode, To observation history, Tp predicted and Ta executed
actions, n steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ding_ebm.data.transitions import Transitions

PADDINGS = ("dppo", "diffusion_policy")


def episode_bounds(transitions: Transitions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last row of the episode of each row, (N,) each; an unfinished piece at the end is an episode, too."""
    starts, stops = transitions.pieces
    lengths = stops - starts
    return np.repeat(starts, lengths), np.repeat(stops - 1, lengths)


def window_rows(
    transitions: Transitions, horizon_steps: int, padding: str = "dppo", act_steps: int = 1
) -> NDArray[np.int64]:
    """Rows in which a window of Tp actions begins, (W,), increasing.

    ``dppo``: the actions are all in the episode, so that W is the sum of L - Tp + 1. ``diffusion_policy``: up to
    Ta - 1 of them may lie behind its end, W is the sum of L - Tp + Ta; so the last steps are learned from, too.

    Args:
        transitions: The rows.
        horizon_steps: Tp.
        padding: One of ``PADDINGS``.
        act_steps: Ta, which only ``diffusion_policy`` looks at.

    Raises:
        ValueError: If an argument is out of its range, or no window fits.

    Source:
        ``StitchedSequenceDataset`` of Ren et al. 2024 (arXiv:2409.00588) and ``create_indices`` with ``pad_before`` =
        To - 1 and ``pad_after`` = Ta - 1 of Chi et al. 2023 (arXiv:2303.04137). There a sequence holds To - 1 actions
        before the latest observation, too; here a window begins with the action that follows it.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
    if not 1 <= act_steps <= horizon_steps:
        raise ValueError(f"act_steps must be from 1 to horizon_steps = {horizon_steps}, got {act_steps}")
    inside = horizon_steps if padding == "dppo" else horizon_steps - act_steps + 1
    _, last = episode_bounds(transitions)
    rows = np.flatnonzero(np.arange(len(transitions)) + inside - 1 <= last)
    if rows.size == 0:
        starts, stops = transitions.pieces
        shorter = f" of which {inside} lie in the episode" if inside < horizon_steps else ""
        raise ValueError(
            f"{transitions.source}: the longest episode has {(stops - starts).max()} steps, so no window of "
            f"horizon_steps = {horizon_steps} fits{shorter}; give longer episodes or a shorter horizon"
        )
    return rows


def history_rows(rows: Tensor, first: Tensor, cond_steps: int) -> Tensor:
    """Rows of the To observations up to each of ``rows``, (B, To), the latest last.

    Before an episode's first row, (B,), that row is repeated.
    """
    back = torch.arange(1 - cond_steps, 1, device=rows.device)
    return torch.maximum(rows.unsqueeze(1) + back, first.unsqueeze(1))


def following_rows(rows: Tensor, last: Tensor, steps: int) -> Tensor:
    """Each of ``rows`` and the steps after it, (B, n); behind an episode's last row, (B,), that row is repeated."""
    ahead = torch.arange(steps, device=rows.device)
    return torch.minimum(rows.unsqueeze(1) + ahead, last.unsqueeze(1))


@dataclass(frozen=True)
class StepTargets:
    """What comes of the n steps from each of B rows, or of fewer where the episode ends before.

    Attributes:
        reward: Sum of the rewards of the executed steps, the j-th (from 0) times ``discount ** j``, (B,).
        length: Number k of executed steps, 1 to n, (B,), int64: what follows counts ``discount ** k``.
        last: Row of the last executed step, whose next observation is that after the steps, (B,), int64.
    """

    reward: Tensor
    length: Tensor
    last: Tensor


def step_targets(rows: Tensor, last: Tensor, reward: Tensor, steps: int, discount: float = 1.0) -> StepTargets:
    """Targets of n steps, with which chunks of actions are transitions of their own (``steps`` = Ta), too.

    Args:
        rows: First row of each, (B,), int64.
        last: Last row of the episode of each, (B,), int64.
        reward: Of every row of the data, (N,).
        steps: n.
        discount: Factor from one step to the next.
    """
    length = (last - rows + 1).clamp(max=steps)
    ahead = torch.arange(steps, device=rows.device)
    weight = discount ** ahead.to(reward.dtype) * (ahead < length.unsqueeze(1))
    found = reward.index_select(0, following_rows(rows, last, steps).flatten()).view(len(rows), steps)
    return StepTargets((weight * found).sum(1), length, rows + length - 1)


def monte_carlo_returns(
    reward: Tensor, last: Tensor, discount: float, terminated: Tensor | None = None, bootstrap: Tensor | None = None
) -> Tensor:
    """Discounted sum of the rewards from each row to the end of its episode, (N,).

    Sums of 1, 2, 4, ... steps are made of each other, in double precision: as many passes as the logarithm of the
    longest episode.

    Args:
        reward: Rewards, (N,).
        last: Last row of the episode of each row, (N,), int64.
        discount: Factor from one step to the next.
        terminated: Where the task ended, (N,), bool; needed with ``bootstrap``.
        bootstrap: Value of each row's next observation, (N,): counted where an episode ends without having terminated.
            None: such an episode's returns lack what would have come.

    Raises:
        ValueError: If one of ``terminated`` and ``bootstrap`` is given without the other.
    """
    if (terminated is None) != (bootstrap is None):
        raise ValueError("bootstrap and terminated are given together, or neither: values count where nothing ended")
    row = torch.arange(len(reward), device=reward.device)
    total = reward.double()
    if terminated is not None and bootstrap is not None:
        total = total + discount * bootstrap.double() * ((row == last) & ~terminated)
    span, longest = 1, int((last - row).max()) + 1
    while span < longest:
        later = row + span
        total = total + discount**span * total[later.clamp(max=len(row) - 1)] * (later <= last)
        span *= 2
    return total.to(reward.dtype)
