"""What is permitted in a data set but is more often a mistake: said before training, and trained on if it is meant.

Letters: N rows, D columns, L the task's time limit in steps.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ding_ebm.data.normalizer import is_constant
from ding_ebm.data.transitions import Transitions

# Rows, and episodes, that are looked at where all would take long.
_SAMPLE, _MOST_EPISODES = 4096, 100_000
# Steps within episodes that are as long as the way between any two rows, as a share of it, are no steps in time.
_NO_STEPS = 0.7
# Scores, 0 to 100 between the task's reference returns, that no published set has.
_LEAST_SCORE, _MOST_SCORE = -100.0, 200.0
# Actions that use less than this share of their range are in other units; values beyond this size are none.
_UNUSED, _HUGE = 0.01, 1e6


def doubts(
    transitions: Transitions,
    *,
    max_episode_steps: int | None = None,
    action_range: tuple[ArrayLike, ArrayLike] | None = None,
    reference_returns: tuple[float, float] | None = None,
) -> list[str]:
    """What should be looked at, one sentence each with how many rows, columns or episodes have it, and what to do.

    Args:
        transitions: Rows that :func:`~ding_ebm.data.checks.check_transitions` has passed.
        max_episode_steps: L, or None where it is not known.
        action_range: Lowest and highest action of the environment, each one number or (Da,); or None.
        reference_returns: Returns that score 0 and 100, or None.
    """
    return [
        *_constant_columns("obs", transitions.obs),
        *_constant_columns("action", transitions.action),
        *_constant_reward(transitions.reward),
        *_unused_range(transitions.action, action_range),
        *_huge_values(transitions),
        *_ends(transitions, max_episode_steps),
        *_repeated_episodes(transitions),
        *_no_time_order(transitions),
        *_score(transitions, reference_returns),
    ]


def _constant_columns(name: str, array: NDArray[Any]) -> list[str]:
    columns = np.flatnonzero(is_constant(array.min(axis=0), array.max(axis=0)))
    if columns.size == 0 or len(array) < 2:
        return []
    return [
        f"{name} does not change in {columns.size} of {array.shape[1]} columns ({_first(columns)}): normalization only "
        "shifts them to zero, and what they mean cannot be learned; leave them if that is so in the task"
    ]


def _constant_reward(reward: NDArray[Any]) -> list[str]:
    if len(reward) < 2 or reward.min() < reward.max():
        return []
    return [
        f"reward is {reward[0]:g} in all {len(reward)} rows: enough to clone the actions, but no values can be learned"
    ]


def _unused_range(action: NDArray[Any], action_range: tuple[ArrayLike, ArrayLike] | None) -> list[str]:
    if action_range is None or len(action) < 2:
        return []
    low, high = (np.asarray(end, dtype=np.float64) for end in action_range)
    used = float(((action.max(axis=0) - action.min(axis=0)) / (high - low)).max())
    if used >= _UNUSED:
        return []
    return [
        f"action uses {used:.2g} of the range [{low.min():g}, {high.max():g}], from {action.min():g} to "
        f"{action.max():g}: actions must be in the environment's own units"
    ]


def _huge_values(transitions: Transitions) -> list[str]:
    found = []
    for name in ("obs", "reward"):
        array = getattr(transitions, name).reshape(len(transitions), -1)
        if max(array.max(), -array.min()) > _HUGE:
            rows = np.flatnonzero((np.abs(array) > _HUGE).any(axis=1))
            found.append(
                f"{name} is beyond {_HUGE:g} in {rows.size} rows, first in row {rows[0]}: a mark of missing values?"
            )
    return found


def _ends(transitions: Transitions, limit: int | None) -> list[str]:
    """What is strange about where episodes end."""
    ends, lengths = transitions.episode_ends, transitions.episode_lengths()
    if ends.size < 2:
        return []
    found = []
    both = int((transitions.terminated & transitions.truncated).sum())
    if both > max(1, ends.size // 10):
        found.append(
            f"{both} of {ends.size} ends are both terminated and truncated: nothing is bootstrapped from them, as if "
            "the task had ended; were time limits copied into the terminals?"
        )
    single = int((lengths == 1).sum())
    if single > ends.size // 2 and len(transitions) > 10:
        found.append(f"{single} of {ends.size} episodes have a single row: are flags set in every row?")
    if limit is None:
        return found
    longer, early = int((lengths > limit).sum()), int((lengths < limit - 1).sum())
    if longer:
        found.append(
            f"{longer} of {ends.size} episodes are longer than the task's {limit} steps, the longest has "
            f"{lengths.max()}: are timeouts missing?"
        )
    if early > ends.size // 2 and not transitions.terminated.any():
        found.append(
            f"{early} of {ends.size} episodes end before the task's {limit} steps, and none is terminated: if they "
            "ended by the task, terminals are missing, and values would be bootstrapped across the ends"
        )
    return found


def _repeated_episodes(transitions: Transitions) -> list[str]:
    starts, stops = transitions.pieces
    if not 1 < len(starts) <= _MOST_EPISODES:
        return []
    seen, repeated = set(), []
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist())):
        digest = hashlib.blake2b(digest_size=16)
        for array in (transitions.obs, transitions.action, transitions.reward):
            digest.update(np.ascontiguousarray(array[start:stop]).data)
        if digest.digest() in seen:
            repeated.append(number)
        seen.add(digest.digest())
    if not repeated:
        return []
    return [
        f"{len(repeated)} of {len(starts)} episodes repeat an earlier one ({_first(np.array(repeated))}): they count "
        "double; was a file given twice?"
    ]


def _no_time_order(transitions: Transitions) -> list[str]:
    """Rows whose successors are no nearer than any other row: they were shuffled before the successors were made."""
    rows = np.flatnonzero(~(transitions.terminated | transitions.truncated))
    if rows.size < 100:
        return []
    rng = np.random.default_rng(0)
    rows, others = rng.choice(rows, _SAMPLE), rng.integers(len(transitions), size=_SAMPLE)
    obs, next_obs = transitions.obs[rows].astype(np.float64), transitions.next_obs[rows]
    steps, ways = np.abs(next_obs - obs).mean(axis=0), np.abs(transitions.obs[others] - obs).mean(axis=0)
    shares = steps[ways > 0.0] / ways[ways > 0.0]  # the columns of positions change slowly, those of speeds may not
    if shares.size == 0 or shares.min() < _NO_STEPS:
        return []
    return [
        f"next_obs is as far from obs as any other row ({shares.min():.2f} of that way in the steadiest column): rows "
        "must be in the order in which they happened"
    ]


def _score(transitions: Transitions, references: tuple[float, float] | None) -> list[str]:
    returns = transitions.episode_returns()
    if references is None or returns.size == 0:
        return []
    score = 100.0 * (returns - references[0]) / (references[1] - references[0])
    outside = int(((score < _LEAST_SCORE) | (score > _MOST_SCORE)).sum())
    if outside <= len(score) // 2:
        return []
    return [
        f"{outside} of {len(score)} returns score outside {_LEAST_SCORE:g} to {_MOST_SCORE:g}, where the task's "
        f"references {references[0]:g} and {references[1]:g} score 0 and 100; the mean return is {returns.mean():g}: "
        "are rewards in another scale, or changed already?"
    ]


def _first(numbers: NDArray[Any]) -> str:
    """The first few numbers, and how many more there are."""
    shown = ", ".join(map(str, numbers[:5].tolist()))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
