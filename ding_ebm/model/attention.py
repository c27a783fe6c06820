"""Parts of a network over tokens: their encoder, their positions, and attention that many queries share.

Letters: B batch, T query tokens, S context tokens, D width of a token, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.linear import Linear


class _ResidualStep(nn.Module):
    """x + silu(linear(norm(x)))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + F.silu(self.linear(self.norm(x)))
        return y


class TokenEncoder(nn.Module):
    """A residual MLP on each token: silu(linear(x)), blocks x + silu(linear(norm(x))), linear(norm(x)).

    Args:
        dim_in: Width of the tokens.
        dim: Width of the hidden layers.
        dim_out: Width of the output.
        blocks: Number of residual blocks.
        norm_input: Whether the tokens are layer-normalized first. That suits features of a large network; of raw
            observations or actions it drops the mean and the amplitude, and of a single number everything.

    Source:
        VEL's code (github.com/HuskyKingdom/openvla-energy), after the action head of OpenVLA-OFT (arXiv:2502.19645).
    """

    def __init__(self, dim_in: int, dim: int, dim_out: int, blocks: int, norm_input: bool = False) -> None:
        super().__init__()
        self.norm_input = nn.LayerNorm(dim_in) if norm_input else nn.Identity()
        self.first = Linear(dim_in, dim)
        self.blocks = nn.Sequential(*[_ResidualStep(dim) for _ in range(blocks)])
        self.norm, self.last = nn.LayerNorm(dim), Linear(dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim_in) to (..., dim_out)."""
        hidden = self.norm(self.blocks(F.silu(self.first(self.norm_input(x)))))
        # As in the other networks: the error of the last layer is that of the result.
        with torch.autocast(hidden.device.type, enabled=False):
            y: Tensor = self.last(hidden.to(self.last.weight.dtype))
        return y


class SinusoidalPositions(nn.Module):
    """Adds sines and cosines of a token's position to it.

    Args:
        dim: D, even.

    Source:
        Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """

    frequency: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"the width of tokens with positions must be even, got {dim}")
        exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        self.register_buffer("frequency", torch.exp(exponent * -math.log(10000.0)), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., T, D), each with its position in T."""
        phase = torch.arange(tokens.shape[-2], device=tokens.device).unsqueeze(-1) * self.frequency
        return tokens + torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Multi-head attention in two halves, so that what many queries attend to is projected once.

    Its two products are written out: PyTorch's fused attention has no second derivatives, which a loss on an energy's
    gradient needs.

    Args:
        dim: D, a multiple of ``heads``.
        heads: H.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"the width must be a multiple of the number of heads, got {dim} and {heads}")
        self.heads = heads
        self.query, self.key, self.value, self.out = (Linear(dim, dim) for _ in range(4))

    def queries(self, tokens: Tensor) -> Tensor:
        """Queries (B, H, T, D / H), scaled, of tokens (B, T, D)."""
        return self._split(self.query(tokens)) * math.sqrt(self.heads / tokens.shape[-1])

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, D / H, S) and values (B, H, S, D / H) of tokens (B, S, D)."""
        return self._split(self.key(tokens)).transpose(-1, -2), self._split(self.value(tokens))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """What each query gathers, (B, T, D).

        Args:
            queries: From :meth:`queries`, with B or 1 rows.
            keys: From :meth:`keys_and_values`.
            values: From :meth:`keys_and_values`.
            valid: (B, S) bool, True where a token may be attended to, at least one in a row; None: everywhere.
        """
        scores = queries @ keys
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None, :], -math.inf)
        gathered = torch.softmax(scores, dim=-1) @ values
        result: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return result

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


class SelfAttention(nn.Module):
    """x + attention of the tokens of norm(x) to each other.

    Args:
        dim: D, a multiple of ``heads``.
        heads: H.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., T, D) to the same shape."""
        tokens = self.norm(x).flatten(0, -3)
        gathered = self.attention(self.attention.queries(tokens), *self.attention.keys_and_values(tokens))
        y: Tensor = x + gathered.view_as(x)
        return y
