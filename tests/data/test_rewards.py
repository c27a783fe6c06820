"""Reward tuning by true episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ding_ebm.data.formats import Transitions
from ding_ebm.data.rewards import tune_rewards


def window_range(t: Transitions, window: int) -> float:
    """Range of returns as the reference counts them: an episode ends at a terminal row or after ``window`` steps."""
    returns, total, length = [], 0.0, 0
    for reward, terminal in zip(t.reward, t.terminated):
        total, length = total + float(reward), length + 1
        if terminal or length == window:
            returns, total, length = [*returns, total], 0.0, 0
    return max(returns) - min(returns)


def test_tuned_returns_span_a_thousand(transitions: Transitions) -> None:
    tuned = dataclasses.replace(transitions, reward=tune_rewards(transitions, "locomotion"))
    returns = tuned.episode_returns()
    assert returns.max() - returns.min() == pytest.approx(1000.0, rel=1e-6)
    factor = tuned.reward / transitions.reward
    np.testing.assert_allclose(factor, factor[0], rtol=1e-6)
    assert tuned.reward.dtype == np.float32 and factor[0] > 0


def test_episodes_end_where_the_data_says_so(transitions_of: Callable[..., Transitions]) -> None:
    """Episodes of return 2, 4 and 3, the second cut early; behind them an unfinished piece of return 100."""
    data = transitions_of([(10, "truncated"), (4, "truncated"), (10, "truncated"), (5, "open")])
    reward = np.repeat([0.2, 1.0, 0.3, 20.0], [10, 4, 10, 5]).astype(np.float32)
    data = dataclasses.replace(data, reward=reward)
    np.testing.assert_allclose(tune_rewards(data, "locomotion"), reward * (1000.0 / 2.0), rtol=1e-6)
    # Negative control: windows of the time limit run on across the border of the cut episode and mistake the range.
    assert window_range(data, 10) == pytest.approx(5.8 - 2.0)


def test_windows_are_right_only_where_no_episode_is_cut_early(transitions_of: Callable[..., Transitions]) -> None:
    data = transitions_of([(10, "truncated"), (4, "terminated"), (10, "truncated")])
    returns = data.episode_returns()
    assert window_range(data, 10) == pytest.approx(returns.max() - returns.min())


def test_antmaze_is_a_cost_per_step_and_none_is_a_copy(transitions: Transitions) -> None:
    np.testing.assert_array_equal(tune_rewards(transitions, "antmaze"), transitions.reward - 1)
    same = tune_rewards(transitions, "none")
    np.testing.assert_array_equal(same, transitions.reward)
    assert not np.shares_memory(same, transitions.reward)


def test_returns_that_do_not_differ_are_refused(transitions_of: Callable[..., Transitions]) -> None:
    for data, found in (
        (transitions_of([(5, "open")]), "found 0 finished"),
        (transitions_of([(5, "truncated"), (2, "open")]), "found 1 finished"),
        (transitions_of([(5, "truncated"), (5, "terminated")]), "found 2 finished"),
    ):
        constant = dataclasses.replace(data, reward=np.ones_like(data.reward))
        with pytest.raises(ValueError, match=found):
            tune_rewards(constant, "locomotion")


def test_unknown_kind_is_refused(transitions: Transitions) -> None:
    with pytest.raises(ValueError, match=r"one of .*'locomotion'.*got 'mujoco'"):
        tune_rewards(transitions, "mujoco")
