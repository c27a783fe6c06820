"""Rewards from energies: potential-based shaping, which leaves the optimal policies as they are, and energy as reward.

Shaping adds lambda (gamma phi(s') - phi(s)). The best policies stay the best for any phi, and each advantage the same
number once the critic has taken over -lambda phi, if

- phi of a visited state is one number, whether the state is left or reached;
- phi is 0 exactly where the learner bootstraps 0, after a termination;
- at a time limit phi is that of the episode's own last observation, not of the next one's first;
- gamma has the exponent of the learner's backup;
- nothing that bounds rewards comes after it.

The potential may be any function from observation histories (B, To, Do) to (B,): a free energy, or a value function.

Letters: T decisions of a rollout, E environments, N decisions, J denoising indices, To observation history,
Do observation, Tp predicted actions, Da action, K denoising steps.

Source:
    Ng, Harada and Russell, "Policy invariance under reward transformations", ICML 1999; Grzes, AAMAS 2017 (ends of
    episodes); Devlin and Kudenko, AAMAS 2012 (potentials that change in time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ding_ebm.diffusion.denoising import chain_index
from ding_ebm.energy.potential import ChainPrior, chain_energies, level_energies
from ding_ebm.energy.scaler import EnergyScalerPerK
from ding_ebm.model.energy_protocol import Energy, eval_mode

Potential = Callable[[Tensor], Tensor]
REWARD_MODES = ("k0", "dense")


def shaped_rewards(
    reward: Tensor,
    phi: Tensor,
    next_phi: Tensor,
    terminated: Tensor,
    discount_factor: float,
    scale: float,
    length: Tensor | None = None,
) -> Tensor:
    """r + lambda (gamma phi(s') - phi(s)), with phi(s') = 0 after a termination, in the shape of ``reward``.

    Args:
        reward: Of each decision, any shape.
        phi: Potential of the state before it.
        next_phi: Potential of the state after it, at a time limit that of the episode's own last observation. Unused,
            and may be NaN, where the decision terminated.
        terminated: Whether nothing is bootstrapped after the decision, bool.
        discount_factor: gamma of the learner.
        scale: lambda.
        length: Steps by which the learner discounts what follows the decision, gamma^length: the environment steps of
            a chunk, the n of n-step returns. None: one, as where gamma is a discount per decision.

    Raises:
        ValueError: If shapes differ, ``terminated`` is not bool, or a potential that counts is not finite.
    """
    columns = dict(phi=phi, next_phi=next_phi, terminated=terminated, **({} if length is None else {"length": length}))
    for name, column in columns.items():
        if column.shape != reward.shape:
            raise ValueError(f"{name} must have the rewards' shape {tuple(reward.shape)}, got {tuple(column.shape)}")
    if terminated.dtype != torch.bool:
        raise ValueError(f"terminated must be bool, got {terminated.dtype}")
    following = torch.where(terminated, torch.zeros_like(next_phi), next_phi)
    wrong = ~torch.isfinite(torch.stack([phi, following]))
    if bool(wrong.any()):
        which, *place = torch.nonzero(wrong)[0].tolist()
        value = float((phi, following)[which][tuple(place)])
        state = ("before", "after (at a time limit: of the episode's own last observation, which is needed)")[which]
        raise ValueError(f"the potential of the state {state} decision {place} is {value}")
    discount = discount_factor if length is None else discount_factor ** length.to(reward.dtype)
    return reward + scale * (discount * following - phi)


@torch.no_grad()
def rollout_potentials(
    potential: Potential, obs: Tensor, next_obs: Tensor, terminated: Tensor, boundary: Tensor
) -> tuple[Tensor, Tensor]:
    """Potentials before and after each decision, each visited state evaluated once, (T, E) twice.

    The state after a decision is the one before the next, but at the end of an episode or of the rollout. After a
    termination no potential is evaluated; it is 0.

    Args:
        potential: Observation histories (B, To, Do) to (B,).
        obs: Before each decision, as the potential takes them, (T, E, To, Do).
        next_obs: After it; at an episode's end its own last observation, (T, E, To, Do).
        terminated: Whether the task ended the episode, (T, E), bool.
        boundary: Whether the episode ended at all, (T, E), bool.

    Raises:
        ValueError: If shapes do not fit, the potential is not (B,), a termination is no boundary, or an observation
            after a decision that ends nothing is not the next one's.
    """
    if obs.shape != next_obs.shape or not terminated.shape == boundary.shape == obs.shape[:2]:
        raise ValueError(
            f"obs and next_obs must be (T, E, ...), terminated and boundary (T, E), got {tuple(obs.shape)}, "
            f"{tuple(next_obs.shape)}, {tuple(terminated.shape)} and {tuple(boundary.shape)}"
        )
    if bool((terminated & ~boundary).any()):
        raise ValueError("a decision that terminated must be a boundary")
    goes_on = ~boundary[:-1]
    torn = goes_on & (next_obs[:-1] != obs[1:]).flatten(2).any(-1)
    if bool(torn.any()):
        t, env = torch.nonzero(torn)[0].tolist()
        raise ValueError(
            f"the observation after decision {t} of environment {env} is not the one before decision {t + 1}, though "
            "the episode goes on: the decisions must be in order, with a boundary wherever one does not follow another"
        )
    last = boundary & ~terminated
    last[-1] = ~terminated[-1]
    states = torch.cat([obs.flatten(0, 1), next_obs[last]])
    values = potential(states)
    if values.shape != (len(states),):
        raise ValueError(f"a potential must be (B,), got {tuple(values.shape)} for {len(states)} states")
    phi = values[: boundary.numel()].view(boundary.shape)
    next_phi = torch.zeros_like(phi)
    next_phi[:-1] = phi[1:] * goes_on
    next_phi[last] = values[boundary.numel() :]
    return phi, next_phi


class Shaped(NamedTuple):
    """Rewards of a rollout, (T, E) each: shaped, and the potentials that they were shaped by."""

    reward: Tensor
    phi: Tensor
    next_phi: Tensor


@dataclass(frozen=True)
class PotentialShaping:
    """Shapes the rewards of a rollout, before they are scaled and before advantages are made of them.

    Args:
        potential: Observation histories (B, To, Do) to (B,), high where it is good; it must not change in a rollout.
        discount_factor: gamma of the learner.
        scale: lambda.
        offset: Subtracted from every potential but the 0 after a termination. It moves no optimal policy, and decides
            what a termination costs until the critic knows: about the potentials' mean is neutral.
    """

    potential: Potential
    discount_factor: float
    scale: float = 1.0
    offset: float = 0.0

    def __call__(
        self,
        reward: Tensor,
        obs: Tensor,
        next_obs: Tensor,
        terminated: Tensor,
        boundary: Tensor,
        length: Tensor | None = None,
    ) -> Shaped:
        """See :func:`rollout_potentials` and :func:`shaped_rewards`."""
        phi, next_phi = rollout_potentials(self.potential, obs, next_obs, terminated, boundary)
        phi = phi.to(reward) - self.offset
        next_phi = torch.where(terminated, torch.zeros_like(phi), next_phi.to(reward) - self.offset)
        shaped = shaped_rewards(reward, phi, next_phi, terminated, self.discount_factor, self.scale, length)
        return Shaped(shaped, phi, next_phi)


class EnergyReward:
    """Energies as rewards: how much better than the prior's an executed chain is, in units of its usual spread.

        u_k = -(E(s, a_k, k) - b_k(s)) / tau_k,    b_k(s) the median of E(s, ., k) over chains of the prior,

    cut to +-clip. The baseline removes what energies add to a state whatever its action is. Unlike shaping, this
    changes which policies are the best.

    Args:
        energy: The energy; a module is evaluated in evaluation mode.
        prior: The frozen policy.
        scale: lambda, in both modes.
        mode: ``k0``: u_0 of the executed action. ``dense``: sum over the recorded entries k of
            ``gamma_denoising``^k u_k.
        gamma_denoising: Discount per denoising step towards the noise.
        num_chains: Chains of the baseline of a state.
        clip: Bound on |u_k|, or None.
        env_weight: w of w r_env + (1 - w) r.
        scaler: Holds tau_k, the spread of E - b_k; takes the residuals of every call until it is frozen. None: 1.
        seed: Of the baseline's chains, the same noise for every state.
        max_rows: See :func:`~ding_ebm.energy.potential.chain_energies`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        energy: Energy,
        prior: ChainPrior,
        *,
        scale: float = 1.0,
        mode: str = "k0",
        gamma_denoising: float = 0.99,
        num_chains: int = 8,
        clip: float | None = 5.0,
        env_weight: float = 0.0,
        scaler: EnergyScalerPerK | None = None,
        seed: int = 0,
        max_rows: int = 65536,
    ) -> None:
        if mode not in REWARD_MODES:
            raise ValueError(f"mode must be one of {REWARD_MODES}, got {mode!r}")
        if num_chains < 1 or not 0.0 <= env_weight <= 1.0 or (clip is not None and not clip > 0.0):
            raise ValueError(
                f"num_chains must be at least 1, env_weight from 0 to 1 and clip > 0, got {num_chains}, {env_weight} "
                f"and {clip}"
            )
        if scaler is not None and prior.num_steps != scaler.K:
            raise ValueError(f"the scaler is of K = {scaler.K}, the prior of K = {prior.num_steps}")
        self.energy, self.prior, self.scaler = energy, prior, scaler
        self.scale, self.mode, self.gamma_denoising, self.num_chains = scale, mode, gamma_denoising, num_chains
        self.clip, self.env_weight, self.seed, self.max_rows = clip, env_weight, seed, max_rows

    @torch.no_grad()
    def advantages(self, obs: Tensor, chain: Tensor, levels: Sequence[int]) -> Tensor:
        """u_k of each recorded entry, (N, J); of mode ``k0`` that of the clean action, (N, 1).

        Args:
            obs: Normalized observation histories, (N, To, Do).
            chain: Executed chains, (N, J, Tp, Da).
            levels: Denoising index of each entry, such as the last J of the prior's; the last must be 0.

        Raises:
            ValueError: If shapes do not fit, or an energy is not finite.
        """
        if chain.shape[:2] != (len(obs), len(levels)) or levels[-1] != 0:
            raise ValueError(
                f"chains must be (N, J, Tp, Da) with one index an entry and 0 the last, got {tuple(chain.shape)} for "
                f"{len(obs)} observations and the indices {tuple(levels)}"
            )
        k_use = (0,) if self.mode == "k0" else tuple(levels)
        entries = [chain_index(k, levels) for k in k_use]
        with eval_mode(self.energy):
            executed = level_energies(self.energy, obs, chain[:, entries], k_use, self.max_rows)
        of_prior = chain_energies(
            self.energy, self.prior, obs, k_use, self.num_chains, seed=self.seed, max_rows=self.max_rows
        )
        ordered = of_prior.sort(dim=0).values
        residual = executed - 0.5 * (ordered[(self.num_chains - 1) // 2] + ordered[self.num_chains // 2])
        if not bool(torch.isfinite(residual).all()):
            row, j = torch.nonzero(~torch.isfinite(residual))[0].tolist()
            raise ValueError(f"energy less baseline of decision {row} at k = {k_use[j]} is {float(residual[row, j])}")
        if self.scaler is not None:
            k = torch.tensor(k_use, device=obs.device)
            if not self.scaler.frozen:
                self.scaler.update(k.expand(residual.shape), residual)
            residual = residual / self.scaler.statistics()[1][k].to(residual)
        return -residual if self.clip is None else (-residual).clamp(-self.clip, self.clip)

    def __call__(self, env_reward: Tensor, obs: Tensor, chain: Tensor, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mixed reward and the energies' part of it, lambda sum_k gamma_denoising^k u_k, (N,) each.

        Args:
            env_reward: The task's reward, (N,); it is returned as the first where ``env_weight`` is 1.
            obs: See :meth:`advantages`.
            chain: See :meth:`advantages`.
            levels: See :meth:`advantages`.
        """
        better = self.advantages(obs, chain, levels)
        k = (0,) if self.mode == "k0" else tuple(levels)
        discount = self.gamma_denoising ** torch.tensor(k, dtype=better.dtype, device=better.device)
        reward = (self.scale * (better @ discount)).to(env_reward)
        return self.env_weight * env_reward + (1.0 - self.env_weight) * reward, reward
