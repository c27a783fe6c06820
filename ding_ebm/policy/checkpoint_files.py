"""Checkpoints of the host's, found and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of the host's, tensors and plain values only.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path!r}; runs keep theirs in <exp_name>/ckpt/")
    state_dict: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
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
