"""Collected rows against a plain loop over one environment, and what the options promise."""

from __future__ import annotations

import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.transitions import COLUMNS
from ding_ebm.envs.avoid import MAX_DISPLACEMENT, AvoidBatch, AvoidEnv
from ding_ebm.envs.avoid_demos import make_demonstrations
from ding_ebm.evaluation.collect import collect, record

SEEDS = [3, 7, 7, 11, 2]


def steer(obs: np.ndarray) -> np.ndarray:
    """Around the first cylinder; some starts hit a later one, so that episodes differ in length and end."""
    x, y = obs[..., 2], obs[..., 3]
    aim = np.where(y < -0.05, 0.565, 0.5)
    return np.stack([np.clip(aim - x, -0.004, 0.004), np.full(x.shape, 0.009)], axis=-1).astype(np.float32)


def plan(history: np.ndarray, act_steps: int) -> np.ndarray:
    """A chunk that depends on the whole history."""
    first = steer(history[:, -1]) + 0.01 * (history[:, -1] - history[:, 0])[:, 2:]
    return np.clip(np.repeat(first[:, None], act_steps, axis=1), -MAX_DISPLACEMENT, MAX_DISPLACEMENT)


def rows_of_a_loop(seeds: list[int], act_steps: int, cond_steps: int) -> list[tuple]:
    env, rows = AvoidEnv(), []
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        history, over = [obs] * cond_steps, False
        while not over:
            for action in plan(np.stack(history[-cond_steps:])[None], act_steps)[0]:
                if over:
                    break
                new, reward, terminated, truncated, _ = env.step(action)
                rows.append((obs, action, np.float32(reward), new, terminated, truncated))
                obs, over = new, terminated or truncated
                history.append(obs)
    return rows


@pytest.mark.parametrize("num_envs", [1, 2, 8])
@pytest.mark.parametrize(("act_steps", "cond_steps"), [(1, 1), (4, 3), (200, 1)])
def test_rows_are_those_of_a_loop_over_one_environment(num_envs, act_steps, cond_steps):
    env = AvoidBatch(num_envs)
    made = record(
        lambda seen: plan(seen, act_steps), env, SEEDS, act_steps=act_steps, cond_steps=cond_steps,
        rng=np.random.default_rng(0), source="test",
    )  # fmt: skip
    for name, expected in zip(COLUMNS, zip(*rows_of_a_loop(SEEDS, act_steps, cond_steps))):
        np.testing.assert_array_equal(getattr(made, name), np.stack(expected), err_msg=name)
    assert made.terminated.any() and len(set(made.episode_lengths().tolist())) > 1
    check_transitions(made, 4, 2, (-MAX_DISPLACEMENT, MAX_DISPLACEMENT))


def test_a_policy_over_single_actions_sees_no_history_and_time_limits_truncate():
    env = AvoidBatch(3, max_episode_steps=9)
    made = record(lambda obs: np.zeros((len(obs), 2)), env, SEEDS, rng=np.random.default_rng(0), source="test")
    assert made.episode_lengths().tolist() == [9] * 5
    assert made.truncated.sum() == 5 and not made.terminated.any()
    assert made.source == "test"


def test_noise_is_of_the_stated_size_and_never_leaves_the_range():
    def noise_on(share: float) -> np.ndarray:
        made = record(
            lambda obs: np.zeros((len(obs), 2)), AvoidBatch(50), range(200), rng=np.random.default_rng(0), noise=share,
            source="test",
        )  # fmt: skip
        return made.action

    small = noise_on(0.1)
    assert small.std() == pytest.approx(0.1 * MAX_DISPLACEMENT, rel=0.02)
    assert abs(small.mean()) < 4 * small.std() / small.size**0.5
    large = noise_on(1.0)
    assert np.abs(large).max() == np.float32(MAX_DISPLACEMENT)
    assert (np.abs(large) == np.float32(MAX_DISPLACEMENT)).mean() == pytest.approx(0.317, abs=0.02)  # beyond one std


def test_random_actions_fill_the_range_and_repeat_with_the_seed():
    made = collect("avoid_m2", "random", episodes=60, seed=4)
    assert made.checksum() == collect("avoid_m2", "random", episodes=60, seed=4).checksum()
    assert made.checksum() != collect("avoid_m2", "random", episodes=60, seed=5).checksum()
    counts, _ = np.histogram(made.action, 4, (-MAX_DISPLACEMENT, MAX_DISPLACEMENT))
    assert (np.abs(counts / made.action.size - 0.25) < 0.02).all()
    assert len(np.unique(made.obs[np.r_[0, made.episode_ends[:-1] + 1]], axis=0)) == 60, "starts must differ"


def test_scripts_without_noise_are_the_demonstrations_and_noise_adds_to_theirs():
    plain = collect("avoid", "scripted", episodes=40, seed=2)
    assert plain.checksum() == make_demonstrations(40, 2).checksum()
    noisy = collect("avoid", "scripted", episodes=40, seed=2, noise=0.5)
    steps = [np.diff(data.action, axis=0).std() for data in (plain, noisy)]
    assert steps[1] > 2 * steps[0]
    assert noisy.metadata == dict(task="avoid", policy="scripted", seed="2", noise="0.5")
