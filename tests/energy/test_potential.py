"""Free energies against Gaussian algebra, their limits and identities, and what makes one a potential."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.diffusion.denoising import ddim_plan, ddpm_plan
from ding_ebm.diffusion.oracles import GaussianMixture, tilt_quadratic
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.energy.potential import (
    KFreePotential,
    build_k_use_indices,
    chain_energies,
    gaussian_quadratic_free_energy,
    k_weights,
    level_energies,
)
from ding_ebm.energy.scaler import EnergyScalerPerK
from ding_ebm.model.chains import DiffusionPrior
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.energy_model import EnergyMLP

K, D = 4, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
MINIMUM = torch.tensor([-0.1, 0.4, 0.2], dtype=torch.float64)
ROOT = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.1, 0.1, 0.3]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T
CURVATURE = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 1.5]], dtype=torch.float64)
OFFSET = 0.7


def quadratic(obs: Tensor, action: Tensor, k: Tensor | None = None) -> Tensor:
    """(a - m)' A (a - m) / 2 + e, at every k."""
    away = action[:, 0] - MINIMUM
    return OFFSET + 0.5 * ((away @ CURVATURE) * away).sum(-1)


class GaussianPrior:
    """Actions N(obs, S) at every k, or obs itself where it is deterministic."""

    levels, num_steps = tuple(range(K, -1, -1)), K

    def sample_chains(self, obs: Tensor, num: int, deterministic: bool, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, 1, K + 1, 1, D, generator=generator, dtype=torch.float64) * (not deterministic)
        return obs[:, -1].view(1, -1, 1, 1, D) + noise @ ROOT.T


def states(count: int, seed: int = 0) -> Tensor:
    return (MEAN + 0.5 * normal(count, D, seed=seed)).unsqueeze(1)


def potential(energy=quadratic, **options) -> KFreePotential:
    options = {"k_use_mode": [0], "use_mu_only": False, "M": 8, **options}
    return KFreePotential(energy, GaussianPrior(), **options)


def closed_form(beta: float, mean: Tensor = MEAN) -> Tensor:
    return gaussian_quadratic_free_energy(mean, COVARIANCE, CURVATURE, MINIMUM, OFFSET, beta)


# The closed form.


@pytest.mark.parametrize("beta", [0.01, 1.0, 20.0])
def test_the_closed_form_is_the_log_partition_of_the_tilted_gaussian(beta):
    law = GaussianMixture(torch.zeros(1), MEAN.unsqueeze(0), COVARIANCE.unsqueeze(0))
    constant = OFFSET + 0.5 * float(MINIMUM @ CURVATURE @ MINIMUM)
    _, log_z = tilt_quadratic(law, CURVATURE, -CURVATURE @ MINIMUM, constant, beta)
    assert float(closed_form(beta)) == pytest.approx(float(log_z) / beta, rel=1e-10)


def test_the_closed_form_has_its_limits_and_rows():
    mean_energy = OFFSET + 0.5 * float((COVARIANCE @ CURVATURE).trace()) + 0.5 * float(
        (MEAN - MINIMUM) @ CURVATURE @ (MEAN - MINIMUM)
    )  # fmt: skip
    assert float(closed_form(0.0)) == pytest.approx(-mean_energy, rel=1e-12)
    assert float(closed_form(1e-6)) == pytest.approx(-mean_energy, rel=1e-5)
    assert float(closed_form(1e7)) == pytest.approx(-OFFSET, abs=1e-5)
    at_mean = -float(quadratic(MEAN, MEAN.view(1, 1, D)))
    no_spread = torch.zeros(D, D, dtype=torch.float64)
    for beta in (0.0, 1.0, 7.0):
        of_point = gaussian_quadratic_free_energy(MEAN, no_spread, CURVATURE, MINIMUM, OFFSET, beta)
        assert float(of_point) == pytest.approx(at_mean, rel=1e-12)
    means = states(4)[:, 0]
    together = closed_form(2.0, means)
    torch.testing.assert_close(together, torch.stack([closed_form(2.0, row) for row in means]))


# Sampling.


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0])
def test_many_chains_give_the_closed_form(beta):
    phi = potential(beta=beta, M=200_000)(MEAN.view(1, 1, D))
    assert float(phi - closed_form(beta)) == pytest.approx(0.0, abs=5e-3)


def test_few_chains_are_biased_low_the_less_the_more_there_are():
    for beta in (1.0, 5.0):
        means = []
        for m in (1, 4, 16, 64):
            phi = [float(potential(beta=beta, M=m, seed=seed)(MEAN.view(1, 1, D))) for seed in range(300)]
            means.append(sum(phi) / len(phi))
        assert means == sorted(means) and means[-1] < float(closed_form(beta)) + 0.01
        assert means[0] < float(closed_form(beta)) - 0.1


def test_the_free_energy_grows_with_beta_from_the_mean_to_the_best():
    obs = states(6)
    energies = chain_energies(quadratic, GaussianPrior(), obs, [0], 8)[..., 0]
    phi = torch.stack([potential(beta=beta)(obs) for beta in (1e-4, 0.1, 1.0, 10.0, 1e4)])
    assert bool((phi.diff(dim=0) > 0.0).all())
    torch.testing.assert_close(phi[0], -energies.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(phi[-1], -energies.min(0).values, rtol=1e-3, atol=1e-3)
    assert bool((phi[0] > -energies.mean(0)).all() and (phi[-1] < -energies.min(0).values).all())


def test_it_is_the_soft_value_of_choosing_among_the_chains():
    """Donsker and Varadhan: max over laws p of E_p[-E] - KL(p || q) / beta, met at p ~ q exp(-beta E)."""
    beta = 3.0
    energies = chain_energies(quadratic, GaussianPrior(), states(5), [0], 8)[..., 0]
    phi = potential(beta=beta)(states(5))

    def value(p: Tensor) -> Tensor:
        return (p * (-energies - (8 * p).log() / beta)).sum(0)

    torch.testing.assert_close(value(torch.softmax(-beta * energies, 0)), phi, rtol=1e-12, atol=1e-12)
    for seed in range(20):
        assert bool((value(torch.softmax(normal(8, 5, seed=seed), 0)) < phi).all())


# Several noise levels.


def by_level(obs: Tensor, action: Tensor, k: Tensor) -> Tensor:
    return quadratic(obs, action, k) * (1.0 + k) + 0.3 * k


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_weighted_aggregate_is_the_weighted_sum_and_path_the_free_energy_of_the_mixture(beta):
    obs, eta = states(5), 0.4
    options = dict(energy=by_level, beta=beta, alpha=1.7, eta=eta, k_use_mode="all")
    energies = chain_energies(by_level, GaussianPrior(), obs, range(K + 1), 8)
    w = torch.tensor([math.exp(-eta * k) for k in range(K + 1)], dtype=torch.float64)
    w /= w.sum()
    weighted = ((-beta * energies).exp().mean(0).log() / beta) @ w
    path = ((-beta * energies).exp().mean(0) @ w).log() / beta
    torch.testing.assert_close(potential(**options)(obs), 1.7 * weighted)
    torch.testing.assert_close(potential(**options, aggregate="path")(obs), 1.7 * path)
    assert bool((path > weighted + 1e-3).all())
    torch.testing.assert_close(potential(**options).phi_k(obs) @ w * 1.7, 1.7 * weighted)


def test_path_is_weighted_where_all_levels_agree():
    class Same(GaussianPrior):
        def sample_chains(self, *args) -> Tensor:
            chains = super().sample_chains(*args)
            return chains[:, :, -1:].expand_as(chains)

    same, differing = (
        [KFreePotential(quadratic, prior, M=8, use_mu_only=False, k_use_mode="all", beta=3.0, aggregate=a)(states(5))
         for a in ("path", "weighted")]
        for prior in (Same(), GaussianPrior())
    )  # fmt: skip
    torch.testing.assert_close(same[0], same[1], rtol=1e-12, atol=1e-12)
    assert float((differing[0] - differing[1]).min()) > 1e-3


def test_an_energys_offset_at_a_level_shifts_the_weighted_potential_by_a_constant_and_reweights_path():
    obs, shift = states(5), torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    moved = lambda obs, action, k=None: by_level(obs, action, k) + shift[k]  # noqa: E731
    change = {}
    for aggregate in ("weighted", "path"):
        before, after = (
            potential(energy, k_use_mode="all", aggregate=aggregate, beta=2.0)(obs) for energy in (by_level, moved)
        )
        change[aggregate] = after - before
    expected = -float(k_weights(range(K + 1), 0.3) @ shift)
    torch.testing.assert_close(change["weighted"], torch.full((5,), expected, dtype=torch.float64))
    assert float(change["path"].std()) > 0.005 and float(change["path"].abs().max()) < 0.1 * abs(expected)


@pytest.mark.parametrize("aggregate", ["weighted", "path"])
@pytest.mark.parametrize("k_use_mode", [[0], "tail:3", "all"])
def test_a_constant_energy_gives_minus_itself_exactly(aggregate, k_use_mode):
    constant = lambda obs, action, k=None: torch.full((len(obs),), 2.5, dtype=torch.float64)  # noqa: E731
    for options in (dict(M=1), dict(M=7), dict(M=1, use_mu_only=True)):
        phi = potential(constant, aggregate=aggregate, k_use_mode=k_use_mode, alpha=0.3, beta=2.0, **options)
        torch.testing.assert_close(phi(states(3)), torch.full((3,), -0.75, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_large_energies_stay_finite():
    for size in (1e4, -1e4):
        large = lambda obs, action, k=None, size=size: size + quadratic(obs, action, k)  # noqa: E731
        torch.testing.assert_close(potential(large)(states(3)) + size, potential()(states(3)), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_chain_of_means_gives_minus_its_energy_whatever_beta_is(beta):
    obs = states(5)
    phi = potential(beta=beta, M=1, use_mu_only=True, alpha=0.6)(obs)
    torch.testing.assert_close(phi, -0.6 * quadratic(obs, obs))
    # One random chain is another thing.
    assert float((potential(beta=beta, M=1, alpha=0.6)(obs) - phi).abs().min()) > 1e-3


# A function of the observation.


def learned(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> nn.Module:
    """An energy of histories (B, 2, 3) and chunks (B, 4, 2), and of k."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(15, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 1))

        def forward(self, obs: Tensor, action: Tensor, k: Tensor) -> Tensor:
            return self.net(torch.cat([obs.flatten(1), action.flatten(1), k.unsqueeze(1).to(obs)], 1)).squeeze(-1)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().to(dtype)


def policy(plan=None, dtype: torch.dtype = torch.float64) -> DiffusionPrior:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = DiffusionMLP(3, 2, 2, 4, mlp_dims=(32, 32, 32)).to(dtype)
    return DiffusionPrior(network, ddpm_plan(CosineSchedule(8)) if plan is None else plan, 8, (4, 2))


OPTIONS = {
    "mean": dict(k_use_mode="last_half"),
    "chains": dict(k_use_mode="last_half", use_mu_only=False, M=5, beta=2.0),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_phi_is_one_number_of_an_observation_in_every_call_batch_and_piece(name):
    obs, net = normal(9, 2, 3), learned()
    phi = KFreePotential(net, policy(), **OPTIONS[name])
    together = phi(obs)
    assert torch.equal(phi(obs), together) and float(together.std()) > 1e-3
    close = dict(rtol=1e-10, atol=1e-12)
    for row in range(9):
        torch.testing.assert_close(phi(obs[row : row + 1])[0], together[row], **close)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(phi(obs[order]), together[order], **close)
    for max_rows in (1, 7, 100):
        small = KFreePotential(net, policy(), max_rows=max_rows, **OPTIONS[name])
        torch.testing.assert_close(small(obs), together, **close)
    single = KFreePotential(learned(torch.float32), policy(dtype=torch.float32), **OPTIONS[name])
    torch.testing.assert_close(single(obs.float()), together.float(), rtol=1e-3, atol=1e-4)
    other = KFreePotential(net, policy(), seed=1, **OPTIONS[name])(obs)
    assert (float((other - together).abs().max()) > 1e-3) == (name == "chains")


def test_noise_of_ones_own_for_each_row_is_seen():
    class Careless(GaussianPrior):
        def sample_chains(self, obs: Tensor, num: int, deterministic: bool, generator: torch.Generator) -> Tensor:
            noise = torch.randn(num, len(obs), K + 1, 1, D, generator=generator, dtype=torch.float64)
            return obs[:, -1].view(1, -1, 1, 1, D) + noise @ ROOT.T

    phi = KFreePotential(quadratic, Careless(), M=8, use_mu_only=False, k_use_mode=[0])
    obs = states(4)
    alone = torch.cat([phi(row.unsqueeze(0)) for row in obs])
    assert float((phi(obs) - alone).abs().max()) > 1e-3


def test_the_energy_is_asked_for_few_rows_at_once():
    asked = []

    def counting(obs: Tensor, action: Tensor, k: Tensor) -> Tensor:
        asked.append(len(obs))
        return quadratic(obs, action, k)

    potential(counting, M=6, k_use_mode="tail:2", max_rows=30)(states(11))
    assert max(asked) <= 30 and sum(asked) == 11 * 6 * 2


def test_an_energy_with_dropout_is_evaluated_without_it_and_left_as_it_was():
    net = learned(dropout=0.5)
    net.net[1].eval()
    obs = normal(5, 2, 3)
    phi = KFreePotential(net, policy(), k_use_mode="tail:2")
    assert torch.equal(phi(obs), phi(obs))
    assert [part.training for part in net.modules()] == [True, True, True, False, True, True]
    torch.testing.assert_close(phi(obs), KFreePotential(net.eval(), policy(), k_use_mode="tail:2")(obs))


def test_no_gradients_are_kept():
    net = learned()
    assert not KFreePotential(net, policy())(normal(2, 2, 3).requires_grad_()).requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_energies_are_those_of_the_entry_that_holds_the_index():
    seen = {}

    def looking(obs: Tensor, action: Tensor, k: Tensor) -> Tensor:
        seen.update({int(index): action[k == index] for index in k.unique()})
        return action.sum((1, 2))

    of, obs = policy(), normal(3, 2, 3)
    chain_energies(looking, of, obs, [0, 3, 8], 2, seed=5)
    chains = of.sample_chains(obs, 2, False, torch.Generator().manual_seed(5)).transpose(0, 1).flatten(0, 1)
    for k, entry in ((0, 8), (3, 5), (8, 0)):
        assert torch.equal(seen[k], chains[:, entry])


@pytest.mark.parametrize("num_steps", [None, 8])
def test_the_packages_networks_serve_as_energies(num_steps):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = EnergyMLP(3, 2, 2, 4, hidden=(32, 32), num_steps=num_steps).double()
    plain = lambda *args: net(*args)  # noqa: E731
    modes = [[0]] if num_steps is None else [[0], "last_half"]
    for mode in modes:
        options = dict(k_use_mode=mode, use_mu_only=False, M=3, max_rows=20)
        phi = KFreePotential(net, policy(), **options)(normal(6, 2, 3))
        torch.testing.assert_close(phi, KFreePotential(plain, policy(), **options)(normal(6, 2, 3)))
        assert float(phi.std()) > 1e-4


def test_a_plan_that_skips_indices_serves_those_that_it_holds():
    plan = ddim_plan(CosineSchedule(8), 4)
    assert plan.levels == (7, 5, 3, 1, 0)
    phi = KFreePotential(learned(), policy(plan), k_use_mode=[0, 1, 3])
    per_level = phi.phi_k(normal(2, 2, 3))
    chain = policy(plan).sample_chains(normal(2, 2, 3), 1, True, torch.Generator())[0]
    expected = -level_energies(learned(), normal(2, 2, 3), chain[:, [4, 3, 2]], (0, 1, 3))
    torch.testing.assert_close(per_level, expected)
    with pytest.raises(ValueError, match=r"denoising index 2; its entries hold \(7, 5, 3, 1, 0\)"):
        KFreePotential(learned(), policy(plan), k_use_mode="tail:3")


def test_a_frozen_scaler_normalizes_the_energies_and_one_that_learns_is_refused():
    scaler = EnergyScalerPerK(K)
    energies = chain_energies(by_level, GaussianPrior(), states(200, seed=2), range(K + 1), 1)
    scaler.update(torch.arange(K + 1).expand(energies.shape), energies)
    phi = potential(by_level, scaler=scaler, k_use_mode="all", M=1)
    with pytest.raises(ValueError, match="scaler must be frozen"):
        phi(states(3))
    scaler.freeze()
    location, scale = scaler.statistics()
    normalized = lambda obs, action, k=None: (by_level(obs, action, k) - location[k]) / (scale[k] + 1e-6)  # noqa: E731
    torch.testing.assert_close(phi(states(3)), potential(normalized, k_use_mode="all", M=1)(states(3)))
    assert float((phi(states(3)) - potential(by_level, k_use_mode="all", M=1)(states(3))).abs().min()) > 0.1


# Settings.


def test_denoising_indices_are_the_clean_ones():
    assert build_k_use_indices("all", 4) == (0, 1, 2, 3, 4)
    assert build_k_use_indices("last_half", 20) == tuple(range(11)) and build_k_use_indices("last_half", 5) == (0, 1, 2)
    assert build_k_use_indices("tail:6", 20) == (0, 1, 2, 3, 4, 5) and build_k_use_indices([7, 2], 8) == (2, 7)
    weights = k_weights((0, 2, 3), 0.5)
    assert float(weights.sum()) == pytest.approx(1.0) and float(weights[0] / weights[1]) == pytest.approx(math.e)
    assert k_weights((1, 4), 0.0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("half", r"'all', 'last_half', 'tail:N' or a list of indices, got 'half'"),
        ("tail:", "'tail:N'"),
        ("tail:-1", "'tail:N'"),
        ("tail:0", "different indices from 0 to K = 4"),
        ("tail:6", "different indices from 0 to K = 4"),
        ([5], r"from 0 to K = 4, got \[5\]"),
        ([-1], "from 0 to K = 4"),
        ([1, 1], "different"),
        ([], "different"),
    ],
)
def test_other_modes_are_refused(mode, message):
    with pytest.raises(ValueError, match=message):
        build_k_use_indices(mode, 4)


def test_settings_and_energies_that_make_no_potential_are_refused():
    for options, message in (
        (dict(beta=0.0), "beta must be > 0"),
        (dict(M=0), "M must be at least 1"),
        (dict(M=2, use_mu_only=True), "one chain of means, got 2"),
        (dict(aggregate="max"), r"aggregate must be one of \('weighted', 'path'\), got 'max'"),
        (dict(scaler=EnergyScalerPerK(9)), "the scaler is of K = 9, the prior of K = 4"),
    ):
        with pytest.raises(ValueError, match=message):
            potential(**options)
    column = lambda obs, action, k=None: quadratic(obs, action, k).unsqueeze(1)  # noqa: E731
    with pytest.raises(ValueError, match=r"the energy must have the shape \(B,\) = \(24,\), got \(24, 1\)"):
        potential(column)(states(3))
    broken = lambda obs, action, k=None: torch.where(obs[:, 0, 0] == states(3)[1, 0, 0], math.nan, 1.0)  # noqa: E731
    with pytest.raises(ValueError, match="free energy of observation 1 at k = 0 is nan"):
        potential(broken)(states(3))

    class Short(GaussianPrior):
        def sample_chains(self, *args) -> Tensor:
            return super().sample_chains(*args)[:, :, 1:]

    with pytest.raises(
        ValueError, match=r"chains must be \(num, B, levels, Tp, Da\) = \(8, 3, 5, ...\), got \(8, 3, 4"
    ):
        KFreePotential(quadratic, Short(), M=8, use_mu_only=False, k_use_mode=[0])(states(3))
    with pytest.raises(ValueError, match=r"B = 3 and N a multiple of 2, got \(3, 1, 1, 3\)"):
        level_energies(quadratic, states(3), normal(3, 1, 1, D), (0, 1))
