"""Arrays of npz files that somebody else wrote; pickled objects in them are refused unread."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.files import new_file
from ding_ebm.data.hdf5 import as_flags

# What numpy and zipfile raise for damaged bytes, by where they are.
_DAMAGE = (
    ValueError,
    EOFError,
    OSError,
    KeyError,
    TypeError,
    AttributeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path, kind: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Arrays of real numbers, booleans or text of an npz file, by name; others in it are passed over.

    Args:
        path: The file.
        kind: What it should be, for messages.
        required: Names of arrays.
        optional: Names of arrays that may be missing.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged or no npz file, a required array is missing, or an array is none of these.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.keys())
            arrays = {key: file[key] for key in (*required, *optional) if key in names}
    except _DAMAGE as error:
        raise ValueError(f"{path} is not an npz file of plain arrays, it may be cut short: {error}") from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; {kind} has {', '.join(required)}, and in this file there are "
            f"{', '.join(names) or 'no arrays'}"
        )
    for key, array in arrays.items():
        if array.dtype.kind not in "fiubU":
            raise ValueError(f"{path}: {key!r} has dtype {array.dtype}, real numbers or booleans are expected")
    return arrays


def npz_names(path: Path) -> list[str]:
    """Names of the arrays of an npz file, none if it is no such file."""
    try:
        with zipfile.ZipFile(path) as file:
            return [name[: -len(".npy")] for name in file.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile):
        return []


def check_shape(array: NDArray[Any], shape: tuple[int | None, ...], name: str) -> None:
    """Refuse what are no numbers of this shape (None: any size but 0); ``name`` is what the message calls it.

    Raises:
        ValueError: If they are not.
    """
    fits = array.ndim == len(shape) and all(want in (None, size) for size, want in zip(array.shape, shape))
    if not fits or array.size == 0 or array.dtype.kind == "U":
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be numbers of shape ({wanted}), got {array.dtype} of {array.shape}")


def numbers(array: NDArray[Any], shape: tuple[int | None, ...], name: str) -> NDArray[np.float32]:
    """An array of this shape as float32; raises as :func:`check_shape`."""
    check_shape(array, shape, name)
    with np.errstate(over="ignore"):  # becomes infinite, which check_transitions reports by row
        return np.ascontiguousarray(array, dtype=np.float32)


def flags(array: NDArray[Any], length: int, name: str) -> NDArray[np.bool_]:
    """A flag of each row, (length,), bool; a single one is of the last row.

    Raises:
        ValueError: If it is neither, or is no flag; ``name`` is what the message calls it.
    """
    if array.shape == ():
        array = np.append(np.zeros(length - 1, array.dtype), array)
    if array.shape != (length,) or array.dtype.kind == "U":
        raise ValueError(f"{name} must hold one flag or one for each of {length} rows, got shape {array.shape}")
    return as_flags(array, name)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays, compressed; the file appears under its name only when it is complete."""
    with new_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def texts_from_json(text: str, name: str) -> dict[str, str]:
    """The texts of a JSON object, by name; what else is in it is passed over.

    Raises:
        ValueError: If it is no JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object, got {type(found).__name__}")
    return {key: value for key, value in found.items() if isinstance(value, str)}
