"""DPPO's MLP that predicts the noise in an action chunk.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action, K denoising steps,
S evaluations of a sampling run, N chunks and F denoising steps of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ding_ebm.model.linear import linear
from ding_ebm.model.networks import ResidualMLP, SinusoidalTimeEmbedding


class DiffusionMLP(nn.Module):
    """Predicts the noise in a noised action chunk: DPPO's MLP of chunk, time embedding and observation history.

    With the default arguments and ``mlp_dims`` (512, 512, 512) it has 553 020 parameters at hopper's sizes (Do = 11,
    Da = 3, To = 1, Tp = 4).

    Args:
        obs_dim: Do.
        action_dim: Da.
        cond_steps: To.
        horizon_steps: Tp.
        mlp_dims: Widths of the hidden layers.
        time_dim: Features of the time embedding.
        activation: ``relu``, ``mish`` or ``silu``.
        residual: See :class:`ResidualMLP`.
        layer_norm: See :class:`ResidualMLP`.
        cond_mlp_dims: Widths of a plain MLP that encodes the observation history, the last its output, or None.

    Source:
        Ren et al. 2024 (arXiv:2409.00588) and its code.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        cond_steps: int,
        horizon_steps: int,
        mlp_dims: Sequence[int] = (512, 512, 512),
        time_dim: int = 16,
        activation: str = "relu",
        residual: bool = True,
        layer_norm: bool = False,
        cond_mlp_dims: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.chunk_shape, self.obs_shape = (horizon_steps, action_dim), (cond_steps, obs_dim)
        self.time = SinusoidalTimeEmbedding(time_dim, 2 * time_dim)
        cond_dim, chunk_dim = cond_steps * obs_dim, horizon_steps * action_dim
        self.cond: nn.Module = nn.Identity()
        if cond_mlp_dims is not None:
            self.cond = ResidualMLP(cond_dim, cond_mlp_dims[:-1], cond_mlp_dims[-1], activation, residual=False)
            cond_dim = cond_mlp_dims[-1]
        self.input_sizes = (chunk_dim, time_dim, cond_dim)
        self.net = ResidualMLP(sum(self.input_sizes), mlp_dims, chunk_dim, activation, residual, layer_norm)

    def forward(self, x: Tensor, k: Tensor, obs: Tensor) -> Tensor:
        """Predicted noise, in the shape of ``x``.

        The leading shapes may differ where they broadcast to that of ``x``: with chunks (N, F, Tp, Da), indices (F,)
        and observations (N, 1, To, Do) what depends on an observation is computed N times and not N F times.

        Args:
            x: Noised chunks, (B, Tp, Da).
            k: Denoising indices, (B,) int64: 0 the least noisy, K - 1 the noisiest.
            obs: Observation histories, the latest last, (B, To, Do).
        """
        check_chunk_and_history(x, obs, self.chunk_shape, self.obs_shape)
        chunk, time, cond = x.flatten(-2), self.time(k), self.cond(obs.flatten(-2))
        if chunk.shape[:-1] == time.shape[:-1] == cond.shape[:-1]:
            noise = self.net(torch.cat([chunk, time, cond], dim=-1))
        else:
            weights = self.net.first.weight.split(self.input_sizes, dim=-1)
            context = linear(time, weights[1], self.net.first.bias) + linear(cond, weights[2])
            noise = self.net.rest(linear(chunk, weights[0]) + context)
        return noise.unflatten(-1, self.chunk_shape)

    def bind(self, steps: Sequence[int], obs: Tensor) -> Callable[[Tensor, int], Tensor]:
        """Do once what a sampling run needs of denoising indices and observations.

        Args:
            steps: The S denoising indices of the run, in its order.
            obs: Observation histories, (..., To, Do), broadcastable against the chunks' leading shape.

        Returns:
            The predicted noise as a function of (x, i), with x of shape (..., Tp, Da) and i a position in ``steps``.
        """
        weights = [part.contiguous() for part in self.net.first.weight.split(self.input_sizes, dim=-1)]
        time_part = linear(self.time(torch.tensor(steps, device=obs.device)), weights[1], self.net.first.bias)
        obs_part = linear(self.cond(obs.flatten(-2)), weights[2])

        def predict(x: Tensor, i: int) -> Tensor:
            check_chunk_and_history(x, obs, self.chunk_shape, self.obs_shape)
            hidden = linear(x.flatten(-2), weights[0]) + (obs_part + time_part[i])
            return self.net.rest(hidden).unflatten(-1, self.chunk_shape)

        return predict


def check_chunk_and_history(x: Tensor, obs: Tensor, chunk_shape: tuple[int, int], obs_shape: tuple[int, int]) -> None:
    """Refuse a chunk that is not (..., Tp, Da), or a history that is not (..., To, Do)."""
    if x.shape[-2:] != chunk_shape:
        raise ValueError(f"the action chunk must be (..., Tp, Da) = (..., {chunk_shape}), got {tuple(x.shape)}")
    if obs.shape[-2:] != obs_shape:
        raise ValueError(f"the observation history must be (..., To, Do) = (..., {obs_shape}), got {tuple(obs.shape)}")
