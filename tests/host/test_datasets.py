"""The data set that ``serial_offline`` builds first: it checks the whole run, then the data, then is ready."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.utils import DATASET_REGISTRY
from ding.utils.data import create_dataset
from torch.utils.data import DataLoader

from ding_ebm.config import ConfigError
from ding_ebm.data.formats import FORMATS, write_d4rl_hdf5, write_data
from ding_ebm.host import datasets
from ding_ebm.host.datasets import HostOfflineDataset
from dizoo_configs.builder import imitation


def learn_from(path, **policy):
    collect = dict(data_path=str(path) if not isinstance(path, list) else [str(one) for one in path])
    return dict(policy=dict(policy, collect={**collect, **policy.get("collect", {})}))


def test_the_host_builds_it_by_name(make_cfg, data_file, make_transitions):
    cfg = make_cfg(learn_from(data_file))
    dataset = create_dataset(cfg)
    assert type(dataset) is HostOfflineDataset is DATASET_REGISTRY.get("ebm_offline")
    assert len(dataset) == 4 * 32
    raw = make_transitions()
    states = dataset.obs_normalizer.inverse(dataset.states[:48])
    np.testing.assert_allclose(states.numpy(), raw.obs, atol=1e-5)
    np.testing.assert_allclose(dataset.action_normalizer.inverse(dataset.action).numpy(), raw.action, atol=1e-6)
    assert np.array_equal(dataset.done.numpy(), raw.terminated.astype(np.float32))
    assert np.array_equal(dataset.reward.numpy(), raw.reward)


def test_an_epoch_of_the_hosts_loader_has_the_configs_number_of_batches(make_cfg, data_file):
    dataset = create_dataset(make_cfg(learn_from(data_file, learn=dict(iterations_per_epoch=7))))
    loader = DataLoader(dataset, 32, shuffle=True, collate_fn=lambda x: x, pin_memory=False)
    batches = list(loader)
    assert [batch["obs"].shape for batch in batches] == [(32, 4)] * 7


def test_the_runs_seed_decides_the_batches(make_cfg, data_file):
    draws = []
    for seed in (0, 0, 1):
        cfg = make_cfg(learn_from(data_file))
        cfg.seed = seed
        dataset = create_dataset(cfg)
        draws.append(torch.cat([dataset.__getitems__(range(8))["index"] for _ in range(3)]))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_several_files_are_one_set(make_cfg, data_file, make_transitions, tmp_path):
    other = tmp_path / "other.hdf5"
    write_d4rl_hdf5(other, make_transitions(episodes=2, seed=1))
    dataset = create_dataset(make_cfg(learn_from([data_file, other])))
    assert dataset.statistics["num_rows"] == 48 + 24


@pytest.mark.parametrize("name", FORMATS)
def test_a_set_of_any_format_is_read(make_cfg, data_file, make_transitions, tmp_path, name):
    path = tmp_path / ("rows.npz" if name == "dppo" else "rows")
    write_data(path, make_transitions(), name)
    found, expected = (
        create_dataset(make_cfg(learn_from(file))).statistics["fingerprint"] for file in (path, data_file)
    )
    assert found == expected


@pytest.mark.parametrize(("padding", "windows"), [("dppo", 4 * 9), ("diffusion_policy", 4 * 11)])
def test_a_config_says_which_windows_are_cloned(data_file, padding, windows):
    tiny = dict(
        model=dict(horizon_steps=4, act_steps=3),
        learn=dict(train_epoch=1, batch_size=8),
        collect=dict(data_path=str(data_file), padding=padding),
    )
    main, create = imitation("diffusion_bc", "diffusion_bc", "avoid_m1", "demonstrations", dict(policy=tiny))
    create.policy.type += "_command"
    dataset = create_dataset(compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False))
    assert dataset.statistics["num_rows"] == windows
    assert dataset.gather(torch.arange(windows))["action"].shape == (windows, 4, 2)


def test_a_file_is_found_by_name_in_the_folder_of_data_sets(make_cfg, data_file, monkeypatch):
    monkeypatch.setenv("DING_EBM_DATA", str(data_file.parent))
    assert create_dataset(make_cfg(learn_from("data.hdf5"))).statistics["num_rows"] == 48


def test_a_config_is_refused_before_any_file_is_read(make_cfg, monkeypatch):
    def fail(*args: object) -> None:
        raise AssertionError("a file was read")

    for name in ("find_data_file", "read_data"):
        monkeypatch.setattr(datasets, name, fail)
    with pytest.raises(ConfigError, match="batch_sizes"):
        create_dataset(make_cfg(dict(policy=dict(learn=dict(batch_sizes=3)))))


def test_a_missing_file_is_named_with_where_to_get_or_how_to_make_it(make_cfg, monkeypatch):
    monkeypatch.delenv("DING_EBM_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no data file nowhere.hdf5.*DING_EBM_DATA is not set.*http.*avoid"):
        create_dataset(make_cfg(learn_from("nowhere.hdf5")))


def test_no_file_at_all_is_answered_with_those_of_the_task(make_cfg):
    with pytest.raises(ValueError, match=r"policy.collect.data_path must name a data file.*avoid_demonstrations.hdf5"):
        create_dataset(make_cfg(dict(policy=dict(collect=dict(data_path=None)))))


def corrupt(path, key: str, change) -> None:
    with h5py.File(path, "a") as file:
        array = change(file[key][()])
        del file[key]
        file[key] = array


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[5] = np.nan
    return array


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("observations", with_nan, "obs holds NaN or Inf in 1 rows, first in row 5"),
        ("rewards", with_nan, "reward holds NaN or Inf in 1 rows, first in row 5"),
        ("actions", lambda a: 100.0 * a, r"action leaves \[-0.01, 0.01\] in \d+ rows"),
        ("actions", lambda a: a[:, :1], "action has 1 dimensions, the environment has 2"),
        ("rewards", lambda a: a[:-1], "'rewards' has 47 rows but 'observations' has 48"),
        (
            "timeouts",
            np.zeros_like,
            "next_obs is not the following row's obs in 1 rows inside an episode, first in row 23",
        ),
        ("terminals", lambda a: a.astype(np.float32) * 0.5, "'terminals' must hold 0 and 1 only"),
    ],
)
def test_malformed_data_is_refused_with_file_key_and_row(key, change, words, make_cfg, data_file):
    corrupt(data_file, key, change)
    with pytest.raises(ValueError, match=words) as error:
        create_dataset(make_cfg(learn_from(data_file)))
    assert str(data_file) in str(error.value)


def test_a_file_that_is_no_hdf5_or_was_cut_short_is_refused_by_name(make_cfg, data_file):
    content = data_file.read_bytes()
    for damaged in (b"", b"not an HDF5 file", content[: len(content) // 2]):
        data_file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{data_file.name}"):
            create_dataset(make_cfg(learn_from(data_file)))


def test_a_file_of_another_task_is_refused(make_cfg, tmp_path):
    path = tmp_path / "hopper.hdf5"
    rows = 20
    with h5py.File(path, "w") as file:
        rng = np.random.default_rng(0)
        file["observations"] = rng.standard_normal((rows, 11))
        file["next_observations"] = rng.standard_normal((rows, 11))
        file["actions"] = rng.uniform(-1, 1, (rows, 3))
        file["rewards"] = np.zeros(rows)
        file["terminals"] = np.ones(rows)
        file["timeouts"] = np.zeros(rows)
    with pytest.raises(ValueError, match="obs has 11 dimensions, the environment has 4: is this another task's file"):
        create_dataset(make_cfg(learn_from(path)))


def test_what_may_be_meant_is_said_before_the_first_step_and_trained_on(make_cfg, data_file, caplog):
    corrupt(data_file, "rewards", np.zeros_like)
    dataset = create_dataset(make_cfg(learn_from(data_file)))
    assert len(dataset) > 0
    (said,) = [record.getMessage() for record in caplog.records if "reward is 0 in all 48 rows" in record.getMessage()]
    assert str(data_file) in said
