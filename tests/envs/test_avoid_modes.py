"""The avoid task with DPPO's reward against a literal twin of its rules, written here with its own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ding_ebm.envs.avoid import AvoidBatch
from ding_ebm.envs.avoid_modes import AvoidModesBatch, AvoidModesEnv
from ding_ebm.envs.batch import GymBatch

CENTERS = [(0.5, -0.1, 0.04), (0.425, 0.08, 0.035), (0.575, 0.08, 0.035)]
CENTERS += [(0.35, 0.26, 0.035), (0.5, 0.26, 0.035), (0.65, 0.26, 0.035)]


class Judge:
    """The rewards of one episode, from its positions alone; none once a touch has ended it."""

    def __init__(self) -> None:
        self.collided, self.mode_5, self.crossed_last = False, False, False

    def reward(self, x: float, y: float) -> float:
        if self.collided:
            return 0.0
        self.collided = any(math.hypot(x - cx, y - cy) < contact for cx, cy, contact in CENTERS)
        if not self.crossed_last and y >= 0.26:
            self.crossed_last, self.mode_5 = True, x <= 0.35
        if self.collided or not 0.2 <= x <= 0.8:
            return -0.1
        return float(self.mode_5) + float(y > 0.40)


def wander(num: int, steps: int, seed: int = 0) -> np.ndarray:
    """Upward drifts that meet cylinders, walls, every gate and the line, and some that stay below, (num, steps, 2)."""
    rng = np.random.default_rng(seed)
    sideways = np.repeat(rng.uniform(-0.011, 0.011, (num, -(-steps // 20))), 20, axis=1)[:, :steps]
    rise = np.broadcast_to(rng.choice([-0.001, 0.006, 0.009, 0.02], (num, 1)), (num, steps))
    return np.stack([sideways, rise], axis=2) + 0.002 * rng.standard_normal((num, steps, 2))


@pytest.mark.parametrize("tracking", ["ideal", "arx"])
def test_every_reward_equals_the_literal_twin(tracking: str) -> None:
    num = 600
    env = AvoidModesBatch(num, tracking=tracking)
    first = env.reset(range(num))
    np.testing.assert_array_equal(first, AvoidBatch(num).reset(range(num)), "the starts are those of avoid")
    actions, judges, best = wander(num, 104), [Judge() for _ in range(num)], np.zeros(num)
    seen: set[float] = set()
    back, outside, last = np.zeros(num, dtype=bool), np.zeros(num, dtype=bool), first
    for t in range(104):
        obs, reward, terminated, truncated = env.step(actions[:, t])
        if t < 100:
            expected = [judge.reward(*point) for judge, point in zip(judges, env._actual.tolist())]
        np.testing.assert_array_equal(terminated, [judge.collided for judge in judges], "a touch ends the episode")
        np.testing.assert_array_equal(truncated, ~terminated & (t >= 99))
        if t >= 100:
            assert not reward.any()
            np.testing.assert_array_equal(obs, last)
            continue
        x = env._actual[:, 0]
        np.testing.assert_array_equal(obs[:, 2:], env._actual.astype(np.float32))
        np.testing.assert_array_equal(reward, expected)
        best = np.maximum(best, reward)
        np.testing.assert_array_equal(env.success, best >= 2)
        back |= outside & (x >= 0.2) & (x <= 0.8) & (reward >= 0)
        outside, last = (x < 0.2) | (x > 0.8), obs
        seen |= set(reward.tolist())
    assert seen == {-0.1, 0.0, 1.0, 2.0}
    assert back.any(), "outside the field costs only while outside"
    assert 5 < env.success.sum() < num / 2
    assert (env.success & (reward == 0)).sum() == env.success.sum(), "success stays when the episode has ended"
    np.testing.assert_array_equal(env.way_through()[:, 5], [judge.mode_5 for judge in judges])


def test_a_new_episode_has_forgotten_collision_success_and_mode() -> None:
    env = AvoidModesBatch(300)
    env.reset(range(300))
    env.step_chunk(wander(300, 100))
    rows = np.concatenate([np.flatnonzero(env.success)[:3], np.flatnonzero(env._collided)[:3]])
    kept = env.success.copy()
    env.reset(range(6), rows)
    assert not env.success[rows].any() and not env._collided[rows].any() and not env.way_through()[rows].any()
    others = np.setdiff1d(np.arange(300), rows)
    np.testing.assert_array_equal(env.success[others], kept[others])
    fresh = AvoidModesBatch(6)
    fresh.reset(range(6))
    actions = wander(300, 100, seed=5)
    chunk, alone = env.step_chunk(actions), fresh.step_chunk(actions[rows])
    np.testing.assert_array_equal(chunk.reward[rows], alone.reward)
    np.testing.assert_array_equal(chunk.length[rows], alone.length)
    assert not chunk.length[others].any() and not chunk.reward[others].any()


def test_single_environments_equal_the_batch_and_gymnasium_accepts_one(recwarn: pytest.WarningsRecorder) -> None:
    check_env(AvoidModesEnv(), skip_render_check=True)
    assert not [warning for warning in recwarn if "seed" in str(warning.message)]
    single, batch = GymBatch(AvoidModesEnv, 5), AvoidModesBatch(5)
    assert single.max_episode_steps == batch.max_episode_steps == 100
    np.testing.assert_array_equal(single.reset(range(5)), batch.reset(range(5)))
    actions = wander(5, 102)
    for start in range(0, 102, 6):
        a, b = (env.step_chunk(actions[:, start : start + 6]) for env in (single, batch))
        for field in ("obs", "reward", "terminated", "truncated", "length"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        np.testing.assert_array_equal(single.success, batch.success)
    assert a.length.tolist() == [4 * ended for ended in a.truncated] and (a.truncated ^ a.terminated).all()
    assert a.truncated.any() and a.terminated.any()
    env = AvoidModesEnv()
    env.reset(seed=0)
    info = env.step(np.float32([0.0, 0.01]))[4]
    assert info["success"] is False and info["way"].shape == (9,)
