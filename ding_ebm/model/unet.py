"""The 1-D U-Net of Diffusion Policy as DPPO configures it: predicts the noise in an action chunk.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action, K denoising steps,
S evaluations of a sampling run, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.diffusion_mlp import check_chunk_and_history
from ding_ebm.model.linear import Linear, linear
from ding_ebm.model.networks import ResidualMLP, SinusoidalTimeEmbedding

# Up to this number of values the modulations of all steps of a sampling run are computed together.
_TABLE = 1 << 22


class _ConvBlock(nn.Module):
    """mish(norm(conv(x)))."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, num_groups: int, norm_eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(num_groups, n_out, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(self.norm(self.conv(x)))


class _FilmNet(nn.Module):
    """Scale and shift of C channels from time and observation: three linear layers, or mish and one.

    Args:
        time_dim: Features of the time embedding.
        cond_dim: Features of the observation.
        channels: C.
        depth: Number of linear layers, 3 or 1.
    """

    def __init__(self, time_dim: int, cond_dim: int, channels: int, depth: int) -> None:
        super().__init__()
        self.time_dim = time_dim
        sizes = [time_dim + cond_dim, *[2 * channels] * depth]
        self.layers = nn.ModuleList([Linear(n_in, n_out) for n_in, n_out in zip(sizes[:-1], sizes[1:])])

    def parts(self, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's output, (..., 2 C), in two terms, of time (..., time_dim) and of cond (..., cond_dim)."""
        first = cast(Linear, self.layers[0])
        if len(self.layers) == 1:
            time, cond = F.mish(time), F.mish(cond)
        time_part = linear(time, first.weight[:, : self.time_dim], first.bias)
        return time_part, linear(cond, first.weight[:, self.time_dim :])

    def rest(self, time_part: Tensor, cond_part: Tensor) -> Tensor:
        """Scale and shift, (..., 2 C), from the parts of the first layer, broadcastable against each other."""
        hidden = time_part + cond_part
        for layer in list(self.layers)[1:]:
            hidden = layer(F.mish(hidden))
        return hidden


class _FilmBlock(nn.Module):
    """block_2(scale * block_1(x) + shift) + skip(x)."""

    def __init__(self, n_in: int, n_out: int, film: _FilmNet, kernel_size: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.first = _ConvBlock(n_in, n_out, kernel_size, num_groups, eps)
        self.second = _ConvBlock(n_out, n_out, kernel_size, num_groups, eps)
        self.film = film
        self.skip = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.unsqueeze(-1).chunk(2, dim=-2)
        y: Tensor = self.second(torch.addcmul(shift, scale, self.first(x))) + self.skip(x)
        return y


class Unet1D(nn.Module):
    """Predicts the noise in a noised action chunk by convolutions over its Tp actions.

    Each level has two residual blocks of its width, whose channels are scaled and shifted by functions of time and
    observation (FiLM); between levels the chunk is halved, on the way up doubled again.

    Args:
        obs_dim: Do.
        action_dim: Da.
        cond_steps: To.
        horizon_steps: Tp, divisible by 2^(levels - 1).
        dim: Channels of the first level, divisible by ``num_groups``.
        dim_mults: Channels of each level in units of ``dim``, from 1 on; their number is the number of levels.
        time_dim: Features of the time embedding.
        cond_mlp_dims: Widths of a residual MLP that encodes the observation history, the last its output, or None. With
            it the scales and shifts are one linear layer of time and code; without, three of time and history.
        kernel_size: Width of the convolutions, odd.
        num_groups: Groups of the group normalizations.
        norm_eps: Added to a group's variance; DPPO's furniture policies have 1e-4.

    Source:
        Chi et al. 2023 (arXiv:2303.04137), and the code of Ren et al. 2024 (arXiv:2409.00588).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        cond_steps: int,
        horizon_steps: int,
        dim: int = 64,
        dim_mults: Sequence[int] = (1, 2),
        time_dim: int = 16,
        cond_mlp_dims: Sequence[int] | None = None,
        kernel_size: int = 5,
        num_groups: int = 8,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _check_sizes(horizon_steps, dim, dim_mults, kernel_size, num_groups)
        self.chunk_shape, self.obs_shape = (horizon_steps, action_dim), (cond_steps, obs_dim)
        self.time = SinusoidalTimeEmbedding(time_dim, 4 * time_dim)
        cond_dim, depth = cond_steps * obs_dim, 3
        self.cond: nn.Module = nn.Identity()
        if cond_mlp_dims is not None:
            self.cond = ResidualMLP(cond_dim, cond_mlp_dims[:-1], cond_mlp_dims[-1])
            cond_dim, depth = cond_mlp_dims[-1], 1

        def block(n_in: int, n_out: int) -> _FilmBlock:
            film = _FilmNet(time_dim, cond_dim, n_out, depth)
            return _FilmBlock(n_in, n_out, film, kernel_size, num_groups, norm_eps)

        def level(n_in: int, n_out: int) -> nn.ModuleList:
            return nn.ModuleList([block(n_in, n_out), block(n_out, n_out)])

        widths = [dim * mult for mult in dim_mults]
        self.down = nn.ModuleList([level(n_in, n_out) for n_in, n_out in zip([action_dim, *widths[:-1]], widths)])
        self.downsample = nn.ModuleList([nn.Conv1d(n, n, 3, stride=2, padding=1) for n in widths[:-1]])
        self.middle = level(widths[-1], widths[-1])
        self.up = nn.ModuleList([level(2 * wide, n) for n, wide in reversed(list(zip(widths, widths[1:])))])
        self.upsample = nn.ModuleList([nn.ConvTranspose1d(n, n, 4, stride=2, padding=1) for n in reversed(widths[:-1])])
        self.final = _ConvBlock(dim, dim, kernel_size, num_groups, norm_eps)
        self.last = nn.Conv1d(dim, action_dim, 1)

    def forward(self, x: Tensor, k: Tensor, obs: Tensor) -> Tensor:
        """Predicted noise, in the shape of ``x``.

        The leading shapes may differ where they broadcast to that of ``x``, as those of
        :meth:`ding_ebm.model.diffusion_mlp.DiffusionMLP.forward`.

        Args:
            x: Noised chunks, (B, Tp, Da).
            k: Denoising indices, (B,) int64: 0 the least noisy, K - 1 the noisiest.
            obs: Observation histories, the latest last, (B, To, Do).
        """
        check_chunk_and_history(x, obs, self.chunk_shape, self.obs_shape)
        time, cond = self.time(k), self.cond(obs.flatten(-2))
        return self._trunk(x, [film.rest(*film.parts(time, cond)) for film in self._films()])

    def bind(self, steps: Sequence[int], obs: Tensor) -> Callable[[Tensor, int], Tensor]:
        """See :meth:`ding_ebm.model.diffusion_mlp.DiffusionMLP.bind`; scales and shifts of all steps are computed here.

        Of a batch too large for that, here is computed what depends on the time or the observation alone.
        """
        time, cond = self.time(torch.tensor(steps, device=obs.device)), self.cond(obs.flatten(-2))
        films = self._films()
        parts = [film.parts(time, cond) for film in films]
        modulations: Callable[[int], list[Tensor]]
        if len(steps) * sum(of_obs.numel() for _, of_obs in parts) <= _TABLE:
            per_step = (len(steps), *(1,) * (cond.ndim - 1), -1)
            tables = [film.rest(of_time.view(per_step), of_obs) for film, (of_time, of_obs) in zip(films, parts)]
            modulations = lambda i: [table[i] for table in tables]  # noqa: E731
        else:
            modulations = lambda i: [film.rest(t[i], o) for film, (t, o) in zip(films, parts)]  # noqa: E731

        def predict(x: Tensor, i: int) -> Tensor:
            check_chunk_and_history(x, obs, self.chunk_shape, self.obs_shape)
            return self._trunk(x, modulations(i))

        return predict

    def _films(self) -> list[_FilmNet]:
        """The networks of scales and shifts, in the order in which their blocks are passed."""
        blocks = [*chain(*self.down), *self.middle, *chain(*self.up)]
        return [block.film for block in cast("list[_FilmBlock]", blocks)]

    def _trunk(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """The noise in chunks (..., Tp, Da) from each block's scale and shift, (..., 2 C) or broadcastable to it."""
        per_block = iter([m.expand(*x.shape[:-2], -1).reshape(-1, m.shape[-1]) for m in modulations])
        hidden = x.reshape(-1, *self.chunk_shape).transpose(1, 2)
        skips = []
        for level, downsample in zip(self.down, [*self.downsample, nn.Identity()]):
            hidden = _through(level, hidden, per_block)
            skips.append(hidden)
            hidden = downsample(hidden)
        hidden = _through(self.middle, hidden, per_block)
        for level, upsample in zip(
            self.up, self.upsample
        ):  # the output of the first level is taken by none, as in DPPO
            hidden = upsample(_through(level, torch.cat([hidden, skips.pop()], dim=1), per_block))
        hidden = self.final(hidden)
        # As in NoiseNet: the error of the last layer is that of the sample.
        with torch.autocast(x.device.type, enabled=False):
            noise: Tensor = self.last(hidden.to(self.last.weight.dtype))
        return noise.transpose(1, 2).reshape(x.shape)


def _through(blocks: nn.Module, hidden: Tensor, modulations: Iterator[Tensor]) -> Tensor:
    for block in cast(nn.ModuleList, blocks):
        hidden = block(hidden, next(modulations))
    return hidden


def _check_sizes(horizon_steps: int, dim: int, dim_mults: Sequence[int], kernel_size: int, num_groups: int) -> None:
    if not dim_mults or dim_mults[0] != 1 or min(dim_mults) < 1:
        raise ValueError(f"dim_mults must be positive and begin with 1, got {tuple(dim_mults)}")
    unit = 2 ** (len(dim_mults) - 1)
    if horizon_steps < 1 or horizon_steps % unit:
        raise ValueError(
            f"horizon_steps must be divisible by 2^(levels - 1) = {unit}, as {len(dim_mults)} levels halve it "
            f"{len(dim_mults) - 1} times, got {horizon_steps}"
        )
    if dim < 1 or dim % num_groups:
        raise ValueError(f"dim must be divisible by num_groups = {num_groups}, got {dim}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
