"""Checkpoints of the host's, found and read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of the host's, tensors and plain values only.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not readable, or holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path!r}; runs keep theirs in <exp_name>/ckpt/")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint, it may be cut short: {reason}") from error
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(state_dict).__name__}, a dictionary is expected")
    return state_dict


def newest_checkpoint(path: str | Path) -> Path:
    """The file itself, or of a run's folder the checkpoint of the latest iteration.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(path)
    if folder.is_file():
        return folder
    found = {
        int(file.name.split("_")[1].split(".")[0]): file
        for place in (folder, folder / "ckpt")
        for file in place.glob("iteration_*.pth.tar")
    }
    if not found:
        raise FileNotFoundError(
            f"no checkpoint at {path}: give a file, or the folder of a run, as ding -m serial_offline makes with a "
            "diffusion_bc config, whose ckpt/ holds iteration_*.pth.tar"
        )
    return found[max(found)]
