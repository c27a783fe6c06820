"""Potentials of states from energies of actions: free energies under a frozen prior, at several noise levels.

The energy of a state-action pair becomes a number of the state by a soft minimum over the actions that a frozen policy,
the prior, would take:

    Phi_k(s) = (1 / beta) log E_{a ~ q_k(. | s)} exp(-beta E(s, a, k)),

with q_k the law of the prior's action at denoising index k; high is good. It is the largest expectation of -E less
1 / beta times the KL divergence from q_k that any law of actions has (Donsker and Varadhan).

What it measures is how typical the prior's actions are for the energy, not progress towards a goal: of an energy that
is trained by symmetric contrast against actions of the prior's own marginal it is constant. A value function is the
informative potential; see :mod:`ding_ebm.energy.shaping`.

Letters: B states, M chains of a state, J denoising indices in use, To observation history, Tp predicted actions,
Do observation, Da action, K denoising steps, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ding_ebm.diffusion.denoising import chain_index
from ding_ebm.energy.scaler import EnergyScalerPerK
from ding_ebm.model.energy import log_mean_exp
from ding_ebm.model.energy_protocol import Energy, candidate_energy, eval_mode

AGGREGATES = ("weighted", "path")


class ChainPrior(Protocol):
    """A frozen policy whose chains are recorded, such as :class:`~ding_ebm.model.chains.DiffusionPrior`."""

    # Denoising index that each entry of a chain holds, from noise to 0.
    levels: tuple[int, ...]
    # K.
    num_steps: int

    def sample_chains(self, obs: Tensor, num: int, deterministic: bool, generator: torch.Generator) -> Tensor:
        """Chains, (num, B, len(levels), Tp, Da); the noise of chain m must be the same for every observation."""
        ...


def build_k_use_indices(mode: str | Sequence[int], K: int) -> tuple[int, ...]:
    """Denoising indices that a potential uses, ascending; 0 is the clean action.

    Args:
        mode: ``all``: 0 to K. ``last_half``: 0 to floor(K / 2), the clean half. ``tail:N``: 0 to N - 1, the last N
            entries of a chain. Or the indices themselves.
        K: Denoising steps.

    Raises:
        ValueError: If the mode is unknown, or an index is not from 0 to K, twice there, or there is none.
    """
    chosen: Sequence[int]
    if not isinstance(mode, str):
        chosen = tuple(mode)
    elif mode == "all":
        chosen = range(K + 1)
    elif mode == "last_half":
        chosen = range(K // 2 + 1)
    elif mode.startswith("tail:") and mode[5:].isdecimal():
        chosen = range(int(mode[5:]))
    else:
        raise ValueError(f"k_use_mode must be 'all', 'last_half', 'tail:N' or a list of indices, got {mode!r}")
    if not chosen or min(chosen) < 0 or max(chosen) > K or len(set(chosen)) < len(chosen):
        raise ValueError(f"k_use_mode must give different indices from 0 to K = {K}, got {mode!r}")
    return tuple(sorted(chosen))


def k_weights(k_use: Sequence[int], eta: float) -> Tensor:
    """Weights of denoising indices, proportional to exp(-eta k) and of sum 1, (J,) float64; the clean count most."""
    return torch.softmax(-eta * torch.tensor(k_use, dtype=torch.float64), dim=0)


def gaussian_quadratic_free_energy(
    mean: Tensor, covariance: Tensor, curvature: Tensor, minimum: Tensor, offset: float, beta: float
) -> Tensor:
    """Phi of E(a) = (a - m)' A (a - m) / 2 + e under N(mean, covariance), in closed form, (...).

    -e - log|I + beta S A| / (2 beta) - (mean - m)' A (I + beta S A)^-1 (mean - m) / 2. It says what beta does to an
    energy of known curvature.

    Args:
        mean: (..., D).
        covariance: S, positive semidefinite, (..., D, D); 0 gives -E(mean).
        curvature: A, symmetric positive semidefinite, (..., D, D).
        minimum: m, (..., D).
        offset: e, the least energy.
        beta: Inverse temperature, >= 0; at 0 the limit, minus the mean energy.
    """
    away = (mean - minimum).unsqueeze(-1)
    spread = covariance @ curvature
    if beta == 0.0:
        volume = 0.5 * spread.diagonal(dim1=-2, dim2=-1).sum(-1)
        pulled = curvature @ away
    else:
        tilt = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device) + beta * spread
        volume = torch.linalg.slogdet(tilt).logabsdet / (2.0 * beta)
        pulled = curvature @ torch.linalg.solve(tilt, away)
    distance = (away.mT @ pulled).squeeze(-1).squeeze(-1)
    return -offset - volume - 0.5 * distance


def level_energies(energy: Energy, obs: Tensor, action: Tensor, k_use: Sequence[int], max_rows: int = 65536) -> Tensor:
    """Energies of actions at several denoising indices, (B, N), N a multiple of J.

    Args:
        energy: The energy; it is not given k where all of them are 0.
        obs: Normalized observation histories, (B, To, Do).
        action: Normalized chunks, (B, N, Tp, Da), number i of them at the index k_use[i mod J].
        k_use: The J indices.
        max_rows: Chunks that the energy is asked for at once, but for those of one state.

    Raises:
        ValueError: If shapes do not fit, or the energy returns another shape than one number a row.
    """
    count = action.shape[1]
    if len(action) != len(obs) or count % len(k_use):
        raise ValueError(
            f"actions must be (B, N, Tp, Da), B = {len(obs)} and N a multiple of {len(k_use)}, got "
            f"{tuple(action.shape)}"
        )
    k = torch.tensor(k_use).repeat(count // len(k_use)).to(obs.device) if any(k_use) else None
    size = max(1, max_rows // count)
    pieces = [
        candidate_energy(energy, some, chunks, None if k is None else k.expand(len(some), count))
        for some, chunks in zip(obs.split(size), action.split(size))
    ]
    return torch.cat(pieces)


@torch.no_grad()
def chain_energies(
    energy: Energy,
    prior: ChainPrior,
    obs: Tensor,
    k_use: Sequence[int],
    num: int,
    *,
    deterministic: bool = False,
    seed: int = 0,
    max_rows: int = 65536,
) -> Tensor:
    """Energies along chains of the prior, (M, B, J): a function of each observation, whatever else is in the batch.

    Every call, and every piece of a batch, draws the same noise for chain m.

    Args:
        energy: See :func:`level_energies`.
        prior: The frozen policy.
        obs: Normalized observation histories, (B, To, Do).
        k_use: Denoising indices, each held by an entry of the prior's chains.
        num: M, chains of each observation.
        deterministic: The prior's chain without noise.
        seed: Of the noise.
        max_rows: Chunks that the energy is asked for at once, but for those of one state; memory is some multiple.
    """
    entries = [chain_index(k, prior.levels) for k in k_use]
    pieces = []
    with eval_mode(energy):
        for part in obs.split(max(1, max_rows // (num * len(k_use)))):
            chains = prior.sample_chains(part, num, deterministic, torch.Generator().manual_seed(seed))
            if chains.shape[:3] != (num, len(part), len(prior.levels)):
                raise ValueError(
                    f"a prior's chains must be (num, B, levels, Tp, Da) = ({num}, {len(part)}, {len(prior.levels)}, "
                    f"...), got {tuple(chains.shape)}"
                )
            actions = chains[:, :, entries].transpose(0, 1).flatten(1, 2)
            values = level_energies(energy, part, actions, k_use, max_rows)
            pieces.append(values.view(len(part), num, len(k_use)).transpose(0, 1))
    return torch.cat(pieces, 1)


class KFreePotential:
    """phi(s) = alpha sum_k w_k Phi_k(s): free energies at several denoising indices, without a task's reward.

    It is a function of the observation: the same number in every call and in every batch, up to rounding. Energy,
    prior and scaler must therefore stay as they are while it is in use.

    Args:
        energy: The energy; a module is evaluated in evaluation mode.
        prior: The frozen policy.
        beta: Inverse temperature, > 0. Small: the mean of -E; large: the best of the M chains.
        alpha: Factor of the potential.
        M: Chains of a state. Of few chains the free energy is biased low, by about the squared coefficient of
            variation of exp(-beta E) over 2 M beta.
        eta: w_k is proportional to exp(-eta k).
        use_mu_only: One chain of means, from 0 and without noise, in place of M random ones: Phi_k is -E at it.
        k_use_mode: See :func:`build_k_use_indices`.
        aggregate: ``weighted``: the sum above. ``path``: (1 / beta) log sum_k w_k exp(beta Phi_k), the free energy
            where k is drawn too; it is at least the weighted one, and a constant added to one index's energies shifts
            its weight, so that energies should be normalized.
        scaler: Normalizes the energies; must be frozen.
        seed: Of the chains' noise.
        max_rows: See :func:`chain_energies`.

    Raises:
        ValueError: If an argument is out of range, or a chain of the prior lacks an index.
    """

    def __init__(
        self,
        energy: Energy,
        prior: ChainPrior,
        *,
        beta: float = 1.0,
        alpha: float = 1.0,
        M: int = 1,
        eta: float = 0.3,
        use_mu_only: bool = True,
        k_use_mode: str | Sequence[int] = "tail:6",
        aggregate: str = "weighted",
        scaler: EnergyScalerPerK | None = None,
        seed: int = 0,
        max_rows: int = 65536,
    ) -> None:
        if not beta > 0.0:
            raise ValueError(f"beta must be > 0, got {beta}")
        if M < 1 or (use_mu_only and M != 1):
            raise ValueError(f"M must be at least 1, and 1 where use_mu_only asks for the one chain of means, got {M}")
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {AGGREGATES}, got {aggregate!r}")
        self.k_use = build_k_use_indices(k_use_mode, prior.num_steps)
        for k in self.k_use:
            chain_index(k, prior.levels)  # refuses those that a plan of few steps skips
        if scaler is not None and prior.num_steps != scaler.K:
            raise ValueError(f"the scaler is of K = {scaler.K}, the prior of K = {prior.num_steps}")
        self.energy, self.prior, self.scaler = energy, prior, scaler
        self.beta, self.alpha, self.M, self.eta, self.use_mu_only = beta, alpha, M, eta, use_mu_only
        self.aggregate, self.seed, self.max_rows = aggregate, seed, max_rows

    @torch.no_grad()
    def phi_k(self, obs: Tensor) -> Tensor:
        """Phi_k of each index in use, (B, J).

        Args:
            obs: Normalized observation histories, (B, To, Do).

        Raises:
            ValueError: If the scaler is not frozen, or an energy is not finite.
        """
        if self.scaler is not None and not self.scaler.frozen:
            raise ValueError("the potential's scaler must be frozen: freeze() it when it has seen enough energies")
        energies = chain_energies(
            self.energy,
            self.prior,
            obs,
            self.k_use,
            self.M,
            deterministic=self.use_mu_only,
            seed=self.seed,
            max_rows=self.max_rows,
        )
        if self.scaler is not None:
            k = torch.tensor(self.k_use, device=obs.device).expand(energies.shape)
            energies = self.scaler.normalize(k, energies)
        phi = log_mean_exp(-self.beta * energies, dim=0) / self.beta
        if not bool(torch.isfinite(phi).all()):
            row, j = torch.nonzero(~torch.isfinite(phi))[0].tolist()
            raise ValueError(
                f"the free energy of observation {row} at k = {self.k_use[j]} is {float(phi[row, j])}: an energy of "
                "its actions is not finite"
            )
        return phi

    def phi(self, obs: Tensor) -> Tensor:
        """The potential of each observation, (B,); see :meth:`phi_k`."""
        per_k = self.phi_k(obs)
        weights = k_weights(self.k_use, self.eta).to(per_k)
        if self.aggregate == "path":
            return self.alpha / self.beta * log_mean_exp(self.beta * per_k, log_w=weights.log())
        return self.alpha * (per_k @ weights)

    __call__ = phi
