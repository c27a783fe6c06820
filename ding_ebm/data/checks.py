"""What must hold in a data set before anything is learned from it.

Letters: N rows, Do and Da dimensions of an observation and of an action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ding_ebm.data.transitions import Transitions, broken_rows

# Actions at their limit may pass it by rounding, as a share of the range.
_RANGE_SLACK = 1e-6


def check_transitions(
    transitions: Transitions,
    obs_dim: int | None = None,
    action_dim: int | None = None,
    action_range: tuple[ArrayLike, ArrayLike] | None = (-1.0, 1.0),
    max_episode_steps: int | None = None,
) -> None:
    """Refuse data that would train silently into nonsense.

    What may be meant is not refused but said, by :func:`~ding_ebm.data.doubts.doubts`. A row that is both terminated
    and truncated is in order: terminated wins where values are bootstrapped.

    Args:
        transitions: The rows.
        obs_dim: Do of the environment, or None where there is none to compare with.
        action_dim: Da of the environment, or None.
        action_range: Lowest and highest action of the environment, each one number or (Da,); None for
            unbounded actions.
        max_episode_steps: The environment's time limit, or None where it is not known.

    Raises:
        ValueError: Naming every problem, with how many rows have it, the first of them, and what would be right.
    """
    problems = _dimensions(transitions, obs_dim, action_dim)
    for name in ("obs", "action", "reward", "next_obs"):
        problems += _not_finite(name, getattr(transitions, name))
    if action_range is not None and action_dim in (None, transitions.action.shape[1]):
        problems += _action_ranges(transitions.action, *action_range)
    problems += _broken_order(transitions)
    if max_episode_steps is not None:
        problems += _missing_ends(transitions, max_episode_steps)
    if problems:
        raise ValueError(f"{transitions.source}: " + "; ".join(problems))


def _dimensions(transitions: Transitions, obs_dim: int | None, action_dim: int | None) -> list[str]:
    found = (("obs", transitions.obs.shape[1], obs_dim), ("action", transitions.action.shape[1], action_dim))
    return [
        f"{name} has {columns} dimensions, the environment has {expected}: is this another task's file?"
        for name, columns, expected in found
        if expected is not None and columns != expected
    ]


def _not_finite(name: str, array: NDArray[Any]) -> list[str]:
    # A sum is finite unless an element is not (or it overflows, which the full look then clears): one pass, no copy.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return []
    rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if rows.size == 0:
        return []
    return [f"{name} holds NaN or Inf in {rows.size} rows, first in row {rows[0]}: every value must be finite"]


def _action_ranges(action: NDArray[Any], lowest: ArrayLike, highest: ArrayLike) -> list[str]:
    """Actions beyond their range; numbers of an action that have ranges of their own are named each."""
    low, high = (np.broadcast_to(np.asarray(end, dtype=np.float64), action.shape[1]) for end in (lowest, highest))
    if (low == low[0]).all() and (high == high[0]).all():
        return _out_of_range("action", action, low[0], high[0])
    return [
        problem
        for i in range(action.shape[1])
        for problem in _out_of_range(f"number {i} of action", action[:, i : i + 1], low[i], high[i])
    ]


def _out_of_range(name: str, action: NDArray[Any], low: float, high: float) -> list[str]:
    slack = _RANGE_SLACK * (high - low)
    if action.min() >= low - slack and action.max() <= high + slack:  # False for NaN too, which the full look ignores
        return []
    rows = np.flatnonzero(((action < low - slack) | (action > high + slack)).any(axis=1))
    if rows.size == 0:
        return []
    return [
        f"{name} leaves [{low:g}, {high:g}] in {rows.size} rows, first in row {rows[0]}, by values from "
        f"{np.nanmin(action):g} to {np.nanmax(action):g}: actions must be in the environment's own units"
    ]


def _broken_order(transitions: Transitions) -> list[str]:
    """Rows inside an episode whose next_obs is not the following row's obs."""
    rows = broken_rows(transitions)
    if rows.size == 0:
        return []
    return [
        f"next_obs is not the following row's obs in {rows.size} rows inside an episode, first in row {rows[0]}: rows "
        "must be in episode order, and where an episode was cut truncated (timeouts in the file) must be set"
    ]


def _missing_ends(transitions: Transitions, limit: int) -> list[str]:
    """Time limits that are not marked as such."""
    if not transitions.episode_ends.size and len(transitions) > limit:
        return [
            f"no row is terminated or truncated, and an episode of the task has at most {limit} rows: set terminals "
            f"and timeouts where episodes end in these {len(transitions)} rows"
        ]
    lengths = transitions.episode_lengths()
    ended = lengths[(transitions.terminated & ~transitions.truncated)[transitions.episode_ends]]
    if ended.size < 2 or (ended != limit).any():
        return []
    return [
        f"all {ended.size} terminated episodes have just the {limit} steps of the task's time limit: these are "
        "timeouts, from which values must be bootstrapped; terminals and timeouts may be swapped"
    ]
