"""Critics: ensembles of Q functions, how they are aggregated, and a state value.

Letters: B batch, To observation history, M actions a state, N critics, Do observation, Da action.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.linear import Linear, linear
from ding_ebm.model.networks import ResidualMLP, mlp

AGGREGATIONS = ("min", "mean", "lcb")


class EnsembleQ(nn.Module):
    """N independent Q(obs, action) networks with ReLU; N = 2 is the twin critic.

    Args:
        obs_dim: Do.
        action_dim: Da.
        hidden: Widths of the hidden layers.
        num_critics: N.
        layer_norm: Whether each hidden layer is normalized before its ReLU, which bounds what a critic makes of actions
            that are not in the data (Ball et al. 2023, arXiv:2302.02948, section 4.2).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        num_critics: int = 2,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if num_critics < 1:
            raise ValueError(f"num_critics must be at least 1, got {num_critics}")
        self.critics = nn.ModuleList([_Q(obs_dim, action_dim, hidden, layer_norm) for _ in range(num_critics)])

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Values of every critic.

        Args:
            obs: (B, Do).
            action: (B, Da), or (B, M, Da) for M actions a state; the observation is then not repeated.

        Returns:
            (N, B) or (N, B, M).
        """
        return torch.stack([critic(obs, action) for critic in self.critics])


class _Q(nn.Module):
    """One critic; the observation's part of the first layer is computed once a state."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int], layer_norm: bool) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        self.first = Linear(obs_dim + action_dim, hidden[0])
        self.hidden = nn.ModuleList([Linear(n_in, n_out) for n_in, n_out in zip(hidden[:-1], hidden[1:])])
        self.norms = nn.ModuleList([nn.LayerNorm(width) if layer_norm else nn.Identity() for width in hidden])
        self.last = Linear(hidden[-1], 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        weight = self.first.weight
        context = linear(obs, weight[:, : self.obs_dim], self.first.bias)
        if action.ndim == 3:
            context = context.unsqueeze(1)
        hidden = F.relu(self.norms[0](linear(action, weight[:, self.obs_dim :]) + context))
        for layer, norm in zip(self.hidden, self.norms[1:]):
            hidden = F.relu(norm(layer(hidden)))
        # A value can be large: its last product is taken in the parameters' precision.
        with torch.autocast(action.device.type, enabled=False):
            values: Tensor = self.last(hidden.to(self.last.weight.dtype)).squeeze(-1)
        return values


def aggregate(values: Tensor, kind: str = "min", lcb_coefficient: float = 1.0) -> Tensor:
    """One value from an ensemble's.

    Args:
        values: (N, ...).
        kind: ``min``, ``mean``, or ``lcb``: mean minus ``lcb_coefficient`` standard deviations (biased, so that one
            critic has none).
        lcb_coefficient: Number of standard deviations of the lower confidence bound, >= 0.

    Returns:
        (...).
    """
    if kind == "min":
        return values.min(dim=0).values
    if kind == "mean":
        return values.mean(dim=0)
    if kind == "lcb":
        return values.mean(dim=0) - lcb_coefficient * values.std(dim=0, correction=0)
    raise ValueError(f"kind must be one of {AGGREGATIONS}, got {kind!r}")


def in_support_value(q: Tensor, inverse_temperature: float) -> Tensor:
    """Value of the softmax policy over M support actions: sum_j softmax_j(beta q_j) q_j.

    Args:
        q: Values of the support actions, (B, M).
        inverse_temperature: beta >= 0; 0 is the behavior policy's value, infinity the best support action's.

    Returns:
        (B,).

    Source:
        Lu et al. 2023 (arXiv:2304.12824), in-support softmax Q-learning.
    """
    return (torch.softmax(inverse_temperature * q, dim=-1) * q).sum(dim=-1)


class LogPartition(nn.Module):
    """log Z(s, beta) for the labels of the guidance: beta times the value of another action of the state, corrected.

    Labels exp(beta Q(s, a_j) - log Z) are exact for any log Z that is independent of the actions a_j given the state.
    The value of an action that is not among them is that, and is off by an advantage only, however large values are;
    a network learns the rest, which keeps the labels near 1.

    Args:
        obs_dim: Do.
        action_dim: Da.
        hidden: Widths of the hidden layers.
        condition_on_temperature: Whether the inverse temperature is an input.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        condition_on_temperature: bool = False,
    ) -> None:
        super().__init__()
        self.condition_on_temperature = condition_on_temperature
        self.net = mlp([obs_dim + action_dim + condition_on_temperature, *hidden, 1])

    def forward(self, obs: Tensor, action: Tensor, value: Tensor, inverse_temperature: Tensor) -> Tensor:
        """log Z, (B,).

        Args:
            obs: (B, Do).
            action: An action of the state that has no label, (B, Da).
            value: Q of that action, (B,).
            inverse_temperature: beta, (B,).
        """
        inputs = [obs, action]
        if self.condition_on_temperature:
            inputs.append(torch.log1p(inverse_temperature).unsqueeze(-1).to(obs.dtype))
        correction: Tensor = self.net(torch.cat(inputs, dim=-1)).squeeze(-1)
        return inverse_temperature * (value + correction.to(value.dtype))


class ValueNet(nn.Module):
    """V(s), the value of an observation history, by :class:`~ding_ebm.model.networks.ResidualMLP`.

    Args:
        obs_dim: Do.
        cond_steps: To.
        hidden: Widths of the hidden layers.
        activation: ``relu``, ``mish`` or ``silu``.
        residual: See ``ResidualMLP``.
        layer_norm: See ``ResidualMLP``.

    Source:
        The code of Ren et al. 2024 (arXiv:2409.00588).
    """

    def __init__(
        self,
        obs_dim: int,
        cond_steps: int = 1,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        residual: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.obs_shape = (cond_steps, obs_dim)
        self.net = ResidualMLP(cond_steps * obs_dim, hidden, 1, activation, residual, layer_norm)

    def forward(self, obs: Tensor) -> Tensor:
        """Values, (B,), of observation histories, the latest last, (B, To, Do)."""
        if obs.shape[-2:] != self.obs_shape:
            raise ValueError(f"observations must be (B, To, Do) = (B, {self.obs_shape}), got {tuple(obs.shape)}")
        values: Tensor = self.net(obs.flatten(-2)).squeeze(-1)
        return values
