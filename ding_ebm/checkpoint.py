"""Checkpoint files: written whole or not at all, with a sum that tells damage, and read without running anything.

A checkpoint is what ``torch.save`` writes of tensors and plain values, a zip archive, whose comment is the SHA-256 sum
of all bytes before it. So one file holds both, and one rename puts both in place; what reads PyTorch's files reads it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ding_ebm.weights import read_weights

# What checkpoints of policies and converted policies hold under these names, where they have them.
_ENTRIES = dict(
    model=dict,
    fine_tuned=dict,
    critic=dict,
    normalizer=dict,
    facts=dict,
    meta=dict,
    energy=dict,
    kind=str,
    train_iter=int,
)
# The end of an archive without a comment: this signature, 16 bytes, and the length of the comment, two bytes of 0.
_END, _END_LENGTH = b"PK\x05\x06", 22
_LABEL = b"sha256: "
_COMMENT_LENGTH = len(_LABEL) + 64
_NAME = re.compile(r"iteration_(\d+)\.pth\.tar")


def write_checkpoint(state: Mapping[str, Any], path: str | Path) -> None:
    """Write a state of tensors and plain values beside its final name, and rename it.

    A crash at any moment, or a full disk, leaves what was there before.

    Args:
        state: What to keep.
        path: The file; its folder exists.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w+b") as file:
            torch.save(dict(state), file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        first = error
        while isinstance(first.__context__, (OSError, RuntimeError)):  # PyTorch's own says nothing of a full disk
            first = first.__context__
        raise OSError(f"{path} could not be written, what was there before is unchanged: {first}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint whose bytes are those that were written; tensors are on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its sum is another one, it has none, or it holds something else than expected; see
            :func:`~ding_ebm.weights.read_weights`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}; runs keep theirs in <exp_name>/ckpt/")
    check_sum(path)
    state = read_weights(path)
    for name, kind in _ENTRIES.items():
        if not isinstance(state.get(name, kind()), kind):
            raise ValueError(f"{path}: {name!r} is a {type(state[name]).__name__}, a {kind.__name__} is expected")
    for name, part in _networks(state):
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in part.items()):
            raise ValueError(f"{path}: {name!r} must be tensors by name, and holds something else")
    return state


def _networks(state: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The state dicts of networks in a checkpoint, by their places."""
    for name in ("model", "fine_tuned", "critic"):
        yield name, state.get(name, {})
    for name, part in state.get("normalizer", {}).items():
        yield f"normalizer.{name}", part if isinstance(part, dict) else {None: part}


def check_sum(path: str | Path) -> None:
    """Refuse a file whose bytes are not those that :func:`write_checkpoint` wrote.

    Raises:
        ValueError: If the sum is another one, or the file ends without one; names the file and both sums.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        actual = _sum(file, max(size - 64, 0))
        file.seek(max(size - _COMMENT_LENGTH, 0))
        label, written = file.read(len(_LABEL)), file.read().decode("ascii", "replace")
    if label != _LABEL or not re.fullmatch("[0-9a-f]{64}", written):
        raise ValueError(
            f"{path} is damaged or cut short, or not of this package: its {size} bytes do not end with the "
            f"SHA-256 sum of those before, {actual}. A checkpoint of the reference implementation of DPPO must "
            "be converted by ding-ebm convert dppo"
        )
    if written != actual:
        raise ValueError(f"{path} is damaged: its SHA-256 sum was {written} when it was written, and is {actual}")


def find_checkpoint(path: str | Path) -> Path:
    """The file itself, or of a run's folder or its folder of checkpoints the one of the latest iteration.

    Raises:
        FileNotFoundError: If there is none; tells what was found instead.
    """
    folder = Path(path)
    if folder.is_file():
        return folder
    found = checkpoints_of(folder)
    if found:
        return found[-1]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no checkpoint at {str(path)!r}: there is no such file or folder; give a checkpoint, the folder of a run "
            "or its ckpt/"
        )
    names = sorted(entry.name for place in (folder, folder / "ckpt") if place.is_dir() for entry in place.iterdir())
    raise FileNotFoundError(
        f"no checkpoint in {str(path)!r}: iteration_*.pth.tar is looked for in it and in its ckpt/, which hold "
        f"{', '.join(names[:8]) or 'nothing'}{' ...' if len(names) > 8 else ''}"
    )


def checkpoints_of(folder: str | Path) -> list[Path]:
    """The checkpoints of iterations in a folder and in its ``ckpt/``, the latest last."""
    found = {
        int(match[1]): file
        for place in (Path(folder), Path(folder) / "ckpt")
        for file in place.glob("iteration_*.pth.tar")
        if (match := _NAME.fullmatch(file.name))
    }
    return [found[iteration] for iteration in sorted(found)]


def _seal(file: Any) -> None:
    """Put the sum of an archive behind it, as its comment."""
    file.seek(-_END_LENGTH, os.SEEK_END)
    end = file.read()
    if not (end.startswith(_END) and end.endswith(b"\0\0")):
        raise RuntimeError("torch.save did not write a zip archive without a comment")
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT_LENGTH.to_bytes(2, "little") + _LABEL)
    size = file.tell()
    file.seek(0)
    digest = _sum(file, size)
    file.seek(size)
    file.write(digest.encode("ascii"))


def _sum(file: Any, size: int) -> str:
    """SHA-256 of the first ``size`` bytes."""
    digest, left = hashlib.sha256(), size
    while left > 0 and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Have a rename in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
