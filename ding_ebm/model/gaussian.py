"""Action chunks from a Gaussian or a mixture of Gaussians, with means by an MLP of the observation history.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action, C components of a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ding_ebm.model.networks import ResidualMLP


class _Clamp(torch.autograd.Function):
    """Clamp to [low, high], whose gradient vanishes only where descent along it would lead further out.

    The plain clamp has none outside at all: what an optimizer's momentum carries past a bound stays there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        outward = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
        return grad.masked_fill(outward, 0.0), None, None


class _Std(nn.Module):
    """Standard deviations, fixed at one number or learned within bounds.

    Args:
        shape: Shape of the learned parameter.
        std: The number, or where learning begins.
        learn: Whether it is learned.
        bounds: Lowest and highest value of a learned one.
    """

    def __init__(self, shape: Sequence[int], std: float, learn: bool, bounds: tuple[float, float]) -> None:
        super().__init__()
        if std <= 0.0:
            raise ValueError(f"std must be positive, got {std}")
        if learn and not 0.0 < bounds[0] <= std <= bounds[1]:
            raise ValueError(f"a learned std begins within its std_bounds, 0 < low <= std <= high, got {std}, {bounds}")
        self.log_std = math.log(std)
        self.log_bounds = (math.log(bounds[0]), math.log(bounds[1])) if learn else (-math.inf, math.inf)
        self.learned = nn.Parameter(torch.full(tuple(shape), self.log_std)) if learn else None

    def log(self, like: Tensor) -> Tensor:
        """Logarithms of the standard deviations, of the parameter's shape, or () of a fixed one."""
        if self.learned is None:
            return like.new_tensor(self.log_std)
        log_std: Tensor = _Clamp.apply(self.learned, *self.log_bounds)
        return log_std


class GaussianMLP(nn.Module):
    """Independent Gaussians of the entries of an action chunk, with means tanh(MLP(history)).

    Args:
        obs_dim: Do.
        action_dim: Da.
        cond_steps: To.
        horizon_steps: Tp.
        mlp_dims: Widths of the hidden layers.
        std: Standard deviation in normalized units, or where a learned one begins.
        learn_std: Whether one for each action dimension is learned.
        std_bounds: Bounds of learned ones.
        activation: ``relu``, ``mish`` or ``silu``.
        residual: See :class:`~ding_ebm.model.networks.ResidualMLP`.
        layer_norm: See ``ResidualMLP``.

    Source:
        The Gaussian policies of Ren et al. 2024 (arXiv:2409.00588); a learned std is clamped as theirs, with a
        gradient that leads back from outside its bounds.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        cond_steps: int,
        horizon_steps: int,
        mlp_dims: Sequence[int] = (256, 256, 256),
        std: float = 0.1,
        learn_std: bool = False,
        std_bounds: tuple[float, float] = (0.01, 0.2),
        activation: str = "mish",
        residual: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.chunk_shape, self.cond_dim = (horizon_steps, action_dim), cond_steps * obs_dim
        chunk_dim = horizon_steps * action_dim
        self.mean = ResidualMLP(self.cond_dim, mlp_dims, chunk_dim, activation, residual, layer_norm)
        self.std = _Std((action_dim,), std, learn_std, std_bounds)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Means, (B, Tp, Da), and logarithms of the standard deviations, broadcastable to them.

        Args:
            obs: Observation histories, the latest last, (B, To, Do).
        """
        mean = torch.tanh(self.mean(obs.flatten(-2))).unflatten(-1, self.chunk_shape)
        return mean, self.std.log(mean)

    def log_prob(self, actions: Tensor, obs: Tensor) -> Tensor:
        """Logarithm of each entry's density, (B, Tp, Da), of chunks (B, Tp, Da) given histories (B, To, Do)."""
        return _log_normal(actions, *self(obs))

    def sample(
        self,
        obs: Tensor,
        generator: torch.Generator | None,
        deterministic: bool = False,
        noise_clip: float | None = None,
    ) -> Tensor:
        """Chunks, (B, Tp, Da), without gradients.

        Args:
            obs: Observation histories, (B, To, Do).
            generator: Source of the noise, on the device of ``obs``; not read where ``deterministic``.
            deterministic: The mean instead of a sample.
            noise_clip: Largest deviation from the mean in standard deviations, or None.
        """
        with torch.no_grad():
            mean, log_std = self(obs)
            return mean if deterministic else _normal_sample(mean, log_std, generator, noise_clip)


class GaussianMixtureMLP(nn.Module):
    """A mixture of C Gaussians of the action chunk, with means tanh(MLP(history)) and weights by another MLP.

    Args:
        obs_dim: Do.
        action_dim: Da.
        cond_steps: To.
        horizon_steps: Tp.
        mlp_dims: Widths of the hidden layers of both.
        num_modes: C.
        std: Standard deviation in normalized units, or where a learned one begins.
        learn_std: Whether one for each component and action dimension is learned.
        std_bounds: Bounds of learned ones.
        activation: ``relu``, ``mish`` or ``silu``.
        residual: See :class:`~ding_ebm.model.networks.ResidualMLP`.
        layer_norm: See ``ResidualMLP``.

    Source:
        The mixture policies of Ren et al. 2024 (arXiv:2409.00588).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        cond_steps: int,
        horizon_steps: int,
        mlp_dims: Sequence[int] = (256, 256, 256),
        num_modes: int = 5,
        std: float = 0.1,
        learn_std: bool = False,
        std_bounds: tuple[float, float] = (0.01, 0.2),
        activation: str = "mish",
        residual: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if num_modes < 1:
            raise ValueError(f"num_modes must be at least 1, got {num_modes}")
        self.chunk_shape, cond_dim = (horizon_steps, action_dim), cond_steps * obs_dim
        self.num_modes = num_modes
        out = num_modes * horizon_steps * action_dim
        self.mean = ResidualMLP(cond_dim, mlp_dims, out, activation, residual, layer_norm)
        self.logits = ResidualMLP(cond_dim, mlp_dims, num_modes, activation, residual, layer_norm)
        self.std = _Std((num_modes, 1, action_dim), std, learn_std, std_bounds)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means (B, C, Tp, Da), logarithms of standard deviations broadcastable to them, log-weights (B, C).

        Args:
            obs: Observation histories, the latest last, (B, To, Do).
        """
        history = obs.flatten(-2)
        mean = torch.tanh(self.mean(history)).unflatten(-1, (self.num_modes, *self.chunk_shape))
        return mean, self.std.log(mean), torch.log_softmax(self.logits(history), dim=-1)

    def log_prob(self, actions: Tensor, obs: Tensor) -> Tensor:
        """Logarithm of the density of whole chunks, (B,): a sum over Tp and Da, not bounded from above.

        DPPO's code clamps it at 2, above which most chunks of a trained policy lie: their gradient is zero there.

        Args:
            actions: (B, Tp, Da).
            obs: (B, To, Do).
        """
        mean, log_std, log_weight = self(obs)
        per_component = _log_normal(actions.unsqueeze(-3), mean, log_std).sum(dim=(-2, -1))
        return torch.logsumexp(log_weight + per_component, dim=-1)

    def sample(
        self,
        obs: Tensor,
        generator: torch.Generator | None,
        deterministic: bool = False,
        draw_component: bool = False,
    ) -> Tensor:
        """Chunks, (B, Tp, Da), without gradients.

        Args:
            obs: Observation histories, (B, To, Do).
            generator: Source of the noise, on the device of ``obs``; not read where nothing is drawn.
            deterministic: The mean of a component instead of a sample.
            draw_component: Where ``deterministic``, whether that component is drawn by its weight; else the heaviest.
        """
        with torch.no_grad():
            mean, log_std, log_weight = self(obs)
            if deterministic and not draw_component:
                component = log_weight.argmax(dim=-1)
            else:
                component = torch.multinomial(log_weight.exp(), 1, generator=generator).squeeze(-1)
            rows = torch.arange(len(obs), device=obs.device)
            chosen = mean[rows, component]
            if deterministic:
                return chosen
            return _normal_sample(chosen, log_std.expand_as(mean)[rows, component], generator, None)


def _log_normal(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2.0 * math.pi)


def _normal_sample(
    mean: Tensor, log_std: Tensor, generator: torch.Generator | None, noise_clip: float | None
) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    if noise_clip is not None:
        noise = noise.clamp(-noise_clip, noise_clip)
    return mean + noise * log_std.exp()
