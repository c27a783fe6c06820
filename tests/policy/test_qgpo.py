"""QGPO as DI-engine uses it: stages, updates, checkpoints and actions.

The small config makes four behavior updates (0-3), four of critic and guidance (4-7), then guidance updates alone.
"""

from __future__ import annotations

import io
import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from ding.utils import POLICY_REGISTRY

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.config import ConfigError
from ding_ebm.data.datasets import OfflineDataset
from ding_ebm.model.critics import aggregate
from ding_ebm.policy.base import compiles
from ding_ebm.policy.qgpo import QGPOPolicy

STAGES = pytest.mark.parametrize("done", [2, 4, 6, 8, 10], ids=lambda n: f"after {n} iterations")
OBS = np.random.default_rng(0).standard_normal((5, 4))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of the state gives back, tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def parameters(policy: QGPOPolicy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy._model.state_dict().items()}


def changed(policy: QGPOPolicy, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parts of the model of which something changed."""
    return {name.split(".")[0] for name, value in parameters(policy).items() if not torch.equal(value, before[name])}


# Stages.


def test_each_stage_trains_its_own_parts_and_no_other(make_policy, make_dataset, run):
    dataset = make_dataset()
    policy = make_policy(dict(model=dict(ema_decay=0.9)), dataset)
    stages = []
    for _ in range(3):
        before = parameters(policy)
        losses = run(policy, dataset, 4)
        stages.append((set(losses[-1]), changed(policy, before)))
    energy = {"log_partition_loss", "guidance_loss"}
    assert stages == [
        ({"behavior_loss"}, {"behavior", "behavior_ema"}),
        ({"critic_loss", "q_mean", *energy}, {"critic", "target_critic", "guidance", "log_partition"}),
        (energy, {"guidance", "log_partition"}),
    ]


def test_the_guidance_may_begin_after_the_critic(make_policy, make_dataset, run):
    dataset = make_dataset()
    policy = make_policy(dict(learn=dict(energy_guided_policy_begin_training_iter=6)), dataset)
    run(policy, dataset, 4)
    before = parameters(policy)
    losses = run(policy, dataset, 2)[-1]
    assert set(losses) == {"critic_loss", "q_mean"} and changed(policy, before) == {"critic", "target_critic"}
    with pytest.raises(ValueError, match="not trained"):
        policy.act(OBS, guidance_scale=1.0)
    before = parameters(policy)
    losses = run(policy, dataset, 1)[-1]
    assert set(losses) == {"critic_loss", "q_mean", "guidance_loss", "log_partition_loss"}
    assert changed(policy, before) == {"critic", "target_critic", "guidance", "log_partition"}
    assert policy.act(OBS, guidance_scale=1.0).shape == (5, 2)


def test_every_number_reported_is_a_float_and_the_host_may_ask_for_it(make_policy, dataset, run):
    policy = make_policy({}, dataset)
    everything = set(policy.learn_mode.monitor_vars())
    for _ in range(10):
        (losses,) = run(policy, dataset, 1)
        assert all(type(value) is float and math.isfinite(value) for value in losses.values())
        assert set(policy.learn_mode.monitor_vars()) == set(losses) <= everything


def test_the_last_batch_of_one_row_is_taken_in_every_stage(make_policy, dataset, run):
    policy = make_policy({}, dataset)
    for losses in run(policy, dataset, 10, batch=1):
        assert all(math.isfinite(value) for value in losses.values())


def test_the_energy_stage_uses_the_first_rows_of_a_batch(make_policy, make_dataset, run):
    policies = []
    for _ in range(2):
        dataset = make_dataset()
        policy = make_policy({}, dataset)
        run(policy, dataset, 4)
        batch = dataset.__getitems__(range(32))
        policies.append((policy, batch))
    (first, batch), (second, short) = policies
    short = {key: value[:16] for key, value in short.items()}
    assert first.learn_mode.forward(batch) == second.learn_mode.forward(short)


def test_the_loss_of_the_behavior_model_falls(make_policy, make_dataset, run):
    dataset = make_dataset()
    policy = make_policy(
        dict(learn=dict(behavior_policy_stop_training_iter=150, q_value_stop_training_iter=200, learning_rate=1e-2)),
        dataset,
    )
    losses = [update["behavior_loss"] for update in run(policy, dataset, 150)]
    assert np.mean(losses[-40:]) < 0.75 * np.mean(losses[:10])


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_moving_average_is_one(decay, make_policy, make_dataset, run):
    dataset = make_dataset()
    policy = make_policy(dict(model=dict(ema_decay=decay)), dataset)
    average = dict(policy._model.behavior.named_parameters())
    average = {name: p.detach().clone() for name, p in average.items()}
    for _ in range(4):
        run(policy, dataset, 1)
        for name, p in policy._model.behavior.named_parameters():
            average[name].mul_(decay).add_(p.detach(), alpha=1.0 - decay)
    for name, p in policy._model.behavior_ema.named_parameters():
        torch.testing.assert_close(p, average[name], rtol=1e-5, atol=1e-7)
    assert policy._model.sampled_behavior is policy._model.behavior_ema
    assert make_policy({})._model.sampled_behavior is not None and make_policy({})._model.behavior_ema is None


# Checkpoints.


@STAGES
@pytest.mark.parametrize("extra", [{}, dict(ema_decay=0.9)], ids=["plain", "with moving average"])
def test_a_checkpoint_of_every_stage_goes_on_to_the_identical_update(done, extra, make_policy, make_dataset, run):
    dataset = make_dataset()
    policy = make_policy(dict(model=extra), dataset)
    run(policy, dataset, done)
    state = through_a_file(policy.learn_mode.state_dict())
    batches = [dataset.__getitems__(range(32)) for _ in range(2)]
    resumed = make_policy(dict(model=extra), dataset, seed=77)
    resumed.learn_mode.load_state_dict(state)
    for batch in batches:
        assert resumed.learn_mode.forward(batch) == policy.learn_mode.forward(batch)
    ours, theirs = parameters(resumed), parameters(policy)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("done", [5, 10])
@pytest.mark.parametrize(
    "overrides",
    [
        dict(learn=dict(energy_guided_policy_begin_training_iter=6)),
        dict(learn=dict(precision="bfloat16")),
        dict(learn=dict(energy_labels="softmax")),
        dict(model=dict(qgpo_critic=dict(condition_on_temperature=True))),
        dict(model=dict(qgpo_critic=dict(num_critics=4, aggregation="lcb"))),
    ],
    ids=["guidance later", "bfloat16", "softmax", "conditioned", "four critics"],
)
def test_so_does_a_checkpoint_under_every_option(overrides, done, make_policy, make_dataset, run):
    dataset = make_dataset()
    policy = make_policy(overrides, dataset)
    run(policy, dataset, done)
    resumed = make_policy(overrides, dataset, seed=77)
    resumed.learn_mode.load_state_dict(through_a_file(policy.learn_mode.state_dict()))
    for batch in [dataset.__getitems__(range(32)) for _ in range(2)]:
        assert resumed.learn_mode.forward(batch) == policy.learn_mode.forward(batch)
    theirs = parameters(policy)
    assert [name for name, value in parameters(resumed).items() if not torch.equal(value, theirs[name])] == []


def test_a_run_that_is_resumed_at_another_learning_rate_takes_it(make_policy, make_dataset, run):
    dataset = make_dataset()
    policy = make_policy({}, dataset)
    run(policy, dataset, 2)
    state, batch = through_a_file(policy.learn_mode.state_dict()), dataset.__getitems__(range(32))
    steps = []
    for factor in (1.0, 10.0):
        rate = factor * policy._cfg.learn.learning_rate
        resumed = make_policy(dict(learn=dict(learning_rate=rate)), dataset)
        # Through a file each time: an optimizer goes on in the very tensors that it is given.
        resumed.learn_mode.load_state_dict(through_a_file(state))
        before = resumed._model.behavior.last.weight.clone()
        resumed.learn_mode.forward(batch)
        steps.append(resumed._model.behavior.last.weight - before)
    torch.testing.assert_close(steps[1], 10.0 * steps[0], rtol=1e-3, atol=1e-7)


def test_without_the_optimizers_the_next_update_would_differ(make_policy, make_dataset, run):
    # The negative control of the test above: it can tell.
    dataset = make_dataset()
    policy = make_policy({}, dataset)
    run(policy, dataset, 6)
    state = through_a_file(policy.learn_mode.state_dict())
    resumed = make_policy({}, dataset, seed=77)
    fresh = {name: optimizer.state_dict() for name, optimizer in resumed._optimizers.items()}
    resumed.learn_mode.load_state_dict({**state, "optimizers": fresh})
    batch = dataset.__getitems__(range(32))
    for one in (policy, resumed):
        one.learn_mode.forward(batch)
    assert any(not torch.equal(a, b) for a, b in zip(parameters(policy).values(), parameters(resumed).values()))


def test_the_same_seed_twice_agrees_bitwise_and_another_does_not(make_policy, make_dataset, run):
    results = []
    for seed in (3, 3, 4):
        dataset = make_dataset()
        policy = make_policy({}, dataset, seed=seed)
        torch.manual_seed(len(results))  # what else draws from the global generator does not matter
        results.append((run(policy, dataset, 12), policy.act(OBS).tolist()))
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_a_checkpoint_of_other_data_is_refused(make_policy, make_dataset, make_transitions, run):
    dataset = make_dataset()
    policy = make_policy({}, dataset)
    run(policy, dataset, 2)
    state = through_a_file(policy.learn_mode.state_dict())
    for other in (OfflineDataset(make_transitions(seed=1)), make_dataset(obs_normalization="mean_std")):
        with pytest.raises(ValueError, match=r"trained on other data \(fingerprint \w{12}\)"):
            make_policy({}, other).learn_mode.load_state_dict(state)


@pytest.mark.parametrize("done", [3, 6])
def test_evaluation_takes_the_learners_checkpoint(done, make_policy, make_dataset, run):
    dataset = make_dataset(obs_normalization="mean_std", action_normalization="min_max")
    policy = make_policy({}, dataset, seed=0)
    run(policy, dataset, done)
    state = through_a_file(policy.learn_mode.state_dict())
    evaluated = make_policy({}, None, seed=0, enable_field=("eval",), policy_type="ebm_qgpo")
    evaluated.eval_mode.load_state_dict(state)
    assert np.array_equal(evaluated.act(OBS), policy.act(OBS))
    assert np.array_equal(evaluated.act(OBS, guidance_scale=0.0), policy.act(OBS, guidance_scale=0.0))


def save_behavior(policy: QGPOPolicy, path) -> str:
    write_checkpoint({**policy.learn_mode.state_dict(), "last_iter": 4, "last_step": -1}, path)
    return str(path)


def from_checkpoint(path: str, **model: Any) -> dict[str, Any]:
    return dict(model=model, learn=dict(behavior_checkpoint=path, behavior_policy_stop_training_iter=0))


@pytest.mark.parametrize("model", [{}, dict(ema_decay=0.9)], ids=["plain", "with moving average"])
def test_the_behavior_model_and_no_more_is_taken_from_a_checkpoint(model, make_policy, dataset, run, tmp_path):
    source = make_policy(dict(model=model), dataset)
    run(source, dataset, 6)
    policy = make_policy(from_checkpoint(save_behavior(source, tmp_path / "a.pth.tar"), **model), dataset, seed=1)
    theirs = parameters(source)
    behavior = {name for name in theirs if name.startswith("behavior")}
    for name, value in parameters(policy).items():
        assert name not in behavior or torch.equal(value, theirs[name])
    assert not torch.equal(policy._model.guidance.last.weight, source._model.guidance.last.weight)
    assert set(run(policy, dataset, 1)[0]) >= {"critic_loss", "guidance_loss"}
    assert torch.equal(policy._support, source._support)


def test_a_checkpoint_without_a_moving_average_is_refused_where_one_is_sampled_from(
    make_policy, dataset, run, tmp_path
):
    source = make_policy({}, dataset)
    path = save_behavior(source, tmp_path / "a.pth.tar")
    with pytest.raises(ValueError, match="lacks parts of the behavior model.*behavior_ema"):
        make_policy(from_checkpoint(path, ema_decay=0.9), dataset)


def test_a_checkpoint_with_a_moving_average_is_not_read_without_it(make_policy, dataset, run, tmp_path):
    source = make_policy(dict(model=dict(ema_decay=0.9)), dataset)
    run(source, dataset, 4)
    with pytest.raises(ValueError, match="ema"):
        make_policy(from_checkpoint(save_behavior(source, tmp_path / "a.pth.tar")), dataset)


def test_a_behavior_model_of_another_normalization_is_refused(make_policy, make_dataset, run, tmp_path):
    dataset = make_dataset(obs_normalization="min_max")
    source = make_policy({}, dataset)
    run(source, dataset, 4)
    path = save_behavior(source, tmp_path / "a.pth.tar")
    with pytest.raises(ValueError, match="trained with another obs_normalizer"):
        make_policy(from_checkpoint(path), make_dataset())


def test_a_behavior_checkpoint_that_is_not_there_is_named(make_policy):
    with pytest.raises(FileNotFoundError, match="nowhere.pth.tar"):
        make_policy(from_checkpoint("nowhere.pth.tar"))


# The critic.


def make_constant(critic: torch.nn.Module, values: list[float]) -> None:
    """Let critic n of an ensemble answer values[n] everywhere."""
    with torch.no_grad():
        for net, value in zip(critic.critics, values):
            net.last.weight.zero_()
            net.last.bias.fill_(value)


def critic_loss(policy: QGPOPolicy, batch: dict[str, torch.Tensor]) -> float:
    support = torch.zeros(len(batch["obs"]), 4, 2)
    return policy._critic_loss(batch, support)[0].item()


def test_a_constant_reward_has_its_fixed_point_at_reward_over_one_minus_discount(make_policy, make_transitions, run):
    # No row is terminal here, so the values of all states and actions are 3 / (1 - 0.9) = 30.
    transitions = make_transitions(reward=3.0)
    transitions.terminated[:] = False
    dataset = OfflineDataset(transitions)
    policy = make_policy(dict(learn=dict(discount_factor=0.9)), dataset)
    batch = dataset.__getitems__(range(32))
    for value, expected in ((30.0, 0.0), (29.0, 0.01), (0.0, 9.0)):  # (3 + 0.9 v - v)^2
        make_constant(policy._model.critic, [value] * 2)
        make_constant(policy._model.target_critic, [value] * 2)
        assert critic_loss(policy, batch) == pytest.approx(expected, abs=1e-4)


def test_a_constant_reward_is_learned_to_two_percent(make_policy, make_transitions, run):
    transitions = make_transitions(reward=1.0)
    transitions.terminated[:] = False
    transitions.action[:] = np.sign(transitions.action)  # where the untrained behavior model puts its support, too
    dataset = OfflineDataset(transitions)
    learn = dict(
        discount_factor=0.5, critic_learning_rate=5e-3, target_theta=0.05, batch_size_q=32,
        behavior_policy_stop_training_iter=1, q_value_stop_training_iter=None,
    )  # fmt: skip
    # A softmax over the support and a minimum of critics would add a bias of their own.
    critic = dict(q_alpha=0.0, aggregation="mean", critic_widths=(32, 32))
    policy = make_policy(dict(model=dict(qgpo_critic=critic), learn=learn, sampler=dict(clip="final")), dataset)
    run(policy, dataset, 300)
    values = policy._model.critic(dataset.states[:48], dataset.action)
    assert (values / 2.0 - 1.0).abs().mean() < 0.02


def test_terminal_rows_do_not_bootstrap_and_truncated_ones_do(make_policy, make_transitions):
    transitions = make_transitions(reward=1.0)
    dataset = OfflineDataset(transitions)
    policy = make_policy(dict(learn=dict(discount_factor=0.9)), dataset)
    make_constant(policy._model.critic, [0.0, 0.0])
    make_constant(policy._model.target_critic, [10.0, 10.0])
    terminal, cut = (torch.from_numpy(flags.nonzero()[0]) for flags in (transitions.terminated, transitions.truncated))
    assert len(terminal) == len(cut) == 2
    assert critic_loss(policy, dataset.gather(terminal)) == pytest.approx(1.0)
    assert critic_loss(policy, dataset.gather(cut)) == pytest.approx((1.0 + 0.9 * 10.0) ** 2)


def test_the_last_observation_of_a_cut_episode_is_its_own_and_not_the_next_episodes(make_transitions, make_policy):
    transitions = make_transitions()
    dataset = OfflineDataset(transitions)
    (row,) = transitions.truncated.nonzero()[0][:1]
    batch = dataset.gather(torch.tensor([row]))
    assert np.array_equal(batch["next_obs"][0].numpy(), transitions.next_obs[row])
    assert not np.array_equal(transitions.next_obs[row], transitions.obs[row + 1])


@pytest.mark.parametrize(
    ("critic", "expected"),
    [
        (dict(aggregation="min"), 1.0),
        (dict(aggregation="mean"), 3.0),
        (dict(aggregation="lcb", lcb_coefficient=0.5), 3.0 - 0.5 * math.sqrt(14.0 / 3.0)),
    ],
)
def test_targets_and_energies_are_the_configured_aggregate_of_the_critics(critic, expected, make_policy, dataset, run):
    policy = make_policy(dict(model=dict(qgpo_critic=dict(num_critics=3, **critic))), dataset)
    make_constant(policy._model.target_critic, [1.0, 2.0, 6.0])
    batch = {**dataset.gather(torch.arange(5)), "done": torch.zeros(5), "reward": torch.zeros(5)}
    make_constant(policy._model.critic, [0.0] * 3)
    assert policy._target_q(batch["obs"], batch["action"]).tolist() == pytest.approx([expected] * 5)
    assert critic_loss(policy, batch) == pytest.approx((0.99 * expected) ** 2, rel=1e-5)
    assert all(math.isfinite(v) for losses in run(policy, dataset, 10) for v in losses.values())
    values = policy._model.target_critic(batch["obs"], batch["action"])
    assert torch.equal(
        policy._target_q(batch["obs"], batch["action"]),
        aggregate(values, critic["aggregation"], critic.get("lcb_coefficient", 1.0)),
    )


def test_the_loss_of_the_critics_is_the_loop_over_rows_critics_and_support_actions(make_policy, dataset):
    policy = make_policy(dict(model=dict(qgpo_critic=dict(q_alpha=2.0))), dataset)
    batch = dataset.gather(torch.arange(7, 14))  # with the terminal row 11
    support = torch.rand(7, 4, 2, generator=torch.Generator().manual_seed(0))
    loss, mean = policy._critic_loss(batch, support)
    total = 0.0
    for i in range(7):
        values = [policy._model.target_critic(batch["next_obs"][i : i + 1], a[None]).min().item() for a in support[i]]
        assert policy._target_q(batch["next_obs"], support)[i].tolist() == pytest.approx(values, abs=1e-6)
        weights = [math.exp(2.0 * v) for v in values]
        value = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        target = batch["reward"][i].item() + (0.0 if batch["done"][i] else 0.99) * value
        for predicted in policy._model.critic(batch["obs"][i : i + 1], batch["action"][i : i + 1]).flatten().tolist():
            total += (predicted - target) ** 2
    assert loss.item() == pytest.approx(total / 14, rel=1e-5)
    assert mean.item() == pytest.approx(policy._model.critic(batch["obs"], batch["action"]).mean().item(), rel=1e-5)


def test_the_target_carries_no_gradient(make_policy, dataset):
    policy = make_policy({}, dataset)
    policy._model.target_critic.requires_grad_(True)
    loss, _ = policy._critic_loss(dataset.gather(torch.arange(6)), torch.zeros(6, 4, 2))
    loss.backward()
    assert all(p.grad is None for p in policy._model.target_critic.parameters())
    assert all(p.grad is not None for p in policy._model.critic.parameters())


def test_the_order_of_support_actions_changes_no_loss(make_policy, dataset):
    policy = make_policy({}, dataset)
    batch, order = dataset.gather(torch.arange(6)), torch.tensor([2, 0, 3, 1])
    generator = torch.Generator().manual_seed(0)
    support, noise = (torch.randn(6, 4, 2, generator=generator) for _ in range(2))
    t, alpha = torch.rand(6, generator=generator), torch.full((6,), 3.0)
    torch.testing.assert_close(policy._critic_loss(batch, support[:, order])[0], policy._critic_loss(batch, support)[0])
    q = policy._target_q(batch["obs"], support)
    torch.testing.assert_close(policy._target_q(batch["obs"], support[:, order]), q[:, order])
    a = policy._guidance_loss(batch["obs"], batch["action"], support, q, alpha, t, noise)
    b = policy._guidance_loss(batch["obs"], batch["action"], support[:, order], q[:, order], alpha, t, noise[:, order])
    torch.testing.assert_close(a, b)


def test_frozen_values_are_tabulated_and_equal_those_computed_afresh(make_policy, dataset, run):
    policy = make_policy({}, dataset)
    run(policy, dataset, 10)
    states = dataset.states
    assert policy._support_q.shape == (len(states), 4)
    for j in range(4):
        torch.testing.assert_close(policy._support_q[:, j], policy._target_q(states, policy._support[:, j]))


def test_a_critic_that_is_never_frozen_keeps_learning(make_policy, dataset, run):
    policy = make_policy(dict(learn=dict(q_value_stop_training_iter=None)), dataset)
    assert all("critic_loss" in losses for losses in run(policy, dataset, 12)[4:])


# Arithmetic.


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_other_arithmetic_changes_the_losses_little_and_keeps_everything_float32(
    precision, make_policy, make_dataset, run
):
    # Support actions are drawn anew for other weights, to the last bit: here they are given.
    losses, support = [], torch.rand(52, 4, 2, generator=torch.Generator().manual_seed(0))
    for one in ("float32", precision):
        dataset = make_dataset()
        policy = make_policy(dict(learn=dict(precision=one)), dataset)
        policy._support = support
        losses.append(run(policy, dataset, 10))
        assert {value.dtype for value in policy._model.state_dict().values()} == {torch.float32}
        assert policy._draw_support().dtype == torch.float32 and policy._support_q.dtype == torch.float32
        assert policy.act(OBS).dtype == np.float32
    for exact, rounded in zip(*losses):
        for name, value in exact.items():
            assert rounded[name] == pytest.approx(value, rel=0.1, abs=0.1), name


def test_compile_auto_leaves_float32_on_a_cpu_and_a_machine_without_a_compiler_alone(monkeypatch):
    assert compiles(True, "float32", "cpu") and not compiles(False, "bfloat16", "cuda")
    for compiler, paid in (("g++", True), ("clang++", True), (None, False)):
        monkeypatch.setattr(shutil, "which", lambda name, found=compiler: name if name == found else None)
        assert compiles("auto", "bfloat16", "cpu") is paid
        assert not compiles("auto", "float32", "cpu") and compiles("auto", "float32", "cuda:0")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_losses_are_the_losses(make_policy, make_dataset, run):
    losses, support = [], torch.rand(52, 4, 2, generator=torch.Generator().manual_seed(0))
    for compiled in (False, True):
        dataset = make_dataset()
        policy = make_policy(dict(learn=dict(compile=compiled)), dataset)
        policy._support = support
        losses.append(run(policy, dataset, 10))
    for eager, fused in zip(*losses):
        assert fused == pytest.approx(eager, rel=1e-3, abs=1e-4)


# Labels and temperature.


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "unnormalized", "mse"])
def test_every_kind_of_labels_trains_and_acts(kind, conditioned, make_policy, dataset, run):
    overrides = dict(model=dict(qgpo_critic=dict(condition_on_temperature=conditioned)), learn=dict(energy_labels=kind))
    policy = make_policy(overrides, dataset)
    losses = run(policy, dataset, 10)[-1]
    assert all(math.isfinite(value) for value in losses.values())
    assert (losses["log_partition_loss"] == 0.0) is (kind != "unnormalized")
    assert policy.act(OBS, guidance_scale=2.0).shape == (5, 2)


def guidance_slope(policy: QGPOPolicy, offset: float, iterations: int = 500) -> float:
    """Slope of the trained on the exact guidance at t = 0.3, for mu = N(0, 1) and Q(s, a) = w(s)'a + v(s).

    v(s) is of the size of ``offset`` and has no part in the guidance, which is alpha(t) alpha w(s).
    """
    generator = torch.Generator().manual_seed(0)

    def w(obs: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.stack([obs[:, 0].tanh(), obs[:, 1].tanh()], 1)

    for _ in range(iterations):
        obs = torch.randn(128, 4, generator=generator)
        support, noise = (torch.randn(128, 8, 2, generator=generator) for _ in range(2))
        value = offset * (1.0 + 0.5 * obs[:, 2].tanh())
        q = (support * w(obs).unsqueeze(1)).sum(-1) + value.unsqueeze(1)
        t = 1e-3 + 0.999 * torch.rand(128, generator=generator)
        action = torch.randn(128, 2, generator=generator)
        policy._target_q = lambda obs, a, value=value: (a * w(obs)).sum(-1) + value
        alpha = torch.full((128,), 3.0)
        policy._step("guidance", sum(policy._guidance_loss(obs, action, support, q, alpha, t, noise)))
    obs = torch.randn(2000, 4, generator=generator)
    exact = 3.0 * policy._schedule.alpha(torch.tensor(0.3)) * w(obs)
    with torch.no_grad():
        _, grad = policy._model.guidance.value_and_grad(torch.randn(2000, 2, generator=generator), 0.3, obs, 3.0)
    return float((grad * exact).sum() / exact.square().sum())


@pytest.mark.parametrize(
    ("kind", "offset"),
    [
        ("softmax", 0.0),
        ("softmax", 100.0),
        ("unnormalized", 0.0),
        ("unnormalized", 100.0),
    ],
)
def test_the_size_of_q_does_not_slow_the_guidance_down(kind, offset, make_policy):
    # Q of the locomotion tasks is about 100: rewards are scaled so that returns differ by 1000, discount 0.99.
    widths = dict(qgpo_critic=dict(guidance_widths=(64, 64)))
    policy = make_policy(dict(model=widths, learn=dict(energy_labels=kind, guidance_learning_rate=1e-3)))
    assert guidance_slope(policy, offset) > 0.35


def test_a_conditioned_guidance_is_trained_on_its_whole_range_of_temperatures(make_policy, dataset, monkeypatch):
    critic = dict(condition_on_temperature=True, temperature_range=(1.0, 5.0))
    policy = make_policy(dict(model=dict(qgpo_critic=critic)), dataset)
    drawn = policy._alphas(torch.empty(10_000))
    assert drawn.min() >= 1.0 and drawn.max() <= 5.0
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.05) and drawn.std().item() == pytest.approx(
        4 / 12**0.5, 0.02
    )
    assert make_policy({})._alphas(torch.empty(3)).tolist() == [3.0] * 3


def test_a_conditioned_guidance_acts_as_the_behavior_model_at_temperature_zero(make_policy, dataset, run):
    policy = make_policy(dict(model=dict(qgpo_critic=dict(condition_on_temperature=True))), dataset)
    run(policy, dataset, 12)

    def actions(**options: float) -> np.ndarray:
        policy.eval_mode.reset()
        return policy.act(OBS, **options)

    behavior = actions(guidance_scale=0.0)
    np.testing.assert_allclose(actions(inverse_temperature=0.0), behavior, atol=1e-6)
    assert not np.allclose(actions(inverse_temperature=8.0), actions(inverse_temperature=1.0))
    assert np.array_equal(actions(), actions(inverse_temperature=3.0))  # alpha of the config


def test_a_temperature_is_refused_where_the_guidance_does_not_know_it(make_policy, dataset, run):
    policy = make_policy({}, dataset)
    run(policy, dataset, 6)
    with pytest.raises(ValueError, match="condition_on_temperature"):
        policy.act(OBS, inverse_temperature=5.0)


# Acting.


@pytest.fixture
def trained(make_policy, make_dataset, run) -> QGPOPolicy:
    dataset = make_dataset(obs_normalization="mean_std", action_normalization="min_max")
    policy = make_policy({}, dataset)
    run(policy, dataset, 12)
    return policy


def test_actions_repeat_per_evaluation_and_differ_within_one(trained):
    trained.eval_mode.reset()
    first, second = trained.act(OBS), trained.act(OBS)
    trained.eval_mode.reset([1])  # an episode's end
    third = trained.act(OBS)
    trained.eval_mode.reset()
    assert np.array_equal(trained.act(OBS), first)
    assert not np.array_equal(first, second) and not np.array_equal(first, third)


def test_the_hosts_evaluator_gets_the_actions_of_act(trained):
    trained.eval_mode.reset()
    expected = trained.act(OBS)
    trained.eval_mode.reset()
    rows = {
        7: torch.from_numpy(OBS[0]).float(),
        2: torch.from_numpy(OBS[1]).float(),
        4: torch.from_numpy(OBS[2]).float(),
    }
    output = trained.eval_mode.forward(rows)
    assert list(output) == [7, 2, 4]
    assert all(set(one) == {"action"} and one["action"].shape == (2,) for one in output.values())
    assert expected.dtype == np.float32
    trained.eval_mode.reset()
    np.testing.assert_array_equal(np.stack([one["action"] for one in output.values()]), trained.act(OBS[:3]))


def test_scale_zero_does_not_call_the_guidance(trained, monkeypatch):
    def fail(*args: object) -> None:
        raise AssertionError("the guidance was evaluated")

    for name in ("bind", "value_and_grad", "forward"):
        monkeypatch.setattr(type(trained._model.guidance), name, fail)
    assert trained.act(OBS, guidance_scale=0.0).shape == (5, 2)
    with pytest.raises(AssertionError, match="was evaluated"):
        trained.act(OBS)


def test_before_the_guidance_is_trained_the_policy_is_the_behavior_model_and_a_scale_is_refused(
    make_policy, dataset, run
):
    policy = make_policy({}, dataset)
    run(policy, dataset, 4)
    policy.eval_mode.reset()
    first = policy.act(OBS)
    policy.eval_mode.reset()
    assert np.array_equal(policy.act(OBS, guidance_scale=0.0), first)
    with pytest.raises(ValueError, match="not trained.*iteration 4"):
        policy.act(OBS, guidance_scale=1.0)
    run(policy, dataset, 1)
    assert not np.array_equal(policy.act(OBS, guidance_scale=1.0), first)


def test_the_first_of_a_list_of_scales_is_the_hosts(make_policy, make_dataset, run):
    actions = []
    for scale in ([2.0, 0.0, 5.0], 2.0, [0.0, 2.0]):
        dataset = make_dataset()
        policy = make_policy(dict(eval=dict(guidance_scale=scale)), dataset)
        run(policy, dataset, 12)
        actions.append(policy.act(OBS))
    assert np.array_equal(actions[0], actions[1]) and not np.array_equal(actions[0], actions[2])


def test_observations_and_actions_are_in_the_environments_units(make_policy, make_transitions, run):
    transitions = make_transitions()
    transitions.action[:] = 0.01 * transitions.action + 0.5
    dataset = OfflineDataset(transitions, obs_normalization="mean_std", action_normalization="min_max")
    policy = make_policy(dict(sampler=dict(clip="final")), dataset)
    run(policy, dataset, 6)
    low, high = transitions.action.min(0), transitions.action.max(0)
    actions = policy.act(np.repeat(transitions.obs, 4, 0))
    assert (actions >= low - 1e-6).all() and (actions <= high + 1e-6).all() and (np.ptp(actions, axis=0) > 0).all()
    normalized = policy._model.obs_normalizer(torch.from_numpy(transitions.obs))
    torch.testing.assert_close(normalized, dataset.states[: len(transitions)])


@pytest.mark.parametrize(("clip", "stays"), [("none", False), ("final", True), ("every_step", True)])
def test_actions_leave_the_range_of_the_data_only_if_clipping_is_off(clip, stays, make_policy, dataset, run):
    policy = make_policy(dict(sampler=dict(clip=clip)), dataset)
    run(policy, dataset, 6)
    actions = policy.act(np.random.default_rng(0).standard_normal((500, 4)))
    assert bool((np.abs(actions) <= 1.0).all()) is stays


def test_observations_of_any_float_dtype_and_layout_are_taken(trained):
    results = []
    for obs in (OBS, OBS.astype(np.float32), np.asfortranarray(OBS), OBS.astype(np.float32).tolist()):
        trained.eval_mode.reset()
        results.append(trained.act(obs))
    assert all(np.array_equal(results[0], other) for other in results[1:])
    assert trained.act(OBS[:1]).shape == (1, 2)


@pytest.mark.parametrize("shape", [(4,), (5, 3), (5, 1, 4), (0,)])
def test_observations_of_another_shape_are_refused(shape, trained):
    with pytest.raises(ValueError, match=r"obs must be \(E, 4\), got \("):
        trained.act(np.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_observations_that_are_not_finite_are_refused_by_environment(value, trained):
    obs = OBS.copy()
    obs[3, 1] = value
    with pytest.raises(ValueError, match="environment 3 is not finite"):
        trained.act(obs)


# What ends a run.


def test_data_of_other_dimensions_than_the_model_is_refused(make_policy, dataset):
    with pytest.raises(ValueError, match=r"policy.model.action_dim is 3, but the data set has 2"):
        make_policy(dict(model=dict(action_dim=3)), dataset)
    with pytest.raises(ValueError, match=r"policy.model.obs_dim is 5, but the data set has 4"):
        make_policy(dict(model=dict(obs_dim=5)), dataset)


def test_the_energy_stage_says_that_it_needs_the_states(make_policy, dataset, run):
    policy = make_policy({})
    run(policy, dataset, 4)
    with pytest.raises(RuntimeError, match="set_statistic"):
        run(policy, dataset, 1)


@pytest.mark.parametrize(("key", "iteration", "name"), [("action", 1, "behavior_loss"), ("reward", 5, "critic_loss")])
def test_a_loss_that_is_not_finite_ends_the_run_by_name(key, iteration, name, make_policy, dataset, run):
    policy = make_policy({}, dataset)
    run(policy, dataset, iteration)
    batch = dict(dataset.__getitems__(range(32)))
    batch[key] = torch.full_like(batch[key], math.nan)
    with pytest.raises(FloatingPointError, match=f"{name} is nan at iteration {iteration}"):
        policy.learn_mode.forward(batch)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (dict(learn=dict(energy_guided_policy_begin_training_iter=2)), "must be None or at least 4"),
        (dict(learn=dict(behavior_policy_stop_training_iter=0)), "if and only if learn.behavior_checkpoint"),
        (dict(learn=dict(behavior_checkpoint="a.pth.tar")), "if and only if learn.behavior_checkpoint"),
        (dict(learn=dict(batch_size_q=33)), r"batch_size_q \(33\) must not exceed learn.batch_size \(32\)"),
        (dict(model=dict(qgpo_critic=dict(temperature_range=(3.0, 1.0)))), "must grow, got 3.0 and 1.0"),
        (dict(eval=dict(inverse_temperature=1.0)), "condition_on_temperature=True"),
        (dict(cuda=True), "torch sees no CUDA device"),
        (dict(multi_gpu=True), "several GPUs is not supported"),
        (dict(priority=True), "prioritized replay is not supported"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(overrides, words, make_policy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises((ConfigError, RuntimeError), match=words):
        make_policy(overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(dict(learn=dict(q_value_stop_training_iter=4)), id="the critic is frozen before it is trained"),
        pytest.param(dict(learn=dict(M=1)), id="nothing to contrast: guidance stays at its random start"),
        pytest.param(dict(model=dict(ema_decay=1.0)), id="a moving average that never moves"),
        pytest.param(dict(sampler=dict(order=2.0)), id="an order that is no integer"),
    ],
)
def test_configs_that_would_train_into_nonsense_are_refused(overrides, make_policy):
    with pytest.raises(ConfigError):
        make_policy(overrides)


def test_all_four_names_are_registered():
    names = ("ebm_qgpo", "ebm_qgpo_command", "qgpo_command")
    assert all(issubclass(POLICY_REGISTRY.get(name), QGPOPolicy) for name in names)
    assert not issubclass(POLICY_REGISTRY.get("qgpo"), QGPOPolicy)  # DI-engine's own


def test_the_collect_mode_says_that_the_policy_learns_offline(make_policy):
    policy = make_policy({}, enable_field=("collect",))
    for call in (lambda: policy._forward_collect({}), lambda: policy._process_transition(0, 0, 0)):
        with pytest.raises(NotImplementedError, match="serial_offline"):
            call()
