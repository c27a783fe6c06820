"""Windows, transitions over several steps and returns against loops over random episodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ding_ebm.data.chunks import ChunkDataset, StepDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.data.sequences import episode_bounds, monte_carlo_returns, step_targets, window_rows

RAW = dict(obs_normalization="none", action_normalization="none")


@pytest.fixture(params=range(4))
def data(request: pytest.FixtureRequest, transitions_of: Callable[..., Transitions]) -> Transitions:
    """Random episodes that end in every way, some of a single step; at the end in turn an unfinished piece or none."""
    rng = np.random.default_rng(request.param)
    ways = ["terminated", "truncated", "both"]
    episodes = [(int(length), ways[i % 3]) for i, length in enumerate(rng.integers(1, 12, size=14))]
    return transitions_of(episodes + [(5, "open")] * (request.param % 2), seed=request.param)


def episodes_of(data: Transitions) -> list[tuple[int, int]]:
    """First row of each episode and the row behind its last, by walking over the rows."""
    found, start = [], 0
    for i in range(len(data)):
        if data.terminated[i] or data.truncated[i] or i == len(data) - 1:
            found.append((start, i + 1))
            start = i + 1
    return found


def test_bounds_are_those_of_a_walk_over_the_rows(data: Transitions) -> None:
    first, last = episode_bounds(data)
    for start, stop in episodes_of(data):
        assert (first[start:stop] == start).all() and (last[start:stop] == stop - 1).all()


# -- windows ------------------------------------------------------------------------------------------------------


def diffusion_policy_sequences(length: int, size: int, pad_before: int, pad_after: int) -> list[list[int]]:
    """Steps of every sequence of an episode: where Diffusion Policy's sampler begins, and how it fills the ends."""
    sequences = []
    for begin in range(-pad_before, length - size + pad_after + 1):
        sequences.append([min(max(begin + j, 0), length - 1) for j in range(size)])
    return sequences


@pytest.mark.parametrize(("history", "horizon", "executed"), [(1, 4, 4), (2, 5, 3), (3, 4, 1), (4, 6, 6), (1, 1, 1)])
def test_windows_with_diffusion_policys_padding(data: Transitions, history: int, horizon: int, executed: int) -> None:
    options = dict(horizon_steps=horizon, cond_steps=history, padding="diffusion_policy", act_steps=executed)
    dataset = ChunkDataset(data, **options, **RAW)
    batch = dataset.gather(torch.arange(len(dataset)))
    obs, action = [], []
    for start, stop in episodes_of(data):
        size = history - 1 + horizon
        for steps in diffusion_policy_sequences(stop - start, size, history - 1, executed - 1):
            obs.append(data.obs[start:stop][steps[:history]])
            action.append(data.action[start:stop][steps[history - 1 :]])
    np.testing.assert_array_equal(batch["obs"], np.stack(obs))
    np.testing.assert_array_equal(batch["action"], np.stack(action))


@pytest.mark.parametrize(("history", "horizon"), [(1, 4), (2, 5), (3, 1)])
def test_windows_with_dppos_padding(data: Transitions, history: int, horizon: int) -> None:
    dataset = ChunkDataset(data, horizon_steps=horizon, cond_steps=history, **RAW)
    batch = dataset.gather(torch.arange(len(dataset)))
    obs, action = [], []
    for start, stop in episodes_of(data):
        for i in range(start, stop - horizon + 1):
            obs.append(data.obs[[max(i - back, start) for back in reversed(range(history))]])
            action.append(data.action[i : i + horizon])
    np.testing.assert_array_equal(batch["obs"], np.stack(obs))
    np.testing.assert_array_equal(batch["action"], np.stack(action))


def test_one_executed_action_leaves_nothing_to_pad(data: Transitions) -> None:
    plain, padded = (window_rows(data, 4, padding, 1) for padding in ("dppo", "diffusion_policy"))
    np.testing.assert_array_equal(plain, padded)
    more = window_rows(data, 4, "diffusion_policy", 4)
    assert len(more) == len(data) and len(plain) < len(data), "with Ta = Tp a window begins in every row"


@pytest.mark.parametrize("padding", ["dppo", "diffusion_policy"])
def test_no_window_and_no_step_crosses_a_border(data: Transitions, padding: str) -> None:
    """Observations and actions are replaced by the number of their episode, which then is one in every window."""
    number = np.zeros(len(data), np.float32)
    for i, (start, stop) in enumerate(episodes_of(data)):
        number[start:stop] = i
    marked = Transitions(
        *(np.repeat(number[:, None], 2, axis=1),) * 2, number, np.repeat(number[:, None], 2, axis=1),
        data.terminated, data.truncated, "marked",
    )  # fmt: skip
    windows = ChunkDataset(marked, horizon_steps=4, cond_steps=3, padding=padding, act_steps=4, **RAW)
    batch = windows.gather(torch.arange(len(windows)))
    together = torch.cat([batch["obs"], batch["action"]], dim=1)
    assert bool((together == together[:, :1]).all())
    steps = StepDataset(marked, num_steps=4, cond_steps=3)
    batch = steps.gather(torch.arange(len(marked)))
    together = torch.cat([batch["obs"], batch["action"], batch["next_obs"]], dim=1)
    assert bool((together == together[:, :1]).all())
    np.testing.assert_allclose(batch["reward"], number * batch["length"].numpy())


def test_padded_windows_have_a_sum_of_their_own(data: Transitions) -> None:
    prints = {
        ChunkDataset(data, horizon_steps=3, padding=padding, act_steps=act_steps).statistics["fingerprint"]
        for padding, act_steps in (("dppo", 1), ("dppo", 3), ("diffusion_policy", 1), ("diffusion_policy", 3))
    }
    assert len(prints) == 3, "without padding the number of executed actions does not matter"


def test_windows_that_cannot_be_are_refused(data: Transitions) -> None:
    with pytest.raises(ValueError, match="padding must be one of dppo, diffusion_policy, got 'zeros'"):
        window_rows(data, 3, "zeros")
    for act_steps in (0, 4):
        with pytest.raises(ValueError, match=f"act_steps must be from 1 to horizon_steps = 3, got {act_steps}"):
            window_rows(data, 3, "diffusion_policy", act_steps)
    with pytest.raises(ValueError, match="no window of horizon_steps = 40 fits of which 39 lie in the episode"):
        window_rows(data, 40, "diffusion_policy", 2)


# -- transitions over several steps -------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_steps", "history", "discount"), [(1, 1, 1.0), (3, 1, 0.9), (4, 3, 1.0), (20, 2, 0.97)])
def test_steps_are_those_of_a_loop(data: Transitions, num_steps: int, history: int, discount: float) -> None:
    dataset = StepDataset(data, num_steps=num_steps, cond_steps=history, discount_factor=discount)
    batch = dataset.gather(torch.arange(len(data)))
    for start, stop in episodes_of(data):
        seen = np.concatenate([data.obs[start:stop], data.next_obs[stop - 1 : stop]])
        for i in range(start, stop):
            total, k = 0.0, 0
            while k < num_steps and i + k < stop:
                total += discount**k * float(data.reward[i + k])
                k += 1
            end = i + k - 1
            assert batch["length"][i] == k
            assert float(batch["reward"][i]) == pytest.approx(total, rel=1e-5, abs=1e-6)
            # Terminated and truncated stay apart, and are those of the last executed step.
            assert (batch["done"][i], batch["truncated"][i]) == (data.terminated[end], data.truncated[end])
            for name, at in (("obs", i - start), ("next_obs", i - start + k)):
                expected = seen[[max(at - back, 0) for back in reversed(range(history))]]
                np.testing.assert_array_equal(batch[name][i], expected)
            actions = [data.action[min(i + j, stop - 1)] for j in range(num_steps)]
            np.testing.assert_array_equal(batch["action"][i], actions)


def test_one_step_is_the_transition_itself(data: Transitions) -> None:
    batch = StepDataset(data, num_steps=1).gather(torch.arange(len(data)))
    np.testing.assert_array_equal(batch["obs"][:, 0], data.obs)
    np.testing.assert_array_equal(batch["action"][:, 0], data.action)
    np.testing.assert_array_equal(batch["next_obs"][:, 0], data.next_obs)
    np.testing.assert_array_equal(batch["reward"], data.reward)


def test_steps_are_normalized_tuned_and_drawn_as_single_transitions_are(transitions: Transitions) -> None:
    options = dict(obs_normalization="mean_std", reward_tuning="antmaze", seed=3)
    dataset = StepDataset(transitions, num_steps=3, **options)
    batch = dataset.__getitems__(range(50))
    other = StepDataset(transitions, num_steps=1, **options).__getitems__(range(50))
    assert torch.equal(batch["index"], other["index"]) and torch.equal(batch["obs"], other["obs"])
    by_hand = [float(transitions.reward[i : i + k].sum()) - k for i, k in zip(batch["index"], batch["length"])]
    np.testing.assert_allclose(batch["reward"], by_hand, rtol=1e-5, atol=1e-6)
    assert dataset.statistics["num_rows"] == 26


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=0), "num_steps and cond_steps must be at least 1, got 0 and 1"),
        (dict(num_steps=2, cond_steps=0), "must be at least 1, got 2 and 0"),
        (dict(num_steps=2, discount_factor=1.5), "discount_factor must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_options_of_steps_are_refused(transitions: Transitions, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepDataset(transitions, **options)


# -- returns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [1.0, 0.95, 0.0])
@pytest.mark.parametrize("bootstrapped", [False, True])
def test_returns_are_those_of_a_loop_backwards(data: Transitions, discount: float, bootstrapped: bool) -> None:
    reward = torch.from_numpy(data.reward).double()
    last = torch.from_numpy(episode_bounds(data)[1])
    value = torch.randn(len(data), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    extra = dict(terminated=torch.from_numpy(data.terminated), bootstrap=value) if bootstrapped else {}
    expected = np.zeros(len(data))
    for start, stop in episodes_of(data):
        total = 0.0 if data.terminated[stop - 1] or not bootstrapped else float(value[stop - 1])
        for i in reversed(range(start, stop)):
            total = float(reward[i]) + discount * total
            expected[i] = total
    np.testing.assert_allclose(monte_carlo_returns(reward, last, discount, **extra), expected, rtol=1e-12, atol=1e-12)


def test_returns_of_first_rows_are_the_episodes(transitions: Transitions) -> None:
    last = torch.from_numpy(episode_bounds(transitions)[1])
    returns = monte_carlo_returns(torch.from_numpy(transitions.reward), last, 1.0)
    starts, _ = transitions.pieces
    assert returns.dtype == torch.float32
    np.testing.assert_allclose(returns[starts[:-1]], transitions.episode_returns(), rtol=1e-6)


def test_a_return_is_the_target_of_more_steps_than_there_are(data: Transitions) -> None:
    reward, last = torch.from_numpy(data.reward).double(), torch.from_numpy(episode_bounds(data)[1])
    found = step_targets(torch.arange(len(data)), last, reward, 50, 0.9)
    np.testing.assert_allclose(found.reward, monte_carlo_returns(reward, last, 0.9), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.last, last)


def test_values_are_not_counted_without_knowing_what_terminated(data: Transitions) -> None:
    reward, last = torch.from_numpy(data.reward), torch.from_numpy(episode_bounds(data)[1])
    with pytest.raises(ValueError, match="given together, or neither"):
        monte_carlo_returns(reward, last, 0.9, bootstrap=reward)
