"""SHA-256 sums beside data sets, as ``sha256sum`` writes and checks them: damage is found before anything is learned.

Of a file the note is ``<file>.sha256``, of a folder ``SHA256SUMS`` in it. A data set without a note is read as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

FOLDER_NOTE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")
_BLOCK = 1 << 20


def file_sum(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def note_of(path: str | Path) -> Path:
    """Where a data set's sums are noted."""
    return Path(path) / FOLDER_NOTE if Path(path).is_dir() else Path(f"{path}.sha256")


def write_sums(path: str | Path, beside: Iterable[Path] = ()) -> None:
    """Note the sums of a data set's files.

    Args:
        path: A file, or a folder, of which every file is noted.
        beside: Files in the same folder that belong to it.
    """
    path, note = Path(path), note_of(path)
    files = sorted(one for one in path.rglob("*") if one.is_file() and one != note) if path.is_dir() else [path]
    lines = [f"{file_sum(one)}  {one.relative_to(note.parent).as_posix()}\n" for one in [*files, *beside]]
    part = note.with_name(f"{note.name}.part")
    part.write_text("".join(lines), "utf-8")
    part.replace(note)


def check_sums(path: str | Path, beside: Iterable[Path] = ()) -> None:
    """Refuse a data set with a note whose files are not those that were noted.

    Args:
        path: See :func:`write_sums`.
        beside: See there.

    Raises:
        ValueError: If a sum is another one, a file is missing, one has come to the folder, or the note itself is
            damaged; names the file, and both sums.
    """
    path, note = Path(path), note_of(path)
    if not note.is_file():
        return
    noted = _read(note)
    names = sorted(one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file() and one != note)
    expected = set(names) if path.is_dir() else {path.name, *(one.name for one in beside)}
    strange = expected - set(noted)
    if strange:
        raise ValueError(
            f"{note} has no sum of {', '.join(sorted(strange)[:4])}: it is damaged or of another data set; write it "
            f"anew or remove it if the data are as they should be"
        )
    for name, there in noted.items():
        file = note.parent / name
        if not file.is_file():
            raise ValueError(f"{file} is missing, which {note} has a sum of")
        here = file_sum(file)
        if here != there:
            raise ValueError(
                f"{file} is damaged or another file: its SHA-256 sum is {here}, and {there} is expected by {note}. "
                "Get it from where it came from, or remove the note if the change is yours"
            )


def _read(note: Path) -> dict[str, str]:
    """Sums by the files' names."""
    try:
        text = note.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{note} is damaged: {error}") from error
    found = _LINE.findall(text)
    whole = "".join(f"{digest}  {name}\n" for digest, name in found)
    if whole != text or not found:
        raise ValueError(
            f"{note} is damaged: a SHA-256 sum of 64 digits, two spaces and a file's name are expected in every line"
        )
    sums = {name: digest for digest, name in found}
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{note} names {name!r}, which lies outside of its folder")
    return sums
