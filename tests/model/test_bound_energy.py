"""An energy MLP after fixed histories against the MLP itself and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ding_ebm.energy.line_search import Rescaled, evaluate
from ding_ebm.model.bound_energy import BoundEnergyMLP, EnergyMLPWeights
from ding_ebm.model.energy_model import EnergyMLP

B, TO, TP, DO, DA = 40, 2, 4, 5, 3


@pytest.mark.parametrize("num_steps", [None, 20])
@pytest.mark.parametrize("activation", ["silu", "mish", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_energies_and_gradients_are_those_of_the_network(num_steps, activation, dtype, generator):
    torch.manual_seed(0)
    net = EnergyMLP(DO, DA, TO, TP, (64, 32, 48), num_steps, activation).to(dtype)
    nn.init.normal_(net.last.weight)
    obs = torch.randn(B, TO, DO, generator=generator, dtype=dtype)
    action = torch.randn(B, TP, DA, generator=generator, dtype=dtype, requires_grad=True)
    expected = net(obs, action)
    (grad,) = torch.autograd.grad(expected.sum(), action)
    with torch.no_grad():
        bound = net.bind(obs)
        for evaluated in (bound.evaluate(action, True), evaluate(bound, action, True)):
            torch.testing.assert_close(evaluated, (expected.detach(), grad))
        torch.testing.assert_close(bound(action), expected.detach())
        energy, nothing = bound.evaluate(action, False)
        assert nothing is None and torch.equal(energy, bound.evaluate(action, True)[0])
    (found,) = torch.autograd.grad(net.bind(obs)(action).sum(), action)
    torch.testing.assert_close(found, grad)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("num_steps", [None, 20])
def test_a_change_of_units_is_that_of_any_energy(num_steps, generator):
    torch.manual_seed(0)
    net = EnergyMLP(DO, DA, TO, TP, (64, 32), num_steps)
    nn.init.normal_(net.last.weight)
    obs, action = torch.randn(B, TO, DO, generator=generator), torch.randn(B, TP, DA, generator=generator)
    scale, shift = torch.tensor([0.3, 2.0, 1.0]), torch.tensor([-0.5, 0.0, 1.5])
    other = torch.linspace(-2.0, 1.5, DO)
    with torch.no_grad():
        bound, expected = (
            BoundEnergyMLP(EnergyMLPWeights(net, (other, 0.5 * other), (scale, shift)), obs),
            Rescaled(net.bind(obs * other + 0.5 * other), scale, shift),
        )
        torch.testing.assert_close(evaluate(bound, action, True), evaluate(expected, action, True))
        torch.testing.assert_close(bound(action), expected(action))
        assert (bound(action) - net.bind(obs)(action)).abs().min() > 1e-5
