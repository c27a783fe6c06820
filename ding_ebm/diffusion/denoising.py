"""Denoising in K steps: DDPM and DDIM as one table of numbers, sampling, and the density of each step.

A step from x_k to x_l, l < k, predicts the noise, from it the clean sample, and draws

    x_0 = clip(x_from x_k + noise_from noise),    x_l ~ N(mean_x0 x_0 + mean_x x_k, std^2 I),

under DDPM and under DDIM alike; they differ in the four numbers only (:class:`DenoisingPlan`). The densities of the
steps make denoising a Markov decision process, which is what policy gradients need of a diffusion policy.

Letters: K denoising steps, S steps of a plan (K for DDPM), F steps at its end that are fine-tuned, B batch.
A step j = 0 .. S - 1 of a plan goes from entry j of a chain to entry j + 1; the chain ends with the clean sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ding_ebm.diffusion.schedules import CosineSchedule

# Least standard deviation of a step of an evaluation by DDPM, but for the last step's, which is 0.
_LEAST_EVALUATION_STD = 1e-3


@dataclass(frozen=True)
class DenoisingPlan:
    """The numbers of one sampling run; all tuples have S entries.

    Attributes:
        steps: Denoising index k that each step starts from, decreasing; the last step ends at 0.
        x0_from_x: Factor of x_k in the predicted clean sample.
        x0_from_noise: Factor of the predicted noise in it.
        mean_from_x0: Factor of the clean sample in the mean of the next one.
        mean_from_x: Factor of x_k in it.
        std: Standard deviation of the next sample, >= 0.
    """

    steps: tuple[int, ...]
    x0_from_x: tuple[float, ...]
    x0_from_noise: tuple[float, ...]
    mean_from_x0: tuple[float, ...]
    mean_from_x: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        """S."""
        return len(self.steps)

    @property
    def levels(self) -> tuple[int, ...]:
        """Denoising index k that each of the S + 1 entries of a whole chain holds: K, ..., 0 by DDPM."""
        return (*self.steps, 0)

    def exploring_std(self, least: float) -> tuple[float, ...]:
        """Standard deviations for collecting: none below ``least``, the last step's neither."""
        return tuple(max(std, least) for std in self.std)

    def evaluation_std(self) -> tuple[float, ...]:
        """Standard deviations for evaluating: none at the last step, and none at all under DDIM with eta = 0."""
        if not any(self.std):
            return self.std
        return (*(max(std, _LEAST_EVALUATION_STD) for std in self.std[:-1]), 0.0)


def chain_index(k: int, levels: Sequence[int]) -> int:
    """Entry of a chain that holds denoising index k: K - k in a whole chain of DDPM.

    Args:
        k: 0 is the clean action, K the pure noise.
        levels: Index that each entry holds: ``plan.levels``, or its last F + 1 where F steps were recorded.

    Raises:
        ValueError: If no entry holds it.
    """
    if k not in levels:
        raise ValueError(f"no entry of the chain holds denoising index {k}; its entries hold {tuple(levels)}")
    return levels.index(k)


def ddpm_plan(schedule: CosineSchedule) -> DenoisingPlan:
    """All K steps, each with the variance of the posterior q(x_{k-1} | x_k, x_0).

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 6 and 7, and eq. 15 for the clean sample.
    """
    steps = tuple(range(schedule.num_steps, 0, -1))
    beta, alpha_bar = schedule.beta.tolist(), schedule.alpha_bar.tolist()
    mean_x0, mean_x, std = [], [], []
    for k in steps:
        noise = 1.0 - alpha_bar[k]
        mean_x0.append(math.sqrt(alpha_bar[k - 1]) * beta[k] / noise)
        mean_x.append(math.sqrt(1.0 - beta[k]) * (1.0 - alpha_bar[k - 1]) / noise)
        std.append(math.sqrt(beta[k] * (1.0 - alpha_bar[k - 1]) / noise))
    return _plan(schedule, steps, mean_x0, mean_x, std)


def ddim_plan(schedule: CosineSchedule, num_steps: int, eta: float = 0.0) -> DenoisingPlan:
    """S of the K steps, evenly spaced, the least k first.

    Args:
        schedule: The noise schedule.
        num_steps: S, from 1 to K.
        eta: 0 is deterministic, 1 has about the noise of DDPM.

    Raises:
        ValueError: If an argument is out of its range.

    Source:
        Song et al. 2021 (arXiv:2010.02502), eq. 12 and 16. The steps are k = 1 + i floor(K / S), as in the code of
        Ren et al. 2024 (arXiv:2409.00588).
    """
    if not 1 <= num_steps <= schedule.num_steps:
        raise ValueError(f"num_steps must be from 1 to the schedule's {schedule.num_steps}, got {num_steps}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")
    stride = schedule.num_steps // num_steps
    steps = tuple(1 + stride * i for i in reversed(range(num_steps)))
    alpha_bar = schedule.alpha_bar.tolist()
    mean_x0, mean_x, std = [], [], []
    for k, after in zip(steps, (*steps[1:], 0)):
        now, then = alpha_bar[k], alpha_bar[after]
        sigma = eta * math.sqrt((1.0 - then) / (1.0 - now) * (1.0 - now / then))
        # The noise that the clipped clean sample leaves, (x - sqrt(now) x_0) / sqrt(1 - now), is carried on.
        direction = math.sqrt(max(1.0 - then - sigma**2, 0.0)) / math.sqrt(1.0 - now)
        mean_x0.append(math.sqrt(then) - direction * math.sqrt(now))
        mean_x.append(direction)
        std.append(sigma)
    return _plan(schedule, steps, mean_x0, mean_x, std)


def _plan(
    schedule: CosineSchedule,
    steps: Sequence[int],
    mean_x0: Sequence[float],
    mean_x: Sequence[float],
    std: Sequence[float],
) -> DenoisingPlan:
    alpha_bar = [float(schedule.alpha_bar[k]) for k in steps]
    return DenoisingPlan(
        tuple(steps),
        tuple(1.0 / math.sqrt(a) for a in alpha_bar),
        tuple(-math.sqrt(1.0 / a - 1.0) for a in alpha_bar),
        tuple(mean_x0),
        tuple(mean_x),
        tuple(std),
    )


def step_mean(plan: DenoisingPlan, j: int | Tensor, x: Tensor, noise: Tensor, clip: float | None = 1.0) -> Tensor:
    """Mean of the sample after step j, in the shape of ``x``.

    Args:
        plan: The steps.
        j: One step for all of ``x``; or the step of each entry, int64, of a shape that broadcasts against ``x``.
        x: Samples before the step.
        noise: The noise predicted in them.
        clip: Bound on the predicted clean sample's absolute value, or None.
    """
    x0_from_x, x0_from_noise, mean_from_x0, mean_from_x = (
        numbers[j] if isinstance(j, int) else torch.tensor(numbers, dtype=x.dtype, device=x.device)[j]
        for numbers in (plan.x0_from_x, plan.x0_from_noise, plan.mean_from_x0, plan.mean_from_x)
    )
    x_0 = x * x0_from_x + noise * x0_from_noise
    if clip is not None:
        x_0 = x_0.clamp(-clip, clip)
    return x_0 * mean_from_x0 + x * mean_from_x


@dataclass(frozen=True)
class Denoised:
    """A sampling run.

    Attributes:
        x: The clean samples, (B, ...).
        chain: Entries S - F to S of the chain, (B, F + 1, ...); the last is ``x``.
        mean: Mean of the law that each of these entries but the first was drawn from, (B, F, ...).
    """

    x: Tensor
    chain: Tensor
    mean: Tensor


def denoise(
    plan: DenoisingPlan,
    predict_noise: Callable[[Tensor, int], Tensor],
    x: Tensor,
    *,
    std: Sequence[float],
    generator: torch.Generator,
    recorded: int = 0,
    clip: float | None = 1.0,
    noise_clip: float | None = None,
    step_noise: Tensor | None = None,
) -> Denoised:
    """Carry noise to clean samples, step by step.

    Args:
        plan: The steps.
        predict_noise: Maps (x before the step, j) to the predicted noise, of the same shape.
        x: Standard normal noise, (B, ...).
        std: Standard deviation of each step, S of them, such as ``plan.exploring_std(0.1)``.
        generator: Of the noise of the steps, on the device of ``x``; unused where ``std`` is 0 or ``step_noise`` given.
        recorded: F, number of steps at the end that the chain is recorded of.
        clip: Bound on the predicted clean samples' absolute value, or None.
        noise_clip: Bound on the absolute value of the standard normal noise of a step, or None.
        step_noise: Standard normal noise of every step, (S, ...) with each entry broadcastable to ``x``, so that
            samples may share it; None draws one for each.

    Raises:
        ValueError: If ``std`` has not one entry a step, or ``recorded`` is not from 0 to S.
    """
    if len(std) != len(plan):
        raise ValueError(f"std must have one entry for each of the {len(plan)} steps, got {len(std)}")
    first = first_recorded(plan, recorded)
    chain, means = [x] if first == 0 else [], []
    for j in range(len(plan)):
        x = mean = step_mean(plan, j, x, predict_noise(x, j).to(x.dtype), clip)
        if std[j] > 0.0:
            if step_noise is None:
                z = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            else:
                z = step_noise[j]
            x = mean + std[j] * (z if noise_clip is None else z.clamp(-noise_clip, noise_clip))
        if j + 1 >= first:
            chain.append(x)
        if j >= first:
            means.append(mean)
    empty = x.new_empty(x.shape[0], 0, *x.shape[1:])
    return Denoised(x, torch.stack(chain, 1), torch.stack(means, 1) if means else empty)


def first_recorded(plan: DenoisingPlan, recorded: int) -> int:
    """Index S - F in the plan of the first of its last F steps; entry i of a recorded chain is before step S - F + i.

    Raises:
        ValueError: If F is not from 0 to S.
    """
    if not 0 <= recorded <= len(plan):
        raise ValueError(f"the recorded steps must be from 0 to the plan's {len(plan)}, got {recorded}")
    return len(plan) - recorded


def step_log_prob(x: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """log N(x; mean, std^2) of each element, in the shape of ``x``; ``std`` > 0."""
    scale = torch.as_tensor(std, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean) / scale).square() - scale.log() - 0.5 * math.log(2.0 * math.pi)
