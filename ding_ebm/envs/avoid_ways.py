"""Which of the 24 ways through the cylinders of the avoid tasks a trajectory took, from its positions alone.

A way is a gate of each of the three rows, of which there are 2, 3 and 4 (Jia et al. 2024, arXiv:2402.14606, D3IL's
avoiding). Nothing here asks an environment: recorded data, episodes of a policy and paths drawn by hand are judged
alike. A trajectory is through once it is above the last row, whether or not it goes on to the finish line.

Letters: n trajectories, T steps of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.avoid import CYLINDERS, FIELD_X, ROD_RADIUS, ROWS_X, ROWS_Y

GATES = tuple(len(edges) + 1 for edges in ROWS_X)
NUM_WAYS = int(np.prod(GATES))
# Way of a trajectory that did not get through.
NONE = -1
# Above it the rod cannot touch a cylinder.
THROUGH_Y = float((CYLINDERS[:, 1] + CYLINDERS[:, 2]).max() + ROD_RADIUS)


def ways_taken(paths: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The way of each trajectory that got above the last row before it touched a cylinder or left the field.

    Ways are numbered from left to right, those of the last row fastest: way ``12 a + 4 b + c`` passes gates a, b and c
    of the rows, each counted from the left. A gate is the one at which a row is first met.

    Args:
        paths: Actual positions of each, (T + 1, 2), meters.

    Returns:
        0 to 23, ``NONE`` for a trajectory that did not get through, (n,).

    Raises:
        ValueError: If a path has another shape.
    """
    return np.array([_way_taken(np.asarray(path)) for path in paths], dtype=np.int64)


def gates_of(ways: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gates of the three rows, counted from the left, of ways 0 to 23: (n,) to (n, 3)."""
    return np.stack(np.unravel_index(ways, GATES), axis=-1).astype(np.int64)


def _way_taken(path: NDArray[Any]) -> int:
    if path.ndim != 2 or path.shape[1] != 2:
        raise ValueError(f"a path is of shape (T + 1, 2), got {path.shape}")
    x, y = path.T
    distance = np.hypot(x[:, None] - CYLINDERS[:, 0], y[:, None] - CYLINDERS[:, 1])
    failed = (distance < CYLINDERS[:, 2] + ROD_RADIUS).any(axis=1) | (x < FIELD_X[0]) | (x > FIELD_X[1])
    crossed = y > THROUGH_Y
    end = int(np.argmax(failed | crossed))
    if failed[end] or not crossed[end]:
        return NONE
    way = 0
    for (low, high), edges, gates in zip(ROWS_Y, ROWS_X, GATES):
        there = (y >= low) & (y <= high)
        if not there.any():  # no step of a point is so long
            return NONE
        way = way * gates + int((x[np.argmax(there)] > np.array(edges)).sum())
    return way
