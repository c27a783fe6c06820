"""Action chunks by denoising in K steps: the loss, sampling by two networks, and the density of a chain.

The noisy steps of a run may belong to a frozen base network and its last F steps to a fine-tuned one; the recorded
chain of these F steps is what a policy gradient is taken of.

Letters: B batch, To observation history, Tp predicted and Ta executed actions, Do observation, Da action, K denoising
steps, S steps of a plan, F fine-tuned steps. Networks number the noise levels k = 1 .. K from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ding_ebm.diffusion.denoising import (
    Denoised,
    DenoisingPlan,
    denoise,
    first_recorded,
    step_log_prob,
    step_mean,
)
from ding_ebm.diffusion.schedules import CosineSchedule

REDUCTIONS = ("mean", "sum")
# Range that the log-density of one number of an action is cut to, as in the code of arXiv:2409.00588.
LOG_PROB_RANGE = (-5.0, 2.0)


class ChunkNoiseModel(Protocol):
    """A network that predicts the noise in an action chunk: :class:`DiffusionMLP`, :class:`Unet1D`."""

    def __call__(self, x: Tensor, k: Tensor, obs: Tensor) -> Tensor:
        """Predicted noise, (B, Tp, Da), for chunks (B, Tp, Da), levels (B,) from 0, histories (B, To, Do)."""
        ...

    def bind(self, steps: Sequence[int], obs: Tensor) -> Callable[[Tensor, int], Tensor]:
        """The same as a function of (x, index into ``steps``), for one sampling run."""
        ...


def chunk_loss(
    network: ChunkNoiseModel, schedule: CosineSchedule, action: Tensor, obs: Tensor, k: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise, over the batch and all numbers of a chunk.

    Args:
        network: The noise network.
        schedule: The noise schedule of K steps.
        action: Clean chunks, (B, Tp, Da).
        obs: Observation histories, (B, To, Do).
        k: Denoising indices, (B,), int64, from 1 to K.
        noise: Standard normal, (B, Tp, Da).

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """
    return F.mse_loss(network(schedule.diffuse(action, k, noise), k - 1, obs), noise)


def sample_chunks(
    base: ChunkNoiseModel,
    fine_tuned: ChunkNoiseModel | None,
    plan: DenoisingPlan,
    obs: Tensor,
    noise: Tensor,
    *,
    std: Sequence[float],
    generator: torch.Generator,
    fine_tuned_steps: int = 0,
    clip: float | None = 1.0,
    noise_clip: float | None = None,
    step_noise: Tensor | None = None,
) -> Denoised:
    """Action chunks in normalized units; each network is evaluated at its own steps only.

    Args:
        base: Network of the first S - F steps.
        fine_tuned: Network of the last F steps; may be None where F is 0.
        plan: The steps.
        obs: Observation histories, (B, To, Do).
        noise: Standard normal, (B, Tp, Da).
        std: See :func:`~ding_ebm.diffusion.denoising.denoise`.
        generator: Of the noise of the steps.
        fine_tuned_steps: F; the chain of these steps is recorded.
        clip: Bound on the predicted clean actions, or None.
        noise_clip: Bound on the noise of a step, or None.
        step_noise: See :func:`~ding_ebm.diffusion.denoising.denoise`.

    Raises:
        ValueError: If F is not from 0 to S, or there is no network for it.
    """
    first = first_recorded(plan, fine_tuned_steps)
    if fine_tuned is None and fine_tuned_steps:
        raise ValueError(f"{fine_tuned_steps} fine-tuned steps need a fine-tuned network")
    levels = [k - 1 for k in plan.steps]
    noisy = base.bind(levels[:first], obs) if first else None
    clean = fine_tuned.bind(levels[first:], obs) if fine_tuned is not None and fine_tuned_steps else None

    def predict(x: Tensor, j: int) -> Tensor:
        if j < first:
            assert noisy is not None
            return noisy(x, j)
        assert clean is not None
        return clean(x, j - first)

    return denoise(
        plan,
        predict,
        noise,
        std=std,
        generator=generator,
        recorded=fine_tuned_steps,
        clip=clip,
        noise_clip=noise_clip,
        step_noise=step_noise,
    )


class DiffusionPrior:
    """Whole chains of a frozen policy, such as the one that fine-tuning starts from.

    The noise of a chain is the same for every observation: chain m of an observation depends on the observation, m
    and the generator's state, and not on what else is in the batch.

    Args:
        network: The noise network, by reference; it must not be trained while its chains are in use.
        plan: The steps.
        num_steps: K of the noise schedule; the plan may skip some of its steps.
        chunk_shape: (Tp, Da).
        std: Standard deviation of each step of a random chain; None: those of an evaluation.
        clip: Bound on the predicted clean actions, or None.

    Attributes:
        levels: Denoising index that each entry of a chain holds, from noise to 0; (K, ..., 0) by DDPM.

    Raises:
        ValueError: If the plan has a step beyond K.
    """

    def __init__(
        self,
        network: ChunkNoiseModel,
        plan: DenoisingPlan,
        num_steps: int,
        chunk_shape: tuple[int, int],
        *,
        std: Sequence[float] | None = None,
        clip: float | None = 1.0,
    ) -> None:
        if plan.steps[0] > num_steps:
            raise ValueError(f"the plan starts at denoising index {plan.steps[0]}, beyond K = {num_steps}")
        self.levels, self.num_steps = plan.levels, num_steps
        self._network, self._plan, self._chunk_shape, self._clip = network, plan, chunk_shape, clip
        self._std = plan.evaluation_std() if std is None else tuple(std)

    @torch.no_grad()
    def sample_chains(self, obs: Tensor, num: int, deterministic: bool, generator: torch.Generator) -> Tensor:
        """Chains of each observation, (num, B, S + 1, Tp, Da), in the dtype of ``obs``; the first entry is the noise.

        Args:
            obs: Normalized observation histories, (B, To, Do).
            num: Chains of each observation.
            deterministic: The chain of means, from 0 and without noise; all ``num`` chains are the same.
            generator: Of all noise; its device may be another one than that of ``obs``. It draws in float64, so that
                float32 and float64 chains agree.
        """
        shape = (len(self._plan) + 1, num, 1, *self._chunk_shape)
        if deterministic:
            noise, std = obs.new_zeros(shape), (0.0,) * len(self._plan)
        else:
            noise = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
            std = self._std
        noise = noise.to(obs)
        chain = sample_chunks(
            self._network,
            self._network,
            self._plan,
            obs,
            noise[0].expand(num, len(obs), *self._chunk_shape),
            std=std,
            generator=generator,
            fine_tuned_steps=len(self._plan),
            clip=self._clip,
            step_noise=noise[1:],
        ).chain
        return chain.transpose(1, 2)


def chain_means(
    network: ChunkNoiseModel, plan: DenoisingPlan, j: Tensor, x: Tensor, obs: Tensor, clip: float | None = 1.0
) -> Tensor:
    """Mean of the next entry of a chain for rows of (chunk, step), (B, Tp, Da).

    Args:
        network: The fine-tuned network.
        plan: The steps.
        j: Step of each row in the plan, (B,), int64.
        x: Entry before the step, (B, Tp, Da).
        obs: Observation histories, (B, To, Do).
        clip: Bound on the predicted clean actions, or None.
    """
    levels = torch.tensor(plan.steps, device=j.device)[j] - 1
    return step_mean(plan, j.view(-1, 1, 1), x, network(x, levels, obs), clip)


def chunk_log_prob(
    x: Tensor, mean: Tensor, std: Tensor | float, act_steps: int, reduction: str = "mean", cut: bool = True
) -> Tensor:
    """Log-probability of a step of the chain: over the executed actions only, one number a row.

    Args:
        x: Entries after the step, (..., Tp, Da).
        mean: Their means, in the same shape.
        std: Their standard deviations, broadcastable to it.
        act_steps: Ta; actions that are predicted but not executed do not count.
        reduction: ``mean`` over Ta x Da, as in the published code, where a clip range of 0.01 is one per dimension; or
            ``sum``, the joint log-density.
        cut: Whether to cut each number's log-density to ``LOG_PROB_RANGE``, as the published code does.

    Returns:
        (...).

    Raises:
        ValueError: If the reduction is unknown.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    log_prob = step_log_prob(x, mean, std)[..., :act_steps, :]
    if cut:
        log_prob = log_prob.clamp(*LOG_PROB_RANGE)
    return log_prob.mean((-2, -1)) if reduction == "mean" else log_prob.sum((-2, -1))
