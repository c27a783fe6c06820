"""Cloning by diffusion: it learns both ways of a two-way decision, resumes exactly, and evaluates its average."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.utils import deep_merge_dicts
from easydict import EasyDict

from ding_ebm.config import ConfigError
from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.policy.diffusion_bc import DiffusionBCPolicy
from dizoo_configs.builder import imitation

TP, TA, TO = 4, 2, 2
SMALL = dict(
    env=dict(evaluator_env_num=2, n_evaluator_episode=2),
    policy=dict(
        model=dict(horizon_steps=TP, act_steps=TA, cond_steps=TO, denoising_steps=10, mlp=dict(mlp_dims=[32, 32, 32])),
        learn=dict(train_epoch=10, iterations_per_epoch=10, batch_size=64, ema_start_iter=4, ema_update_every=2),
        collect=dict(data_path="unused.hdf5"),
    ),
)


def policy_of(overrides: dict[str, Any] | None = None, dataset: ChunkDataset | None = None, seed: int = 0):
    main, create = imitation("diffusion_bc", "diffusion_bc_command", "avoid", "demonstrations", SMALL)
    main = deep_merge_dicts(main, EasyDict(policy=overrides or {}))
    cfg = compile_config(main, seed=seed, auto=True, create_cfg=create, save_cfg=False)
    torch.manual_seed(seed)
    policy = create_policy(cfg.policy, enable_field=["learn", "eval"])
    if dataset is not None:
        policy.set_statistic(dataset.statistics)
    return policy


def two_ways(episodes: int = 200, seed: int = 0) -> Transitions:
    """One-chunk episodes: from a state s, either all actions are s_0 + 0.5 or all are s_0 - 0.5."""
    rng = np.random.default_rng(seed)
    state = np.repeat(rng.uniform(-0.4, 0.4, (episodes, 1, 4)), TP, 1).astype(np.float32)
    way = rng.choice([-0.5, 0.5], (episodes, 1, 1))
    action = np.broadcast_to(state[:, :, :1] + way, (episodes, TP, 2)).astype(np.float32)
    rows, last = episodes * TP, np.tile(np.arange(TP) == TP - 1, episodes)
    return Transitions(
        state.reshape(rows, 4), action.reshape(rows, 2), np.zeros(rows, np.float32), state.reshape(rows, 4),
        last, np.zeros(rows, np.bool_), "two ways",
    )  # fmt: skip


def dataset_of(seed: int = 0, **options: Any) -> ChunkDataset:
    return ChunkDataset(two_ways(), horizon_steps=TP, cond_steps=TO, seed=seed, **options)


def train(policy: DiffusionBCPolicy, dataset: ChunkDataset, iterations: int) -> list[dict[str, float]]:
    return [policy.learn_mode.forward(dataset.__getitems__(range(64))) for _ in range(iterations)]


def histories(count: int, seed: int = 5) -> np.ndarray:
    state = np.random.default_rng(seed).uniform(-0.4, 0.4, (count, 1, 4)).astype(np.float32)
    return np.repeat(state, TO, 1)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(dict(model=dict(mlp=dict(mlp_dims=[128, 128, 128]))), id="mlp, ddpm"),
        pytest.param(dict(model=dict(mlp=dict(mlp_dims=[128, 128, 128])), sampler=dict(ddim_steps=5)), id="mlp, ddim"),
        pytest.param(
            dict(model=dict(network="unet", unet=dict(dim=16, num_groups=4))), id="unet, ddpm", marks=pytest.mark.slow
        ),
    ],
)
def test_it_samples_both_ways_and_nothing_between(overrides):
    dataset = dataset_of(seed=1)
    learn = dict(train_epoch=1, iterations_per_epoch=1000, learning_rate=3e-3, ema_start_iter=100)
    policy = policy_of(dict(overrides, learn=learn), dataset)
    train(policy, dataset, 1000)
    obs = histories(400)
    way = policy.act(obs) - obs[:, -1:, :1]  # +-0.5 in every entry
    assert float(np.median(np.abs(np.abs(way) - 0.5))) < 0.08
    assert 0.35 < float((way[:, 0, 0] > 0).mean()) < 0.65
    agree = (np.sign(way) == np.sign(way[:, :1, :1])).all((1, 2))
    assert float(agree.mean()) > 0.95  # one way for the whole chunk
    # Near the mean of both, where a regression would put all of them; a deterministic sampler cannot jump over it.
    assert float((np.abs(way) < 0.25).mean()) < 0.15


def test_a_restored_run_makes_the_identical_next_updates():
    dataset, batches = dataset_of(), [dataset_of(seed=9).__getitems__(range(64)) for _ in range(6)]
    policy = policy_of(dataset=dataset)
    train(policy, dataset, 7)
    other = policy_of(dataset=dataset, seed=3)
    file = io.BytesIO()
    torch.save(policy.learn_mode.state_dict(), file)
    file.seek(0)
    other.learn_mode.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches:
        assert policy.learn_mode.forward(batch) == other.learn_mode.forward(batch)
    states = [p.learn_mode.state_dict()["model"] for p in (policy, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_same_seed_gives_the_same_run_bit_by_bit_and_another_seed_another():
    runs = [train(policy_of(dataset=dataset_of(), seed=seed), dataset_of(), 8) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] and runs[0] != runs[2]


def test_the_learning_rate_follows_a_cosine_over_the_whole_run():
    dataset = dataset_of()
    policy = policy_of(dataset=dataset)
    rates = [losses["learning_rate"] for losses in train(policy, dataset, 100)]
    assert rates[0] == pytest.approx(1e-3) and rates[50] == pytest.approx(0.5 * (1e-3 + 1e-4))
    assert rates[-1] == pytest.approx(1e-4, rel=0.01) and rates == sorted(rates, reverse=True)
    assert policy._optimizer.param_groups[0]["lr"] == rates[-1]


def test_the_average_is_a_copy_at_first_and_moves_slowly_then():
    dataset = dataset_of()
    policy = policy_of(dict(learn=dict(ema_decay=0.9)), dataset)
    model = policy._model
    train(policy, dataset, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), model.network_ema.parameters()))
    train(policy, dataset, 1)
    before = [p.clone() for p in model.network_ema.parameters()]
    train(policy, dataset, 1)  # iteration 4 begins to average
    for old, new, weight in zip(before, model.network_ema.parameters(), model.network.parameters()):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * weight)


def test_actions_come_from_the_average_in_raw_units_and_repeat_under_a_seed():
    dataset = dataset_of()
    policy = policy_of(dataset=dataset)
    train(policy, dataset, 6)
    obs = histories(5)
    first = policy.act(obs)
    assert first.shape == (5, TA, 2)
    low, high = two_ways().action.min(0), two_ways().action.max(0)
    assert (first >= low - 1e-5).all() and (first <= high + 1e-5).all()
    assert not np.array_equal(policy.act(obs), first)
    policy.eval_mode.reset()
    with torch.no_grad():
        for parameter in policy._model.network.parameters():
            parameter.zero_()
    assert np.array_equal(policy.act(obs), first)


def test_the_hosts_evaluation_acts_as_one_batch_does():
    policy = policy_of(dataset=dataset_of())
    obs = histories(3)
    together = policy.act(obs)
    policy.eval_mode.reset()
    output = policy.eval_mode.forward({i: torch.from_numpy(row) for i, row in enumerate(obs)})
    for i in range(3):
        np.testing.assert_array_equal(output[i]["action"].numpy(), together[i])


def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_are_lost():
    dataset = dataset_of()
    policy = policy_of(dataset=dataset)
    batch = dataset.__getitems__(range(64))
    batch["action"][0, 0, 0] = math.nan
    before = [p.clone() for p in policy._model.network.parameters()]
    with pytest.raises(FloatingPointError, match="behavior_loss is nan at iteration 0"):
        policy.learn_mode.forward(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, policy._model.network.parameters()))


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: policy_of(dict(model=dict(act_steps=5))),
        ConfigError,
        r"act_steps \(Ta = 5\) must not exceed model.horiz",
    ),
    (lambda: policy_of(dict(sampler=dict(ddim_steps=11))), ConfigError, r"ddim_steps \(11\) must not exceed"),
    (lambda: policy_of(dict(learn=dict(min_learning_rate=1.0))), ConfigError, "min_learning_rate .* must not exceed"),
    (
        lambda: policy_of(dict(model=dict(network="transformer"))),
        ConfigError,
        r"network must be one of \('mlp', 'unet'",
    ),
    (lambda: policy_of().act(histories(2)[:, :1]), ValueError, r"obs must be \(E, 2, 4\), got \(2, 1, 4\)"),
    (lambda: policy_of().act(histories(2) * np.nan), ValueError, "obs of environment 0 is not finite"),
    (
        lambda: policy_of(dict(model=dict(obs_dim=3)), dataset_of()),
        ValueError,
        "policy.model.obs_dim is 3, but the data set has 4",
    ),
]


@pytest.mark.parametrize(("action", "error", "message"), REFUSED)
def test_what_cannot_work_is_refused_by_name(action, error, message):
    with pytest.raises(error, match=message):
        action()


def test_a_checkpoint_of_another_model_or_other_data_is_refused_with_both_values():
    policy = policy_of(dataset=dataset_of())
    state = policy.learn_mode.state_dict()
    for overrides, message in (
        (dict(horizon_steps=5), "horizon_steps is 4 there and 5 here"),
        (dict(denoising_steps=20), "denoising_steps is 10 there and 20 here"),
        (dict(task="hopper"), "task is 'avoid' there and 'hopper' here"),
    ):
        other = policy_of(dict(model=overrides))
        for mode in (other.learn_mode, other.eval_mode):
            with pytest.raises(ValueError, match=message):
                mode.load_state_dict(state)
    other = policy_of(dataset=dataset_of(obs_normalization="mean_std"))
    with pytest.raises(ValueError, match="trained on other data"):
        other.learn_mode.load_state_dict(state)
