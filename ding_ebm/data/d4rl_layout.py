"""D4RL's HDF5 layout, read and written without the ``d4rl`` package.

One array a column, rows in episode order: ``observations`` (N, Do), ``actions`` (N, Da), ``rewards``, ``terminals``,
``timeouts`` (N,) and, in most files, ``next_observations`` (N, Do). Single texts in the group ``metadata`` are kept;
the rest of a file (``infos``, and weights in ``metadata``) is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from ding_ebm.data.files import new_file
from ding_ebm.data.hdf5 import open_hdf5, read_flags, read_numbers, read_texts
from ding_ebm.data.transitions import Transitions, shift_successors

# Name in a file -> name of the column.
KEYS = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "terminals": "terminated",
    "timeouts": "truncated",
    "next_observations": "next_obs",
}
_EXPECTED = f"{', '.join(KEYS)} (the last is optional)"


def read_d4rl_hdf5(path: str | Path) -> Transitions:
    """Read ``observations actions rewards terminals timeouts [next_observations]`` of an HDF5 file.

    Where ``next_observations`` is missing, it is the following row's observation, see
    :func:`~ding_ebm.data.transitions.shift_successors`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is no such file; the message names file, key and what was expected.
    """
    path = Path(path)
    with open_hdf5(path, "D4RL's layout") as file:
        columns = _read_columns(file, path)
        metadata = read_texts(file, "metadata")
    if "next_obs" not in columns:
        columns = shift_successors(str(path), columns, "'next_observations'")
    return Transitions(**columns, source=str(path), metadata=metadata)


def write_d4rl_hdf5(path: str | Path, transitions: Transitions) -> None:
    """Write a file that :func:`read_d4rl_hdf5` (and any reader of D4RL's layout) reads back unchanged.

    It appears under its name only when it is complete.
    """
    with new_file(path) as part, h5py.File(part, "w") as file:
        for key, column in KEYS.items():
            file.create_dataset(key, data=getattr(transitions, column), compression="gzip")
        for key, text in transitions.metadata.items():
            file.require_group("metadata").create_dataset(key, data=text)


def _read_columns(file: h5py.File, path: Path) -> dict[str, NDArray[Any]]:
    """The columns by name, all of one length."""
    columns: dict[str, NDArray[Any]] = {}
    for key, column in KEYS.items():
        if key == "next_observations" and not file.id.links.exists(key.encode()):
            continue
        if column in ("terminated", "truncated"):
            array: NDArray[Any] = read_flags(file, key, _EXPECTED)
        else:
            array = read_numbers(file, key, 1 if key == "rewards" else 2, _EXPECTED)
        if array.ndim == 2 and array.shape[1] == 0:
            raise ValueError(f"{path}: {key!r} must have at least one column, got shape {array.shape}")
        rows = len(columns.get("obs", array))
        if len(array) != rows:
            raise ValueError(f"{path}: {key!r} has {len(array)} rows but 'observations' has {rows}; one each")
        columns[column] = array
    if len(columns["obs"]) == 0:
        raise ValueError(f"{path}: 'observations' has no rows, at least one transition is expected")
    if "next_obs" in columns and columns["next_obs"].shape != columns["obs"].shape:
        raise ValueError(
            f"{path}: 'next_observations' {columns['next_obs'].shape} must have the shape of 'observations' "
            f"{columns['obs'].shape}"
        )
    return columns
