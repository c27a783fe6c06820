"""Numbers that the host has logged, read back from a run's folder."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboardX.proto.event_pb2 import Event

# A record is its length (8 bytes), a checksum (4), the event, and a checksum (4).
_BEFORE, _AFTER = 12, 4


def scalar_names(run: str | Path) -> set[str]:
    """All names that numbers were logged under; none if nothing was logged.

    Raises:
        ValueError: If a log is cut short.
    """
    return {tag for _, tag, _ in _scalars(run)}


def read_scalars(run: str | Path, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and values that were logged under a name, (n,) each, in the order of logging.

    Args:
        run: Folder of the run, ``<exp_name>``.
        name: As TensorBoard shows it: worker, what the steps count and quantity, such as
            ``collector_step/reward_mean`` (environment steps) or ``evaluator_iter/reward_mean`` (training iterations).

    Raises:
        ValueError: If nothing was logged under that name, or a log is cut short.
    """
    found = [(step, value) for step, tag, value in _scalars(run) if tag == name]
    if not found:
        raise ValueError(f"nothing was logged as {name!r} in {run}")
    steps, values = zip(*found)
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def _scalars(run: str | Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and value of each number, in the order of logging."""
    for path in sorted((Path(run) / "log" / "serial").glob("events.out.tfevents.*")):
        content, start = path.read_bytes(), 0
        while start < len(content):
            begin = start + _BEFORE
            end = begin + (struct.unpack_from("<Q", content, start)[0] if begin <= len(content) else len(content))
            if end + _AFTER > len(content):
                raise ValueError(f"{path} is cut short: its record at byte {start} is incomplete")
            try:
                event = Event.FromString(content[begin:end])
            except DecodeError as error:
                raise ValueError(f"{path} is no log of TensorBoard's: its record at byte {start}: {error}") from error
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
            start = end + _AFTER
