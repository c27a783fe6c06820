"""The losses against loops, identities and closed forms. Letters: B batch, M negatives of a row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ding_ebm.energy.losses import (
    dsm_loss,
    energy_metrics,
    gradient_penalty,
    info_nce,
    info_nce_negatives,
    off_diagonal,
)
from ding_ebm.model.energy_model import EnergyMLP

KINDS = ["row", "column", "symmetric"]


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# In-batch negatives.


def row_loss(energies: Tensor, tau: float, dropped: Tensor | None = None) -> float:
    """A loop over rows and what competes in each."""
    total = 0.0
    for i in range(len(energies)):
        kept = [j for j in range(len(energies)) if j == i or dropped is None or not dropped[i, j]]
        total -= -energies[i, i].item() / tau - math.log(sum(math.exp(-energies[i, j].item() / tau) for j in kept))
    return total / len(energies)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_the_contrastive_loss_is_the_loop_over_rows_or_columns(tau):
    energies = random(5, 5)
    row, column = row_loss(energies, tau), row_loss(energies.T, tau)
    assert info_nce(energies, tau, "row").item() == pytest.approx(row, abs=1e-12)
    assert info_nce(energies, tau, "column").item() == pytest.approx(column, abs=1e-12)
    assert info_nce(energies, tau, "symmetric").item() == pytest.approx((row + column) / 2.0, abs=1e-12)
    assert info_nce(energies, tau).item() == info_nce(energies, tau, "symmetric").item()
    assert abs(row - column) > 0.001


def test_a_batch_is_its_own_negatives():
    energies = random(5, 5)
    apart = info_nce_negatives(energies.diagonal(), off_diagonal(energies), 0.3)
    torch.testing.assert_close(info_nce(energies, 0.3, "row"), apart, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_energy_that_knows_nothing_loses_log_b(kind):
    assert info_nce(torch.full((64, 64), 3.0), kind=kind).item() == pytest.approx(math.log(64), abs=1e-5)
    assert info_nce_negatives(torch.zeros(8), torch.zeros(8, 15)).item() == pytest.approx(math.log(16), abs=1e-5)


def test_each_direction_ignores_the_levels_that_it_cannot_see():
    energies, level = random(6, 6), random(6, 1, seed=2)
    row, column = (info_nce(energies, kind=kind) for kind in ("row", "column"))
    torch.testing.assert_close(info_nce(energies + level, kind="row"), row, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(info_nce(energies + level.T, kind="column"), column, rtol=1e-12, atol=0.0)
    assert abs(info_nce(energies + level, kind="column") - column) > 0.01
    assert abs(info_nce(energies + level.T, kind="row") - row) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_low_energy_of_the_datas_pairs_is_what_the_loss_asks_for(kind):
    energies = random(6, 6).requires_grad_()
    (grad,) = torch.autograd.grad(info_nce(energies, kind=kind), energies)
    assert (grad.diagonal() > 0.0).all() and (off_diagonal(grad) < 0.0).all()
    torch.testing.assert_close(grad.sum(), torch.zeros((), dtype=grad.dtype), rtol=0.0, atol=1e-12)


def test_false_negatives_do_not_compete():
    energies = random(6, 6)
    episode = torch.tensor([0, 0, 1, 1, 1, 2])
    same = episode[:, None] == episode  # the diagonal, too, which is not read
    for kind, matrix in (("row", energies), ("column", energies.T)):
        assert info_nce(energies, 0.7, kind, same).item() == pytest.approx(row_loss(matrix, 0.7, same), abs=1e-12)
    assert info_nce(energies, 0.7, "row", same) < info_nce(energies, 0.7, "row")


def test_a_row_without_negatives_costs_nothing_and_has_a_gradient():
    energies = random(4, 4).requires_grad_()
    loss = info_nce(energies, false_negatives=torch.ones(4, 4, dtype=torch.bool))
    (grad,) = torch.autograd.grad(loss, energies)
    assert loss == 0.0 and not grad.any()


@pytest.mark.parametrize("batch", [8, 25, 64])
def test_a_bounded_energy_has_the_documented_floor(batch):
    tau, low, high = 0.5, 0.1, 2.1
    floor = math.log1p((batch - 1) * math.exp(-(high - low) / tau))
    best = high - (high - low) * torch.eye(batch, dtype=torch.float64)
    assert info_nce(best, tau).item() == pytest.approx(floor, abs=1e-12)
    for seed in range(20):
        energies = low + (high - low) * torch.sigmoid(5.0 * random(batch, batch, seed=seed))
        assert info_nce(energies, tau) >= floor - 1e-6


def test_energies_of_any_size_give_finite_losses():
    energies = 1e4 * random(5, 5)
    assert info_nce(energies, 0.1).isfinite()
    assert info_nce_negatives(energies[:, 0], energies[:, 1:], 0.1).isfinite()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(torch.zeros(3, 4)), r"\(B, B\) with B >= 2, got \(3, 4\)"),
        (lambda: info_nce(torch.zeros(1, 1)), r"B >= 2, got \(1, 1\)"),
        (lambda: info_nce(torch.zeros(3, 3), 0.0), "temperature must be positive, got 0.0"),
        (lambda: info_nce(torch.zeros(3, 3), kind="both"), "row.*column.*symmetric.*'both'"),
        (lambda: info_nce(torch.zeros(3, 3), false_negatives=torch.zeros(3, 3)), "bool.*got torch.float32"),
        (lambda: info_nce_negatives(torch.zeros(3, 1), torch.zeros(3, 4)), r"\(3, 1\) and \(3, 4\)"),
        (lambda: info_nce_negatives(torch.zeros(3), torch.zeros(3, 0)), "M >= 1"),
        (lambda: dsm_loss(square, *batch_of(4), torch.tensor([0.1, 0.2]), torch.Generator()), r"\(B,\) = \(4,\)"),
        (lambda: dsm_loss(square, *batch_of(4), 0.0, torch.Generator()), "sigma must be positive"),
    ],
)
def test_what_makes_no_loss_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Score matching.


def batch_of(num: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return random(num, 1, 5, dtype=dtype), random(num, 2, 3, seed=2, dtype=dtype)


def square(obs: Tensor, action: Tensor) -> Tensor:
    return 0.5 * action.square().flatten(1).sum(1)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_score_matching_has_its_minimum_at_the_noised_density_and_nowhere_else(scale, generator):
    # The energy c x^2 / 2 (v + sigma^2) of x = a + sigma eps, a ~ N(0, v), costs 1 - (2c - c^2) sigma^2 / (v + sigma^2)
    variance, sigma, tau = 0.36, 0.8, 3.0
    action = variance**0.5 * torch.randn(40_000, 2, 3, generator=generator, dtype=torch.float64)
    factor = scale * tau / (variance + sigma**2)
    loss = dsm_loss(lambda obs, x: factor * square(obs, x), action[:, :, :1], action, sigma, generator, tau)
    wanted = 1.0 - (2.0 * scale - scale**2) * sigma**2 / (variance + sigma**2)
    assert loss.item() == pytest.approx(wanted, abs=0.02)


def test_each_row_may_have_its_own_noise():
    obs, action = batch_of(6)
    sigma = torch.linspace(0.1, 2.0, 6, dtype=torch.float64)
    loss = dsm_loss(square, obs, action, sigma, torch.Generator().manual_seed(7))
    noise = torch.randn(action.shape, dtype=action.dtype, generator=torch.Generator().manual_seed(7))
    total = sum(
        float((sigma[i] * (action[i, h, d] + sigma[i] * noise[i, h, d]) - noise[i, h, d]) ** 2)
        for i in range(6)
        for h in range(2)
        for d in range(3)
    )
    assert loss.item() == pytest.approx(total / 36.0, abs=1e-12)


def test_the_denoising_index_reaches_the_energy():
    torch.manual_seed(0)
    net = EnergyMLP(5, 3, 1, 2, hidden=(16,), num_steps=10).double()
    obs, action = batch_of(4)
    losses = [dsm_loss(net, obs, action, 0.5, torch.Generator().manual_seed(0), k_idx=k) for k in indices(4, 0, 9)]
    assert losses[0] != losses[1]


def indices(num: int, *values: int) -> list[Tensor]:
    return [torch.full((num,), value) for value in values]


def test_losses_on_the_gradient_train_the_network_as_finite_differences_say():
    torch.manual_seed(0)
    net = EnergyMLP(5, 3, 1, 2, hidden=(16, 16)).double()
    obs, action = batch_of(12)

    def loss(of: EnergyMLP, dtype: torch.dtype = torch.float64) -> Tensor:
        noise = torch.Generator().manual_seed(3)
        inputs = obs.to(dtype), action.to(dtype)
        return dsm_loss(of, *inputs, torch.full((12,), 0.5, dtype=dtype), noise) + gradient_penalty(of, *inputs, 0.0)

    parameter = net.hidden[0].weight
    (grad,) = torch.autograd.grad(loss(net), parameter)
    for i, j in ((0, 0), (3, 7), (15, 2)):
        with torch.no_grad():
            parameter[i, j] += 1e-6
            above = loss(net).item()
            parameter[i, j] -= 2e-6
            below = loss(net).item()
            parameter[i, j] += 1e-6
        assert grad[i, j].item() == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-8)


def test_their_gradients_in_float32_are_those_in_float64():
    torch.manual_seed(0)
    net = EnergyMLP(5, 3, 1, 2, hidden=(16, 16))
    obs, action = batch_of(12, torch.float32)
    found = gradient_penalty(net, obs, action, 0.0)
    ours = torch.autograd.grad(found, [net.first.weight, net.hidden[0].weight, net.last.weight])
    net.double()
    wanted = gradient_penalty(net, obs.double(), action.double(), 0.0)
    for a, b in zip(ours, torch.autograd.grad(wanted, [net.first.weight, net.hidden[0].weight, net.last.weight])):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-6)


def test_the_penalty_is_on_the_steepest_dimension_beyond_the_margin():
    slope = torch.tensor([[0.5, -3.0, 1.0], [0.0, 2.0, 0.1]], dtype=torch.float64)

    def linear(obs: Tensor, action: Tensor) -> Tensor:
        return (action * slope).flatten(1).sum(1) * obs[:, 0, 0]

    obs = torch.tensor([1.0, 0.1, -2.0], dtype=torch.float64).view(3, 1, 1)
    found = gradient_penalty(linear, obs, random(3, 2, 3), margin=1.0)
    assert found.item() == pytest.approx((2.0**2 + 0.0 + 5.0**2) / 3.0, abs=1e-12)


# Metrics.


def test_metrics_of_an_example():
    energies = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 3.0], [5.0, -1.0, 2.0]])
    assert off_diagonal(energies).tolist() == [[2.0, 4.0], [1.0, 3.0], [5.0, -1.0]]
    found = energy_metrics(energies.diagonal(), off_diagonal(energies), torch.tensor(0.6))
    wanted = {"E_pos": 1.0, "E_neg": 14.0 / 6.0, "gap": 8.0 / 6.0, "top1": 1.0 / 3.0, "mi_bound": math.log(3.0) - 0.6}
    assert {key: value.item() for key, value in found.items()} == pytest.approx(wanted, abs=1e-6)


def test_metrics_hold_no_graph():
    energies = random(4, 4).requires_grad_()
    found = energy_metrics(energies.diagonal(), off_diagonal(energies), info_nce(energies))
    assert not any(value.requires_grad for value in found.values())
