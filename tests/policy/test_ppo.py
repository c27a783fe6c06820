"""PPO's parts against double loops, a reference stream and the plain policy gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ding_ebm.policy.ppo import (
    RunningReturnScaler,
    approximate_kl,
    clip_ratios,
    clipped_policy_loss,
    generalized_advantages,
    value_loss,
)


def stream(steps: int, envs: int, seed: int) -> dict[str, Tensor]:
    """Random rewards and values, with episodes that end either way."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(3, steps, envs, generator=generator, dtype=torch.float64)
    ends = torch.rand(2, steps, envs, generator=generator)
    terminated = ends[0] < 0.15
    return dict(
        reward=numbers[0], value=numbers[1], next_value=numbers[2], terminated=terminated,
        done=terminated | (ends[1] < 0.15),
    )  # fmt: skip


def brute_force(data: dict[str, Tensor], gamma: float, lam: float) -> Tensor:
    """Each estimate as its own sum over the rest of its own episode."""
    steps, envs = data["reward"].shape
    result = torch.zeros(steps, envs, dtype=torch.float64)
    for env in range(envs):
        for start in range(steps):
            for t in range(start, steps):
                bootstrap = 0.0 if data["terminated"][t, env] else float(data["next_value"][t, env])
                delta = float(data["reward"][t, env]) + gamma * bootstrap - float(data["value"][t, env])
                result[start, env] += (gamma * lam) ** (t - start) * delta
                if data["done"][t, env]:
                    break
    return result


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_the_double_loop_over_each_episode(seed):
    data = stream(30, 4, seed)
    torch.testing.assert_close(
        generalized_advantages(**data, discount_factor=0.97, gae_lambda=0.9), brute_force(data, 0.97, 0.9)
    )


def test_a_planted_leak_between_episodes_is_seen():
    data = stream(30, 4, 0)
    assert bool((data["done"] & ~data["terminated"]).any())
    leaking = generalized_advantages(
        **{**data, "done": data["terminated"]}, discount_factor=0.97, gae_lambda=0.9
    )  # time limits do not cut
    assert not torch.allclose(leaking, brute_force(data, 0.97, 0.9))
    merged = generalized_advantages(**{**data, "terminated": data["done"]}, discount_factor=0.97, gae_lambda=0.9)
    assert not torch.allclose(merged, brute_force(data, 0.97, 0.9))


def test_what_comes_after_an_episodes_end_changes_nothing_before_it():
    data = stream(20, 1, 3)
    data["done"][:], data["terminated"][:] = False, False
    data["done"][9] = True
    before = generalized_advantages(**data, discount_factor=0.99, gae_lambda=0.95)[:10]
    data["reward"][10:] += 100.0
    torch.testing.assert_close(generalized_advantages(**data, discount_factor=0.99, gae_lambda=0.95)[:10], before)


def test_lambda_1_is_the_discounted_return_to_the_bootstrap_less_the_value():
    reward, value = torch.ones(5, 1, dtype=torch.float64), torch.full((5, 1), 7.0, dtype=torch.float64)
    never = torch.zeros(5, 1, dtype=torch.bool)
    advantage = generalized_advantages(reward, value, value, never, never, 0.9, 1.0)
    expected = [sum(0.9**i for i in range(5 - t)) + 0.9 ** (5 - t) * 7.0 - 7.0 for t in range(5)]
    assert advantage[:, 0].tolist() == pytest.approx(expected)


# Reward scaling.


def reference_scaling(rewards: list[np.ndarray], firsts: list[np.ndarray]) -> list[np.ndarray]:
    """The published procedure as a loop over numbers: merge moments, then divide by sqrt(variance + 1e-8)."""
    mean, variance, count = 0.0, 1.0, 1e-4
    running = np.zeros(rewards[0].shape[1])
    scaled = []
    for reward, first in zip(rewards, firsts):
        sums = []
        for r, f in zip(reward, first):
            running = r + 0.99 * np.where(f, 0.0, running)
            sums.extend(running)
        sums = np.array(sums)
        delta, total = sums.mean() - mean, count + len(sums)
        squares = variance * count + sums.var() * len(sums) + delta**2 * count * len(sums) / total
        mean, variance, count = mean + delta * len(sums) / total, squares / (total - 1), total
        scaled.append(np.clip(reward / np.sqrt(variance + 1e-8), -10.0, 10.0))
    return scaled


def collections() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    rewards = [rng.normal(2.0, 3.0, (120, 3)) for _ in range(4)]
    rewards[2][5, 1] = 900.0  # beyond the clip
    return rewards, [rng.random((120, 3)) < 0.2 for _ in range(4)]


def test_rewards_are_scaled_as_in_the_reference_over_a_recorded_stream():
    rewards, firsts = collections()
    scaler = RunningReturnScaler(3)
    for reward, first, expected in zip(rewards, firsts, reference_scaling(rewards, firsts)):
        scaled = scaler(torch.from_numpy(reward), torch.from_numpy(first))
        np.testing.assert_allclose(scaled.numpy(), expected, rtol=1e-12)
    assert np.abs(reference_scaling(rewards, firsts)[2]).max() == 10.0


def test_a_restored_scaler_goes_on_as_the_one_that_was_saved():
    rewards, firsts = ([torch.from_numpy(x) for x in part] for part in collections())
    scaler, restored = RunningReturnScaler(3), RunningReturnScaler(3)
    scaler(rewards[0], firsts[0])
    restored.load_state_dict(scaler.state_dict())
    assert torch.equal(restored(rewards[1], firsts[1]), scaler(rewards[1], firsts[1]))
    fresh = RunningReturnScaler(3)
    assert not torch.equal(fresh(rewards[1], firsts[1]), restored(rewards[1], firsts[1]))


def test_a_reward_that_is_no_number_is_refused_by_its_place():
    reward = torch.zeros(4, 3)
    reward[2, 1] = math.nan
    with pytest.raises(ValueError, match="reward of environment 1 at decision 2 is nan"):
        RunningReturnScaler(3)(reward, torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must be \(T, 3\), got \(4, 2\)"):
        RunningReturnScaler(3)(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool))


# Clipping.


def test_the_clip_range_grows_exponentially_from_base_to_coefficient():
    ranges = clip_ratios(10, 0.001, 0.01, 3.0)
    assert ranges[0] == pytest.approx(0.001) and ranges[-1] == pytest.approx(0.01) and list(ranges) == sorted(ranges)
    middle = 0.001 + 0.009 * (math.exp(3.0 * 4 / 9) - 1) / (math.exp(3.0) - 1)
    assert ranges[4] == pytest.approx(middle)
    assert clip_ratios(1, 0.001, 0.01, 3.0) == pytest.approx((0.01,))
    assert clip_ratios(3, 0.1, 0.3, 0.0) == pytest.approx((0.1, 0.2, 0.3))
    assert clip_ratios(4, 0.01, 0.01, 1.0) == pytest.approx((0.01,) * 4)


def test_the_gradient_at_the_old_policy_is_the_plain_policy_gradient():
    generator = torch.Generator().manual_seed(0)
    log_prob = torch.randn(50, generator=generator, dtype=torch.float64).requires_grad_()
    advantage = torch.randn(50, generator=generator, dtype=torch.float64)
    loss = clipped_policy_loss((log_prob - log_prob.detach()).exp(), advantage, torch.full((50,), 0.01).double())
    (grad,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(grad, -advantage / 50)


def test_the_loss_is_flat_where_a_ratio_has_gone_far_enough_and_steep_where_it_went_wrong():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0])
    loss = clipped_policy_loss(ratio, advantage, 0.2)
    assert float(loss.detach()) == pytest.approx(-(1.2 - 0.8 - 1.5 + 0.5) / 4)
    (grad,) = torch.autograd.grad(loss, ratio)
    assert grad.tolist() == pytest.approx([0.0, 0.0, 0.25, -0.25])


def test_value_clipping_penalizes_the_worse_of_both():
    value, old, target = torch.tensor([3.0, 1.1]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 2.0])
    assert float(value_loss(value, old, target)) == pytest.approx(0.5 * (0.0 + 0.81) / 2)
    assert float(value_loss(value, old, target, clip=0.2)) == pytest.approx(0.5 * (1.8**2 + 0.81) / 2)


def test_approximate_kl_is_zero_at_the_old_policy_and_near_the_kl_of_gaussians():
    assert float(approximate_kl(torch.zeros(10))) == 0.0
    old, new = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.3, 1.1)
    torch.manual_seed(0)
    x = old.sample((200000,))
    estimate = float(approximate_kl(new.log_prob(x) - old.log_prob(x)))
    assert estimate == pytest.approx(float(torch.distributions.kl_divergence(old, new)), rel=0.05)
