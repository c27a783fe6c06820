"""Offline data in memory: rows of transitions, and the same rows as episodes.

Letters: N rows, T steps of an episode, Do and Da dimensions of an observation and of an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
# Two recordings of one observation may differ by rounding, as a share of 1 + its size.
SAME = 1e-5


@dataclass(frozen=True)
class Transitions:
    """Transitions of one or more episodes, rows in the order in which they happened.

    An episode ends at each row whose ``terminated`` or ``truncated`` is set; rows behind the last such row are an
    unfinished piece. A row may have both flags (a fall in the last permitted step): ``terminated`` alone decides
    whether a value is bootstrapped from ``next_obs``.

    Attributes:
        obs: Observations, (N, Do), float32.
        action: Actions in the environment's units, (N, Da), float32.
        reward: Rewards as the environment gave them, (N,), float32.
        next_obs: Observations after the action, (N, Do), float32.
        terminated: The task ended here, (N,), bool.
        truncated: The episode was cut here, by a time limit or by the recorder, (N,), bool.
        source: Where the rows come from, for messages.
        metadata: What the recorder noted beside the rows, text by name.

    Raises:
        ValueError: If the arrays do not have these shapes.
    """

    obs: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    next_obs: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    source: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.obs.ndim != 2 or self.action.ndim != 2 or 0 in self.obs.shape or 0 in self.action.shape:
            raise ValueError(
                f"{self.source}: obs must be (N, Do) and action (N, Da) with at least one row and one column, "
                f"got {self.obs.shape} and {self.action.shape}"
            )
        rows = self.obs.shape[0]
        expected = {"action": (rows, self.action.shape[1]), "next_obs": self.obs.shape}
        for name in COLUMNS[1:]:
            shape = getattr(self, name).shape
            if shape != expected.get(name, (rows,)):
                raise ValueError(
                    f"{self.source}: {name} must be of shape {expected.get(name, (rows,))} to go with obs "
                    f"{self.obs.shape}, got {shape}"
                )

    def __len__(self) -> int:
        return self.obs.shape[0]

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """Rows at which an episode ends, one a finished episode, increasing."""
        return np.flatnonzero(self.terminated | self.truncated)

    @property
    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First row of each episode and the row behind its last; an unfinished piece at the end is one, too."""
        stops = self.episode_ends + 1
        if stops.size == 0 or stops[-1] < len(self):
            stops = np.append(stops, len(self))
        return np.concatenate([[0], stops[:-1]]), stops

    def episode_returns(self) -> NDArray[np.float64]:
        """Undiscounted return of each finished episode."""
        ends = self.episode_ends
        if ends.size == 0:
            return np.zeros(0)
        starts = np.concatenate([[0], ends[:-1] + 1])
        return np.add.reduceat(self.reward[: ends[-1] + 1].astype(np.float64), starts)

    def episode_lengths(self) -> NDArray[np.int64]:
        """Number of rows of each finished episode."""
        return np.diff(self.episode_ends, prepend=-1)

    def checksum(self) -> str:
        """SHA-256 of the rows: the same for the same rows, whichever file and format they come from."""
        digest = hashlib.sha256(repr((self.obs.shape, self.action.shape)).encode())
        for name in COLUMNS:
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Episode:
    """One episode, in which an observation is stored once.

    Attributes:
        obs: Observations before each action, and the one after the last, (T + 1, Do), float32.
        action: Actions, (T, Da), float32.
        reward: Rewards, (T,), float32.
        terminated: The task ended here, (T,), bool.
        truncated: The episode was cut here, (T,), bool.
    """

    obs: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


def split_episodes(transitions: Transitions) -> list[Episode]:
    """The episodes in their order; an unfinished piece at the end is the last.

    Raises:
        ValueError: If ``next_obs`` of a row inside an episode is not ``obs`` of the following one, up to rounding.
    """
    rows = broken_rows(transitions)
    if rows.size:
        raise ValueError(
            f"{transitions.source}: next_obs is not the following row's obs in {rows.size} rows inside an episode, "
            f"first in row {rows[0]}: such rows are no episodes; only the formats d4rl and robomimic can hold them"
        )
    episodes = []
    for start, stop in zip(*transitions.pieces):
        obs = np.concatenate([transitions.obs[start:stop], transitions.next_obs[stop - 1 : stop]])
        rest = (getattr(transitions, name)[start:stop] for name in ("action", "reward", "terminated", "truncated"))
        episodes.append(Episode(obs, *rest))
    return episodes


def join_episodes(episodes: Sequence[Episode], source: str, metadata: Mapping[str, str] | None = None) -> Transitions:
    """The rows of episodes in their order; one that goes on unrecorded is truncated, unless it is the last.

    Raises:
        ValueError: If the episodes differ in dimensions, or there are none.
    """
    if not episodes:
        raise ValueError(f"{source}: there are no episodes, at least one is expected")
    for name in ("obs", "action"):
        sizes = [getattr(episode, name).shape[1] for episode in episodes]
        if min(sizes) != max(sizes):
            at = next(i for i, size in enumerate(sizes) if size != sizes[0])
            raise ValueError(
                f"{source}: {name} has {sizes[0]} columns in the first episode and {sizes[at]} in number {at}"
            )
    terminated = np.concatenate([episode.terminated for episode in episodes])
    truncated = np.concatenate([episode.truncated for episode in episodes])
    end_episodes(terminated, truncated, np.array([len(episode.action) for episode in episodes]))
    return Transitions(
        np.concatenate([episode.obs[:-1] for episode in episodes]),
        np.concatenate([episode.action for episode in episodes]),
        np.concatenate([episode.reward for episode in episodes]),
        np.concatenate([episode.obs[1:] for episode in episodes]),
        terminated,
        truncated,
        source,
        dict(metadata or {}),
    )


def end_episodes(terminated: NDArray[np.bool_], truncated: NDArray[np.bool_], lengths: NDArray[np.int64]) -> None:
    """Set ``truncated``, (N,), where an episode of the given lengths ends without a flag; but not in the last row."""
    ends = np.cumsum(lengths)[:-1] - 1
    truncated[ends] |= ~terminated[ends]


def broken_rows(transitions: Transitions) -> NDArray[np.int64]:
    """Rows inside an episode whose next_obs differs from the following row's obs by more than rounding."""
    inside = ~(transitions.terminated | transitions.truncated)[:-1]
    rows = np.flatnonzero(inside & (transitions.next_obs[:-1] != transitions.obs[1:]).any(axis=1))
    here, there = transitions.next_obs[rows], transitions.obs[rows + 1]
    with np.errstate(invalid="ignore"):  # NaN and Inf are reported by themselves
        return rows[(np.abs(here - there) > SAME * (1.0 + np.abs(there))).any(axis=1)]


def shift_successors(source: str, columns: Mapping[str, NDArray[Any]], missing: str) -> dict[str, NDArray[Any]]:
    """All columns of rows whose next observations were not recorded, as D4RL's ``qlearning_dataset`` makes them.

    A row's next observation is the following row's observation. A row whose successor was not recorded (a timeout, or
    the unfinished end) is dropped, and the row before a dropped timeout is marked truncated so that episodes stay
    apart. Terminal rows are kept; nothing is bootstrapped from their ``next_obs``, which then is the next episode's
    first observation.

    Args:
        source: What the message names.
        columns: ``COLUMNS`` but ``next_obs``; the arrays are overwritten.
        missing: Name of what the file lacks.

    Raises:
        ValueError: If no row has a successor.
    """
    obs, terminated, truncated = columns["obs"], columns["terminated"], columns["truncated"].copy()
    keep = terminated | ~truncated
    keep[-1] = terminated[-1]
    if not keep.any():
        raise ValueError(
            f"{source}: without {missing} a row's successor is the next row, which no row here has ({len(obs)} "
            f"rows, all at the end of an episode); add {missing}"
        )
    # A row before a dropped timeout is now the last of its episode, unless it ended the episode before.
    truncated[:-1] |= truncated[1:] & ~keep[1:] & ~terminated[:-1]
    rows = np.flatnonzero(keep)
    next_obs = np.empty((len(rows), obs.shape[1]), obs.dtype)
    _copy_runs(obs, rows[:-1] + 1, next_obs)
    # The last row of all is kept only if it is terminal: its successor is never used.
    next_obs[-1] = obs[min(rows[-1] + 1, len(obs) - 1)]
    kept = {}
    for name, array in {**columns, "truncated": truncated}.items():
        _copy_runs(array, rows, array)
        kept[name] = array[: len(rows)]
    return {**kept, "next_obs": next_obs}


def _copy_runs(source: NDArray[Any], rows: NDArray[np.int64], target: NDArray[Any]) -> None:
    """Copy increasing ``rows`` to the front of ``target``, which may be ``source``: a second array takes memory.

    Rows that follow each other are copied together: there are about as many copies as episodes.
    """
    borders = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]])
    for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist()):
        if stop > start and (source is not target or rows[start] != start):
            target[start:stop] = source[rows[start] : rows[start] + stop - start]


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """One data set of several; the unfinished piece at the end of a part but the last becomes a truncated episode.

    Metadata are those of the first part.

    Raises:
        ValueError: If there is no part or their dimensions differ.
    """
    if not parts:
        raise ValueError("at least one data set is needed to concatenate, got none")
    first = parts[0]
    for part in parts[1:]:
        if part.obs.shape[1] != first.obs.shape[1] or part.action.shape[1] != first.action.shape[1]:
            raise ValueError(
                f"data sets must agree in dimensions: {first.source} has obs {first.obs.shape[1]} and action "
                f"{first.action.shape[1]}, {part.source} has obs {part.obs.shape[1]} and action {part.action.shape[1]}"
            )
    if len(parts) == 1:
        return first
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    borders = np.cumsum([len(part) for part in parts[:-1]], dtype=np.int64) - 1
    columns["truncated"][borders] |= ~columns["terminated"][borders]
    return Transitions(**columns, source=" + ".join(part.source for part in parts), metadata=first.metadata)
