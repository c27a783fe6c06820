"""DPPO with an energy: the same as dppo where nothing is asked for, and advantages that shaping leaves as they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from torch import Tensor

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.config import ConfigError
from ding_ebm.energy import shaping
from ding_ebm.policy import dppo
from ding_ebm.policy.ppo import generalized_advantages

TP, TO, K, F, DO, DA, STEPS, ENVS = 3, 2, 6, 3, 4, 2, 9, 4
SIZES = dict(task="avoid", obs_dim=DO, action_dim=DA, horizon_steps=TP, act_steps=TP, cond_steps=TO, denoising_steps=K)
MODELS = dict(
    dppo=dict(SIZES, critic_widths=[16], mlp=dict(mlp_dims=[16, 16, 16])),
    energy_model=dict(SIZES, mlp=dict(mlp_dims=[16, 16])),
)
MODELS["dppo_ebm"] = MODELS["dppo"]
POLICY = dict(
    dppo=dict(sampler=dict(ft_denoising_steps=F), learn=dict(epoch_per_collect=2, batch_size=24, learning_rate=1e-3)),
    energy_model=dict(learn=dict(train_epoch=1), collect=dict(data_path="unused.hdf5")),
)
POLICY["dppo_ebm"] = POLICY["dppo"]


def policy_of(kind: str, overrides: dict[str, Any] | None = None, seed: int = 0, fields=("learn", "collect")) -> Any:
    policy = deep_merge_dicts(EasyDict(POLICY[kind], model=MODELS[kind]), EasyDict(overrides or {}))
    env = dict(env_id="avoid", act_steps=TP, cond_steps=TO, evaluator_env_num=2, n_evaluator_episode=2)
    create = dict(
        env=dict(type="ebm_chunk_env", import_names=["ding_ebm.host"]),
        env_manager=dict(type="base"),
        policy=dict(type=f"{kind}_command", import_names=["ding_ebm.policy", "ding_ebm.host"]),
    )
    main = EasyDict(exp_name="test", env=env, policy=policy)
    cfg = compile_config(main, seed=seed, auto=True, create_cfg=EasyDict(create), save_cfg=False)
    torch.manual_seed(seed)
    return create_policy(cfg.policy, enable_field=list(fields))


def save_energy(path: Path, overrides: dict[str, Any] | None = None, change=None) -> str:
    """A checkpoint of an energy of random weights, as the host writes it."""
    policy = policy_of("energy_model", overrides, fields=("learn",))
    state = policy.learn_mode.state_dict()
    if change is not None:
        change(state)
    write_checkpoint(state, path)
    return str(path)


@pytest.fixture
def energy(tmp_path: Path) -> str:
    return save_energy(tmp_path / "iteration_7.pth.tar")


def shaped(path: str, **options: Any) -> dict[str, Any]:
    return dict(energy=dict(dict(ebm_ckpt_path=path, use_pbrs=True, pbrs_k_use_mode="tail:3"), **options))


def collection(policy: Any, seed: int = 0) -> dict[str, Tensor]:
    """Decisions of several environments: terminations, time limits, true last observations, resets elsewhere."""
    rng = np.random.default_rng(seed)
    obs = rng.standard_normal((STEPS + 1, ENVS, TO, DO)).astype(np.float32)
    decisions = [policy.collect_chunks(step) for step in obs[:-1]]
    ended = rng.random((2, STEPS, ENVS)) < 0.2
    terminated, boundary = torch.from_numpy(ended[0]), torch.from_numpy(ended.any(axis=0))
    next_obs = torch.from_numpy(obs[1:].copy())
    next_obs[boundary] += 3.0  # an episode's own last observation is not the next one's first
    return dict(
        obs=torch.from_numpy(obs[:-1]), next_obs=next_obs, terminated=terminated, boundary=boundary,
        chain=torch.stack([d["chain"] for d in decisions]), log_prob=torch.stack([d["log_prob"] for d in decisions]),
        reward=torch.from_numpy(rng.standard_normal((STEPS, ENVS)).astype(np.float32)),
    )  # fmt: skip


def test_without_shaping_or_reward_it_is_dppo_bit_by_bit(energy):
    plain = policy_of("dppo")
    twins = [
        policy_of("dppo_ebm"),
        policy_of("dppo_ebm", dict(energy=dict(ebm_ckpt_path=energy, use_energy_scaling=True))),
    ]
    for seed in range(3):
        expected = plain._forward_learn(collection(plain, seed))
        for twin in twins:
            metrics = twin._forward_learn(collection(twin, seed))
            assert {name: metrics[name] for name in expected} == expected
    for twin in twins:
        for name, value in plain._model.state_dict().items():
            assert torch.equal(twin._model.state_dict()[name], value), name
    statistics = {name: value for name, value in metrics.items() if name not in expected}
    assert set(statistics) == set(twins[1]._monitor_vars_learn()) - set(expected) | {
        f"energy_scaling/step_{k}/{name}" for k in (1, 3, 6) for name in ("mean", "std", "count")
    }
    assert statistics["energy_scaling/step_6/count"] == 3 * STEPS * ENVS


def test_a_constant_energy_shapes_nothing(tmp_path):
    def flatten(state: dict[str, Any]) -> None:
        for part in ("network", "network_ema"):
            state["model"][f"{part}.last.weight"].zero_()
            state["model"][f"{part}.last.bias"].fill_(5.0)

    # What is constant is subtracted, and only rounding is left of it.
    path = save_energy(tmp_path / "iteration_0.pth.tar", change=flatten)
    policy, plain = policy_of("dppo_ebm", shaped(path)), policy_of("dppo")
    data = collection(plain)
    assert torch.equal(policy._prepared(data)["advantage"], plain._prepared(data)["advantage"])


@pytest.mark.parametrize("how", ["energy, means", "energy, chains", "path, scaled", "value"])
def test_shaped_advantages_are_the_plain_ones_of_a_critic_without_the_potential(how, energy, tmp_path):
    options = {
        "energy, means": shaped(energy, pbrs_lambda=7.3, pbrs_alpha=5.0),
        "energy, chains": shaped(energy, pbrs_lambda=7.3, pbrs_use_mu_only=False, pbrs_M=4, pbrs_beta=3.0),
        "path, scaled": shaped(energy, pbrs_lambda=7.3, pbrs_aggregate="path", use_energy_scaling=True),
        "value": dict(
            energy=dict(
                use_pbrs=True,
                pbrs_potential="value",
                pbrs_lambda=7.3,
                pbrs_value_path=str(tmp_path / "iteration_3.pth.tar"),
            )
        ),
    }[how]
    write_checkpoint(policy_of("dppo", seed=5).learn_mode.state_dict(), tmp_path / "iteration_3.pth.tar")
    policy = policy_of("dppo_ebm", deep_merge_dicts(EasyDict(options), EasyDict(learn=dict(reward_scaling=False))))
    data = collection(policy)
    normalize, critic = policy._model.obs_normalizer, policy._model.critic
    obs, next_obs = normalize(data["obs"]), normalize(data["next_obs"])
    values = [critic(x.flatten(0, 1)).view(STEPS, ENVS) for x in (obs, next_obs)]
    plain = generalized_advantages(data["reward"], *values, data["terminated"], data["boundary"], 0.99, 0.95)
    # The same advantages, of a critic that has taken over minus lambda phi.
    if policy._energy_scaler is not None:
        policy._take_statistics(obs.flatten(0, 1))
    phi = policy._potential(obs.flatten(0, 1)).view(STEPS, ENVS)
    policy._offset = float(phi.mean())

    def shifted(x: Tensor) -> Tensor:
        return critic(x) - 7.3 * (policy._potential(x) - policy._offset)

    assert float((7.3 * phi).std()) > 0.05
    policy._model.critic = ValueOf(critic, shifted)
    advantage = policy._prepared(data)["advantage"].view(STEPS, ENVS)
    torch.testing.assert_close(advantage, plain, rtol=1e-4, atol=2e-4)
    # A potential that is not 0 after a termination is not so.
    leaking = dict(data, terminated=torch.zeros_like(data["terminated"]))
    assert float((policy._prepared(leaking)["advantage"].view(STEPS, ENVS) - plain).abs().max()) > 0.05


class ValueOf(torch.nn.Module):
    def __init__(self, critic: torch.nn.Module, function: Any) -> None:
        super().__init__()
        self.critic, self.function = [critic], function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_value_potential_is_in_units_of_the_reward(tmp_path):
    trained = policy_of("dppo")
    data = collection(trained)
    data["reward"] *= 40.0
    trained._forward_learn(data)
    write_checkpoint(trained.learn_mode.state_dict(), tmp_path / "iteration_1.pth.tar")
    options = dict(use_pbrs=True, pbrs_potential="value", pbrs_value_path=str(tmp_path), pbrs_alpha=2.0)
    policy = policy_of("dppo_ebm", dict(energy=options))
    obs = torch.randn(8, TO, DO, generator=torch.Generator().manual_seed(0))
    reward = torch.ones(1, ENVS)
    in_rewards = float((reward / trained._scaler(reward, torch.ones(1, ENVS, dtype=torch.bool))).mean())
    assert in_rewards > 10.0
    unit = policy._potential(obs) / (2.0 * trained._model.critic(obs))
    torch.testing.assert_close(unit, torch.full((8,), in_rewards), rtol=0.2, atol=0.0)


def test_each_visited_state_is_evaluated_once(energy):
    policy = policy_of("dppo_ebm", shaped(energy))
    data, seen = collection(policy), []
    potential = policy._potential
    policy._potential = lambda obs: seen.append(obs) or potential(obs)
    policy._forward_learn(data)
    kept = data["boundary"] & ~data["terminated"]
    kept[-1] = ~data["terminated"][-1]
    states = torch.cat(seen)
    assert len(states) == STEPS * ENVS + int(kept.sum())
    assert len(states.flatten(1).unique(dim=0)) == len(states)


def test_energies_as_rewards_are_mixed_with_the_environments(energy):
    options = dict(energy=dict(ebm_ckpt_path=energy, use_ebm_reward=True, ebm_reward_env_weight=0.25))
    policy = policy_of("dppo_ebm", options)
    data = collection(policy)
    obs = policy._model.obs_normalizer(data["obs"])
    mixed = policy._reward(data, obs, obs)
    alone = (mixed - 0.25 * data["reward"]) / 0.75
    energies = policy._energy(obs.flatten(0, 1), data["chain"][:, :, -1].flatten(0, 1)).view(STEPS, ENVS)
    # Low energy is good: against a baseline of the state, so not state by state the same order.
    assert float(torch.corrcoef(torch.stack([alone.flatten(), -energies.flatten()]))[0, 1]) > 0.5
    metrics = policy._forward_learn(data)
    assert {"ebm_reward/mean", "ebm_reward/std", "ebm_reward/corr_env_pearson"} <= set(metrics)
    only_env = policy_of("dppo_ebm", dict(energy=dict(options["energy"], ebm_reward_env_weight=1.0)))
    assert torch.equal(only_env._prepared(data)["advantage"], policy_of("dppo")._prepared(data)["advantage"])


def test_a_restored_run_makes_the_identical_next_update(energy):
    options = shaped(energy, use_energy_scaling=True)
    policy, other = policy_of("dppo_ebm", options), policy_of("dppo_ebm", options, seed=3)
    before = collection(policy)
    policy._forward_learn(before)
    file = io.BytesIO()
    torch.save(policy.learn_mode.state_dict(), file)
    file.seek(0)
    other.learn_mode.load_state_dict(torch.load(file, weights_only=True))
    data = collection(policy, seed=1)
    assert policy._forward_learn(data) == other._forward_learn(data)
    for name, value in policy._model.state_dict().items():
        assert torch.equal(other._model.state_dict()[name], value), name


def online(path: str, **options: Any) -> dict[str, Any]:
    settings = dict(online_updates=4, online_learning_rate=1e-2, online_target_every=2)
    return shaped(path, **{**settings, **options})


def test_an_energy_in_training_is_used_as_it_was_at_the_last_copy(energy):
    policy, frozen = policy_of("dppo_ebm", online(energy)), policy_of("dppo_ebm", shaped(energy))
    states = torch.randn(20, TO, DO, generator=torch.Generator().manual_seed(0))
    potentials = []
    for seed in range(4):
        data = collection(policy, seed)
        if seed < 2:  # trained, and not yet copied when the rewards are made
            assert torch.equal(policy._prepared(data)["reward"], frozen._prepared(data)["reward"])
        else:
            policy._prepared(data)
        potentials.append(policy._potential(states))
    assert torch.equal(potentials[0], frozen._potential(states))
    assert float((potentials[1] - potentials[0]).abs().max()) > 1e-3
    assert torch.equal(potentials[2], potentials[1])
    assert float((potentials[3] - potentials[2]).abs().max()) > 1e-3
    trained = policy._online._network.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in policy._energy.network.state_dict().items())
    assert not any(p.requires_grad for p in policy._energy.network.parameters())


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_an_energy_learns_to_tell_the_policy_from_its_base(moved, energy):
    policy = policy_of("dppo_ebm", online(energy, online_updates=150, online_temperature=0.1))
    obs = torch.randn(2000, TO, DO, generator=torch.Generator().manual_seed(0))
    executed = policy._sample(obs, policy._model.base, torch.Generator().manual_seed(1)).x + moved
    policy._online.update(obs, executed)
    logged = policy._online.update(obs, executed)
    if moved:
        assert logged["energy/top1"] > 0.8 and logged["energy/gap"] > 0.0
    else:  # the same law: it cannot be told, and the loss of two candidates is log 2
        assert abs(logged["energy/top1"] - 0.5) < 0.02
        assert logged["energy/energy_loss"] == pytest.approx(np.log(2.0), abs=0.02)


def test_a_restored_run_goes_on_with_the_energys_training(energy):
    options = online(energy)
    policy, other = policy_of("dppo_ebm", options), policy_of("dppo_ebm", options, seed=3)
    for seed in range(3):
        data = collection(policy, seed)
        data["boundary"][-1] = True
        policy._forward_learn(data)
    file = io.BytesIO()
    torch.save(policy.learn_mode.state_dict(), file)
    file.seek(0)
    other.learn_mode.load_state_dict(torch.load(file, weights_only=True))
    for seed in (3, 4):
        data = collection(policy, seed)
        assert policy._forward_learn(data) == other._forward_learn(data)


def test_what_cannot_be_used_is_refused_by_name(energy, tmp_path):
    def refused(options: dict[str, Any], match: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=match):
            policy_of("dppo_ebm", dict(energy=options))

    both = dict(ebm_ckpt_path=energy, use_pbrs=True)
    refused(dict(use_pbrs=True), "ebm_ckpt_path must be given")
    refused(dict(both, ebm_ckpt_path=str(tmp_path / "nowhere")), "no checkpoint at", FileNotFoundError)
    refused(dict(both, pbrs_k_use_mode="head:3"), "'all', 'last_half', 'tail:N'", ConfigError)
    refused(dict(both, pbrs_k_use_mode="tail:9"), "from 0 to K = 6", ConfigError)
    refused(dict(both, pbrs_M=4), "pbrs_M must be 1 with", ConfigError)
    refused(dict(both, pbrs_potential="value"), "pbrs_value_path must be given if and only if", ConfigError)
    refused(dict(both, use_ebm_reward=True), "exclude each other", ConfigError)
    refused(dict(ebm_ckpt_path=energy, online_updates=1), "must be 0 where neither potential nor reward", ConfigError)
    refused(dict(both, pbrs_lamda=1.0), "pbrs_lambda", ConfigError)
    other_task = save_energy(tmp_path / "iteration_1.pth.tar", dict(model=dict(task="avoid_m1")))
    refused(dict(both, ebm_ckpt_path=other_task), "task is 'avoid_m1' there and 'avoid' here")
    wider = save_energy(tmp_path / "iteration_2.pth.tar", dict(model=dict(action_dim=3)))
    refused(dict(both, ebm_ckpt_path=wider), "action_dim is 3 there and 2 here")
    longer = save_energy(tmp_path / "iteration_4.pth.tar", dict(model=dict(denoising_steps=20)))
    refused(dict(both, ebm_ckpt_path=longer), "denoising_steps is 20 there and 6 here")
    cloned = tmp_path / "iteration_5.pth.tar"
    write_checkpoint(policy_of("dppo").learn_mode.state_dict(), cloned)
    refused(dict(both, ebm_ckpt_path=str(cloned)), "is no energy")

    def poison(state: dict[str, Any]) -> None:
        state["model"]["network_ema.last.bias"].fill_(float("nan"))

    broken = save_energy(tmp_path / "iteration_6.pth.tar", change=poison)
    refused(dict(both, ebm_ckpt_path=broken), "the energy must be finite")


def test_other_units_than_the_policys_are_refused(tmp_path):
    def stretch(state: dict[str, Any]) -> None:
        state["model"]["obs_normalizer.scale"].mul_(2.0)

    policy = policy_of("dppo_ebm", shaped(save_energy(tmp_path / "iteration_0.pth.tar", change=stretch)))
    with pytest.raises(ValueError, match=r"obs_normalizer's scale is \[2.0, 2.0, 2.0, 2.0\] there and \[1.0"):
        policy.learn_mode.load_state_dict(policy.learn_mode.state_dict())


def test_the_rewards_are_shaped_before_they_are_scaled(energy, monkeypatch):
    policy = policy_of("dppo_ebm", shaped(energy, pbrs_lambda=3.0))
    data, given = collection(policy), []
    scale = dppo.RunningReturnScaler.__call__
    monkeypatch.setattr(
        dppo.RunningReturnScaler, "__call__", lambda self, r, first: given.append(r) or scale(self, r, first)
    )
    policy._prepared(data)
    normalize = policy._model.obs_normalizer
    phi, next_phi = shaping.rollout_potentials(
        policy._potential, normalize(data["obs"]), normalize(data["next_obs"]), data["terminated"], data["boundary"]
    )
    following = torch.where(data["terminated"], torch.zeros_like(phi), next_phi - policy._offset)
    expected = data["reward"] + 3.0 * (0.99 * following - (phi - policy._offset))
    torch.testing.assert_close(given[0], expected)
