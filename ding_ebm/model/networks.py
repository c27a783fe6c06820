"""Building blocks (time embeddings, MLPs) and the residual noise network of the QGPO paper.

Letters: B batch, Do observation, Da action, S evaluations of a sampling run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.linear import Linear, linear

Product = Callable[[Tensor], Tensor]
Block = Callable[[Tensor, Tensor], Tensor]


class FourierTimeEmbedding(nn.Module):
    """Random Fourier features of time through one linear layer.

    Args:
        dim: Number of features, even.
        scale: Standard deviation of the frequencies, in periods per unit time. They are drawn once and never trained.

    Source:
        Song et al. 2021 (arXiv:2011.13456), section C.2; dim 32 and scale 30 as in the code of arXiv:2304.12824.
    """

    frequency: Tensor

    def __init__(self, dim: int = 32, scale: float = 30.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}")
        self.register_buffer("frequency", torch.randn(dim // 2) * scale)
        self.linear = Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times (B,) as (B, dim)."""
        # The phase needs float32 whatever autocast says: bfloat16 would round whole periods away.
        phase = t.unsqueeze(-1) * self.frequency * (2.0 * math.pi)
        features: Tensor = self.linear(torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1))
        return features


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.SiLU) -> nn.Sequential:
    """Linear layers of the given sizes with activations between them, none after the last."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:]):
        layers += [Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


class _ResidualBlock(nn.Module):
    """silu(dense_2(silu(dense_1(x)) + condition)) + skip(x); dense_1 and skip are one matrix product."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.dim_out = dim_out
        self.has_skip = dim_in != dim_out
        self.first = Linear(dim_in, 2 * dim_out if self.has_skip else dim_out)
        self.second = Linear(dim_out, dim_out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self._block(x, condition, self.first, self.second)

    def bound(self) -> Block:
        """The same for one sampling run, see :meth:`Linear.bound`."""
        first, second = self.first.bound(), self.second.bound()
        return lambda x, condition: self._block(x, condition, first, second)

    def _block(self, x: Tensor, condition: Tensor, first: Product, second: Product) -> Tensor:
        hidden = first(x)
        skip = x
        if self.has_skip:
            hidden, skip = hidden.split(self.dim_out, dim=-1)
        return F.silu(second(F.silu(hidden) + condition)) + skip


class NoiseNet(nn.Module):
    """Predicts the noise in a noised action: a U-shaped residual MLP, conditioned on time and observation.

    Width by width it is the network of the paper's code (1 627 939 parameters at Do = 11, Da = 3); its conditioning
    layers are held as one matrix and each block's entry and skip as another, which is the same function, faster.

    Args:
        obs_dim: Do.
        action_dim: Da.
        widths: Widths of the way down, each half of the one before; the way up mirrors them.
        time_scale: Scale of the time's Fourier features, see :class:`FourierTimeEmbedding`.

    Source:
        The code of Lu et al. 2023 (arXiv:2304.12824).
    """

    EMBEDDING = 128

    def __init__(
        self, obs_dim: int, action_dim: int, widths: Sequence[int] = (512, 256, 128), time_scale: float = 30.0
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must be at least two positive numbers, got {tuple(widths)}")
        self.obs_dim, self.action_dim = obs_dim, action_dim
        if any(wide != 2 * narrow for wide, narrow in zip(widths, widths[1:])):
            raise ValueError(f"each of widths must be half of the one before, as the way up needs, got {tuple(widths)}")
        down = [_ResidualBlock(n_in, n_out) for n_in, n_out in zip([action_dim, *widths[:-1]], widths)]
        self.middle = _ResidualBlock(widths[-1], widths[-1])
        up = [_ResidualBlock(2 * n, 2 * n) for n in reversed(widths[1:])]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.cond_sizes = [block.dim_out for block in self._blocks()]

        self.time = FourierTimeEmbedding(32, time_scale)
        self.obs = Linear(obs_dim, 32)
        self.embed = Linear(64, self.EMBEDDING)
        self.embed_out = Linear(self.EMBEDDING, self.EMBEDDING)
        self.conditions = Linear(self.EMBEDDING, sum(self.cond_sizes))
        self.last = Linear(2 * widths[0], action_dim)

    def forward(self, x_t: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """Predicted noise, (B, Da), for noised actions (B, Da), times (B,) and observations (B, Do)."""
        embedding = self.embed(torch.cat([F.silu(self.obs(obs)), self.time(t)], dim=-1))
        return self._trunk(x_t, self._conditions(embedding), self._blocks(), self._output)

    def bind(self, times: Sequence[float], obs: Tensor) -> Callable[[Tensor, int], Tensor]:
        """Do once what a sampling run needs of times and observations.

        Args:
            times: The S times of the run.
            obs: Observations, (..., Do), broadcastable against the actions' leading shape.

        Returns:
            The predicted noise as a function of (x_t, i), with x_t of shape (..., Da) and i the index of the time.
        """
        t = torch.tensor(times, dtype=self.time.frequency.dtype, device=obs.device)
        split = self.obs.out_features
        obs_part = linear(F.silu(self.obs(obs)), self.embed.weight[:, :split], self.embed.bias)
        time_part = linear(self.time(t), self.embed.weight[:, split:])
        blocks = [block.bound() for block in self._blocks()]
        output = self._output if torch.is_autocast_enabled(obs.device.type) else self.last.bound()
        if obs_part.numel() * len(times) <= 1 << 20:  # small: one matrix product for all steps
            steps = time_part.view(len(times), *(1,) * (obs_part.ndim - 1), -1)
            all_conditions = self._conditions(obs_part + steps)
            return lambda x_t, i: self._trunk(x_t, all_conditions[i], blocks, output)
        return lambda x_t, i: self._trunk(x_t, self._conditions(obs_part + time_part[i]), blocks, output)

    def _conditions(self, embedding: Tensor) -> Tensor:
        conditions: Tensor = self.conditions(F.silu(self.embed_out(F.silu(embedding))))
        return conditions

    def _blocks(self) -> list[_ResidualBlock]:
        """All blocks in their order: the way down, the middle, the way up."""
        return [*self.down, self.middle, *self.up]

    def _trunk(self, x_t: Tensor, conditions: Tensor, blocks: Sequence[Block], output: Product) -> Tensor:
        steps = list(zip(blocks, conditions.split(self.cond_sizes, dim=-1)))
        depth = len(self.down)
        skips = []
        hidden = x_t
        for block, condition in steps[:depth]:
            hidden = block(hidden, condition)
            skips.append(hidden)
        middle, condition = steps[depth]
        hidden = middle(hidden, condition)
        for block, condition in steps[depth + 1 :]:
            hidden = block(torch.cat([skips.pop(), hidden], dim=-1), condition)
        return output(torch.cat([skips.pop(), hidden], dim=-1))

    def _output(self, hidden: Tensor) -> Tensor:
        # The last layer stays in the parameters' precision: its error is the sample's error.
        with torch.autocast(hidden.device.type, enabled=False):
            noise: Tensor = self.last(hidden.to(self.last.weight.dtype))
        return noise


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "mish": nn.Mish, "silu": nn.SiLU}


def activation_module(name: str) -> nn.Module:
    """The activation of that name, one of ``ACTIVATIONS``."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


class SinusoidalTimeEmbedding(nn.Module):
    """Sines and cosines of a denoising index, at frequencies from 1 to 1/10000, through two linear layers.

    Args:
        dim: Number of features, even and at least 4.
        hidden: Width between the two layers.

    Source:
        Vaswani et al. 2017 (arXiv:1706.03762), section 3.5; the layers are those of DPPO's code (arXiv:2409.00588).
    """

    frequency: Tensor

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"time_dim must be an even number of at least 4, got {dim}")
        steps = torch.arange(dim // 2, dtype=torch.float32)
        self.register_buffer("frequency", torch.exp(steps * (-math.log(10000.0) / (dim // 2 - 1))), persistent=False)
        # Too narrow for Linear's product to gain what it costs.
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, k: Tensor) -> Tensor:
        """Embed denoising indices (...) as (..., dim)."""
        phase = k.unsqueeze(-1) * self.frequency
        features: Tensor = self.second(F.mish(self.first(torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1))))
        return features


class _Step(nn.Module):
    """linear(activation(norm(x)))."""

    def __init__(self, dim_in: int, dim_out: int, activation: str, norm_eps: float | None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim_in, eps=norm_eps)
        self.activation = activation_module(activation)
        self.linear = Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.activation(self.norm(x)))
        return y


class _ResidualPair(nn.Module):
    """x plus two steps of it."""

    def __init__(self, dim: int, activation: str, norm_eps: float | None) -> None:
        super().__init__()
        self.first = _Step(dim, dim, activation, norm_eps)
        self.second = _Step(dim, dim, activation, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.second(self.first(x))
        return y


class ResidualMLP(nn.Module):
    """DPPO's MLP, residual or plain: a first linear layer, blocks that begin with their activation, and a last layer.

    Residual: x + linear(act(norm(linear(act(norm(x)))))) for every two widths after the first, then a linear layer on
    their sum, without an activation before it. Plain: an activation between all layers.

    Args:
        dim_in: Width of the input.
        hidden: Widths of the hidden layers; of a residual one an odd number of equal widths.
        dim_out: Width of the output.
        activation: ``relu``, ``mish`` or ``silu``.
        residual: Whether there are skip connections.
        layer_norm: Whether a layer normalization comes before every activation.

    Source:
        The code of Ren et al. 2024 (arXiv:2409.00588).
    """

    def __init__(
        self,
        dim_in: int,
        hidden: Sequence[int],
        dim_out: int,
        activation: str = "mish",
        residual: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"an MLP needs at least one hidden width, all positive, got {tuple(hidden)}")
        if residual and (len(hidden) % 2 == 0 or len(set(hidden)) > 1):
            raise ValueError(f"a residual MLP needs an odd number of equal widths, got {tuple(hidden)}")
        self.residual = residual
        self.first = Linear(dim_in, hidden[0])
        self.last: nn.Module
        if residual:
            eps = 1e-6 if layer_norm else None
            pairs = [_ResidualPair(hidden[0], activation, eps) for _ in range(len(hidden) // 2)]
            self.blocks, self.last = nn.ModuleList(pairs), Linear(hidden[-1], dim_out)
        else:
            eps = 1e-5 if layer_norm else None
            steps = [_Step(n_in, n_out, activation, eps) for n_in, n_out in zip(hidden[:-1], hidden[1:])]
            self.blocks, self.last = nn.ModuleList(steps), _Step(hidden[-1], dim_out, activation, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim_in) to (..., dim_out)."""
        return self.rest(self.first(x))

    def rest(self, hidden: Tensor) -> Tensor:
        """What follows the first layer: map its output (..., hidden[0]) to (..., dim_out)."""
        for block in self.blocks:
            hidden = block(hidden)
        # As in NoiseNet: the error of the last layer is that of the result.
        with torch.autocast(hidden.device.type, enabled=False):
            result: Tensor = self.last(hidden.to(self.first.weight.dtype))
        return result
