"""The avoid task against a literal twin of its rules, written here with its own numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ding_ebm.envs.avoid import TRACKINGS, AvoidBatch, AvoidEnv

CENTERS = [(0.5, -0.1, 0.04), (0.425, 0.08, 0.035), (0.575, 0.08, 0.035)]
CENTERS += [(0.35, 0.26, 0.035), (0.5, 0.26, 0.035), (0.65, 0.26, 0.035)]
WAYS = list(itertools.product(range(2), range(3), range(4)))
GATE_X = [(0.4375, 0.5625), (0.36, 0.5, 0.64), (0.28, 0.425, 0.575, 0.72)]
BONUS = (0.5, 0.0, 2.0, 1.0)


class Twin:
    """One episode, one number at a time."""

    def __init__(self, start: np.ndarray, tracking: str) -> None:
        self.desired = [float(start[0]), float(start[1])]
        self.actual, self.previous = list(self.desired), list(self.desired)
        self.tracking, self.steps, self.gates = tracking, 0, [-1, -1, -1]

    def step(self, action: np.ndarray) -> tuple[list[float], float, bool, bool]:
        old_desired, old_y = list(self.desired), self.actual[1]
        self.desired = [d + min(max(float(a), -0.01), 0.01) for d, a in zip(self.desired, action)]
        actual = list(self.desired)
        if self.tracking == "arx":
            for i in range(2):
                actual[i] = 1.790 * self.actual[i] - 0.834 * self.previous[i]
                actual[i] += 0.2173 * self.desired[i] - 0.1733 * old_desired[i]
        self.actual, self.previous = actual, self.actual
        x, y = actual
        failed = any(math.hypot(x - cx, y - cy) < contact for cx, cy, contact in CENTERS) or not 0.2 <= x <= 0.8
        crossed = y > 0.40 and not failed
        self.steps += 1
        if self.gates[0] < 0 and abs(y + 0.1) <= 0.03:
            self.gates[0] = int(x > 0.5)
        if self.gates[1] < 0 and abs(y - 0.08) <= 0.03:
            self.gates[1] = 0 if x <= 0.425 else 1 if x <= 0.575 else 2
        if self.gates[2] < 0 and y >= 0.26:
            self.gates[2] = 0 if x <= 0.35 else 1 if x <= 0.5 else 2 if x <= 0.65 else 3
        reward = (min(y, 0.40) - old_y) / 0.68 - 0.002
        if failed:
            reward -= 1.0
        if crossed:
            reward += BONUS[0 if x <= 0.35 else 1 if x <= 0.5 else 2 if x <= 0.65 else 3]
        ended = failed or crossed
        return [*self.desired, *actual], reward, ended, not ended and self.steps >= 150


def placed(points: np.ndarray, tracking: str = "ideal") -> AvoidBatch:
    """Environments at rest at given points."""
    env = AvoidBatch(len(points), tracking=tracking)
    env._target = env._actual = env._previous = np.array(points, dtype=np.float64)
    return env


def follow(env: AvoidBatch, obs: np.ndarray, corners: np.ndarray, record: list[np.ndarray] | None = None) -> np.ndarray:
    """Steer every target along its corners, (E, corners, 2), as fast as it can; sum of rewards, (E,)."""
    target, goal, returns = obs[:, :2].astype(np.float64), np.zeros(len(obs), dtype=int), np.zeros(len(obs))
    rows = np.arange(len(obs))
    for _ in range(env.max_episode_steps):
        action = np.clip(corners[rows, goal] - target, -0.01, 0.01)
        obs, reward, terminated, truncated = env.step(action)
        target = target + action
        reached = np.abs(corners[rows, goal] - target).max(axis=1) < 1e-9
        goal = np.minimum(goal + reached, corners.shape[1] - 1)
        returns += reward
        if record is not None:
            record.append(np.stack([terminated, truncated]))
    return returns


def corners_of(ways: list[tuple[int, ...]]) -> np.ndarray:
    """Straight through the middle of each gate, crossing over where no cylinder is."""
    corners = []
    for way in ways:
        xs = [GATE_X[row][gate] for row, gate in enumerate(way)]
        corners.append([(x, y) for x, pair in zip(xs, ((-0.145, -0.055), (0.04, 0.12), (0.22, 0.45))) for y in pair])
    return np.array(corners)


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_every_step_equals_the_literal_twin(tracking: str) -> None:
    rng = np.random.default_rng(0)
    num = 200
    env = AvoidBatch(num, tracking=tracking)
    env.reset(rng.integers(2**31, size=num).tolist())
    start = env._actual.copy()
    twins = [Twin(point, tracking) for point in start]
    # Sideways drifts that last, so that cylinders, both walls, the finish line and the time limit are all met.
    drift = rng.uniform(-0.007, 0.007, num)
    rise = rng.choice([-0.001, 0.004, 0.008, 0.02], num)
    ended, outcomes = np.zeros(num, dtype=bool), {"failed": 0, "wall": 0, "crossed": 0, "late": 0}
    last: list[list[float]] = [[] for _ in range(num)]
    for t in range(150):
        if t % 25 == 0:
            drift = rng.uniform(-0.012, 0.012, num)
        action = np.stack([drift, rise], axis=1) + 0.003 * rng.standard_normal((num, 2))
        obs, reward, terminated, truncated = env.step(action)
        for i in range(num):
            if ended[i]:
                assert reward[i] == 0.0 and (terminated[i] or truncated[i])
                np.testing.assert_array_equal(obs[i], np.float32(last[i]))
                continue
            state, expected, done, late = twins[i].step(action[i])
            np.testing.assert_allclose(obs[i], state, atol=1e-6)
            assert reward[i] == pytest.approx(expected, abs=1e-12)
            assert (terminated[i], truncated[i]) == (done, late)
            assert env.gates[i].tolist() == twins[i].gates
            ended[i], last[i] = done or late, obs[i].tolist()
            if done or late:
                wall = not 0.2 <= state[2] <= 0.8
                outcomes["late" if late else "crossed" if env.success[i] else "wall" if wall else "failed"] += 1
    assert ended.all() and min(outcomes.values()) >= 5, outcomes


def test_a_point_collides_exactly_within_the_sum_of_radii() -> None:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for distance, hit in ((1e-6, False), (-1e-6, True)):
        points = np.concatenate([np.array([cx, cy]) + (contact + distance) * ring for cx, cy, contact in CENTERS])
        _, reward, terminated, _ = placed(points).step(np.zeros((len(points), 2)))
        assert (terminated == hit).all()
        np.testing.assert_allclose(reward, -1.002 if hit else -0.002)


def test_the_field_ends_at_its_sides_and_the_finish_line_above() -> None:
    points = np.array([(0.2, 0.0), (0.1999, 0.0), (0.8, 0.0), (0.8001, 0.0), (0.5, 0.4), (0.5, 0.4001), (0.81, 0.41)])
    env = placed(points)
    _, _, terminated, _ = env.step(np.zeros((7, 2)))
    assert terminated.tolist() == [False, True, False, True, False, True, True]
    assert env.success.tolist() == [False] * 5 + [True, False]


def test_all_24_ways_are_open_named_and_paid_by_their_lane() -> None:
    env = AvoidBatch(24)
    obs = env.reset(range(100, 124))
    flags: list[np.ndarray] = []
    returns = follow(env, obs, corners_of(WAYS), flags)
    assert env.success.all()
    assert [tuple(way) for way in env.gates] == WAYS
    bits = np.zeros((24, 9), dtype=bool)
    for i, (first, second, third) in enumerate(WAYS):
        bits[i, [first, 2 + second, 5 + third]] = True
    np.testing.assert_array_equal(env.way_through(), bits)
    assert len(np.unique(bits, axis=0)) == 24
    steps = 150 - np.stack(flags)[:, 0].sum(axis=0) + 1
    bonus = np.array(BONUS)[[way[2] for way in WAYS]]
    np.testing.assert_allclose(returns, (0.40 - obs[:, 1]) / 0.68 - 0.002 * steps + bonus, atol=1e-6)


def test_gates_not_reached_have_no_bit() -> None:
    env = AvoidBatch(2)
    env.reset([0, 1])
    assert not env.way_through().any()
    for _ in range(20):  # to about y = -0.08, right of the first cylinder
        env.step(np.array([[0.004, 0.01], [0.004, 0.01]]))
    assert env.way_through().sum(axis=1).tolist() == [1, 1]
    assert env.way_through()[:, 1].all()


def test_arx_follows_its_recursion_and_comes_to_rest_at_its_target() -> None:
    env = placed(np.array([[0.55, -0.25]]), "arx")
    path, targets = [0.55, 0.55], [0.55]
    for t in range(120):
        action = 0.01 if t < 4 else 0.0
        obs, *_ = env.step(np.array([[action, 0.0]]))
        targets.append(targets[-1] + action)
        path.append(1.790 * path[-1] - 0.834 * path[-2] + 0.2173 * targets[-1] - 0.1733 * targets[-2])
        assert obs[0, 2] == pytest.approx(path[-1], abs=1e-7) and obs[0, 0] == pytest.approx(targets[-1], abs=1e-7)
    assert obs[0, 2] == pytest.approx(0.59, abs=1e-4)
    assert max(path) > 0.59 + 1e-3, "the arm overshoots"
    assert path[2] - 0.55 < 0.003, "and lags"


def test_ideal_tracking_is_where_its_target_is() -> None:
    env = AvoidBatch(5)
    env.reset(range(5))
    obs, *_ = env.step(np.random.default_rng(0).uniform(-0.01, 0.01, (5, 2)))
    np.testing.assert_array_equal(obs[:, :2], obs[:, 2:])


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_single_environment_equals_its_row_of_a_batch(tracking: str) -> None:
    rng = np.random.default_rng(1)
    seeds = [3, 2**31, 77]
    actions = np.stack([rng.uniform(-0.006, 0.006, (150, 3)), rng.uniform(0.002, 0.012, (150, 3))], axis=2)
    batch = AvoidBatch(3, tracking=tracking)
    first = batch.reset(seeds)
    steps = [batch.step(action) for action in actions]
    for i, seed in enumerate(seeds):
        env = AvoidEnv(tracking=tracking)
        obs, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(obs, first[i])
        for t in range(150):
            obs, reward, terminated, truncated, info = env.step(actions[t, i])
            expected = tuple(part[i] for part in steps[t])
            np.testing.assert_array_equal(obs, expected[0])
            assert (reward, terminated, truncated) == expected[1:]
            if terminated or truncated:
                break
        assert terminated or truncated
        assert info["success"] == batch.success[i]
        np.testing.assert_array_equal(info["way"], batch.way_through()[i])


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_stale_observations_are_those_of_the_step_before(tracking: str) -> None:
    rng = np.random.default_rng(3)
    fresh, stale = AvoidBatch(40, tracking=tracking), AvoidBatch(40, tracking=tracking, stale_obs=True)
    shown = fresh.reset(range(40))
    last = stale.reset(range(40))
    np.testing.assert_array_equal(shown, last)
    for t in range(155):
        action = np.stack([rng.uniform(-0.01, 0.01, 40), rng.uniform(0.0, 0.01, 40)], axis=1)
        running = fresh.running
        new, old = fresh.step(action), stale.step(action)
        if t == 0:
            np.testing.assert_array_equal(old[0], shown)
        # Once an episode has ended both stand still: one on its last state, the other on the one before.
        expected = np.where(running[:, None], shown, last)
        np.testing.assert_array_equal(old[0], expected)
        for part, other in zip(new[1:], old[1:]):
            np.testing.assert_array_equal(part, other)
        shown, last = new[0], old[0]
    again = stale.reset([99], [7])
    np.testing.assert_array_equal(again[7], AvoidBatch(1).reset([99])[0])
    np.testing.assert_array_equal(np.delete(again, 7, axis=0), np.delete(last, 7, axis=0))


def test_gymnasium_accepts_the_environment(recwarn: pytest.WarningsRecorder) -> None:
    check_env(AvoidEnv(), skip_render_check=True)
    assert not [warning for warning in recwarn if "seed" in str(warning.message)]


def test_seeds_repeat_and_differ_and_starts_spread_by_a_centimeter() -> None:
    env = AvoidBatch(500)
    obs = env.reset(range(500))
    np.testing.assert_array_equal(obs, env.reset(range(500)))
    assert len(np.unique(obs, axis=0)) == 500
    offset = obs[:, :2] - np.float32([0.525, -0.28])
    assert np.abs(offset).max() <= 0.01 + 1e-6 and (np.ptp(offset, axis=0) > 0.0195).all()
    single = AvoidEnv()
    drawn = [single.reset(seed=4)[0], single.reset()[0], single.reset()[0]]
    assert len(np.unique(drawn, axis=0)) == 3, "without a seed the next episode is another one"
    again = [single.reset(seed=4)[0], single.reset()[0], single.reset()[0]]
    np.testing.assert_array_equal(drawn, again)


def test_actions_are_clipped_by_axis() -> None:
    env = AvoidBatch(2)
    start = env.reset([0, 0])
    obs, *_ = env.step(np.array([[5.0, -5.0], [0.01, -0.01]]))
    np.testing.assert_array_equal(obs[0], obs[1])
    np.testing.assert_allclose(obs[0, :2] - start[0, :2], [0.01, -0.01], atol=1e-7)


def test_what_is_returned_does_not_change_later() -> None:
    env = AvoidBatch(2)
    first = env.reset([0, 1])
    kept = first.copy()
    step = env.step(np.full((2, 2), 0.01))
    copies = [part.copy() for part in step]
    for _ in range(149):
        env.step(np.full((2, 2), 0.01))
    np.testing.assert_array_equal(first, kept)
    for part, copy in zip(step, copies):
        np.testing.assert_array_equal(part, copy)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no environments": (lambda: AvoidBatch(0), "num_envs and max_episode_steps must be positive"),
    "no steps": (lambda: AvoidEnv(max_episode_steps=0), "must be positive"),
    "tracking": (lambda: AvoidBatch(1, tracking="arm"), "tracking must be one of .*got 'arm'"),
    "seeds": (lambda: AvoidBatch(3).reset([1, 2]), "one seed for each of the 3 environments, got 2"),
    "action shape": (lambda: AvoidBatch(3).step(np.zeros((3, 1))), r"shape \(3, 2\), got \(3, 1\)"),
    "NaN action": (lambda: AvoidBatch(2).step(np.array([[0, 0], [0, np.nan]])), "finite, got .* for environment 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_arguments_are_refused(kind: str) -> None:
    call, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        call()
