"""What energies become by training, against the closed form on a Gaussian expert.

s ~ N(0, I), a = W s + 0.5 eps, W W^T = 1.25 I, so p(a) = N(0, 1.5 I) and I(s; a) = log 6. In-batch negatives make
E / tau = |a - W s|^2 / (2 * 0.25) - |a|^2 / (2 * 1.5) + c(s), whose minimum is 1.2 W s; uniform negatives leave out the
second term, score matching widens the first.

Letters: B batch, M negatives.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ding_ebm.energy import negatives
from ding_ebm.energy.losses import dsm_loss, info_nce, info_nce_negatives
from ding_ebm.model.energy_model import EnergyMLP

W = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])
VARIANCE, MARGINAL = 0.25, 1.5  # of a given s, and of a
OVERSHOOT = MARGINAL / (MARGINAL - VARIANCE)
NOISE = 0.25
BOX = 4.0


def draw(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Observations (num, 1, 2) and the expert's actions (num, 1, 2)."""
    obs = torch.randn(num, 1, 2, generator=generator)
    return obs, obs @ W.T + VARIANCE**0.5 * torch.randn(num, 1, 2, generator=generator)


def exact(obs: Tensor, action: Tensor, kind: str) -> Tensor:
    """E / tau up to c(s) at what a loss is minimal, (B,)."""
    variance = VARIANCE + NOISE**2 if kind == "dsm" else VARIANCE
    energy = (action - obs @ W.T).square().flatten(1).sum(1) / (2.0 * variance)
    return energy if kind in ("uniform", "dsm") else energy - action.square().flatten(1).sum(1) / (2.0 * MARGINAL)


def train(
    kind: str, tau: float = 0.5, seed: int = 0, steps: int = 300, batch: int = 64, num_data: int | None = None
) -> EnergyMLP:
    """A small MLP on fresh data, or on ``num_data`` pairs; the same one for the same arguments."""
    return _train(kind, tau, seed, steps, batch, num_data)


@functools.cache
def _train(kind: str, tau: float, seed: int, steps: int, batch: int, num_data: int | None) -> EnergyMLP:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = EnergyMLP(2, 2, 1, 1, hidden=(64, 64, 64))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    data = None if num_data is None else draw(num_data, generator)
    for _ in range(steps):
        if data is None:
            obs, action = draw(batch, generator)
        else:
            rows = torch.randint(len(data[0]), (batch,), generator=generator)
            obs, action = data[0][rows], data[1][rows]
        if kind == "dsm":
            loss = dsm_loss(net, obs, action, NOISE, generator, temperature=tau)
        elif kind == "uniform":
            others = negatives.uniform(action, 64, -BOX, BOX, generator)
            loss = info_nce_negatives(net(obs, action), net.candidate_energy(obs, others), tau)
        else:
            loss = info_nce(net.pair_energy(obs, action), tau, kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return net.requires_grad_(False)


class Fit(NamedTuple):
    slope: float  # of the energy on the exact one, both less their mean over a state's actions
    r2: float
    rmse: float  # nats
    offset: float  # standard deviation over states of c(s), nats


def fit(net: EnergyMLP, kind: str, tau: float = 0.5) -> Fit:
    """Compare an energy with the exact one where the expert or the marginal puts actions."""
    generator = torch.Generator().manual_seed(99)
    obs, own = draw(200, generator)
    candidates = own[:, None].expand(-1, 40, -1, -1).clone()
    candidates[:, :20] = (obs @ W.T)[:, None] + VARIANCE**0.5 * torch.randn(200, 20, 1, 2, generator=generator)
    candidates[:, 20:] = MARGINAL**0.5 * torch.randn(200, 20, 1, 2, generator=generator)
    found = net.candidate_energy(obs, candidates) / tau
    flat = candidates.flatten(0, 1)
    repeated = obs.repeat_interleave(40, dim=0)
    wanted = exact(repeated, flat, kind).view(200, 40)
    likely = -exact(repeated, flat, "uniform").view(200, 40) - math.log(2.0 * math.pi * VARIANCE) > -12.0

    def centred(x: Tensor) -> Tensor:
        mean = (x * likely).sum(1, keepdim=True) / likely.sum(1, keepdim=True)
        return (x - mean)[likely]

    x, y = centred(wanted), centred(found)
    offset = ((found - wanted) * likely).sum(1) / likely.sum(1)
    return Fit(
        slope=float((x * y).sum() / x.square().sum()),
        r2=float((x * y).sum() ** 2 / (x.square().sum() * y.square().sum())),
        rmse=float((x - y).square().mean().sqrt()),
        offset=float(offset.std()),
    )


def minimizer_ratio(energy, step: float = 0.1, iterations: int = 150) -> float:
    """<a, W s> / <W s, W s> of the actions that descent of E(s, a) from W s ends at."""
    obs, _ = draw(256, torch.Generator().manual_seed(98))
    mean = obs @ W.T
    action = mean.clone()
    for _ in range(iterations):
        action.requires_grad_()
        (grad,) = torch.autograd.grad(energy(obs, action).sum(), action)
        action = (action - step * grad).detach()
    return float((action * mean).sum() / mean.square().sum())


def losses_at_128(net: EnergyMLP, tau: float = 0.5) -> tuple[float, float]:
    """Row losses of batches of 128, of the network and of the exact energy."""
    generator = torch.Generator().manual_seed(97)
    ours, oracles = [], []
    for _ in range(60):
        obs, action = draw(128, generator)
        ours.append(info_nce(net.pair_energy(obs, action), tau, "row"))
        pairs = exact(obs.repeat_interleave(128, dim=0), action.repeat(128, 1, 1), "row").view(128, 128)
        oracles.append(info_nce(pairs, 1.0, "row"))
    return float(torch.stack(ours).mean()), float(torch.stack(oracles).mean())


def check_in_batch(kind: str, tau: float = 0.5, seed: int = 0) -> None:
    net = train(kind, tau, seed)
    found = fit(net, kind, tau)
    assert 0.85 <= found.slope <= 1.10 and found.r2 >= 0.97 and found.rmse < 0.45
    assert minimizer_ratio(net, 0.05 / tau) == pytest.approx(OVERSHOOT, abs=0.05)


@pytest.mark.parametrize("kind", ["row", "symmetric"])
def test_in_batch_negatives_make_the_mutual_information_whose_minimum_overshoots(kind):
    check_in_batch(kind)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["row", "symmetric"])
def test_they_do_from_every_seed(kind, seed):
    check_in_batch(kind, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_the_temperature_is_a_unit_of_the_energy(tau):
    check_in_batch("row", tau)


def test_uniform_negatives_make_the_density_whose_minimum_is_the_expert():
    net = train("uniform")
    found = fit(net, "uniform")
    assert 0.85 <= found.slope <= 1.10 and found.r2 >= 0.97 and found.rmse < 0.45
    assert minimizer_ratio(net) == pytest.approx(1.0, abs=0.04)
    assert fit(net, "row").r2 < found.r2  # and not the mutual information


def test_a_row_energy_less_the_marginal_has_its_minimum_at_the_expert():
    net = train("row")
    _, action = draw(4096, torch.Generator().manual_seed(5))
    mean, variance = action.mean(dim=0), action.var(dim=0)
    corrected = minimizer_ratio(
        lambda obs, action: net(obs, action) + 0.5 * ((action - mean).square() / (2.0 * variance)).flatten(1).sum(1)
    )
    assert corrected == pytest.approx(1.0, abs=0.04)


def test_the_loss_of_a_trained_energy_is_the_exact_ones():
    ours, oracle = losses_at_128(train("row"))
    assert oracle == pytest.approx(3.119, abs=0.05)
    assert -0.03 <= ours - oracle < 0.03
    assert ours >= math.log(128) - math.log(6.0) - 0.05  # log B - I(s; a)


def test_only_the_symmetric_loss_gives_all_states_one_level():
    assert fit(train("symmetric"), "symmetric").offset < 0.4
    assert fit(train("row"), "row").offset > 1.0


@pytest.mark.slow
def test_the_column_loss_leaves_the_level_of_an_action_open():
    assert fit(train("column"), "column").r2 < 0.9


def test_a_small_batch_changes_the_noise_and_not_the_optimum():
    found = fit(train("row", batch=16), "row")
    assert found.r2 > 0.95 and 0.8 <= found.slope <= 1.10


def test_pairs_may_change_places_together_and_not_apart():
    net = train("symmetric")
    generator = torch.Generator().manual_seed(3)
    obs, action = draw(128, generator)
    loss = info_nce(net.pair_energy(obs, action))
    order = torch.randperm(128, generator=generator)
    torch.testing.assert_close(info_nce(net.pair_energy(obs[order], action[order])), loss, rtol=1e-5, atol=1e-5)
    assert info_nce(net.pair_energy(obs, action[order])) >= math.log(128) - 0.05 > loss + 1.0


def check_score_matching(steps: int, slope: float, r2: float) -> None:
    net = train("dsm", 1.0, steps=steps)
    found = fit(net, "dsm", 1.0)
    assert found.slope == pytest.approx(1.0, abs=slope) and found.r2 > r2
    assert minimizer_ratio(net) == pytest.approx(1.0, abs=0.04)


def test_score_matching_makes_the_density_of_noised_actions():
    check_score_matching(300, 0.08, 0.98)


@pytest.mark.slow
def test_score_matching_that_is_trained_longer_is_nearer():
    check_score_matching(600, 0.05, 0.98)
    generator = torch.Generator().manual_seed(6)
    net = train("dsm", 1.0, steps=600)
    obs, action = draw(4096, generator)
    noised = (action + NOISE * torch.randn(action.shape, generator=generator)).requires_grad_()
    (grad,) = torch.autograd.grad(net(obs, noised).sum(), noised)
    wanted = (noised - obs @ W.T).detach() / (VARIANCE + NOISE**2)
    assert float((grad * wanted).sum() / wanted.square().sum()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("num_data", "r2"), [(512, 0.95), (4096, 0.98)])
def test_finite_data(num_data, r2):
    assert fit(train("row", steps=1000, num_data=num_data), "row").r2 > r2
