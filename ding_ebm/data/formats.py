"""Data sets on disk: the table of formats, which of them a path is, and where files are found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from ding_ebm.data.d4rl_layout import read_d4rl_hdf5, write_d4rl_hdf5
from ding_ebm.data.dppo_npz import NORMALIZATION_FILE, read_dppo_npz, write_dppo_npz
from ding_ebm.data.episode_folder import read_episode_folder, write_episode_folder
from ding_ebm.data.hdf5 import is_array, is_group, open_hdf5
from ding_ebm.data.minari_layout import find_main_file, read_minari_folder, write_minari_folder
from ding_ebm.data.npz import npz_names
from ding_ebm.data.robomimic_layout import read_robomimic_hdf5, write_robomimic_hdf5
from ding_ebm.data.sums import check_sums, write_sums
from ding_ebm.data.transitions import Transitions, concatenate

__all__ = [
    "DATA_FOLDER_VARIABLE",
    "FORMATS",
    "Format",
    "Transitions",
    "concatenate",
    "find_data_file",
    "find_format",
    "read_d4rl_hdf5",
    "read_data",
    "write_d4rl_hdf5",
    "write_data",
]

DATA_FOLDER_VARIABLE = "DING_EBM_DATA"
_SUFFIXES = {".hdf5": "d4rl", ".h5": "d4rl", ".npz": "dppo"}
# The file of rows in a folder that DPPO's scripts write.
_DPPO_FILE = "train.npz"


@dataclass(frozen=True)
class Format:
    """A format of data sets.

    Attributes:
        name: Its name on the command line.
        what: What it is, for people.
        read: Reads a path.
        write: Writes transitions to a new path.
        options: Names of the options that ``read`` takes.
    """

    name: str
    what: str
    read: Callable[..., Transitions]
    write: Callable[[Path, Transitions], None]
    options: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    entry.name: entry
    for entry in (
        Format("d4rl", "an HDF5 file in D4RL's layout", read_d4rl_hdf5, write_d4rl_hdf5),
        Format(
            "dppo",
            "an npz file of DPPO's code, with normalization.npz beside it",
            read_dppo_npz,
            write_dppo_npz,
            ("normalization", "leave_out_images"),
        ),
        Format(
            "robomimic",
            "an HDF5 file in robomimic's layout",
            read_robomimic_hdf5,
            write_robomimic_hdf5,
            ("obs_keys", "leave_out_images", "split"),
        ),
        Format("minari", "a folder of Minari's", read_minari_folder, write_minari_folder, ("obs_keys",)),
        Format("episodes", "a folder of npz files, one an episode", read_episode_folder, write_episode_folder),
    )
}


def find_format(path: str | Path) -> Format:
    """The format that a file or folder is of, by what it holds.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is of none of ``FORMATS``.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no data file {path}")
    if find_main_file(path):
        return FORMATS["minari"]
    if path.is_dir():
        name = "dppo" if (path / _DPPO_FILE).is_file() else "episodes" if any(path.glob("*.npz")) else None
    elif h5py.is_hdf5(path):
        with open_hdf5(path, "D4RL's or robomimic's layout") as file:
            name = "robomimic" if is_group(file, "data") and not is_array(file, "observations") else "d4rl"
    else:
        # A file that is cut short or damaged is what its name says: its reader tells what is wrong with it.
        name = "dppo" if "states" in npz_names(path) else _SUFFIXES.get(path.suffix)
    if name is None:
        known = "; ".join(f"{entry.name}, {entry.what}" for entry in FORMATS.values())
        raise ValueError(f"{path} is of no known format. Known: {known}")
    return FORMATS[name]


def read_data(path: str | Path, name: str | None = None, **options: Any) -> Transitions:
    """The rows of a data set in any format.

    Args:
        path: File or folder; of DPPO also the folder of ``train.npz``.
        name: Name of the format; None: as its content says.
        options: Of the format: ``obs_keys``, ``leave_out_images``, ``split`` (see
            :func:`~ding_ebm.data.robomimic_layout.read_robomimic_hdf5`), ``normalization`` (see
            :func:`~ding_ebm.data.dppo_npz.read_dppo_npz`); those that are None or False are not given.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is of no known format, is damaged (by its sums where they are noted, see
            :mod:`ding_ebm.data.sums`), or an option is given that its format does not have.
    """
    path = Path(path)
    entry = find_format(path) if name is None else get_format(name)
    given = {key: value for key, value in options.items() if value not in (None, False)}
    for key in set(given) - set(entry.options):
        takers = ", ".join(other.name for other in FORMATS.values() if key in other.options) or "none"
        raise ValueError(f"{path} is read as {entry.name}, which has no option {key}; those that have it: {takers}")
    if entry.name == "dppo" and path.is_dir():
        path /= _DPPO_FILE
    check_sums(path, _beside(entry, path))
    return entry.read(path, **given)


def write_data(path: str | Path, transitions: Transitions, name: str | None = None) -> Format:
    """Write a data set and its sums, and return its format.

    Args:
        path: A new file or folder.
        transitions: The rows.
        name: Name of the format; None: by the path's suffix, ``.hdf5`` and ``.h5`` are D4RL's and ``.npz`` is DPPO's.

    Raises:
        FileExistsError: If there is something at the path.
        ValueError: If no format is given and the suffix says none, or the format cannot hold the rows.
    """
    entry, path = check_target(path, name), Path(path)
    entry.write(path, transitions)
    write_sums(path, _beside(entry, path))
    return entry


def _beside(entry: Format, path: Path) -> list[Path]:
    """Files in the same folder that belong to a data set."""
    return [path.with_name(NORMALIZATION_FILE)] if entry.name == "dppo" else []


def check_target(path: str | Path, name: str | None = None) -> Format:
    """The format that :func:`write_data` would write; raises as it does, before there is anything to write."""
    path = Path(path)
    name = _SUFFIXES.get(path.suffix) if name is None else name
    if name is None:
        raise ValueError(f"{path} does not say its format by .hdf5 or .npz; name one (--to): {', '.join(FORMATS)}")
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it or choose another name")
    return get_format(name)


def get_format(name: str) -> Format:
    """The format of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def find_data_file(name_or_path: str | Path) -> Path:
    """Path of a data file or folder: as given where it exists, else of that name in the folder ``$DING_EBM_DATA``.

    Raises:
        FileNotFoundError: If there is no such file; the message says where one comes from.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder and (Path(folder).expanduser() / path).exists():
        return Path(folder).expanduser() / path
    where = f"nor in ${DATA_FOLDER_VARIABLE}={folder}" if folder else f"and ${DATA_FOLDER_VARIABLE} is not set"
    raise FileNotFoundError(
        f"no data file {path} (looked from {Path.cwd()}, {where}). Set {DATA_FOLDER_VARIABLE} to the folder of the "
        "data sets or give the file's path. `ding-ebm data download` fetches D4RL's files from "
        "http://rail.eecs.berkeley.edu/datasets/offline_rl; `ding-ebm data collect` makes others, as those of avoid."
    )
