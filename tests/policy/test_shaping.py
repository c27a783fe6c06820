"""Shaped rewards through the policies' own advantages and reward scaling: nothing but the critic may change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ding_ebm.energy.shaping import PotentialShaping, rollout_potentials, shaped_rewards
from ding_ebm.policy.ppo import RunningReturnScaler, generalized_advantages

T, E, GAMMA, LAM, SCALE = 200, 4, 0.97, 0.9, 7.3


def stream(seed: int = 0) -> dict[str, Tensor]:
    """States (T, E, 1, 1) of episodes that end either way, rewards, and a critic's values of all states."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(3, T + 1, E, generator=generator, dtype=torch.float64)
    obs, last, reward = numbers[0, ..., None, None], numbers[1, :-1, :, None, None], numbers[2, :-1]
    ends = torch.rand(2, T, E, generator=generator)
    terminated = ends[0] < 0.08
    boundary = terminated | (ends[1] < 0.08)
    next_obs = torch.where(boundary[..., None, None], last, obs[1:])
    return dict(reward=reward, obs=obs[:-1], next_obs=next_obs, terminated=terminated, boundary=boundary)


def potential(obs: Tensor) -> Tensor:
    return torch.sin(3.0 * obs[:, 0, 0])


def critic(obs: Tensor) -> Tensor:
    return (2.0 * obs[..., 0, 0]).cos()


def advantages(data: dict[str, Tensor], reward: Tensor, value: Tensor, next_value: Tensor) -> Tensor:
    return generalized_advantages(reward, value, next_value, data["terminated"], data["boundary"], GAMMA, LAM)


@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_unchanged_term_by_term_by_a_critic_less_the_potential(seed):
    data = stream(seed)
    value, next_value = critic(data["obs"]), critic(data["next_obs"])
    plain = advantages(data, data["reward"], value, next_value)
    shaped = PotentialShaping(potential, GAMMA, SCALE, offset=0.4)(**data)
    ours = advantages(data, shaped.reward, value - SCALE * shaped.phi, next_value - SCALE * shaped.next_phi)
    assert float((ours - plain).abs().max()) < 1e-10


@pytest.mark.parametrize(
    "mistake", ["first state of the next episode", "0 at a time limit", "the end's potential", "gamma 1"]
)
def test_each_planted_mistake_changes_the_advantages(mistake):
    data = stream()
    value, next_value = critic(data["obs"]), critic(data["next_obs"])
    plain = advantages(data, data["reward"], value, next_value)
    phi, next_phi = rollout_potentials(potential, *(data[key] for key in ("obs", "next_obs", "terminated", "boundary")))
    reached, masked, gamma = next_phi, data["terminated"], GAMMA
    never = torch.zeros_like(masked)
    if mistake == "first state of the next episode":
        reached, masked = torch.cat([phi[1:], next_phi[-1:]]), never
    elif mistake == "0 at a time limit":
        masked = data["boundary"]
    elif mistake == "the end's potential":
        reached, masked = potential(data["next_obs"].flatten(0, 1)).view(T, E), never
    else:
        gamma = 1.0
    reward = shaped_rewards(data["reward"], phi, reached, masked, gamma, SCALE)
    # The critic that follows takes the right potentials over; what it cannot take over remains.
    ours = advantages(data, reward, value - SCALE * phi, next_value - SCALE * next_phi)
    assert float((ours - plain).abs().max()) > 0.5


def test_shaping_before_the_scaling_of_rewards_scales_everything_alike_unless_the_scaled_rewards_are_cut():
    data = stream()
    shaped = PotentialShaping(potential, GAMMA, SCALE)(**data)
    value, next_value = critic(data["obs"]), critic(data["next_obs"])
    plain = advantages(data, data["reward"], value, next_value)
    first = torch.cat([torch.ones(1, E, dtype=torch.bool), data["boundary"][:-1]])
    for clip, exact in ((1e9, True), (1.0, False)):
        scaled = RunningReturnScaler(E, clip=clip)(shaped.reward, first)
        share = float((scaled / shaped.reward).median())
        ours = advantages(
            data, scaled, share * (value - SCALE * shaped.phi), share * (next_value - SCALE * shaped.next_phi)
        )
        distance = float((ours - share * plain).abs().max())
        assert distance < 1e-10 if exact else distance > 0.1
