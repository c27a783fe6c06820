"""An energy MLP after fixed histories against the MLP itself and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ding_ebm.energy.line_search import evaluate
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
