"""Offline data sets on disk (D4RL's HDF5 layout, read without the ``d4rl`` package) and in memory.

Letters: N rows, Do and Da dimensions of an observation and of an action.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

DATA_FOLDER_VARIABLE = "DING_EBM_DATA"

# Key of the file -> number of dimensions. The rest of a D4RL file (infos/, metadata/) is not read.
_RANKS = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1, "next_observations": 2}
_FLAGS = ("terminals", "timeouts")


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

    def __post_init__(self) -> None:
        if self.obs.ndim != 2 or self.action.ndim != 2 or 0 in self.obs.shape or 0 in self.action.shape:
            raise ValueError(
                f"{self.source}: obs must be (N, Do) and action (N, Da) with at least one row and one column, "
                f"got {self.obs.shape} and {self.action.shape}"
            )
        rows = self.obs.shape[0]
        expected = {"action": (rows, self.action.shape[1]), "next_obs": self.obs.shape}
        for field in fields(self)[:-1]:
            shape = getattr(self, field.name).shape
            if field.name != "obs" and shape != expected.get(field.name, (rows,)):
                raise ValueError(
                    f"{self.source}: {field.name} must be of shape {expected.get(field.name, (rows,))} to go with obs "
                    f"{self.obs.shape}, got {shape}"
                )

    def __len__(self) -> int:
        return self.obs.shape[0]

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """Rows at which an episode ends, one a finished episode, increasing."""
        return np.flatnonzero(self.terminated | self.truncated)

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


def find_data_file(name_or_path: str | Path) -> Path:
    """Path of a data file: as given where it exists, else of that name in the folder ``$DING_EBM_DATA``.

    Raises:
        FileNotFoundError: If there is no such file; the message says where one comes from.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder and (Path(folder).expanduser() / path).is_file():
        return Path(folder).expanduser() / path
    where = f"nor in ${DATA_FOLDER_VARIABLE}={folder}" if folder else f"and ${DATA_FOLDER_VARIABLE} is not set"
    raise FileNotFoundError(
        f"no data file {path} (looked from {Path.cwd()}, {where}). Set {DATA_FOLDER_VARIABLE} to the folder of the "
        "data sets or give the file's path. D4RL's files are at "
        "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2; those of the avoid task are made by "
        "ding_ebm.envs.avoid_demos.make_demonstrations and write_d4rl_hdf5."
    )


def read_d4rl_hdf5(path: str | Path) -> Transitions:
    """Read ``observations actions rewards terminals timeouts [next_observations]`` of an HDF5 file.

    Where ``next_observations`` is missing it is the following row's observation, as in D4RL's ``qlearning_dataset``: a
    row whose successor was not recorded (a timeout, or the unfinished end of the file) is dropped, and the row before a
    dropped timeout is marked truncated so that episodes stay apart. Terminal rows are kept; nothing is bootstrapped
    from their ``next_obs``, which then is the next episode's first observation.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is no such file; the message names file, key and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes), an HDF5 file in D4RL's layout is expected")
    try:
        with h5py.File(path, "r") as file:
            arrays = _read_arrays(file, path)
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for damaged bytes, by where they are
        raise ValueError(f"{path}: not a readable HDF5 file, it may be cut short or damaged: {error}") from error
    next_obs = arrays.pop("next_observations", None)
    obs, action, reward, terminated, truncated = arrays.values()
    if next_obs is None:
        next_obs, keep, truncated = _successors(path, obs, terminated, truncated)
        obs, action, reward = obs[keep], action[keep], reward[keep]
        terminated, truncated = terminated[keep], truncated[keep]
    return Transitions(obs, action, reward, next_obs, terminated, truncated, source=str(path))


def write_d4rl_hdf5(path: str | Path, transitions: Transitions) -> None:
    """Write a file that :func:`read_d4rl_hdf5` (and any reader of D4RL's layout) reads back unchanged.

    It appears under its name only when it is complete.
    """
    arrays = (getattr(transitions, field.name) for field in fields(transitions)[:-1])
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    part = Path(f"{path}.part")
    with h5py.File(part, "w") as file:
        for name, array in zip(names, arrays):
            file.create_dataset(name, data=array, compression="gzip")
    part.replace(path)


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """One data set of several; the unfinished piece at the end of a part but the last becomes a truncated episode.

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
    names = [field.name for field in fields(first)[:-1]]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    borders = np.cumsum([len(part) for part in parts[:-1]], dtype=np.int64) - 1
    columns["truncated"][borders] |= ~columns["terminated"][borders]
    return Transitions(**columns, source=" + ".join(part.source for part in parts))


def _read_arrays(file: h5py.File, path: Path) -> dict[str, NDArray[Any]]:
    """The arrays by key, all of one length, in the order of ``_RANKS``."""
    arrays: dict[str, NDArray[Any]] = {}
    for key, rank in _RANKS.items():
        if key == "next_observations" and not file.id.links.exists(key.encode()):
            continue
        array = _read_array(file, path, key, rank)
        if rank == 2 and array.shape[1] == 0:
            raise ValueError(f"{path}: {key!r} must have at least one column, got shape {array.shape}")
        first = arrays.get("observations", array)
        if len(array) != len(first):
            raise ValueError(f"{path}: {key!r} has {len(array)} rows but 'observations' has {len(first)}; one each")
        arrays[key] = array
    if len(arrays["observations"]) == 0:
        raise ValueError(f"{path}: 'observations' has no rows, at least one transition is expected")
    if "next_observations" in arrays and arrays["next_observations"].shape != arrays["observations"].shape:
        raise ValueError(
            f"{path}: 'next_observations' {arrays['next_observations'].shape} must have the shape of 'observations' "
            f"{arrays['observations'].shape}"
        )
    return arrays


def _read_array(file: h5py.File, path: Path, key: str, rank: int) -> NDArray[Any]:
    """One array as float32 or, for a flag, bool; links and storage that lead out of the file are refused unopened."""
    if not file.id.links.exists(key.encode()):
        raise ValueError(f"{path}: the key {key!r} is missing; expected {', '.join(_RANKS)} (the last is optional)")
    if file.id.links.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{path}: {key!r} is a soft or external link; the array itself is expected in the file")
    data = file[key]
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{path}: {key!r} is a group, an array of {rank} dimensions is expected")
    if data.external or data.is_virtual:
        raise ValueError(f"{path}: {key!r} is stored in other files; the array itself is expected in the file")
    if data.dtype.kind not in "fiub":
        raise ValueError(f"{path}: {key!r} has dtype {data.dtype}, real numbers or booleans are expected")
    if data.ndim != rank:
        raise ValueError(f"{path}: {key!r} must have {rank} dimension{'s'[: rank - 1]}, got shape {data.shape}")
    array = data[()]
    if key not in _FLAGS:
        # What float32 cannot hold becomes infinite, which check_transitions reports by row.
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=np.float32)
    other = np.flatnonzero((array != 0) & (array != 1))
    if other.size:
        raise ValueError(f"{path}: {key!r} must hold 0 and 1 only, row {other[0]} holds {array[other[0]]}")
    return array.astype(np.bool_)


def _successors(
    path: Path, obs: NDArray[np.float32], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Next observations of the rows that have one, the mask of those rows, and the truncation flags of all rows."""
    keep = terminated | ~truncated
    keep[-1] = terminated[-1]
    if not keep.any():
        raise ValueError(
            f"{path}: without 'next_observations' a row's successor is the next row, which no row here has ({len(obs)} "
            "rows, all at the end of an episode); add 'next_observations'"
        )
    # A row before a dropped timeout is now the last of its episode, unless it ended the episode before.
    cut = truncated[1:] & ~keep[1:] & ~terminated[:-1]
    truncated = truncated.copy()
    truncated[:-1] |= cut
    # The last row is kept only if it is terminal: its successor is never used.
    shifted = np.concatenate([obs[1:], obs[-1:]])
    return shifted[keep], keep, truncated
