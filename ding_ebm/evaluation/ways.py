"""How many of the ways through the avoid tasks a policy takes: the entropy over them, of the episodes that got through.

Letters: n episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.avoid_ways import NONE, NUM_WAYS, ways_taken
from ding_ebm.envs.task import Task
from ding_ebm.envs.tasks import avoid

_NAMES = {task.name for task in avoid.TASKS}


def has_ways(task: Task) -> bool:
    """Whether it is one of the avoid tasks."""
    return task.base in _NAMES


def ways_of(task: Task, trajectories: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The way of each episode of an avoid task, see :func:`~ding_ebm.envs.avoid_ways.ways_taken`.

    Args:
        task: Of the episodes.
        trajectories: Observations of each, (T + 1, Do).
    """
    return ways_taken([path[:, task.position] for path in trajectories])


def way_entropy(ways: NDArray[np.int64]) -> float:
    """Entropy of the ways of the episodes that got through, in units of log 24: 0 of one way, 1 of all alike.

    It is that of the shares in the sample, which of n episodes is too low by some (k - 1) / (2 n log 24), k the number
    of ways that are taken at all.

    Args:
        ways: 0 to 23, -1 of an episode that did not get through, (n,). If none did, the entropy is NaN.
    """
    counts = np.bincount(ways[ways != NONE], minlength=NUM_WAYS)
    if not counts.any():
        return math.nan
    shares = counts[counts > 0] / counts.sum()
    return abs(float((shares * np.log(shares)).sum())) / math.log(NUM_WAYS)


def describe_ways(ways: NDArray[np.int64]) -> str:
    """How many episodes got through, by how many ways, with which entropy, for people."""
    through = ways[ways != NONE]
    said = f"{len(through)} of {len(ways)} episodes got through"
    if not len(through):
        return said
    number = len(np.unique(through))
    return f"{said}, by {number} of {NUM_WAYS} ways, entropy {way_entropy(ways):.2f} of log {NUM_WAYS}"
