"""Files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Where to write a file, ``<path>.part``; it takes its name when the block has ended without an error."""
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    yield part
    part.replace(path)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Where to write a folder, an empty ``<path>.part``; it takes its name when the block has ended without an error.

    Raises:
        FileExistsError: If there is something of that name.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} exists; a new folder is expected")
    part = Path(f"{path}.part")
    if part.exists():  # of a write that did not end
        shutil.rmtree(part)
    part.mkdir(parents=True)
    yield part
    part.replace(path)
