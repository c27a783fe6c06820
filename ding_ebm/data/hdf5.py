"""Arrays and texts of HDF5 files that somebody else wrote.

Nothing of a file is executed, and nothing leads out of it: soft and external links, arrays that are stored in other
files, and elements that are no numbers are refused unopened, and so are arrays that would take far more memory than
the file has bytes for.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# What is read at a time where numbers are converted, in bytes.
_BLOCK = 1 << 24
# An array of more bytes than the first that is packed more often than the second says is refused: it would fill the
# memory from a small file. Only equal values pack like that, of which a file of so many rows would be useless.
MAX_UNPACKED, MAX_PACKED = 1 << 26, 100
# HDF5's classes of elements that can be numbers or, as h5py writes booleans, an enumeration.
_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)


@contextlib.contextmanager
def open_hdf5(path: Path, layout: str) -> Iterator[h5py.File]:
    """A file open for reading; ``layout`` says in messages what it should be.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is empty, or damaged wherever it is read while it is open.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes), an HDF5 file in {layout} is expected")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except MemoryError as error:
        raise ValueError(f"{path}: its arrays take more memory than there is: {error}") from error
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for damaged bytes, by where they are
        raise ValueError(f"{path}: not a readable HDF5 file, it may be cut short or damaged: {error}") from error


def keys_of(group: h5py.Group) -> list[str]:
    """Names of what is directly in a group.

    Raises:
        ValueError: If one is no text.
    """
    keys = list(group)
    for key in keys:
        if not isinstance(key, str):
            raise ValueError(f"{group.file.filename}: {key!r} in {group.name} is not text; the file may be damaged")
    return keys


def is_group(group: h5py.Group, key: str) -> bool:
    """Whether a group of that name is in the file itself, directly in ``group``."""
    return _is_hard(group, key) and isinstance(group[key], h5py.Group)


def is_array(group: h5py.Group, key: str) -> bool:
    """Whether an array of that name is in the file itself, directly in ``group``."""
    return _is_hard(group, key) and isinstance(group[key], h5py.Dataset)


def get_group(group: h5py.Group, key: str) -> h5py.Group:
    """The group of that name.

    Raises:
        ValueError: If there is none in the file itself.
    """
    if not is_group(group, key):
        raise ValueError(f"{_where(group, key)} is missing or no group of the file itself")
    return group[key]


def get_array(group: h5py.Group, key: str, rank: int | None = None, expected: str = "") -> h5py.Dataset:
    """The array of that name, of real numbers or booleans, not yet read.

    Args:
        group: Where it lies.
        key: Its name there.
        rank: Number of dimensions that it must have; None: any.
        expected: What to name where it is missing.

    Raises:
        ValueError: If it is not there, leads out of the file, or is not of this kind.
    """
    name = _where(group, key)
    if not group.id.links.exists(key.encode()):
        raise ValueError(f"{name} is missing" + (f"; expected {expected}" if expected else ""))
    if not _is_hard(group, key):
        raise ValueError(f"{name} is a soft or external link; the array itself is expected in the file")
    data = group[key]
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"{name} is a group, an array{f' of {rank} dimensions' if rank else ''} is expected")
    if data.external or data.is_virtual:
        raise ValueError(f"{name} is stored in other files; the array itself is expected in the file")
    if _class_of(data) not in _NUMBERS or data.dtype.kind not in "fiub":
        raise ValueError(f"{name} has {_element(data)}, real numbers or booleans are expected")
    _check_packing(data, name)
    if rank is not None and data.ndim != rank:
        raise ValueError(f"{name} must have {rank} dimension{'s'[: rank - 1]}, got shape {data.shape}")
    return data


def _class_of(data: Any) -> int:
    """HDF5's class of the elements of an array or attribute, without what h5py would make of them."""
    return int(data.id.get_type().get_class())


def _element(data: h5py.Dataset) -> str:
    try:
        return f"dtype {data.dtype}"
    except TypeError:  # HDF5 has types that NumPy lacks
        return "a type that is no number"


def _check_packing(data: h5py.Dataset, name: str) -> None:
    """Refuse an array, or a chunk of one, that would take far more memory than the file has bytes for."""
    shapes = [data.shape, *([data.chunks] if data.chunks else [])]
    unpacked = max(math.prod(shape) for shape in shapes) * data.dtype.itemsize
    stored = min(data.id.get_storage_size(), Path(data.file.filename).stat().st_size)
    if unpacked > MAX_UNPACKED and unpacked > MAX_PACKED * stored:
        raise ValueError(
            f"{name} of shape {data.shape} would take {unpacked} bytes of memory, and the file holds {stored} bytes of "
            "it: it may be damaged, or made to fill the memory"
        )


def read_numbers(group: h5py.Group, key: str, rank: int, expected: str = "") -> NDArray[np.float32]:
    """An array as float32, read once; see :func:`get_array`.

    What float32 cannot hold becomes infinite, which :func:`~ding_ebm.data.checks.check_transitions` reports by row.
    """
    data = get_array(group, key, rank, expected)
    if data.dtype == np.float32:
        return data[()]
    array = np.empty(data.shape, np.float32)
    rows = max(1, _BLOCK // max(1, data.dtype.itemsize * int(np.prod(data.shape[1:]))))
    with np.errstate(over="ignore"):
        for start in range(0, len(data), rows):
            array[start : start + rows] = data[start : start + rows]
    return array


def read_flags(group: h5py.Group, key: str, expected: str = "") -> NDArray[np.bool_]:
    """A vector of 0 and 1 as bool; see :func:`get_array`."""
    array = get_array(group, key, 1, expected)[()]
    if array.dtype == np.bool_:
        return array
    return as_flags(array, _where(group, key))


def as_flags(array: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Numbers 0 and 1 as bool.

    Raises:
        ValueError: If there are others; ``name`` is what the message calls the array.
    """
    other = np.flatnonzero((array != 0) & (array != 1))
    if other.size:
        raise ValueError(f"{name} must hold 0 and 1 only, row {other[0]} holds {array.flat[other[0]]}")
    return array.astype(np.bool_)


def read_texts(group: h5py.Group, name: str) -> dict[str, str]:
    """The single texts in the group ``name`` of a file, by their keys; what else is there is passed over."""
    if not is_group(group, name):
        return {}
    texts: dict[str, str] = {}
    for key in keys_of(group[name]):
        if is_array(group[name], key):
            data = group[name][key]
            if data.shape == () and _class_of(data) == h5py.h5t.STRING and not data.external and not data.is_virtual:
                _check_packing(data, _where(group[name], key))
                texts[key] = data.asstr(errors="replace")[()]
    return texts


def read_names(group: h5py.Group, key: str) -> list[str]:
    """A vector of texts; see :func:`get_array` for what is refused."""
    if not is_array(group, key) or _class_of(group[key]) != h5py.h5t.STRING or group[key].ndim != 1:
        raise ValueError(f"{_where(group, key)} is no list of texts in the file itself")
    if group[key].external or group[key].is_virtual:
        raise ValueError(f"{_where(group, key)} is stored in other files; the list itself is expected in the file")
    _check_packing(group[key], _where(group, key))
    return [str(name) for name in group[key].asstr(errors="replace")[()]]


def text_attributes(group: h5py.Group) -> dict[str, str]:
    """The attributes of a group that are single texts, by name."""
    texts = {}
    for key in group.attrs:
        attribute = group.attrs.get_id(key)
        if is_plain_name(key) and attribute.shape == () and attribute.get_type().get_class() == h5py.h5t.STRING:
            value = group.attrs[key]
            texts[key] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return texts


def is_plain_name(key: str) -> bool:
    """Whether a name leads nowhere when it is written into a file: it has no ``/`` and is not ``.`` or ``..``."""
    return key.strip(".") != "" and "/" not in key and key.isprintable()


def flag_attribute(group: h5py.Group, key: str, default: bool) -> bool:
    """An attribute of a group that is one flag, or the default where there is none.

    Raises:
        ValueError: If it is something else.
    """
    if key not in group.attrs:
        return default
    attribute = group.attrs.get_id(key)
    if attribute.shape != () or attribute.get_type().get_class() not in _NUMBERS:
        raise ValueError(f"{_where(group, key)} is no single flag")
    return bool(group.attrs[key])


def _is_hard(group: h5py.Group, key: str) -> bool:
    links = group.id.links
    return links.exists(key.encode()) and links.get_info(key.encode()).type == h5py.h5l.TYPE_HARD


def _where(group: h5py.Group, key: str) -> str:
    """File and place of an array, for messages."""
    inside = f"{group.name.rstrip('/')}/{key}".lstrip("/")
    return f"{group.file.filename}: {inside!r}"
