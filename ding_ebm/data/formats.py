"""Data sets on disk: where files are found, and which formats there are."""

from __future__ import annotations

import os
from pathlib import Path

from ding_ebm.data.d4rl_layout import read_d4rl_hdf5, write_d4rl_hdf5
from ding_ebm.data.transitions import Transitions, concatenate

__all__ = [
    "DATA_FOLDER_VARIABLE",
    "Transitions",
    "concatenate",
    "find_data_file",
    "read_d4rl_hdf5",
    "write_d4rl_hdf5",
]

DATA_FOLDER_VARIABLE = "DING_EBM_DATA"


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
        "data sets or give the file's path. D4RL's files are at "
        "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2; those of the avoid task are made by "
        "ding_ebm.envs.avoid_demos.make_demonstrations and write_d4rl_hdf5."
    )
