"""Demonstrations are what the environment returns, cover it, and leave room for improvement."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.formats import Transitions
from ding_ebm.envs import avoid_demos
from ding_ebm.envs.avoid import LANE_BONUS, TRACKINGS, AvoidBatch
from ding_ebm.envs.avoid_demos import OTHER_GATES, make_demonstrations, make_mode_demonstrations
from ding_ebm.envs.avoid_modes import AvoidModesBatch


def replay(
    data: Transitions, seed: int, tracking: str = "ideal", batch: type[AvoidBatch] = AvoidBatch
) -> tuple[AvoidBatch, list[np.ndarray]]:
    """The recorded actions in the episodes of the starts that ``seed`` stands for: columns (rows, ...)."""
    num = len(data.episode_ends)
    env = batch(num, tracking=tracking)
    obs = env.reset(np.random.default_rng(seed).integers(2**31, size=num).tolist())
    begins, lengths = data.episode_ends - data.episode_lengths() + 1, data.episode_lengths()
    rows = []
    for t in range(env.max_episode_steps):
        on = t < lengths
        action = np.where(on[:, None], data.action[np.where(on, begins + t, 0)], np.float32(0))
        after = env.step(action)
        rows.append((obs, action, after[1], after[0], after[2], after[3], on))
        obs = after[0]
    *columns, on = (np.stack(column).swapaxes(0, 1) for column in zip(*rows))
    return env, [column[on] for column in columns]


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_rows_are_what_the_environment_returns(tracking: str) -> None:
    data = make_demonstrations(60, seed=4, tracking=tracking)
    _, columns = replay(data, 4, tracking)
    for name, column in zip(("obs", "action", "reward", "next_obs", "terminated", "truncated"), columns):
        np.testing.assert_array_equal(getattr(data, name), column.astype(getattr(data, name).dtype), err_msg=name)


def test_default_data_is_sound_and_mixed() -> None:
    data = make_demonstrations()
    check_transitions(data, obs_dim=4, action_dim=2, action_range=(-0.01, 0.01))
    env, _ = replay(data, 0)
    returns = data.episode_returns()
    assert len(returns) == 500 and data.episode_lengths().sum() == len(data) and data.obs.dtype == np.float32
    assert 0.70 < env.success.mean() < 0.82
    assert 0.12 < (data.terminated[data.episode_ends] & ~env.success).mean() < 0.25
    assert 0.02 < data.truncated.sum() / 500 < 0.10
    lanes = np.bincount(env.gates[env.success, 2], minlength=4) / 500
    assert (lanes > 0.08).all() and np.argmin(lanes) == np.argmax(LANE_BONUS) == 2, "what pays most is least taken"
    assert len(np.unique(env.way_through()[env.success], axis=0)) == 24
    # Room for improvement: the mean is far below what the best demonstrations get.
    assert 0.85 < returns.mean() < 1.2
    assert returns[env.success & (env.gates[:, 2] == 2)].mean() > 2.7


def test_the_same_seed_gives_the_same_data_and_another_one_other_data() -> None:
    a, b, c = (make_demonstrations(20, seed=seed) for seed in (1, 1, 2))
    for field in dataclasses.fields(a)[:6]:
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    assert len(a) != len(c) or not np.array_equal(a.action, c.action)


def test_a_careful_demonstrator_always_arrives_by_the_gates_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avoid_demos, "STYLES", (dataclasses.replace(avoid_demos.STYLES[0], share=1.0),))
    data = make_demonstrations(300, seed=7)
    env, _ = replay(data, 7)
    assert env.success.all()
    # Its lane at the finish line is the gate that it passed in the last row.
    lane = np.searchsorted([0.35, 0.5, 0.65], data.next_obs[data.episode_ends, 2])
    np.testing.assert_array_equal(lane, env.gates[:, 2])


def test_at_least_one_episode_is_asked_for() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        make_demonstrations(0)


@pytest.mark.parametrize("task", OTHER_GATES)
def test_subsets_take_the_rewarded_gate_and_one_other_in_equal_shares(task: str) -> None:
    num = 400
    data = make_mode_demonstrations(task, num, seed=6)
    check_transitions(data, obs_dim=4, action_dim=2, action_range=(-0.01, 0.01))
    assert (data.episode_lengths() == 100).all() and len(data.episode_ends) == num and len(data) == 100 * num
    assert not data.terminated.any() and data.truncated.sum() == num
    env, columns = replay(data, 6, batch=AvoidModesBatch)
    for name, column in zip(("obs", "action", "reward", "next_obs", "terminated", "truncated"), columns):
        np.testing.assert_array_equal(getattr(data, name), column.astype(getattr(data, name).dtype), err_msg=name)
    # Every one goes the way that it means to: right of the first, left of the second, and then one of two.
    bits, other = env.way_through(), {"avoid_m1": 6, "avoid_m2": 7, "avoid_m3": 8}[task]
    assert bits[:, [1, 2]].all() and (bits[:, 5] ^ bits[:, other]).all() and (bits.sum(axis=1) == 3).all()
    assert bits[:, 5].sum() == num // 2
    reward = data.reward.reshape(num, 100)
    assert (reward >= 0).all(), "nobody collides or leaves the field"
    np.testing.assert_array_equal(env.success, bits[:, 5])
    np.testing.assert_array_equal(reward.max(axis=1) == 2, bits[:, 5])
    # The other way pays for the finish line alone, and only where it is reached in time.
    assert reward[~bits[:, 5]].max() == 1
    gain = data.episode_returns()[bits[:, 5]].mean() - data.episode_returns()[~bits[:, 5]].mean()
    assert gain > 30


def test_subsets_differ_by_their_other_gate_and_repeat_from_their_seed() -> None:
    a, b = (make_mode_demonstrations("avoid_m1", 8, seed=1) for _ in range(2))
    for field in dataclasses.fields(a)[:6]:
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    assert not np.array_equal(a.action, make_mode_demonstrations("avoid_m1", 8, seed=2).action)
    farthest = [make_mode_demonstrations(task, 40).obs[:, 0].reshape(40, 100)[1::2, 60:].max() for task in OTHER_GATES]
    assert farthest == sorted(farthest) and min(np.diff(farthest)) > 0.1
    with pytest.raises(ValueError, match="one of avoid_m1, avoid_m2, avoid_m3, got 'avoid'"):
        make_mode_demonstrations("avoid")
    with pytest.raises(ValueError, match="must be positive, got 0"):
        make_mode_demonstrations("avoid_m1", 0)


@pytest.mark.parametrize("task", OTHER_GATES)
def test_subsets_of_a_lagging_point_are_the_demonstrators_that_take_their_gate(task: str) -> None:
    for num in (1, 61):
        data = make_mode_demonstrations(task, num, seed=3, tracking="arx")
        assert len(data.episode_ends) == num and not data.terminated.any() and data.source.endswith("arx tracking")
        begins = data.episode_ends - data.episode_lengths() + 1
        last = [
            np.searchsorted([0.35, 0.5, 0.65], data.obs[a : b + 1, 2][data.obs[a : b + 1, 3] >= 0.26][0])
            for a, b in zip(begins, data.episode_ends)
        ]
        assert np.bincount(last, minlength=4)[[0, OTHER_GATES[task]]].tolist() == [(num + 1) // 2, num // 2]
    assert np.abs(data.obs[:, :2] - data.obs[:, 2:]).max() > 0.005, "the point lags behind its target"
    assert make_mode_demonstrations(task, 61, seed=3, tracking="arx").checksum() == data.checksum()


def test_noise_under_which_hardly_anyone_arrives_is_refused() -> None:
    with pytest.raises(ValueError, match="too few take the gate that they mean to; use less noise .3."):
        make_mode_demonstrations("avoid_m1", 10, tracking="arx", noise=3.0)
