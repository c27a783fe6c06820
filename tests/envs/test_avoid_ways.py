"""Geometry of the avoid tasks without the environments: collisions, successes and ways judged from positions alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ding_ebm.envs.avoid import AvoidBatch
from ding_ebm.envs.avoid_demos import OTHER_GATES, make_demonstrations, make_mode_demonstrations
from ding_ebm.envs.avoid_modes import AvoidModesBatch
from ding_ebm.envs.avoid_ways import GATES, NONE, NUM_WAYS, gates_of, ways_taken

CENTERS = np.array([0.5 - 0.1j, 0.425 + 0.08j, 0.575 + 0.08j, 0.35 + 0.26j, 0.5 + 0.26j, 0.65 + 0.26j])
REACH = np.array([0.04, 0.035, 0.035, 0.035, 0.035, 0.035])
NUM = 10_000
EVERY_WAY = list(itertools.product(range(2), range(3), range(4)))


def random_trajectories(batch: type[AvoidBatch]) -> tuple[AvoidBatch, np.ndarray, np.ndarray]:
    """10 000 of 100 steps that begin at 10 000 starts: the environments, positions (NUM, 101), ended by the task."""
    rng, env = np.random.default_rng(0), batch(NUM, max_episode_steps=100)
    path = [env.reset(range(NUM))]
    drift = np.repeat(rng.uniform(-0.011, 0.011, (NUM, 5)), 20, axis=1)
    rise = rng.choice([0.0, 0.006, 0.009, 0.02], (NUM, 1)) + 0.002 * rng.standard_normal((NUM, 100))
    for t in range(100):
        path.append(env.step(np.stack([drift[:, t], rise[:, t]], axis=1))[0])
    shown = np.stack(path, axis=1).astype(np.float64)
    return env, shown[..., 2] + 1j * shown[..., 3], env._terminated


def first(event: np.ndarray) -> np.ndarray:
    """Step of the first event of each trajectory, a large number where there is none."""
    return np.where(event.any(axis=1), event.argmax(axis=1), 10**6)


@pytest.fixture(scope="module")
def modes() -> tuple[AvoidBatch, np.ndarray, np.ndarray]:
    return random_trajectories(AvoidModesBatch)


def clear(z: np.ndarray) -> np.ndarray:
    """Trajectories of which no judgement hangs on the rounding of what is observed."""
    margins = [np.abs(np.abs(z[..., None] - CENTERS) - REACH).min(axis=(1, 2))]
    margins += [np.abs(z.imag - y).min(axis=1) for y in (0.4, 0.295, 0.26)]
    margins += [np.abs(z.real - x).min(axis=1) for x in (0.2, 0.35, 0.8)]
    return np.min(margins, axis=0) > 1e-7


def test_collision_and_success_equal_a_geometric_check(modes) -> None:
    env, z, terminated = modes
    touch = first((np.abs(z[..., None] - CENTERS) < REACH).any(axis=2))
    leftmost = z.real[np.arange(NUM), np.minimum(first(z.imag >= 0.26), 100)] <= 0.35
    paid = (z.imag > 0.4) & (np.abs(z.real - 0.5) <= 0.3) & (np.arange(101) < touch[:, None])
    success = paid.any(axis=1) & leftmost
    kept = clear(z)
    assert kept.mean() > 0.98
    np.testing.assert_array_equal((touch <= 100)[kept], terminated[kept])
    np.testing.assert_array_equal(success[kept], env.success[kept])
    assert success.sum() > 100 and (touch <= 100).sum() > 1000 and (~success & (touch > 100)).sum() > 1000


def test_an_episode_of_avoid_ends_as_the_geometry_says() -> None:
    env, z, terminated = random_trajectories(AvoidBatch)
    failed = first((np.abs(z[..., None] - CENTERS) < REACH).any(axis=2) | (np.abs(z.real - 0.5) > 0.3))
    crossed = first(z.imag > 0.4)
    kept = clear(z)
    np.testing.assert_array_equal(((failed <= 100) | (crossed <= 100))[kept], terminated[kept])
    np.testing.assert_array_equal((crossed < failed)[kept], env.success[kept])
    assert min((crossed < failed).sum(), (failed < crossed).sum()) > 500


def test_a_step_cuts_a_cylinder_unseen_by_no_more_than_its_length_allows(modes) -> None:
    """Positions are judged where steps end. A chord of 14.1 mm comes 0.72 mm nearer to a center than its ends."""
    _, z, terminated = modes
    begin, step = z[~terminated, :-1, None] - CENTERS, np.diff(z[~terminated])[..., None]
    along = np.clip(-(begin * step.conj()).real / np.maximum(np.abs(step) ** 2, 1e-30), 0.0, 1.0)
    depth = (REACH - np.abs(begin + along * step)).max(axis=(1, 2))
    assert 0.0 < depth.max() < 0.00073
    assert (depth > 0).mean() < 0.02, "and few steps do"


def test_the_ways_of_trajectories_are_the_gates_that_the_environment_noted(modes) -> None:
    env, z, terminated = modes
    ways = ways_taken(list(np.stack([z.real, z.imag], axis=2)))
    # Nothing can be touched above the last row, but the field may be left there.
    through = ~terminated & (z.imag > 0.295).any(axis=1)
    inside = (np.abs(z.real - 0.5) <= 0.3).all(axis=1)
    kept = clear(z)
    assert (through & inside & kept).sum() > 500
    np.testing.assert_array_equal(gates_of(ways[through & inside & kept]), env.gates[through & inside & kept])
    assert (ways[~through & kept] == NONE).all()
    assert len(np.unique(ways[ways != NONE])) > 8


@pytest.mark.parametrize("task", OTHER_GATES)
def test_demonstrations_of_a_subset_take_two_ways_in_equal_shares(task: str) -> None:
    """Right of the first cylinder, left of the second row: mode bits {1, 2}, and {5, 6}, {5, 7} or {5, 8}."""
    ways = ways_taken(paths_of(make_mode_demonstrations(task, 200)))
    other = {"avoid_m1": 1, "avoid_m2": 2, "avoid_m3": 3}[task]
    assert ways.tolist() == [12, 12 + other] * 100


def paths_of(data) -> list[np.ndarray]:
    """Positions of each episode."""
    ends = data.episode_ends
    starts = np.concatenate([[0], ends[:-1] + 1])
    return [np.concatenate([data.obs[a : b + 1, 2:], data.next_obs[b : b + 1, 2:]]) for a, b in zip(starts, ends)]


def test_demonstrations_of_avoid_take_all_24_ways() -> None:
    ways = ways_taken(paths_of(make_demonstrations(500)))
    assert set(ways.tolist()) == {NONE, *range(24)}


def line(*corners: tuple[float, float]) -> np.ndarray:
    """Straight pieces in steps of at most 5 mm."""
    pieces = [
        np.linspace(a, b, 1 + int(np.hypot(*np.subtract(b, a)) / 0.005), endpoint=False)
        for a, b in zip(corners, corners[1:])
    ]
    return np.concatenate([*pieces, [corners[-1]]])


def path_by(way: tuple[int, int, int], top: float = 0.3) -> np.ndarray:
    """Through the middle of each gate."""
    gates = ((0.44, 0.56), (0.36, 0.5, 0.64), (0.28, 0.425, 0.575, 0.72))
    xs = [middles[gate] for middles, gate in zip(gates, way)]
    rows = ((-0.145, -0.055), (0.035, 0.125), (0.215, top))
    return line((0.525, -0.28), *[(x, y) for x, ends in zip(xs, rows) for y in ends])


def test_every_way_has_its_number() -> None:
    assert NUM_WAYS == 24 and GATES == (2, 3, 4)
    ways = ways_taken([path_by(way) for way in EVERY_WAY])
    assert ways.tolist() == list(range(24))
    np.testing.assert_array_equal(gates_of(ways), EVERY_WAY)


def test_what_did_not_get_through_has_no_way() -> None:
    good = path_by((1, 0, 0))
    short = path_by((1, 0, 0), top=0.295)
    through_a_cylinder = line(
        (0.525, -0.28), (0.5, -0.14), (0.5, 0.0), (0.36, 0.03), (0.36, 0.12), (0.28, 0.2), (0.28, 0.5)
    )
    outside = line((0.525, -0.28), (0.15, -0.2), (0.15, 0.45))
    afterwards = np.concatenate([good, line((0.28, 0.3), (0.15, 0.42))])
    assert ways_taken([good, short, through_a_cylinder, outside, afterwards]).tolist() == [12, -1, -1, -1, 12]
    assert ways_taken([]).shape == (0,)
    with pytest.raises(ValueError, match=r"shape \(T \+ 1, 2\), got \(5, 4\)"):
        ways_taken([np.zeros((5, 4))])
