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

_Units = tuple[Tensor, Tensor]
_Product = Callable[[Tensor], Tensor]
_aten = torch.ops.aten
# An activation, and the gradient of its input from that of its output and the input.
_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.SiLU: (F.silu, _aten.silu_backward.default),
    nn.Mish: (F.mish, _aten.mish_backward.default),
    nn.ReLU: (F.relu, lambda grad, x: _aten.threshold_backward.default(grad, x, 0.0)),
}


class EnergyMLPWeights:
    """What E(s, a) of an energy MLP computes from its parameters alone, as its evaluations take it.

    Args:
        network: The MLP.
        obs_units: Scale and shift, (Do,) each, by which the histories that it will be given are those of the MLP, scale
            s + shift; None: they are these.
        action_units: The same of chunks, (Da,) each.
    """

    def __init__(self, network: EnergyMLP, obs_units: _Units | None = None, action_units: _Units | None = None) -> None:
        self.network, self.bias = network, cast(Tensor, network.first.bias)
        of_obs, of_action, of_time = network.first.weight.split(network.input_sizes, dim=-1)
        if network.time is not None:
            k = torch.zeros(1, dtype=torch.int64, device=self.bias.device)
            self.bias = self.bias + F.linear(network.time(k), of_time)[0]
        of_obs = self._in_units(of_obs, obs_units)
        self.of_action = self._in_units(of_action, action_units)
        self.of_obs_t = of_obs.t().contiguous()
        self.of_action_t = self.of_action.t().contiguous()
        self.last, self.last_bias = network.last.weight[0], network.last.bias
        self.activation, self.backward = _ACTIVATIONS[type(network.activation)]
        self._products: dict[int, tuple[list[_Product], list[_Product]]] = {}

    def _in_units(self, weight: Tensor, units: _Units | None) -> Tensor:
        """A part of the first layer's weight, (H, ...), for inputs in these units; the constant goes to the bias."""
        if units is None:
            return weight
        scale, shift = (x.repeat(weight.shape[1] // len(x)) for x in units)
        self.bias = self.bias + torch.mv(weight, shift)
        return weight * scale

    def products(self, rows: int) -> tuple[list[_Product], list[_Product]]:
        """Of the hidden layers for so many rows, and from the last to the first of them of their transposes."""
        if rows not in self._products:
            layers = cast("list[Linear]", list(self.network.hidden))
            forward = [layer.bound_for(self.bias.new_empty(rows, layer.in_features)) for layer in layers]
            back = [layer.bound_for(self.bias.new_empty(rows, layer.out_features), True) for layer in reversed(layers)]
            self._products[rows] = forward, back
        return self._products[rows]


class BoundEnergyMLP:
    """E(obs, a) of clean actions as a function of a, while the parameters stay as they are.

    Args:
        weights: Of the MLP.
        obs: Histories in their units, (B, To, Do).
    """

    def __init__(self, weights: EnergyMLPWeights, obs: Tensor) -> None:
        self._weights = weights
        self._context = torch.addmm(weights.bias, obs.flatten(1), weights.of_obs_t)

    def __call__(self, action: Tensor) -> Tensor:
        """Energies, (B,), of normalized chunks (B, Tp, Da)."""
        return self._weights.network.rest(self._first(action))

    def evaluate(self, action: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Energies, (B,), and where asked for their gradients in ``action``, (B, Tp, Da).

        To be called without autograd's gradients.
        """
        w = self._weights
        forward, back = w.products(len(action))
        x = self._first(action)
        before = [x]
        for product in forward:
            x = product(w.activation(x))
            before.append(x)
        energy = torch.addmv(w.last_bias, w.activation(x), w.last)
        if not with_grad:
            return energy, None
        grad = w.backward(w.last, before.pop())
        for product in back:
            grad = w.backward(product(grad), before.pop())
        return energy, torch.mm(grad, w.of_action).view_as(action)

    def _first(self, action: Tensor) -> Tensor:
        return torch.addmm(self._context, action.flatten(1), self._weights.of_action_t)
