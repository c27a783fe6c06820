"""Entropy over the ways against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ding_ebm.envs.avoid_demos import make_mode_demonstrations
from ding_ebm.envs.registry import TASKS, get_task
from ding_ebm.evaluation.ways import describe_ways, has_ways, way_entropy, ways_of


@pytest.mark.parametrize(
    ("ways", "entropy"),
    [
        ([5] * 7, 0.0),
        (list(range(24)), 1.0),
        (list(range(24)) * 3, 1.0),
        ([0, 23], math.log(2) / math.log(24)),
        ([0, 0, 0, 1], (math.log(4) - 0.75 * math.log(3)) / math.log(24)),
        ([3, 3, 9, 9, -1, -1, -1], math.log(2) / math.log(24)),
    ],
)
def test_entropy_of_known_shares(ways: list[int], entropy: float) -> None:
    assert way_entropy(np.array(ways)) == pytest.approx(entropy, abs=1e-12)


def test_the_entropy_of_none_is_none() -> None:
    assert math.isnan(way_entropy(np.array([-1, -1])))
    assert describe_ways(np.array([-1, -1])) == "0 of 2 episodes got through"


def test_a_sample_is_too_low_by_what_the_docstring_says() -> None:
    rng, n = np.random.default_rng(0), 200
    found = np.mean([way_entropy(rng.integers(24, size=n)) for _ in range(400)])
    assert 1.0 - found == pytest.approx(23 / (2 * n * math.log(24)), rel=0.1)


def test_two_ways_are_described() -> None:
    ways = np.array([12, 13, 12, 13, -1])
    assert describe_ways(ways) == "4 of 5 episodes got through, by 2 of 24 ways, entropy 0.22 of log 24"


def test_only_the_avoid_tasks_have_ways() -> None:
    assert [name for name, task in TASKS.items() if has_ways(task)] == ["avoid", "avoid_m1", "avoid_m2", "avoid_m3"]


def test_the_ways_of_episodes_are_those_of_their_actual_positions() -> None:
    data = make_mode_demonstrations("avoid_m1", 2)
    trajectories = [np.concatenate([rows, rows[-1:]]) for rows in data.obs.reshape(2, 100, 4)]
    assert ways_of(get_task("avoid_m1"), trajectories).tolist() == [12, 13]
    for trajectory in trajectories:
        trajectory[:, :2] = 0.0  # where the target is does not matter
    assert ways_of(get_task("avoid_m1"), trajectories).tolist() == [12, 13]
