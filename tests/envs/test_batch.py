"""A batch of single environments behaves as they do one by one, and ended ones stay as they are."""

from __future__ import annotations

import importlib.util

import gymnasium
import numpy as np
import pytest

from ding_ebm.envs.avoid import AvoidBatch, AvoidEnv
from ding_ebm.envs.batch import GymBatch
from ding_ebm.envs.registry import make_env

needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed")


@needs_mujoco
@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_mujoco_batch_equals_gymnasium_step_by_step(name: str) -> None:
    rng = np.random.default_rng(0)
    seeds, steps = [5, 6, 5], 60
    batch = GymBatch(lambda: make_env(name), 3)
    first = batch.reset(seeds)
    actions = rng.uniform(-1, 1, (steps, 3, batch.action_dim)).astype(np.float32)
    results = [batch.step(action) for action in actions]
    for i, seed in enumerate(seeds):
        env = make_env(name)
        obs, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(first[i], obs.astype(np.float32))
        ended = False
        for t in range(steps):
            reward, terminated = 0.0, True
            if not ended:
                obs, reward, terminated, truncated, _ = env.step(actions[t, i])
            assert not truncated
            np.testing.assert_array_equal(results[t][0][i], obs.astype(np.float32))
            assert results[t][1][i] == reward and results[t][2][i] == terminated and not results[t][3][i]
            ended = terminated
        assert ended == (name != "halfcheetah"), "random actions fall within 60 steps, and a cheetah cannot fall"
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(batch.reset(seeds), first)
    np.testing.assert_array_equal(batch.step(actions[0])[0], results[0][0])
    batch.close()


@needs_mujoco
def test_time_limit_is_known_and_truncates_and_what_is_truncated_stays() -> None:
    batch = GymBatch(lambda: gymnasium.make("HalfCheetah-v4", max_episode_steps=3), 1)
    batch.reset([0])
    steps = [batch.step(np.full((1, 6), 0.5)) for _ in range(5)]
    assert [(step[2].item(), step[3].item()) for step in steps] == [(False, t >= 2) for t in range(5)]
    assert steps[2][1] != 0 and steps[3][1] == steps[4][1] == 0
    np.testing.assert_array_equal(steps[3][0], steps[2][0])
    assert batch.max_episode_steps == 3


def test_batch_of_single_environments_equals_the_vectorized_one() -> None:
    rng = np.random.default_rng(2)
    single, vectorized = GymBatch(AvoidEnv, 4), AvoidBatch(4)
    for name in ("num_envs", "obs_dim", "action_dim", "max_episode_steps"):
        assert getattr(single, name) == getattr(vectorized, name)
    np.testing.assert_array_equal(single.action_low, vectorized.action_low)
    np.testing.assert_array_equal(single.action_high, vectorized.action_high)
    for seeds in ([1, 2, 3, 4], [9, 1, 1, 0]):
        np.testing.assert_array_equal(single.reset(seeds), vectorized.reset(seeds))
        for _ in range(150):
            action = rng.uniform([-0.01, -0.002], [0.01, 0.01], (4, 2))
            for a, b in zip(single.step(action), vectorized.step(action)):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


class Odd(AvoidEnv):
    """An environment of which one part is not as it must be."""

    def __init__(self, part: str) -> None:
        super().__init__()
        if part == "observation":
            self.observation_space = gymnasium.spaces.Box(0, 1, (4, 4))
        if part == "action":
            self.action_space = gymnasium.spaces.Discrete(3)
        if part == "limit":
            del self.max_episode_steps


def test_environments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"observation space must be a Box of one dimension, got Box.*4, 4"):
        GymBatch(lambda: Odd("observation"), 1)
    with pytest.raises(ValueError, match="action space must be a Box of one dimension, got Discrete"):
        GymBatch(lambda: Odd("action"), 1)
    with pytest.raises(ValueError, match="has no time limit"):
        GymBatch(lambda: Odd("limit"), 1)
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        GymBatch(AvoidEnv, 0)


def test_bad_seeds_and_actions_are_refused() -> None:
    batch = GymBatch(AvoidEnv, 2)
    with pytest.raises(ValueError, match="one seed for each of the 2 environments, got 3"):
        batch.reset([1, 2, 3])
    batch.reset([1, 2])
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got \(2,\)"):
        batch.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"finite, got .* for environment 0"):
        batch.step(np.array([[np.inf, 0], [0, 0]]))
