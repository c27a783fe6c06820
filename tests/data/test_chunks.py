"""Windows of demonstrations against a loop over episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.data.normalizer import Normalizer

EPISODES = [(7, "terminated"), (2, "truncated"), (3, "both"), (9, "truncated"), (5, "open")]


def windows_by_hand(data: Transitions, horizon: int, history: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(observations, actions) of every window, episode by episode."""
    found, begin = [], 0
    for length, _ in EPISODES:
        obs, action = data.obs[begin : begin + length], data.action[begin : begin + length]
        for i in range(length - horizon + 1):
            past = [obs[max(i - back, 0)] for back in reversed(range(history))]
            found.append((np.stack(past), action[i : i + horizon]))
        begin += length
    return found


@pytest.mark.parametrize(("horizon", "history"), [(1, 1), (3, 1), (3, 2), (4, 5), (9, 3)])
def test_windows_are_those_of_a_loop_over_episodes(horizon, history, transitions_of):
    data = transitions_of(EPISODES)
    dataset = ChunkDataset(
        data, horizon_steps=horizon, cond_steps=history, obs_normalization="none", action_normalization="none"
    )
    expected = windows_by_hand(data, horizon, history)
    batch = dataset.gather(torch.arange(len(dataset)))
    assert len(dataset) == len(expected)
    np.testing.assert_array_equal(batch["obs"], np.stack([obs for obs, _ in expected]))
    np.testing.assert_array_equal(batch["action"], np.stack([action for _, action in expected]))


def test_every_window_is_drawn_about_as_often_as_any_other(transitions_of):
    data = transitions_of(EPISODES)
    dataset = ChunkDataset(data, horizon_steps=3, action_normalization="none", length=20000)
    assert len(dataset) == 20000
    drawn = dataset.__getitems__(range(len(dataset)))["action"].flatten(1)
    windows = dataset.gather(torch.arange(len(windows_by_hand(data, 3, 1))))["action"].flatten(1)
    which = (drawn.unsqueeze(1) == windows).all(-1)
    assert bool((which.sum(1) == 1).all())
    counts, expected = which.sum(0).double(), 20000 / len(windows)
    assert float(((counts - expected) ** 2 / expected).sum()) < 2.0 * len(windows)  # chi squared, far in the tail


def test_a_restored_sampler_draws_what_the_saved_one_would_have(transitions_of):
    data = transitions_of(EPISODES)
    one, other = (ChunkDataset(data, horizon_steps=2, seed=seed) for seed in (0, 1))
    other.load_state_dict(one.state_dict())
    a, b = one.__getitems__(range(6)), other.__getitems__(range(6))
    assert torch.equal(a["obs"], b["obs"]) and torch.equal(a["action"], b["action"])


def test_windows_are_normalized_by_the_statistics_that_travel_with_them(transitions_of):
    data = transitions_of(EPISODES)
    dataset = ChunkDataset(data, horizon_steps=2)
    assert float(dataset.action.min()) == -1.0 and float(dataset.action.max()) == pytest.approx(1.0)
    restored = Normalizer(2)
    restored.load_state_dict(dataset.statistics["action_normalizer"])
    np.testing.assert_allclose(restored.inverse(dataset.action), data.action, atol=1e-6)
    assert dataset.statistics["obs_dim"] == 3 and dataset.statistics["num_rows"] == len(dataset)


def test_the_fingerprint_tells_windows_apart(transitions_of):
    data = transitions_of(EPISODES)
    prints = {
        ChunkDataset(data, horizon_steps=horizon, obs_normalization=mode).statistics["fingerprint"]
        for horizon in (2, 3)
        for mode in ("none", "min_max")
    }
    assert len(prints) == 4


def test_what_cannot_be_windowed_is_refused(transitions_of):
    data = transitions_of(EPISODES)
    with pytest.raises(ValueError, match="the longest episode has 9 steps, so no window of horizon_steps = 10 fits"):
        ChunkDataset(data, horizon_steps=10)
    for options in (dict(horizon_steps=0), dict(horizon_steps=2, cond_steps=0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            ChunkDataset(data, **options)
