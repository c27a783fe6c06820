"""Every kind of bad data is refused with its count and its first row; good data passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.formats import Transitions


def with_values(transitions: Transitions, name: str, rows: list[int], value: float) -> Transitions:
    changed = getattr(transitions, name).copy()
    changed[rows] = value
    return dataclasses.replace(transitions, **{name: changed})


def test_good_data_passes_with_both_flags_in_one_row(transitions: Transitions) -> None:
    assert (transitions.terminated & transitions.truncated).sum() == 1
    check_transitions(transitions, obs_dim=3, action_dim=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["obs", "action", "reward", "next_obs"])
def test_values_that_are_not_finite_are_counted(transitions: Transitions, name: str, value: float) -> None:
    bad = with_values(transitions, name, [9, 4, 20], value)
    with pytest.raises(ValueError, match=f"test: .*{name} holds NaN or Inf in 3 rows, first in row 4"):
        check_transitions(bad)


def test_one_value_of_a_row_that_is_not_finite_is_found(transitions: Transitions) -> None:
    obs = transitions.obs.copy()
    obs[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"obs holds NaN or Inf in 1 rows, first in row 7"):
        check_transitions(dataclasses.replace(transitions, obs=obs))


def test_opposite_infinities_do_not_cancel(transitions: Transitions) -> None:
    reward = transitions.reward.copy()
    reward[3], reward[5] = np.inf, -np.inf
    with pytest.raises(ValueError, match="reward holds NaN or Inf in 2 rows, first in row 3"):
        check_transitions(dataclasses.replace(transitions, reward=reward))


def test_values_near_the_end_of_float32_are_finite(transitions: Transitions) -> None:
    check_transitions(with_values(transitions, "reward", list(range(26)), 3e38))


@pytest.mark.parametrize("value", [-2.5, 2.5])
def test_actions_outside_the_range_are_counted_with_their_extremes(transitions: Transitions, value: float) -> None:
    bad = with_values(transitions, "action", [11, 6], value)
    with pytest.raises(ValueError, match=r"action leaves \[-1, 1\] in 2 rows, first in row 6, by values from .*2\.5"):
        check_transitions(bad)
    check_transitions(bad, action_range=None)
    check_transitions(bad, action_range=(-3.0, 3.0))


def test_actions_at_their_limit_may_be_off_by_rounding(transitions: Transitions) -> None:
    check_transitions(with_values(transitions, "action", [3], np.nextafter(np.float32(1), np.float32(2))))
    with pytest.raises(ValueError, match="action leaves"):
        check_transitions(with_values(transitions, "action", [3], 1.0001))


def test_dimensions_of_another_task_are_named(transitions: Transitions) -> None:
    with pytest.raises(ValueError, match="obs has 3 dimensions, the environment has 11"):
        check_transitions(transitions, obs_dim=11)
    with pytest.raises(ValueError, match="action has 2 dimensions, the environment has 6"):
        check_transitions(transitions, action_dim=6)


def test_rows_out_of_order_are_counted_inside_episodes_only(transitions: Transitions) -> None:
    # Rows 6, 11, 12, 18 and 22 end episodes: what follows them is free.
    bad = with_values(transitions, "next_obs", [2, 6, 11, 12, 15, 18, 22, 25], 5.0)
    with pytest.raises(ValueError, match="not the following row's obs in 2 rows inside an episode, first in row 2"):
        check_transitions(bad)


def test_an_episode_border_without_a_flag_is_found(transitions_of: Callable[..., Transitions]) -> None:
    with pytest.raises(ValueError, match=r"in 1 rows inside an episode, first in row 4: .*timeouts in the file"):
        check_transitions(transitions_of([(5, "open"), (5, "terminated")]))


def test_a_shuffled_data_set_is_refused(transitions: Transitions) -> None:
    order = np.random.default_rng(0).permutation(len(transitions))
    columns = {field.name: getattr(transitions, field.name)[order] for field in dataclasses.fields(transitions)[:6]}
    with pytest.raises(ValueError, match="rows must be in episode order"):
        check_transitions(dataclasses.replace(transitions, **columns))


def test_two_recordings_of_a_state_may_differ_by_rounding(transitions: Transitions) -> None:
    rounded = transitions.next_obs * np.float32(1 + 1e-6)
    check_transitions(dataclasses.replace(transitions, next_obs=rounded))


def test_every_problem_is_named_at_once(transitions: Transitions) -> None:
    bad = with_values(with_values(transitions, "reward", [1], np.nan), "action", [2], 7.0)
    with pytest.raises(ValueError, match=r"obs has 3 .*; reward holds NaN.*; action leaves"):
        check_transitions(bad, obs_dim=4)
