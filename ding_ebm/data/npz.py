"""Arrays of npz files that somebody else wrote; pickled objects in them are refused unread."""

from __future__ import annotations

import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.files import new_file
from ding_ebm.data.hdf5 import MAX_PACKED, MAX_UNPACKED, as_flags, is_plain_name

# What numpy and zipfile raise for damaged bytes, by where they are.
_DAMAGE = (
    RuntimeError,  # an encrypted entry, or a literal nested too deep
    struct.error,
    tokenize.TokenError,
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

# Of the file of notes beside a data set; those of Minari's have some kB.
_MAX_JSON = 1 << 22


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
        with zipfile.ZipFile(path) as archive:
            names = [name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy")]
            wanted = [key for key in (*required, *optional) if key in names]
            _check_entries(archive, wanted)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in wanted}
    except _DAMAGE as error:
        raise ValueError(f"{path} is not an npz file of plain arrays, it may be cut short: {error}") from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; {kind} has {', '.join(required)}, and in this file there are "
            f"{', '.join(names[:20]) or 'no arrays'}"
        )
    for key, array in arrays.items():
        if array.dtype.kind not in "fiubU":
            raise ValueError(f"{path}: {key!r} has dtype {array.dtype}, real numbers or booleans are expected")
    return arrays


def _check_entries(archive: zipfile.ZipFile, keys: Sequence[str]) -> None:
    """Refuse arrays that are not what their headers say, or would take far more memory than the file has bytes for."""
    unpacked = packed = 0
    for key in keys:
        entry = archive.getinfo(f"{key}.npy")
        with archive.open(entry) as file:
            size, dtype = _declared(file)
        if dtype.hasobject:
            raise ValueError(f"{key!r} holds Python objects, which are pickled and could run code")
        if size != entry.file_size:
            raise ValueError(f"{key!r} takes {size} bytes by its header, and has {entry.file_size}")
        unpacked, packed = unpacked + entry.file_size, packed + entry.compress_size
    if unpacked > MAX_UNPACKED and unpacked > MAX_PACKED * packed:
        raise ValueError(
            f"its arrays would take {unpacked} bytes of memory, and the file holds {packed} bytes of them: it may be "
            "made to fill the memory"
        )


def _declared(file: IO[bytes]) -> tuple[int, np.dtype[Any]]:
    """Bytes of an array with its header, as the header says, and its dtype."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return file.tell() + math.prod(shape) * dtype.itemsize, dtype


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


def read_json_texts(path: Path) -> dict[str, str]:
    """The texts of the JSON object in a file, none where there is no such file; see :func:`texts_from_json`."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, notes on a data set have at most {_MAX_JSON}")
    return texts_from_json(path.read_text("utf-8", "replace"), str(path))


def texts_from_json(text: str, name: str) -> dict[str, str]:
    """The texts of a JSON object, by name; what else is in it is passed over.

    Raises:
        ValueError: If it is no JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object, got {type(found).__name__}")
    return {key: value for key, value in found.items() if isinstance(value, str) and is_plain_name(key)}
