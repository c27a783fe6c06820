"""Rollouts against a plain loop over one environment, and what they promise about seeds."""

from __future__ import annotations

import numpy as np
import pytest

from ding_ebm.envs.avoid import AvoidBatch, AvoidEnv
from ding_ebm.envs.batch import GymBatch
from ding_ebm.evaluation.rollout import rollout

SEEDS = [3, 7, 7, 11, 2]


def to_the_right(obs: np.ndarray) -> np.ndarray:
    """Steer around the first cylinder; some starts hit a later one, so that episodes differ in length."""
    x, y = obs[:, 2], obs[:, 3]
    aim = np.where(y < -0.05, 0.565, 0.5)
    return np.stack([np.clip(aim - x, -0.004, 0.004), np.full(len(obs), 0.009)], axis=1).astype(np.float32)


def one_by_one(seed: int) -> tuple[float, int, bool, np.ndarray]:
    env = AvoidEnv()
    obs, _ = env.reset(seed=seed)
    seen, total, terminated, truncated = [obs], 0.0, False, False
    while not (terminated or truncated):
        obs, reward, terminated, truncated, _ = env.step(to_the_right(obs[None])[0])
        seen.append(obs)
        total += reward
    return total, len(seen) - 1, terminated, np.stack(seen)


@pytest.mark.parametrize("num_envs", [1, 2, 5, 8])
@pytest.mark.parametrize("native", [True, False])
def test_episodes_are_those_of_a_loop_over_one_environment(num_envs, native):
    env = AvoidBatch(num_envs) if native else GymBatch(AvoidEnv, num_envs)
    episodes = rollout(to_the_right, env, SEEDS, keep_trajectories=True)
    for i, seed in enumerate(SEEDS):
        total, length, terminated, seen = one_by_one(seed)
        assert episodes.returns[i] == pytest.approx(total, abs=1e-12)
        assert (episodes.lengths[i], episodes.terminated[i]) == (length, terminated)
        np.testing.assert_array_equal(episodes.trajectories[i], seen)


def test_a_time_limit_is_no_termination():
    episodes = rollout(lambda obs: np.zeros((len(obs), 2), np.float32), AvoidBatch(3, max_episode_steps=9), [0, 1, 2])
    assert episodes.lengths.tolist() == [9, 9, 9]
    assert not episodes.terminated.any()


@pytest.mark.parametrize("count", [6, 7])
def test_the_same_seeds_and_policy_state_give_the_same_bits(count):
    def run(seeds):
        rng = np.random.default_rng(0)
        act = lambda obs: rng.uniform(-0.01, 0.01, (len(obs), 2)).astype(np.float32)  # noqa: E731
        return rollout(act, AvoidBatch(3), seeds, keep_trajectories=True)

    first, again, other = run(range(count)), run(range(count)), run(range(1, count + 1))
    assert first.returns.tobytes() == again.returns.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first.trajectories, again.trajectories))
    assert first.trajectories[0].tobytes() != other.trajectories[0].tobytes()


def test_the_policy_sees_running_environments_only_and_once_a_step():
    sizes = []

    def act(obs: np.ndarray) -> np.ndarray:
        sizes.append(len(obs))
        return to_the_right(obs)

    episodes = rollout(act, AvoidBatch(4), SEEDS)
    first, second = episodes.lengths[:4], episodes.lengths[4:]
    expected = [int((lengths > step).sum()) for lengths in (first, second) for step in range(lengths.max())]
    assert sizes == expected


def test_actions_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"act must return \(3, 2\) actions, got \(3, 3\)"):
        rollout(lambda obs: np.zeros((len(obs), 3), np.float32), AvoidBatch(3), [0, 1, 2])


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        rollout(to_the_right, AvoidBatch(3), [])
