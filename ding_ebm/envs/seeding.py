"""The global generator of NumPy, from which some simulators draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """NumPy's global generator, seeded for a while."""
    before = np.random.get_state()  # noqa: NPY002 (it is the generator that is drawn from)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
