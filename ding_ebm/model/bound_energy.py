"""An energy MLP after fixed histories: what depends on them is computed once, and gradients without autograd.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.linear import Linear

if TYPE_CHECKING:
    from ding_ebm.model.energy_model import EnergyMLP

_aten = torch.ops.aten
# An activation, and the gradient of its input from that of its output and the input.
_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.SiLU: (F.silu, _aten.silu_backward),
    nn.Mish: (F.mish, _aten.mish_backward),
    nn.ReLU: (F.relu, lambda grad, x: _aten.threshold_backward(grad, x, 0.0)),
}


class BoundEnergyMLP:
    """E(obs, a) of clean actions as a function of a, while the parameters stay as they are.

    Args:
        network: The MLP.
        obs: Normalized histories, (B, To, Do).
    """

    def __init__(self, network: EnergyMLP, obs: Tensor) -> None:
        of_obs, self._of_action, of_time = network.first.weight.split(network.input_sizes, dim=-1)
        self._context = F.linear(obs.flatten(1), of_obs, network.first.bias)
        if network.time is not None:
            k = torch.zeros(1, dtype=torch.int64, device=obs.device)
            self._context = self._context + F.linear(network.time(k), of_time)
        self._network = network
        layers = cast("list[Linear]", list(network.hidden))
        self._forward, self._back = [x.bound() for x in layers], [x.bound(transpose=True) for x in reversed(layers)]
        self._activation, self._backward = _ACTIVATIONS[type(network.activation)]

    def __call__(self, action: Tensor) -> Tensor:
        """Energies, (B,), of normalized chunks (B, Tp, Da)."""
        return self._network.rest(self._first(action))

    def evaluate(self, action: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Energies, (B,), and where asked for their gradients in ``action``, (B, Tp, Da).

        To be called without autograd's gradients.
        """
        last = self._network.last
        before = [self._first(action)]
        for product in self._forward:
            before.append(product(self._activation(before[-1])))
        energy = F.linear(self._activation(before[-1]), last.weight, last.bias).squeeze(-1)
        if not with_grad:
            return energy, None
        grad = self._backward(last.weight.expand_as(before[-1]), before[-1])
        for product, x in zip(self._back, reversed(before[:-1])):
            grad = self._backward(product(grad), x)
        return energy, (grad @ self._of_action).view_as(action)

    def _first(self, action: Tensor) -> Tensor:
        return torch.addmm(self._context, action.flatten(1), self._of_action.t())
