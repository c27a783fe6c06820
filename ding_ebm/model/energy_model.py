"""Energy networks of an action chunk in a context, E(obs, action): low is preferred.

What trains on energies compares B contexts with N actions, or M actions a context. The networks encode each context and
each action once for that; only what needs both is computed for a pair.

Letters: B batch, N actions, M actions a context, To observation history, S context tokens, Tp predicted actions,
Do observation, Da action, K denoising steps. Observations and actions are in normalized units.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.attention import Attention, SelfAttention, SinusoidalPositions, TokenEncoder
from ding_ebm.model.bound_energy import BoundEnergyMLP, EnergyMLPWeights
from ding_ebm.model.diffusion_mlp import check_chunk_and_history
from ding_ebm.model.energy_protocol import Energy, FlatEnergy, candidate_energy, check_energy, in_blocks, pair_energy
from ding_ebm.model.linear import Linear, linear
from ding_ebm.model.networks import SinusoidalTimeEmbedding, activation_module

__all__ = [
    "Energy",
    "EnergyMLP",
    "EnergyModel",
    "FactorizedEnergy",
    "FlatEnergy",
    "candidate_energy",
    "check_energy",
    "pair_energy",
]


class FactorizedEnergy(nn.Module):
    """An energy that encodes contexts and actions once each: what the networks of this module have in common.

    A subclass computes all pairs in ``_evaluate``.
    """

    def __init__(self, obs_dim: int, action_dim: int, num_steps: int | None) -> None:
        super().__init__()
        if min(obs_dim, action_dim) < 1:
            raise ValueError(f"obs_dim and action_dim must be positive, got {obs_dim} and {action_dim}")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"num_steps must be None or K >= 1, got {num_steps}")
        self.obs_dim, self.action_dim, self.num_steps = obs_dim, action_dim, num_steps

    def forward(
        self,
        obs: Tensor,
        action: Tensor,
        k_idx: Tensor | None = None,
        views: Any = None,
        *,
        obs_mask: Tensor | None = None,
    ) -> Tensor:
        """Energies, (B,).

        Args:
            obs: Observation histories, the latest last, (B, To, Do), or context tokens, (B, S, Do).
            action: Chunks, (B, Tp, Da); (B, Da) is one step.
            k_idx: Denoising indices, (B,) int64, from 0, the clean action, to K, pure noise; None: 0.
            views: Not read: the protocol's place for further inputs.
            obs_mask: (B, S) bool, True where a context token is valid; None: everywhere.

        Raises:
            ValueError: A shape, a dtype or an index does not fit, or a row of the mask has no valid token.
        """
        self._check_rows(obs, action)
        k = None if k_idx is None else k_idx.unsqueeze(-1)
        return self._checked(obs, self._chunks(action, 2).unsqueeze(1), k, obs_mask).squeeze(1)

    def pair_energy(
        self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, *, obs_mask: Tensor | None = None
    ) -> Tensor:
        """Energies of every action in every context, (B, N).

        Args:
            obs: (B, To, Do).
            action: (N, Tp, Da), or (N, Da) for one step.
            k_idx: Denoising indices of the actions, (N,) int64; None: 0.
            obs_mask: See :meth:`forward`.
        """
        k = None if k_idx is None else k_idx.unsqueeze(0)
        return self._checked(obs, self._chunks(action, 2).unsqueeze(0), k, obs_mask)

    def candidate_energy(
        self, obs: Tensor, action: Tensor, k_idx: Tensor | None = None, *, obs_mask: Tensor | None = None
    ) -> Tensor:
        """Energies of M actions for each context, (B, M).

        Args:
            obs: (B, To, Do).
            action: (B, M, Tp, Da), or (B, M, Da) for one step.
            k_idx: Denoising indices, (B,) or (B, M) int64; None: 0.
            obs_mask: See :meth:`forward`.
        """
        self._check_rows(obs, action)
        k = k_idx.unsqueeze(-1) if k_idx is not None and k_idx.ndim == 1 else k_idx
        return self._checked(obs, self._chunks(action, 3), k, obs_mask)

    def _evaluate(self, obs: Tensor, action: Tensor, k: Tensor | None, obs_mask: Tensor | None) -> Tensor:
        """(B, M) from obs (B, S, Do), actions (A, M, Tp, Da) and indices (A, M or 1); A is B, or 1 for all contexts."""
        raise NotImplementedError

    def _checked(self, obs: Tensor, action: Tensor, k: Tensor | None, obs_mask: Tensor | None) -> Tensor:
        if obs.ndim != 3 or obs.shape[-1] != self.obs_dim:
            raise ValueError(f"obs must be (B, To, Do) with Do = {self.obs_dim}, got {tuple(obs.shape)}")
        if obs_mask is not None:
            if obs_mask.shape != obs.shape[:2] or obs_mask.dtype != torch.bool:
                got = f"{obs_mask.dtype} {tuple(obs_mask.shape)}"
                raise ValueError(f"obs_mask must be bool {tuple(obs.shape[:2])}, True where valid, got {got}")
            if not bool(obs_mask.any(dim=1).all()):
                row = int(obs_mask.any(dim=1).int().argmin())
                raise ValueError(f"obs_mask must have a valid (True) token in every row, row {row} has none")
        if k is None and self.num_steps is not None:
            k = torch.zeros(1, 1, dtype=torch.int64, device=obs.device).expand(len(action), 1)
        elif k is not None:
            self._check_steps(k, action)
            k = None if self.num_steps is None else k
        return self._evaluate(obs, action, k, obs_mask)

    def _check_steps(self, k: Tensor, action: Tensor) -> None:
        if k.is_floating_point() or k.ndim != 2 or len(k) != len(action) or k.shape[1] not in (1, action.shape[1]):
            raise ValueError(f"k_idx must hold one integer for each action, got {k.dtype} {tuple(k.shape)}")
        last = self.num_steps or 0
        if bool(((k < 0) | (k > last)).any()):
            hint = "" if self.num_steps else " (this energy was made without num_steps)"
            raise ValueError(f"k_idx must be in 0 .. {last}{hint}, got {int(k.min())} .. {int(k.max())}")

    def _chunks(self, action: Tensor, axes_of_steps: int) -> Tensor:
        """Actions with their step axis, which single steps, of so many axes, lack."""
        if action.ndim == axes_of_steps:
            action = action.unsqueeze(-2)
        if action.ndim != axes_of_steps + 1 or action.shape[-1] != self.action_dim:
            leading = "B" if axes_of_steps == 2 else "B, M"
            raise ValueError(
                f"actions must be ({leading}, Tp, Da) with Da = {self.action_dim}, got {tuple(action.shape)}"
            )
        return action

    def _check_rows(self, obs: Tensor, action: Tensor) -> None:
        if len(obs) != len(action):
            raise ValueError(f"obs and action must have the same number of rows, got {len(obs)} and {len(action)}")


class EnergyMLP(FactorizedEnergy):
    """An MLP of observation history and action chunk, for low-dimensional tasks.

    It has 137 985 parameters at hopper's sizes (Do = 11, Da = 3, To = 1, Tp = 4).

    Args:
        obs_dim: Do.
        action_dim: Da.
        cond_steps: To.
        horizon_steps: Tp.
        hidden: Widths of the hidden layers.
        num_steps: K of the diffusion whose denoising index is an input, or None for an energy of clean actions.
        activation: ``silu``, ``mish`` or ``relu``. A loss on the energy's gradient needs a smooth one.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        cond_steps: int,
        horizon_steps: int,
        hidden: Sequence[int] = (256, 256, 256),
        num_steps: int | None = None,
        activation: str = "silu",
    ) -> None:
        super().__init__(obs_dim, action_dim, num_steps)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must be one or more positive widths, got {tuple(hidden)}")
        self.obs_shape, self.chunk_shape = (cond_steps, obs_dim), (horizon_steps, action_dim)
        time_dim = 0 if num_steps is None else 16
        self.time = None if num_steps is None else SinusoidalTimeEmbedding(time_dim, 2 * time_dim)
        self.input_sizes = (cond_steps * obs_dim, horizon_steps * action_dim, time_dim)
        self.first = Linear(sum(self.input_sizes), hidden[0])
        self.activation = activation_module(activation)
        self.hidden = nn.ModuleList([Linear(n_in, n_out) for n_in, n_out in zip(hidden[:-1], hidden[1:])])
        self.last = Linear(hidden[-1], 1)

    def _evaluate(self, obs: Tensor, action: Tensor, k: Tensor | None, obs_mask: Tensor | None) -> Tensor:
        if obs_mask is not None:
            raise ValueError("EnergyMLP reads whole histories and takes no obs_mask")
        check_chunk_and_history(action, obs, self.chunk_shape, self.obs_shape)
        of_obs, of_action, of_time = (part.contiguous() for part in self.first.weight.split(self.input_sizes, dim=-1))
        context = linear(obs.flatten(1), of_obs, self.first.bias).unsqueeze(1)
        chunk = linear(action.flatten(-2), of_action)
        if k is not None and self.time is not None:
            chunk = chunk + linear(self.time(k), of_time)
        return torch.cat([self.rest(some + other) for some, other in in_blocks(action.shape[1], context, chunk)])

    def bind(self, obs: Tensor) -> BoundEnergyMLP:
        """The energy of clean chunks (B, Tp, Da) after given histories (B, To, Do), which are read once."""
        return BoundEnergyMLP(EnergyMLPWeights(self), obs)

    def rest(self, hidden: Tensor) -> Tensor:
        """(B, ...) from the first layer's output (B, ..., hidden[0])."""
        for layer in self.hidden:
            hidden = layer(self.activation(hidden))
        # As in the other networks: the error of the last layer is that of the result.
        with torch.autocast(hidden.device.type, enabled=False):
            energy: Tensor = self.last(self.activation(hidden.to(self.last.weight.dtype))).squeeze(-1)
        return energy


class EnergyModel(FactorizedEnergy):
    """Attention of an action chunk's tokens to the context's tokens, and an energy for each step of the chunk.

    Actions and observations are encoded one by one and get positions; each action adds to itself what it gathers from
    the context, and an MLP makes that its energy. Training on pairs keeps some 15 hidden vectors for each pair and step
    (4 GB at B = N = 256, Tp = 4 and hidden = 256); without gradients pairs take no memory to speak of.

    Args:
        obs_dim: Do.
        action_dim: Da.
        hidden: Width of the network, even and a multiple of ``heads``.
        heads: Attention heads.
        head_blocks: Residual blocks of the MLP behind the attention; the other two are of the encoders before it.
        context_blocks: See ``head_blocks``.
        action_blocks: See ``head_blocks``.
        dropout: Probability of dropping a feature of an action's token while training.
        residual: Whether an action's token adds what it gathers to itself. Without it an action acts through the
            weights of its attention alone: not at all where there is one context token.
        norm_action: Whether raw actions are layer-normalized, which drops the mean and the amplitude of each.
        norm_obs: The same of the context's tokens: right for the features of a large network.
        obs_positions: Whether context tokens get positions. Without them their order does not count.
        bound: Range of an action's energy: None is unbounded, ``softplus`` from 0, or two numbers.
        pool: How energies of the Tp steps make that of the chunk: ``mean``, ``sum``, ("discount", gamma), the mean
            with weights gamma^h, or ("first", n), the mean of the first n.
        self_attention: Whether the actions of a chunk attend to each other; without it the energy adds up over steps.
        num_steps: K of the diffusion whose denoising index is an input, or None for an energy of clean actions.
        compat: ``vel`` is the published network, 3 955 215 parameters at Do = 2048, Da = 7 and hidden = 512, and
            dropout 0.2 while training; the arguments from ``residual`` to ``self_attention`` are then its own and must
            not be given.

    Source:
        The energy network of VEL (github.com/HuskyKingdom/openvla-energy), changed where it does not see the action.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: int = 256,
        heads: int = 8,
        head_blocks: int = 2,
        context_blocks: int = 1,
        action_blocks: int = 1,
        dropout: float = 0.0,
        residual: bool = True,
        norm_action: bool = False,
        norm_obs: bool = False,
        obs_positions: bool = True,
        bound: str | tuple[float, float] | None = None,
        pool: str | tuple[str, float] = "mean",
        self_attention: bool = False,
        num_steps: int | None = None,
        compat: str | None = None,
    ) -> None:
        super().__init__(obs_dim, action_dim, num_steps)
        if compat not in (None, "vel"):
            raise ValueError(f"compat must be None or 'vel', got {compat!r}")
        if compat == "vel":
            given = (residual, norm_action, norm_obs, obs_positions, bound, pool, self_attention)
            if given != (True, False, False, True, None, "mean", False):
                raise ValueError("compat='vel' fixes the arguments from residual to self_attention: leave them out")
            warnings.warn(_VEL_LIMITS, stacklevel=2)
            residual, norm_action, norm_obs, obs_positions, bound = False, True, True, False, (0.1, 2.1)
        self.bound, self.pool = _checked_bound(bound), _checked_pool(pool)
        self.obs = TokenEncoder(obs_dim, hidden, hidden, context_blocks, norm_obs)
        self.action = TokenEncoder(action_dim, hidden, hidden, action_blocks, norm_action)
        self.positions, self.obs_positions = SinusoidalPositions(hidden), obs_positions
        self.dropout = nn.Dropout(dropout)
        self.time = None if num_steps is None else SinusoidalTimeEmbedding(hidden, hidden)
        self.between = SelfAttention(hidden, heads) if self_attention else nn.Identity()
        self.residual, self.norm = residual, nn.LayerNorm(hidden) if residual else nn.Identity()
        self.attention = Attention(hidden, heads)
        self.head = TokenEncoder(hidden, hidden, 1, head_blocks, norm_input=True)

    def _evaluate(self, obs: Tensor, action: Tensor, k: Tensor | None, obs_mask: Tensor | None) -> Tensor:
        context = self.obs(obs)
        keys, values = self.attention.keys_and_values(self.positions(context) if self.obs_positions else context)
        tokens = self.dropout(self.positions(self.action(action)))  # (A, M, Tp, hidden)
        if k is not None and self.time is not None:
            tokens = tokens + self.time(k).unsqueeze(-2)
        tokens = self.between(tokens)
        queries = self.attention.queries(self.norm(tokens).flatten(1, 2))
        blocks = []
        for key, value, query, token, valid in in_blocks(queries.shape[-2], keys, values, queries, tokens, obs_mask):
            gathered = self.attention(query, key, value, valid).unflatten(1, action.shape[1:3])
            blocks.append(self.head(token + gathered if self.residual else gathered).squeeze(-1))
        return self._chunk_energy(torch.cat(blocks))

    def _chunk_energy(self, steps: Tensor) -> Tensor:
        """(B, M) from the unbounded energies of the steps, (B, M, Tp)."""
        if self.bound == "softplus":
            steps = F.softplus(steps)
        elif isinstance(self.bound, tuple):
            low, high = self.bound
            steps = low + (high - low) * torch.sigmoid(0.5 * steps)
        kind, number = self.pool
        if kind == "sum":
            return steps.sum(dim=-1)
        if kind == "first":
            if number > steps.shape[-1]:
                raise ValueError(f"pool=('first', {number:g}) needs chunks of as many actions, got {steps.shape[-1]}")
            return steps[..., : int(number)].mean(dim=-1)
        if kind == "discount":
            weights = number ** torch.arange(steps.shape[-1], dtype=steps.dtype, device=steps.device)
            return (steps * (weights / weights.sum())).sum(dim=-1)
        return steps.mean(dim=-1)


_VEL_LIMITS = (
    "compat='vel' is the published network, for comparison and for its weights. Its energy does not see the mean and "
    "the amplitude of an action (nothing of it where Da = 1 or where there is one context token) nor the order of the "
    "context tokens, adds up over the steps of a chunk, and lies in (0.1, 2.1), which keeps InfoNCE above "
    "log(1 + (B - 1) exp(-2 / temperature))"
)


def _checked_bound(bound: str | tuple[float, float] | None) -> str | tuple[float, float] | None:
    if bound in (None, "softplus") or (isinstance(bound, tuple) and len(bound) == 2 and bound[0] < bound[1]):
        return bound
    raise ValueError(f"bound must be None, 'softplus' or (low, high), got {bound!r}")


def _checked_pool(pool: str | tuple[str, float]) -> tuple[str, float]:
    if isinstance(pool, str):
        if pool in ("mean", "sum"):
            return pool, 0.0
    elif len(pool) == 2 and (
        (pool[0] == "discount" and 0.0 < pool[1] <= 1.0)
        or (pool[0] == "first" and pool[1] >= 1 and pool[1] == int(pool[1]))
    ):
        return pool
    raise ValueError(f"pool must be 'mean', 'sum', ('discount', gamma) or ('first', n), got {pool!r}")
