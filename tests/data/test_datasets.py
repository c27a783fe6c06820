"""The resident data set: rows as in the file, each state once, uniform and resumable draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from ding_ebm.data.datasets import DeviceBatch, OfflineDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.data.rewards import tune_rewards


def test_every_row_is_gathered_as_it_stands_in_the_data(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions)
    rows = torch.tensor([25, 0, 6, 6, 12, 18, 11, 24, 3])
    batch = dataset.gather(rows)
    for j, i in enumerate(rows.tolist()):
        np.testing.assert_array_equal(batch["obs"][j], transitions.obs[i])
        np.testing.assert_array_equal(batch["action"][j], transitions.action[i])
        np.testing.assert_array_equal(batch["next_obs"][j], transitions.next_obs[i])
        assert batch["reward"][j] == transitions.reward[i] and batch["done"][j] == transitions.terminated[i]
    shapes = {name: tuple(values.shape) for name, values in batch.items()}
    assert shapes == dict(
        obs=(9, 3), action=(9, 2), reward=(9,), next_obs=(9, 3), done=(9,), index=(9,), next_index=(9,)
    )
    assert torch.equal(batch["index"], rows)


def test_positions_name_the_states_of_the_batch(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions, obs_normalization="mean_std")
    batch = dataset.gather(torch.arange(len(transitions)))
    assert torch.equal(dataset.states[batch["index"]], batch["obs"])
    assert torch.equal(dataset.states[batch["next_index"]], batch["next_obs"])


def test_a_state_is_stored_once_except_at_the_ends_of_episodes(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions)
    ends = [6, 11, 12, 18, 22, 25]
    assert dataset.states.shape[0] == len(transitions) + len(ends)
    expected = np.arange(1, 27)
    expected[ends] = 26 + np.arange(6)
    assert dataset.next_state.tolist() == expected.tolist()


def test_a_successor_that_differs_in_one_bit_is_stored_by_itself(transitions: Transitions) -> None:
    next_obs = transitions.next_obs.copy()
    next_obs[3, 1] = np.nextafter(next_obs[3, 1], np.float32(9))
    dataset = OfflineDataset(dataclasses.replace(transitions, next_obs=next_obs))
    assert dataset.states.shape[0] == len(transitions) + 7
    np.testing.assert_array_equal(dataset.gather(torch.arange(26))["next_obs"], next_obs)


def test_time_limits_are_not_done(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions)
    assert torch.nonzero(dataset.done).flatten().tolist() == [6, 18, 22]  # 18 was truncated as well


def test_memory_is_below_that_of_the_file(transitions_of: Callable[..., Transitions]) -> None:
    data = transitions_of([(200, "terminated")] * 50, obs_dim=11, action_dim=3)
    dataset = OfflineDataset(data)
    of_file = sum(getattr(data, field.name).nbytes for field in dataclasses.fields(data)[:6])
    tensors = [value for value in vars(dataset).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert sum(tensor.nbytes for tensor in tensors) < 0.7 * of_file


def test_data_is_normalized_and_tuned_once_and_the_source_is_left_alone(transitions: Transitions) -> None:
    before = {name: getattr(transitions, name).copy() for name in ("obs", "action", "reward", "next_obs")}
    dataset = OfflineDataset(
        transitions, reward_tuning="locomotion", obs_normalization="mean_std", action_normalization="min_max"
    )
    batch = dataset.gather(torch.arange(26))
    by_obs, by_action = Normalizer.fit(before["obs"], "mean_std"), Normalizer.fit(before["action"], "min_max")
    assert torch.equal(batch["obs"], by_obs(torch.from_numpy(before["obs"])))
    assert torch.equal(batch["next_obs"], by_obs(torch.from_numpy(before["next_obs"])))
    assert torch.equal(batch["action"], by_action(torch.from_numpy(before["action"])))
    np.testing.assert_array_equal(batch["reward"], tune_rewards(transitions, "locomotion"))
    dataset.action.zero_(), dataset.reward.zero_(), dataset.states.zero_()
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(transitions, name), values)


def test_rows_are_drawn_uniformly_with_replacement(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions, seed=3)
    draws = torch.cat([dataset.__getitems__(range(1000))["index"] for _ in range(260)])
    counts = torch.bincount(draws, minlength=26).double()
    chi_square = ((counts - 1e4) ** 2 / 1e4).sum().item()
    assert 8.0 < chi_square < 60.0  # 25 degrees of freedom: both tails below 1e-4; too even would mean no replacement
    steps = torch.bincount((draws[1:] - draws[:-1]) % 26, minlength=26).double()
    assert ((steps - steps.mean()) ** 2 / steps.mean()).sum().item() < 60.0, "one draw must not depend on the last"


def test_the_indices_asked_for_do_not_matter(transitions: Transitions) -> None:
    a, b = OfflineDataset(transitions, seed=1), OfflineDataset(transitions, seed=1)
    assert torch.equal(a.__getitems__([0] * 8)["index"], b.__getitems__(list(range(8)))["index"])


def test_draws_go_on_bitwise_after_a_resume(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions, seed=5)
    dataset.__getitems__(range(7))
    state = {name: value.clone() for name, value in dataset.state_dict().items()}
    ahead = [dataset.__getitems__(range(9))["index"] for _ in range(3)]
    resumed = OfflineDataset(transitions, seed=6)
    resumed.load_state_dict(state)
    for expected in ahead:
        assert torch.equal(resumed.__getitems__(range(9))["index"], expected)
    other = OfflineDataset(transitions, seed=6)
    assert not torch.equal(other.__getitems__(range(9))["index"], ahead[0])


def test_host_loader_hands_batches_through_and_an_epoch_has_the_stated_length(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions, length=100)
    batches = list(DataLoader(dataset, 32, shuffle=True, collate_fn=lambda x: x))
    assert all(type(batch) is DeviceBatch for batch in batches)
    assert [len(batch["obs"]) for batch in batches] == [32, 32, 32, 4]
    assert len(OfflineDataset(transitions)) == len(transitions)


def test_pinning_leaves_a_batch_untouched(transitions: Transitions) -> None:
    batch = OfflineDataset(transitions).__getitems__(range(4))
    before = dict(batch)
    pinned = pin_memory(batch)  # what DataLoader(pin_memory=True) calls
    assert pinned is batch
    assert not isinstance(batch, Mapping)  # else PyTorch 2.8 copies it and pins its tensors, which a GPU's cannot be
    assert all(pinned[name] is values for name, values in before.items())


def test_loader_workers_are_refused(transitions: Transitions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ding_ebm.data.datasets.get_worker_info", lambda: object())
    with pytest.raises(ValueError, match="num_workers must be 0"):
        OfflineDataset(transitions).__getitems__(range(8))


def test_single_rows_are_for_people_and_end_where_the_data_ends(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions, length=5)
    row = dataset[24]
    assert row["obs"].shape == (3,) and row["reward"].shape == ()
    np.testing.assert_array_equal(row["next_obs"], transitions.next_obs[24])
    for index in (26, -1):
        with pytest.raises(IndexError, match=r"row must be in \[0, 26\)"):
            dataset[index]


def test_statistics_describe_the_data_to_a_policy(transitions: Transitions) -> None:
    dataset = OfflineDataset(transitions, obs_normalization="mean_std")
    statistics = dataset.statistics
    assert (statistics["obs_dim"], statistics["action_dim"], statistics["num_rows"]) == (3, 2, 26)
    assert statistics["states"] is dataset.states and statistics["next_state"] is dataset.next_state
    restored = Normalizer(3)
    restored.load_state_dict(statistics["obs_normalizer"])
    x = torch.from_numpy(transitions.obs)
    assert torch.equal(restored(x), dataset.states[:26])


def test_fingerprint_changes_with_the_rows_that_are_trained_on_and_with_nothing_else(transitions: Transitions) -> None:
    def fingerprint(data: Transitions, **options: str) -> str:
        return OfflineDataset(data, **options).statistics["fingerprint"]

    base = fingerprint(transitions)
    assert len(base) == 64
    assert OfflineDataset(transitions, seed=9, length=3).statistics["fingerprint"] == base
    obs, action = transitions.obs.copy(), transitions.action.copy()
    obs[3, 0] += 1.0
    action[3, 0] *= 0.5
    others = [
        fingerprint(dataclasses.replace(transitions, obs=obs)),
        fingerprint(dataclasses.replace(transitions, action=action)),
        fingerprint(dataclasses.replace(transitions, terminated=~transitions.terminated)),
        fingerprint(transitions, reward_tuning="antmaze"),
        fingerprint(transitions, obs_normalization="mean_std"),
    ]
    assert len({base, *others}) == 6


def test_bad_options_are_refused(transitions: Transitions) -> None:
    for options in (
        dict(length=0),
        dict(reward_tuning="x"),
        dict(obs_normalization="x"),
        dict(action_normalization="x"),
    ):
        with pytest.raises(ValueError, match=r"must be (one of|at least 1)"):
            OfflineDataset(transitions, **options)


@pytest.mark.gpu
def test_data_on_a_gpu_is_drawn_there_and_resumes() -> None:
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((100, 3)).astype(np.float32)
    flags = np.zeros(100, dtype=np.bool_)
    data = Transitions(obs, obs[:, :2].copy(), obs[:, 0].copy(), np.roll(obs, -1, axis=0), flags, flags, "test")
    dataset = OfflineDataset(data, device="cuda")
    loader = DataLoader(dataset, 32, shuffle=True, collate_fn=lambda x: x, pin_memory=True)
    assert all(values.is_cuda for batch in loader for _, values in batch.items())
    state = dataset.state_dict()
    expected = dataset.__getitems__(range(9))["index"]
    dataset.load_state_dict(state)
    assert torch.equal(dataset.__getitems__(range(9))["index"], expected)
    assert dataset.statistics["fingerprint"] == OfflineDataset(data).statistics["fingerprint"]
