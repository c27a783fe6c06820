"""The diffusion model of the behavior policy: denoising loss, and sampling with any guidance.

Letters: B batch, Do observation, Da action, S evaluations of a sampling run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ding_ebm.diffusion.guidance import Guidance, guide
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import SolverPlan, solve


class NoiseModel(Protocol):
    """A network that predicts noise, as :class:`~ding_ebm.model.networks.NoiseNet` does."""

    def __call__(self, x_t: Tensor, t: Tensor, obs: Tensor) -> Tensor:
        """Predicted noise, (B, Da)."""
        ...

    def bind(self, times: Sequence[float], obs: Tensor) -> Callable[[Tensor, int], Tensor]:
        """The same as a function of (x_t, index of the time), for one sampling run."""
        ...


def denoising_loss(network: NoiseModel, x_t: Tensor, t: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """Mean over the batch of the squared error of the predicted noise, summed over Da.

    Args:
        network: The noise network.
        x_t: Noised actions, (B, Da).
        t: Times, (B,).
        obs: Observations, (B, Do).
        noise: The noise in ``x_t``, (B, Da).

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """
    return (network(x_t, t, obs) - noise).square().sum(dim=-1).mean()


def random_times(
    shape: Sequence[int], schedule: VPLinearSchedule, generator: torch.Generator, exponent: float = 1.0
) -> Tensor:
    """Times in [t_min, 1), on the generator's device: uniform ones, or with an exponent above 1 more of the early."""
    uniform = torch.rand(tuple(shape), generator=generator, device=generator.device)
    return schedule.t_min + (1.0 - schedule.t_min) * uniform**exponent


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of a tensor."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


@torch.no_grad()
def sample_actions(
    network: NoiseModel,
    plan: SolverPlan,
    obs: Tensor,
    noise: Tensor,
    *,
    guidance: Guidance | None = None,
    guidance_scale: float = 1.0,
    inverse_temperature: float = 1.0,
    clip: str = "final",
) -> Tensor:
    """Actions of the (guided) behavior policy in normalized units.

    Args:
        network: The noise network.
        plan: The solver's coefficients.
        obs: Observations, (..., Do), broadcastable against the leading shape of ``noise``.
        noise: Standard normal, (..., Da); it alone decides the sample.
        guidance: The intermediate energy, or None for the behavior policy.
        guidance_scale: Factor of the guidance's gradient; at 0 the guidance is not evaluated.
        inverse_temperature: beta of the guidance.
        clip: ``none``, ``final`` (to [-1, 1] after the last step) or ``every_step`` (each predicted clean action too).

    Returns:
        (..., Da), in the dtype of ``noise``.
    """
    predict = network.bind(plan.times, obs)
    if guidance is not None:
        predict = guide(
            plan, predict, guidance, inverse_temperature=inverse_temperature, guidance_scale=guidance_scale, obs=obs
        )
    actions = solve(plan, predict, noise, clip=(-1.0, 1.0) if clip == "every_step" else None)
    return actions if clip == "none" else actions.clamp(-1.0, 1.0)
