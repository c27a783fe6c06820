"""The npz layout of DPPO's reference implementation: one file of rows, and ``normalization.npz`` beside it.

``states`` (N, Do) and ``actions`` (N, Da) mapped to [-1, 1] by the ranges in ``normalization.npz`` (``obs_min obs_max
action_min action_max``), ``rewards`` (N,), ``terminals`` (N,; may be missing), ``traj_lengths`` (number of episodes,).
Nothing in it says whether an episode was cut, nor what was observed after its last action. What is written here says
both, in arrays that the reference does not look at: ``timeouts`` (N,), ``final_states`` (number of episodes, Do) and
``metadata`` (a JSON text).

Source:
    Ren et al. 2024 (arXiv:2409.00588), the scripts of its code that make data sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.npz import check_shape, flags, npz_names, numbers, read_npz, texts_from_json, write_npz
from ding_ebm.data.transitions import Episode, Transitions, end_episodes, shift_successors, split_episodes

NORMALIZATION_FILE = "normalization.npz"
RANGES = ("obs_min", "obs_max", "action_min", "action_max")
# Added to a range before it divides, as the reference does.
EPSILON = 1e-6


def read_dppo_npz(
    path: str | Path, normalization: str | Path | None = None, leave_out_images: bool = False
) -> Transitions:
    """Read a file of rows, in the environment's units.

    An episode that did not end with a terminal is truncated. Without ``final_states`` next observations are the
    following rows', so that the last row of such an episode is lost, see
    :func:`~ding_ebm.data.transitions.shift_successors`.

    Args:
        path: The file of rows.
        normalization: File of the ranges; None: ``normalization.npz`` beside the rows; ``none``: the rows are in the
            environment's units.
        leave_out_images: Whether ``images`` may be there, and is not read.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If one is not of this layout; the message names file, array and what was expected.
    """
    path = Path(path)
    required, optional = ("states", "actions", "rewards", "traj_lengths"), ("terminals", "timeouts", "final_states")
    found = read_npz(path, "a data set of DPPO's layout", required, (*optional, "metadata"))
    if "images" in npz_names(path) and not leave_out_images:
        raise ValueError(
            f"{path} has images, and only states are read; leave them out (leave_out_images, --leave-out-images) to "
            "read the states alone"
        )
    lengths = _lengths(found, path)
    ranges = None if normalization == "none" else read_ranges(_ranges_file(path, normalization))
    columns = _columns(found, path, ranges, len(lengths))
    final = columns.pop("final", None)
    end_episodes(columns["terminated"], columns["truncated"], lengths)
    last = len(columns["obs"]) - 1
    if "timeouts" not in found:
        columns["truncated"][last] |= ~columns["terminated"][last]
    if final is None:
        columns = shift_successors(str(path), columns, "'final_states'")
    else:
        columns["next_obs"] = np.concatenate([columns["obs"][1:], final[-1:]])
        columns["next_obs"][np.cumsum(lengths) - 1] = final
    metadata = texts_from_json(str(found["metadata"]), f"{path}: 'metadata'") if "metadata" in found else {}
    return Transitions(**columns, source=str(path), metadata=metadata)


def write_dppo_npz(path: str | Path, transitions: Transitions) -> None:
    """Write the rows, and ``normalization.npz`` beside them, for the reference and :func:`read_dppo_npz`.

    States and actions are float64, so that they come back as they were: bit by bit, but that values below 1e-8 of a
    column's range may differ by 1e-15 of the range.

    Raises:
        FileExistsError: If there is a normalization beside the file already: it would not fit one of two files.
        ValueError: If the rows are no episodes, see :func:`~ding_ebm.data.transitions.split_episodes`.
    """
    path = Path(path)
    beside = path.with_name(NORMALIZATION_FILE)
    if beside.exists():
        raise FileExistsError(f"{beside} exists, and belongs to another file; write each data set into its own folder")
    episodes = split_episodes(transitions)
    columns = {"obs": transitions.obs, "action": transitions.action}
    ends = {f"{name}_{end}": getattr(array, end)(axis=0) for name, array in columns.items() for end in ("min", "max")}
    write_npz(path, _arrays(transitions, episodes, ends))
    write_npz(beside, ends)


def read_ranges(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """``obs_min obs_max action_min action_max`` of a ``normalization.npz``, (Do,) and (Da,).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks one, or they are no ranges.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the reference keeps {NORMALIZATION_FILE} beside its data")
    ranges = read_npz(path, "a normalization", RANGES)
    for low, high in (RANGES[:2], RANGES[2:]):
        shapes = ranges[low].shape, ranges[high].shape
        if len(shapes[0]) != 1 or shapes[0] != shapes[1] or not ranges[low].size or ranges[low].dtype.kind == "U":
            raise ValueError(f"{path}: {low} and {high} must be of one shape (D,), got {shapes[0]} and {shapes[1]}")
        if not (np.isfinite(ranges[high] - ranges[low]) & (ranges[low] <= ranges[high])).all():
            raise ValueError(f"{path}: {low} must be finite and nowhere above {high}")
    return {key: array.astype(np.float64) for key, array in ranges.items()}


def _ranges_file(path: Path, normalization: str | Path | None) -> Path:
    file = path.with_name(NORMALIZATION_FILE) if normalization is None else Path(normalization)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} holds states and actions mapped to [-1, 1], and there is no {file} to map them back by; name the "
            "file (normalization, --normalization), or say 'none' if the rows are in the environment's units"
        )
    return file


def _lengths(found: Mapping[str, NDArray[Any]], path: Path) -> NDArray[np.int64]:
    lengths, rows = found["traj_lengths"], len(np.atleast_1d(found["states"]))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.size == 0 or lengths.min() < 1:
        raise ValueError(f"{path}: 'traj_lengths' must hold whole numbers of at least 1, one an episode")
    if lengths.sum() != rows:
        raise ValueError(f"{path}: 'traj_lengths' add up to {lengths.sum()} rows, and 'states' has {rows}")
    return lengths.astype(np.int64)


def _columns(
    found: Mapping[str, NDArray[Any]], path: Path, ranges: Mapping[str, NDArray[np.float64]] | None, episodes: int
) -> dict[str, NDArray[Any]]:
    """The columns but next observations, in the environment's units; ``final`` is of episodes, where it is there."""
    rows = len(found["states"])
    columns: dict[str, NDArray[Any]] = {}
    sizes = {"states": ("obs", rows), "actions": ("action", rows), "final_states": ("final", episodes)}
    for key, (column, length) in sizes.items():
        if key not in found:
            continue
        raw = found[key]
        check_shape(raw, (length, None), f"{path}: {key!r}")
        if ranges is not None:
            low, high = (ranges[f"{'action' if column == 'action' else 'obs'}_{end}"] for end in ("min", "max"))
            if raw.shape[1] != len(low):
                raise ValueError(f"{path}: {key!r} has {raw.shape[1]} columns and the normalization {len(low)}")
            raw = (raw.astype(np.float64) + 1.0) * (0.5 * (high - low + EPSILON)) + low
        columns[column] = numbers(raw, (length, None), f"{path}: {key!r}")
    columns["reward"] = numbers(found["rewards"], (rows,), f"{path}: 'rewards'")
    for key, column in (("terminals", "terminated"), ("timeouts", "truncated")):
        absent = np.zeros(rows, dtype=np.bool_)
        columns[column] = flags(found[key], rows, f"{path}: {key!r}") if key in found else absent
    return columns


def _arrays(
    transitions: Transitions, episodes: list[Episode], ranges: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[Any]]:
    def mapped(array: NDArray[np.float32], name: str) -> NDArray[np.float64]:
        low, high = (ranges[f"{name}_{end}"].astype(np.float64) for end in ("min", "max"))
        return (array - low) * (2.0 / (high - low + EPSILON)) - 1.0

    return {
        "states": mapped(transitions.obs, "obs"),
        "actions": mapped(transitions.action, "action"),
        "rewards": transitions.reward,
        "terminals": transitions.terminated,
        "traj_lengths": np.array([len(episode.action) for episode in episodes]),
        "timeouts": transitions.truncated,
        "final_states": mapped(np.stack([episode.obs[-1] for episode in episodes]), "obs"),
        "metadata": np.array(json.dumps(dict(transitions.metadata))),
    }
