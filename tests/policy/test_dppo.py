"""DPPO: exact before its first update, better after its updates, and refusing what cannot be trained."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from torch import Tensor

from ding_ebm.config import ConfigError
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.model.chains import chunk_loss
from ding_ebm.policy import dppo
from ding_ebm.policy.dppo import DPPOPolicy, stacked
from ding_ebm.policy.ppo import clip_ratios, value_loss

TP, TA, TO, K, DO, DA = 4, 3, 2, 10, 4, 2
MODEL = dict(
    task="avoid", obs_dim=DO, action_dim=DA, horizon_steps=TP, act_steps=TA, cond_steps=TO, denoising_steps=K,
    critic_widths=[32, 32, 32], mlp=dict(mlp_dims=[32, 32, 32]), unet=dict(dim=8, num_groups=4),
)  # fmt: skip
MAIN = dict(
    exp_name="test",
    env=dict(env_id="avoid", act_steps=TA, cond_steps=TO, evaluator_env_num=2, n_evaluator_episode=2),
    policy=dict(
        model=MODEL,
        sampler=dict(ft_denoising_steps=4),
        learn=dict(epoch_per_collect=2, batch_size=24, learning_rate=1e-3),
    ),
)
CREATE = dict(
    env=dict(type="ebm_chunk_env", import_names=["ding_ebm.host"]),
    env_manager=dict(type="base"),
    policy=dict(type="dppo_command", import_names=["ding_ebm.policy", "ding_ebm.host"]),
)


def policy_of(
    overrides: dict[str, Any] | None = None, seed: int = 0, fields: tuple[str, ...] = ("learn", "collect", "eval")
):
    main = deep_merge_dicts(EasyDict(MAIN), EasyDict(policy=overrides or {}))
    cfg = compile_config(main, seed=seed, auto=True, create_cfg=EasyDict(CREATE), save_cfg=False)
    torch.manual_seed(seed)
    return create_policy(cfg.policy, enable_field=list(fields))


def observations(steps: int, envs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, envs, TO, DO)).astype(np.float32)


def collection(policy: DPPOPolicy, steps: int = 6, envs: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """What a vectorized collector hands over, with random observations, rewards and ends."""
    rng = np.random.default_rng(seed)
    obs = observations(steps + 1, envs, seed)
    decisions = [policy.collect_chunks(step) for step in obs[:-1]]
    terminated = torch.from_numpy(rng.random((steps, envs)) < 0.2)
    return dict(
        obs=torch.from_numpy(obs[:-1]), next_obs=torch.from_numpy(obs[1:]),
        chain=torch.stack([d["chain"] for d in decisions]), log_prob=torch.stack([d["log_prob"] for d in decisions]),
        reward=torch.from_numpy(rng.standard_normal((steps, envs)).astype(np.float32)),
        terminated=terminated, boundary=terminated | torch.from_numpy(rng.random((steps, envs)) < 0.1),
    )  # fmt: skip


KINDS = {
    "mlp, ddpm": {},
    "mlp, ddim": dict(sampler=dict(ddim_steps=5)),
    "mlp, ddpm, all steps, sum": dict(sampler=dict(ft_denoising_steps=K), learn=dict(log_prob_reduction="sum")),
    "mlp, ddpm, one step": dict(sampler=dict(ft_denoising_steps=1), learn=dict(batch_size=6)),
    "unet, ddpm": dict(model=dict(network="unet")),
    "unet, ddim, all steps": dict(model=dict(network="unet"), sampler=dict(ddim_steps=5, ft_denoising_steps=5)),
}


# Before an update.


@pytest.mark.parametrize("as_list", [False, True], ids=["vectorized", "stock"])
@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_update_of_a_collection_the_ratio_is_1_and_the_kl_0(kind, as_list):
    policy = policy_of(deep_merge_dicts(EasyDict(learn=dict(epoch_per_collect=1)), EasyDict(KINDS[kind])))
    for parameter in policy._model.fine_tuned.parameters():  # not the base any more, as after some training
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    data = collection(policy)
    if as_list:
        data = stacked(as_rows(data))
    batch = policy._prepared(data)
    rows = torch.arange(batch["log_prob"].numel())
    count = policy._cfg.sampler.ft_denoising_steps
    decision, i = rows // count, rows % count
    chain = batch["chain"]
    log_prob = policy._log_prob(i, chain[decision, i], chain[decision, i + 1], batch["obs"][decision])
    log_ratio = log_prob - batch["log_prob"].flatten()
    assert float((log_ratio.exp() - 1.0).abs().max()) < 1e-5
    assert float((log_ratio.exp() - 1.0 - log_ratio).mean()) < 1e-6
    other = policy._log_prob(i, chain[decision, i], chain[decision, i + 1], batch["obs"][decision].flip(0))
    assert float((other - log_prob).abs().max()) > 1e-3  # it does depend on what it is given


def as_rows(data: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The host's list of decisions: environment after environment."""
    steps, envs = data["reward"].shape
    rows = []
    for env in range(envs):
        for t in range(steps):
            row = {key: value[t, env] for key, value in data.items()}
            row.update(reward=row["reward"].reshape(1), terminated=bool(row["terminated"]))
            row["boundary"] = bool(row["boundary"]) or t == steps - 1
            rows.append(row)
    return rows


@pytest.mark.parametrize("kind", ["mlp, ddpm", "mlp, ddim"])
def test_the_gradient_of_the_first_update_is_the_plain_policy_gradient(kind):
    policy = policy_of(KINDS[kind])
    batch = policy._prepared(collection(policy))
    count, size = 4, batch["log_prob"].numel()
    captured = {}
    policy._step = lambda loss: captured.update(
        zip(("grad",), [torch.autograd.grad(loss, list(policy._model.fine_tuned.parameters()))])
    )
    policy._update(batch, torch.arange(size))
    i, decision = torch.arange(size) % count, torch.arange(size) // count
    advantage = batch["advantage"][decision]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8) * 0.99 ** (count - 1 - i)
    plan, model = policy._plan, policy._model
    j = len(plan) - count + i
    x, x_next = batch["chain"][decision, i], batch["chain"][decision, i + 1]
    noise = model.fine_tuned(x, torch.tensor(plan.steps)[j] - 1, batch["obs"][decision])
    pick = lambda numbers: torch.tensor(numbers)[j].view(-1, 1, 1)  # noqa: E731
    x_0 = (pick(plan.x0_from_x) * x + pick(plan.x0_from_noise) * noise).clamp(-1, 1)
    mean = pick(plan.mean_from_x0) * x_0 + pick(plan.mean_from_x) * x
    law = torch.distributions.Normal(mean, pick(plan.std).clamp(min=0.1))
    log_prob = law.log_prob(x_next).clamp(-5, 2)[:, :TA].mean((1, 2))
    expected = torch.autograd.grad(-(advantage * log_prob).mean(), list(model.fine_tuned.parameters()))
    assert max(float(g.abs().max()) for g in expected) > 1e-4
    for ours, theirs in zip(captured["grad"], expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_values_are_bootstrapped_from_the_true_last_observation_and_not_after_a_termination():
    policy = policy_of(dict(learn=dict(reward_scaling=False, gae_lambda=0.0)))
    data = collection(policy, steps=3, envs=1)
    data["reward"][:] = 1.0
    data["terminated"] = torch.tensor([[False], [True], [False]])
    data["boundary"] = torch.tensor([[True], [True], [False]])  # a time limit, a fall, and the collection's end
    data["next_obs"] += 7.0  # unlike the observation that follows in the stream
    target = policy._prepared(data)["target"]
    with torch.no_grad():
        value = policy._model.critic(policy._model.obs_normalizer(data["next_obs"][:, 0]))
    expected = [1 + 0.99 * float(value[0]), 1.0, 1 + 0.99 * float(value[2])]
    assert target.tolist() == pytest.approx(expected, rel=1e-5)


# Updates.


def test_a_pass_uses_every_row_at_most_once_and_leaves_less_than_a_minibatch_out():
    policy = policy_of(dict(learn=dict(batch_size=10)))
    batches = policy._shuffled(48)
    assert [len(batch) for batch in batches] == [10, 10, 10, 10]
    used = torch.cat(batches)
    assert len(used.unique()) == 40 and int(used.max()) < 48
    assert not torch.equal(torch.cat(policy._shuffled(48)), used)


@pytest.mark.parametrize("value_clip", [None, 0.05])
def test_the_pieces_of_a_minibatch_add_up_to_it(monkeypatch, value_clip):
    """Their twin for the critic: the loss over single rows, though it is evaluated once for all rows of a decision."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    chosen = torch.randperm(72, generator=torch.Generator().manual_seed(0))[:70]
    gradients, metrics = [], []
    for rows, pieces in ((72, 1), (13, 6)):
        monkeypatch.setattr(dppo, "_ROWS_A_THREAD", rows)
        policy = policy_of(dict(learn=dict(value_clip=value_clip)))
        batch = policy._prepared(collection(policy))
        batch["value"] += 0.1 * torch.randn(18, generator=torch.Generator().manual_seed(0))
        critic, of_rows = list(policy._model.critic.parameters()), chosen // 4
        value, old, target = policy._model.critic(batch["obs"][of_rows]), batch["value"][of_rows], batch["target"]
        expected = torch.autograd.grad(0.5 * value_loss(value, old, target[of_rows], value_clip), critic)
        calls, losses = [], policy._losses
        policy._losses = lambda *given, calls=calls, losses=losses: (calls.append(given), losses(*given))[1]
        metrics.append(policy._update(batch, chosen))
        assert len(calls) == pieces
        gradients.append([p.grad for p in (*policy._model.fine_tuned.parameters(), *critic)])
        torch.testing.assert_close(gradients[-1][-len(critic) :], list(expected), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4, abs=1e-6)


def test_in_bfloat16_the_ratio_before_an_update_and_the_gradient_are_nearly_those_of_float32():
    gradients, ratios = [], []
    for precision in ("float32", "bfloat16"):
        policy = policy_of(dict(learn=dict(precision=precision)))
        metrics = policy._update(policy._prepared(collection(policy)), torch.arange(72))
        ratios.append(abs(metrics["ratio_mean"] - 1.0))
        gradients.append(torch.cat([p.grad.flatten() for p in policy._model.fine_tuned.parameters()]))
    assert ratios[0] < 1e-6 and 1e-6 < ratios[1] < 1e-2  # the arithmetic did change
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.99


def test_it_climbs_to_the_best_action_of_a_bandit_and_its_base_stays():
    """Reward 1 - |a - 0.4|^2 / 0.8^2 in every number; the base policy is centered at -0.4, where it is 0."""
    torch.manual_seed(0)
    policy = policy_of(
        dict(
            model=dict(horizon_steps=1, act_steps=1, cond_steps=1, denoising_steps=K, mlp=dict(mlp_dims=[64, 64, 64])),
            sampler=dict(ft_denoising_steps=5, min_sampling_denoising_std=0.1),
            learn=dict(
                batch_size=500,
                epoch_per_collect=5,
                learning_rate=1e-3,
                clip_ratio=0.1,
                clip_ratio_base=0.1,
                gamma_denoising=0.9,
            ),
        )
    )
    clone_constant(policy, -0.4)
    before = [parameter.clone() for parameter in policy._model.base.parameters()]
    rewards = []
    for _ in range(60):
        obs = np.zeros((200, 1, DO), dtype=np.float32)
        decision = policy.collect_chunks(obs)
        reward = 1.0 - ((decision["action"] - 0.4) ** 2).mean((1, 2)) / 0.64
        ends = torch.ones(1, 200, dtype=torch.bool)
        policy.learn_mode.forward(
            dict(
                obs=torch.from_numpy(obs)[None], next_obs=torch.from_numpy(obs)[None],
                chain=decision["chain"][None], log_prob=decision["log_prob"][None], reward=reward[None],
                terminated=ends, boundary=ends,
            )
        )  # fmt: skip
        rewards.append(float(reward.mean()))
    assert rewards[0] < 0.2
    final = 1.0 - float(((policy.act(np.zeros((200, 1, DO), dtype=np.float32)) - 0.4) ** 2).mean()) / 0.64
    assert final > 0.95, (rewards[::10], final)
    assert all(torch.equal(a, b) for a, b in zip(before, policy._model.base.parameters()))


def clone_constant(policy: DPPOPolicy, center: float) -> None:
    """Fit the base, and its copy, to actions near one number."""
    network, schedule = policy._model.base.requires_grad_(True), CosineSchedule(K)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(400):
        action = center + 0.05 * torch.randn(256, 1, DA)
        k, noise = torch.randint(1, K + 1, (256,)), torch.randn(256, 1, DA)
        loss = chunk_loss(network, schedule, action, torch.zeros(256, 1, DO), k, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.requires_grad_(False)
    policy._model.fine_tuned.load_state_dict(network.state_dict())


def test_while_the_critic_warms_up_the_policy_stays_bit_by_bit():
    policy = policy_of(dict(learn=dict(critic_warmup=1)))
    actor, critic = (
        [p.clone() for p in module.parameters()] for module in (policy._model.fine_tuned, policy._model.critic)
    )
    policy.learn_mode.forward(collection(policy))
    assert all(torch.equal(a, b) for a, b in zip(actor, policy._model.fine_tuned.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(critic, policy._model.critic.parameters()))
    policy.learn_mode.forward(collection(policy))
    assert not all(torch.equal(a, b) for a, b in zip(actor, policy._model.fine_tuned.parameters()))


def test_a_kl_beyond_its_target_ends_the_passes():
    wide = dict(learning_rate=0.05, clip_ratio=10.0, clip_ratio_base=10.0)
    for target_kl, all_of_them in ((1e-6, False), (1e9, True)):
        policy = policy_of(dict(learn=dict(wide, target_kl=target_kl)))
        updates = policy.learn_mode.forward(collection(policy))["updates"]
        assert (updates == 6.0) is all_of_them


def test_the_clip_range_of_each_step_is_the_schedules():
    policy = policy_of(dict(learn=dict(clip_ratio_base=0.001, clip_ratio=0.01)))
    assert policy._clip.tolist() == pytest.approx(list(clip_ratios(4, 0.001, 0.01, 3.0)))
    assert policy._discount.tolist() == pytest.approx([0.99**3, 0.99**2, 0.99, 1.0])


def test_evaluation_takes_the_fine_tuned_network_in_the_last_steps_only():
    policy = policy_of()
    obs = observations(1, 5)[0]
    first = policy.act(obs)
    for parameter in policy._model.fine_tuned.parameters():
        parameter.data.add_(0.3)
    policy.eval_mode.reset()
    assert not np.array_equal(policy.act(obs), first)
    base = policy_of(dict(sampler=dict(ft_denoising_steps=0)), fields=("eval",))
    base._model.load_state_dict(policy._model.state_dict())
    np.testing.assert_array_equal(base.act(obs), first)


@pytest.mark.parametrize("kind", ["mlp, ddpm", "mlp, ddim"])
def test_a_restored_run_makes_the_identical_next_update(kind):
    policy = policy_of(KINDS[kind])
    policy.learn_mode.forward(collection(policy))
    file = io.BytesIO()
    torch.save(policy.learn_mode.state_dict(), file)
    file.seek(0)
    other = policy_of(KINDS[kind], seed=5)
    other.learn_mode.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(policy._last_boundary, other._last_boundary)
    assert torch.equal(*(one.collect_chunks(observations(1, 3)[0])["chain"] for one in (policy, other)))
    data = collection(policy, seed=3)
    assert policy.learn_mode.forward(data) == other.learn_mode.forward(data)
    states = [p.learn_mode.state_dict()["model"] for p in (policy, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_same_seed_gives_the_same_update_bit_by_bit():
    runs = [policy.learn_mode.forward(collection(policy)) for policy in (policy_of(), policy_of(), policy_of(seed=1))]
    assert runs[0] == runs[1] and runs[0] != runs[2]


def test_the_bc_term_holds_the_policy_at_its_base():
    apart = []
    for weight in (0.0, 5.0):
        policy = policy_of(dict(learn=dict(bc_weight=weight, epoch_per_collect=8, clip_ratio=1.0, clip_ratio_base=1.0)))
        for _ in range(5):
            policy.learn_mode.forward(collection(policy))
        obs, x, k = torch.zeros(50, TO, DO), torch.randn(50, TP, DA), torch.zeros(50, dtype=torch.int64)
        with torch.no_grad():
            apart.append(float((policy._model.base(x, k, obs) - policy._model.fine_tuned(x, k, obs)).square().mean()))
    assert apart[1] < 0.7 * apart[0]


# Refusals.


def test_what_cannot_be_trained_is_refused_by_name(tmp_path):
    def learn(change) -> None:
        policy = policy_of()
        data = collection(policy)
        change(data)
        policy.learn_mode.forward(data)

    cases = [
        (lambda: policy_of(dict(sampler=dict(ft_denoising_steps=11))), ConfigError, r"\(11\) must not exceed"),
        (
            lambda: policy_of(dict(sampler=dict(ft_denoising_steps=6, ddim_steps=5))),
            ConfigError,
            r"\(6\) must not exceed sampler.ddim_steps \(5\)",
        ),
        (lambda: policy_of(dict(model=dict(act_steps=5))), ConfigError, "what is executed must have been predicted"),
        (lambda: policy_of(dict(sampler=dict(ft_denoising_steps=0))), ValueError, "nothing would be trained"),
        (lambda: policy_of(dict(base_policy_path=str(tmp_path))), FileNotFoundError, "no checkpoint in"),
        (lambda: policy_of(dict(learn=dict(batch_size=73))).learn_mode.forward(collection(policy_of())), ValueError,
         r"batch_size \(73\) exceeds the 72 rows of a collection \(18 decisions of 4"),
        (lambda: learn(lambda data: data["reward"].__setitem__((2, 1), math.nan)), ValueError, "reward of environment"),
        (lambda: policy_of().collect_chunks(np.full((2, TO, DO), np.nan)), ValueError, "obs of environment 0 is not"),
    ]  # fmt: skip
    for action, error, message in cases:
        with pytest.raises(error, match=message):
            action()
