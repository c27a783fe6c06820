"""Energies as rewards against a loop over decisions, and what the baseline must take out of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ding_ebm.energy.potential import chain_energies
from ding_ebm.energy.scaler import EnergyScalerPerK
from ding_ebm.energy.shaping import EnergyReward

K, D = 4, 2
LEVELS = (2, 1, 0)  # of the recorded end of a chain


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Prior:
    """Actions around the observation, noisier at higher k."""

    levels, num_steps = tuple(range(K, -1, -1)), K

    def sample_chains(self, obs: Tensor, num: int, deterministic: bool, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, 1, K + 1, 1, D, generator=generator, dtype=torch.float64)
        spread = 0.2 + 0.1 * torch.tensor(self.levels, dtype=torch.float64).view(-1, 1, 1)
        return obs[:, -1].view(1, -1, 1, 1, D) + spread * noise


def energy(obs: Tensor, action: Tensor, k: Tensor | None = None) -> Tensor:
    """Distance from the observation, in other units at each k."""
    unit = 1.0 if k is None else 1.0 + 2.0 * k
    return (action[:, 0] - obs[:, -1]).square().sum(-1) * unit


N = 12
OBS = normal(N, 1, D)
CHAIN = OBS.view(N, 1, 1, D) + 0.3 * normal(N, len(LEVELS), 1, D, seed=1)
ENV = normal(N, seed=2)


def reward(energy=energy, **options) -> Tensor:
    return EnergyReward(energy, Prior(), **options)(ENV, OBS, CHAIN, LEVELS)[1]


def residual(row: int, entry: int, num_chains: int) -> float:
    """Energy of an executed entry less the median of the prior's, for one decision."""
    k = LEVELS[entry]
    index = torch.tensor([k])
    of_prior = chain_energies(energy, Prior(), OBS, [k], num_chains)[:, row, 0]
    mine = energy(OBS[row : row + 1], CHAIN[row : row + 1, entry], index)
    return float(mine - of_prior.quantile(0.5))


@pytest.mark.parametrize("num_chains", [1, 8, 9])
def test_rewards_are_energies_below_the_priors_median_by_a_loop_over_decisions(num_chains):
    clean = reward(scale=3.0, clip=None, num_chains=num_chains)
    dense = reward(scale=3.0, clip=None, num_chains=num_chains, mode="dense", gamma_denoising=0.9)
    for row in range(N):
        assert float(clean[row]) == pytest.approx(-3.0 * residual(row, 2, num_chains))
        total = sum(0.9**k * residual(row, entry, num_chains) for entry, k in enumerate(LEVELS))
        assert float(dense[row]) == pytest.approx(-3.0 * total)


@pytest.mark.parametrize("mode", ["k0", "dense"])
def test_a_part_of_the_energy_that_is_the_same_for_all_actions_of_a_state_is_taken_out(mode):
    own = lambda obs, action, k=None: energy(obs, action, k) + 50.0 * torch.sin(3.0 * obs[:, -1, 0])  # noqa: E731
    torch.testing.assert_close(reward(own, mode=mode), reward(mode=mode), rtol=0.0, atol=1e-10)
    # Without the baseline it would be most of the reward.
    assert float((own(OBS, CHAIN[:, -1]) - energy(OBS, CHAIN[:, -1])).abs().max()) > 10.0


@pytest.mark.parametrize("mode", ["k0", "dense"])
def test_better_actions_are_rewarded_more_and_the_scale_counts_in_every_mode(mode):
    better = OBS.view(N, 1, 1, D) + 0.1 * (CHAIN - OBS.view(N, 1, 1, D))
    ours = EnergyReward(energy, Prior(), mode=mode, clip=None)
    assert bool((ours(ENV, OBS, better, LEVELS)[1] > ours(ENV, OBS, CHAIN, LEVELS)[1]).all())
    torch.testing.assert_close(reward(mode=mode, scale=100.0), 100.0 * reward(mode=mode))


def test_the_scaler_measures_the_spread_of_the_residuals_so_that_units_do_not_matter():
    generator = torch.Generator().manual_seed(7)
    obs = torch.randn(3000, 1, D, generator=generator, dtype=torch.float64)
    chain = obs.view(-1, 1, 1, D) + 0.3 * torch.randn(3000, 3, 1, D, generator=generator, dtype=torch.float64)
    made = {}
    for unit in (1.0, 40.0):
        scaler = EnergyScalerPerK(K)
        scaled = lambda *args, unit=unit: unit * energy(*args)  # noqa: E731
        ours = EnergyReward(scaled, Prior(), mode="dense", scaler=scaler, clip=None)
        made[unit] = ours.advantages(obs, chain, LEVELS)
        spread = 1.4826 * (made[unit] - made[unit].quantile(0.5, 0)).abs().quantile(0.5, 0)
        torch.testing.assert_close(spread, torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0.0)
        assert [scaler.get_stats(k)["count"] for k in range(K + 1)] == [3000, 3000, 3000, 0, 0]
        scaler.freeze()
        ours(ENV, OBS, CHAIN, LEVELS)
        assert scaler.get_stats(0)["count"] == 3000
    torch.testing.assert_close(made[1.0], made[40.0], rtol=1e-6, atol=1e-9)


def test_advantages_are_cut_and_mixed_with_the_tasks_reward():
    free, cut = (EnergyReward(energy, Prior(), clip=clip).advantages(OBS, CHAIN, LEVELS)[:, 0] for clip in (None, 0.05))
    assert float(free.abs().max()) > 0.06
    torch.testing.assert_close(cut, free.clamp(-0.05, 0.05))
    for weight in (0.0, 0.3, 1.0):
        mixed, alone = EnergyReward(energy, Prior(), env_weight=weight)(ENV, OBS, CHAIN, LEVELS)
        torch.testing.assert_close(mixed, weight * ENV + (1.0 - weight) * alone)


def test_settings_and_chains_that_make_no_reward_are_refused():
    for options, message in (
        (dict(mode="k1"), r"mode must be one of \('k0', 'dense'\), got 'k1'"),
        (dict(num_chains=0), "num_chains must be at least 1"),
        (dict(env_weight=1.5), "env_weight from 0 to 1"),
        (dict(scaler=EnergyScalerPerK(7)), "the scaler is of K = 7, the prior of K = 4"),
    ):
        with pytest.raises(ValueError, match=message):
            reward(**options)
    for chain, levels in ((CHAIN, (1, 0)), (CHAIN[:5], LEVELS), (CHAIN, (0, 1, 2))):
        with pytest.raises(ValueError, match="one index an entry and 0 the last"):
            EnergyReward(energy, Prior())(ENV, OBS, chain, levels)
    with pytest.raises(ValueError, match="no entry of the chain holds denoising index 9"):
        EnergyReward(energy, Prior(), mode="dense")(ENV, OBS, CHAIN, (9, 1, 0))
    broken = lambda obs, action, k=None: torch.where(obs[:, 0, 0] == OBS[3, 0, 0], math.nan, 1.0)  # noqa: E731
    with pytest.raises(ValueError, match="decision 3 at k = 0 is nan"):
        reward(broken)
