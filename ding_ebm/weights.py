"""Torch files that somebody else wrote: tensors and plain values, of which nothing is executed.

``torch.load(weights_only=True)`` runs no code, but a small file can still ask for any amount of memory: by compressed
entries, by a tensor that repeats a few numbers in all its elements, or by lists that hold each other. Such files are
refused before anything is allocated or printed.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What the unpickler and zipfile raise for damaged or hostile bytes, by where they are.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
# Of what is no tensor. A checkpoint of 1000 tensors has some 200 kB of it, and reading 1 MB takes a second.
_MAX_PICKLE = 8 << 20
_MAX_VALUES = 10_000_000
_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


def read_weights(path: str | Path, kind: str = "checkpoint") -> dict[Any, Any]:
    """The dictionary of a torch file, on the CPU.

    Args:
        path: What ``torch.save`` wrote, as a zip file.
        kind: What it should be, for messages.

    Raises:
        ValueError: If the file is damaged, would run code, takes more memory than its size says, or holds something
            else than tensors and plain values; the message names the file and what is wrong.
    """
    path = Path(path)
    try:
        _check_entries(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_values(content)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a readable {kind}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no {kind}: it holds a {type(content).__name__}, a dictionary is expected")
    return content


def _check_entries(path: Path) -> None:
    """Refuse a zip file whose entries are not stored as they are, as ``torch.save`` stores them."""
    with path.open("rb") as file:
        if file.read(4)[:2] != b"PK":
            raise ValueError("it is no zip file, as torch.save writes one")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"its entry {packed[0]!r} is compressed; torch.save compresses nothing")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries add up to more than the file: they overlap, or do not say their true sizes")
    for entry in entries:
        if entry.filename.endswith("/data.pkl") and entry.file_size > _MAX_PICKLE:
            raise ValueError(
                f"its entry {entry.filename!r} has {entry.file_size} bytes, at most {_MAX_PICKLE} are expected"
            )


def _check_values(content: Any) -> None:
    """Refuse what is neither a plain value nor a tensor with memory for all its elements, and containers in circles.

    Each container is looked into once, however often it occurs; how many values there are counts every occurrence.
    """
    sizes: dict[int, int] = {}
    open_: set[int] = set()
    stack = [(content, False)]
    while stack:
        value, is_done = stack.pop()
        children = _children(value)
        if children is None:
            _check_leaf(value)
        elif is_done:
            open_.discard(id(value))
            sizes[id(value)] = 1 + sum(sizes.get(id(child), 1) for child in children)
            if sizes[id(value)] > _MAX_VALUES:
                raise ValueError(f"its lists and dictionaries hold each other, with over {_MAX_VALUES} values in all")
        elif id(value) in open_:
            raise ValueError(f"a {type(value).__name__} in it holds itself")
        elif id(value) not in sizes:
            open_.add(id(value))
            stack.append((value, True))
            stack += [(child, False) for child in children]


def _children(value: Any) -> list[Any] | None:
    """What a container holds, None of anything else."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else None


def _check_leaf(value: Any) -> None:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise ValueError(f"a tensor in it is {value.layout} of {value.dtype}; plain dense tensors are expected")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} in it has no memory for all its elements")
    elif not isinstance(value, _PLAIN):
        raise ValueError(f"it holds a {type(value).__name__}; only tensors and plain values are read")


def _reason(error: BaseException) -> str:
    """What was wrong, without the advice to load the file in a way that would run its code."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        foreign = re.search(r"GLOBAL (\S+)|global (\S+)|class (\S+)|function (\S+)", text)
        name = next((found for found in foreign.groups() if found), "") if foreign else ""
        asked = f"asks for {name.strip(chr(96))}, which could run code" if name else "holds more than that"
        return f"only tensors and plain values are read (weights_only), and it {asked}"
    if not isinstance(error, ValueError):
        line = text.splitlines()[0] if text else type(error).__name__
        return f"it may be cut short or damaged: {line}"
    return text
