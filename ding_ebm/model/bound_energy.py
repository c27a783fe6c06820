"""An energy MLP after fixed histories: what depends on them is computed once, and gradients without autograd.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ding_ebm.model.linear import Linear, linear

if TYPE_CHECKING:
    from ding_ebm.model.energy_model import EnergyMLP

# Gradient of an activation's input from that of its output and the input.
_BACKWARD: dict[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.SiLU: torch.ops.aten.silu_backward,
    nn.Mish: torch.ops.aten.mish_backward,
    nn.ReLU: lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0.0),
}


class BoundEnergyMLP:
    """E(obs, a) of clean actions as a function of a, while the parameters stay as they are.

    Args:
        network: The MLP.
        obs: Normalized histories, (B, To, Do).
    """

    def __init__(self, network: EnergyMLP, obs: Tensor) -> None:
        of_obs, of_action, of_time = network.first.weight.split(network.input_sizes, dim=-1)
        self._context = linear(obs.flatten(1), of_obs.contiguous(), network.first.bias)
        if network.num_steps is not None:
            time = cast("nn.Module", network.time)(torch.zeros(1, dtype=torch.int64, device=obs.device))
            self._context = self._context + linear(time, of_time.contiguous())
        self._network, self._of_action = network, of_action.contiguous()
        layers = cast("list[Linear]", list(network.hidden))
        self._forward, self._back = [x.bound() for x in layers], [x.bound(transpose=True) for x in reversed(layers)]
        self._backward = _BACKWARD[type(network.activation)]

    def __call__(self, action: Tensor) -> Tensor:
        """Energies, (B,), of normalized chunks (B, Tp, Da)."""
        return self._network.rest(self._first(action))

    @torch.no_grad()
    def evaluate(self, action: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Energies, (B,), and where asked for their gradients in ``action``, (B, Tp, Da)."""
        activation, last = self._network.activation, self._network.last
        before = [self._first(action)]
        for product in self._forward:
            before.append(product(activation(before[-1])))
        energy: Tensor = last(activation(before[-1])).squeeze(-1)
        if not with_grad:
            return energy, None
        grad = self._backward(last.weight.expand_as(before[-1]), before[-1])
        for product, x in zip(self._back, reversed(before[:-1])):
            grad = self._backward(product(grad), x)
        return energy, (grad @ self._of_action).view_as(action)

    def _first(self, action: Tensor) -> Tensor:
        return linear(action.flatten(1), self._of_action) + self._context
