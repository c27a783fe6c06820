"""The intermediate energy of QGPO: its network, with an analytic input gradient, and the losses that train it.

The network approximates f(x_t, t, obs) = log E[exp(beta Q(obs, x_0)) | x_t] + c(obs, t) = -E_t, whose gradient turns
the behavior policy's score into that of p(a) ~ q(a) exp(beta Q).

Letters: B batch, M actions a state, Do observation, Da action, S evaluations of a sampling run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.diffusion.guidance import Guidance
from ding_ebm.model.linear import Linear, linear
from ding_ebm.model.networks import FourierTimeEmbedding, Product

LABELS = ("softmax", "unnormalized", "mse")


class GuidanceNet(nn.Module, Guidance):
    """f(x_t, t, obs), optionally of the inverse temperature too: an MLP with SiLU.

    Args:
        obs_dim: Do; 0 for a guidance without observations.
        action_dim: Da.
        hidden: Widths of the hidden layers; four of 256 in the paper's code (210 721 parameters at Do = 11, Da = 3).
        condition_on_temperature: Take the inverse temperature beta as an input and return f = beta g(x_t, t, obs,
            beta), which vanishes at beta = 0 as the exact guidance does.
        time_scale: Scale of the time's Fourier features, see :class:`~ding_ebm.model.networks.FourierTimeEmbedding`.

    Source:
        Lu et al. 2023 (arXiv:2304.12824); the temperature input is ours.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256, 256),
        condition_on_temperature: bool = False,
        time_scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.condition_on_temperature = condition_on_temperature
        self.time = FourierTimeEmbedding(32, time_scale)
        self.first = Linear(action_dim + 32 + obs_dim + condition_on_temperature, hidden[0])
        self.hidden = nn.ModuleList([Linear(n_in, n_out) for n_in, n_out in zip(hidden[:-1], hidden[1:])])
        self.last = Linear(hidden[-1], 1)

    def forward(self, x_t: Tensor, t: Tensor, obs: Tensor | None, inverse_temperature: Tensor | float) -> Tensor:
        """f, (B,) or (B, M).

        Args:
            x_t: Noised actions, (B, Da), or (B, M, Da) for M actions that share a time and an observation.
            t: Times, (B,).
            obs: Observations, (B, Do), or None where ``obs_dim`` is 0.
            inverse_temperature: beta, a number or (B,). Read only where the network is conditioned on it.
        """
        beta = torch.as_tensor(inverse_temperature, dtype=x_t.dtype, device=x_t.device).expand(t.shape)
        context = self._context(self.time(t), obs, beta)
        if x_t.ndim == 3:
            context, beta = context.unsqueeze(1), beta.unsqueeze(1)
        hidden = linear(x_t, self.first.weight[:, : self.action_dim]) + context
        for layer in self.hidden:
            hidden = layer(F.silu(hidden))
        with torch.autocast(x_t.device.type, enabled=False):
            value = self.last(F.silu(hidden.to(self.last.weight.dtype))).squeeze(-1)
        return value * beta if self.condition_on_temperature else value

    def bind(
        self, times: Sequence[float], obs: Tensor | None, inverse_temperature: float
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """See :meth:`Guidance.bind`: time, observation and temperature enter the first layer once a run."""
        t = torch.tensor(times, dtype=self.last.weight.dtype, device=self.last.weight.device)
        weight, bias = self.first.weight, self.first.bias
        a = self.action_dim
        context: Tensor = bias
        if self.condition_on_temperature:
            context = context + weight[:, -1] * math.log1p(inverse_temperature)
        if obs is not None:
            context = linear(obs, weight[:, a + 32 : a + 32 + self.obs_dim]) + context
        time_part = linear(self.time(t), weight[:, a : a + 32])
        scale = inverse_temperature if self.condition_on_temperature else 1.0
        layers = self._layers()
        forward = [layer.bound() for layer in layers]
        backward = [layer.bound(transpose=True) for layer in layers]
        return lambda x_t, i: self._value_and_grad(x_t, context + time_part[i], scale, forward, backward)

    def value_and_grad(
        self, x_t: Tensor, t: float | Tensor, obs: Tensor | None, inverse_temperature: float
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Guidance.value_and_grad`; analytic, without autograd."""
        t = torch.as_tensor(t, dtype=x_t.dtype, device=x_t.device).expand(x_t.shape[0])
        beta = torch.full_like(t, inverse_temperature)
        scale = inverse_temperature if self.condition_on_temperature else 1.0
        layers = self._layers()
        context = self._context(self.time(t), obs, beta)
        return self._value_and_grad(x_t, context, scale, layers, [layer.transposed for layer in layers])

    def _layers(self) -> list[Linear]:
        return cast("list[Linear]", list(self.hidden))

    def _context(self, time: Tensor, obs: Tensor | None, beta: Tensor) -> Tensor:
        """What the first layer adds to the action's part, (B, hidden)."""
        inputs = [time]
        if obs is not None:
            inputs.append(obs)
        if self.condition_on_temperature:
            inputs.append(torch.log1p(beta).unsqueeze(-1))
        return linear(torch.cat(inputs, dim=-1), self.first.weight[:, self.action_dim :], self.first.bias)

    def _value_and_grad(
        self, x_t: Tensor, context: Tensor, scale: float, forward: Sequence[Product], backward: Sequence[Product]
    ) -> tuple[Tensor, Tensor]:
        """f and its gradient; each hidden layer is given as its product and the transposed one."""
        first = self.first.weight[:, : self.action_dim]
        before = [linear(x_t, first) + context]
        for product in forward:
            before.append(product(F.silu(before[-1])))
        value = self.last(F.silu(before[-1])).squeeze(-1)
        grad = torch.ops.aten.silu_backward(self.last.weight.expand_as(before[-1]), before[-1])
        for product, hidden in zip(reversed(backward), reversed(before[:-1])):
            grad = torch.ops.aten.silu_backward(product(grad), hidden)
        return value * scale, (grad @ first) * scale


def cep_labels(
    q: Tensor, inverse_temperature: Tensor | float, kind: str, log_partition: Tensor | None = None, log_max: float = 4.6
) -> Tensor:
    """Weights of M support actions in the contrastive loss.

    Args:
        q: Values of the support actions, (B, M).
        inverse_temperature: beta, a number or (B,).
        kind: ``softmax``: softmax_j(beta q_j), the paper's; its normalizer is drawn with the actions, which biases the
            guidance towards zero at small M. ``unnormalized``: exp(beta q_j - log Z) / M with a log Z that is
            independent of the actions given the state: exact for every M > 1. It is the softmax label times the
            state's weight, mean_j exp(beta q_j - log Z).
        log_partition: log Z for ``unnormalized``, (B,).
        log_max: Bound on the logarithm of a state's weight, in nats: one state counts at most exp(log_max) times an
            average one. Where it is met, the state has softmax labels of that weight.

    Returns:
        (B, M), no gradient.

    Source:
        Lu et al. 2023 (arXiv:2304.12824), contrastive energy prediction.
    """
    beta = torch.as_tensor(inverse_temperature, dtype=q.dtype, device=q.device).reshape(-1, 1)
    logits = (beta * q).detach()
    if kind == "softmax":
        return torch.softmax(logits, dim=-1)
    if kind == "unnormalized":
        if log_partition is None:
            raise ValueError("kind 'unnormalized' needs log_partition, (B,)")
        log_weight = log_mean_exp(logits) - log_partition.detach()
        return torch.softmax(logits, dim=-1) * torch.exp(log_weight.clamp(max=log_max)).unsqueeze(-1)
    raise ValueError(f"kind must be 'softmax' or 'unnormalized', got {kind!r}")


def cep_loss(f: Tensor, labels: Tensor) -> Tensor:
    """Contrastive energy prediction: -sum_j label_j log softmax_j(f), averaged over B.

    Args:
        f: Guidance at M noised actions that share a state and a time, (B, M).
        labels: From :func:`cep_labels`, (B, M).

    Source:
        Lu et al. 2023 (arXiv:2304.12824), contrastive energy prediction.
    """
    return -(labels * torch.log_softmax(f, dim=-1)).sum(dim=-1).mean()


def mse_guidance_loss(f: Tensor, q: Tensor, inverse_temperature: Tensor | float) -> Tensor:
    """Regression of f on beta q: learns E[beta q | x_t], as diffusion posterior sampling does; biased, a baseline.

    Args:
        f: (B, M).
        q: Values of the clean actions, (B, M).
        inverse_temperature: beta, a number or (B,).
    """
    beta = torch.as_tensor(inverse_temperature, dtype=q.dtype, device=q.device).reshape(-1, 1)
    return F.mse_loss(f, (beta * q).detach())


def log_mean_exp(x: Tensor, dim: int = -1, log_w: Tensor | None = None) -> Tensor:
    """log of the mean of exp over a dimension, which it loses.

    Args:
        x: (..., N, ...).
        dim: The dimension of N.
        log_w: Logarithms of weights, broadcastable against ``x``; they need not sum to one. None: equal weights.
    """
    if log_w is None:
        return torch.logsumexp(x, dim=dim) - math.log(x.shape[dim])
    log_w = log_w.to(x.dtype).expand_as(x)
    return torch.logsumexp(x + log_w, dim=dim) - torch.logsumexp(log_w, dim=dim)
