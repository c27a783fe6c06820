"""Demonstrations are what the environment returns, cover it, and leave room for improvement."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.formats import Transitions
from ding_ebm.envs import avoid_demos
from ding_ebm.envs.avoid import LANE_BONUS, TRACKINGS, AvoidBatch
from ding_ebm.envs.avoid_demos import make_demonstrations


def replay(data: Transitions, seed: int, tracking: str = "ideal") -> tuple[AvoidBatch, list[np.ndarray]]:
    """The recorded actions in the episodes of the starts that ``seed`` stands for: columns (rows, ...)."""
    num = len(data.episode_ends)
    env = AvoidBatch(num, tracking=tracking)
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
    for field in dataclasses.fields(a)[:-1]:
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
