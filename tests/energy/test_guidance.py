"""Guidance of a diffusion by an energy, where all is known: only the energy's intermediate form samples its Gibbs law.

A prior N(0.3, 0.5), the energy 2 (a + 1)^2, inverse temperature 1: the law of both is N(-0.5667, 0.1667). Correcting a
finished action, as :mod:`ding_ebm.energy.correction` does, is another thing: it descends, and samples nothing.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ding_ebm.diffusion.denoising import ddpm_plan, denoise
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.energy.potential import gaussian_quadratic_free_energy

MEAN, VARIANCE, CURVATURE, MINIMUM, SAMPLES = 0.3, 0.5, 4.0, -1.0, 100_000
POSTERIOR_VARIANCE = 1.0 / (1.0 / VARIANCE + CURVATURE)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * (MEAN / VARIANCE + CURVATURE * MINIMUM)


def energy(action: Tensor) -> Tensor:
    return 0.5 * CURVATURE * (action - MINIMUM).square()


def clean(x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, float]:
    """Mean and variance of the clean action behind a noised one."""
    variance = 1.0 / (1.0 / VARIANCE + alpha**2 / sigma**2)
    return variance * (MEAN / VARIANCE + alpha * x / sigma**2), variance


def intermediate(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """-log E exp(-energy(clean)) given the noised action: what the contrastive energy prediction of QGPO learns."""
    mean, variance = clean(x, alpha, sigma)
    matrix = [torch.full((1, 1), value, dtype=x.dtype) for value in (variance, CURVATURE)]
    minimum = torch.full((1,), MINIMUM, dtype=x.dtype)
    return -gaussian_quadratic_free_energy(mean, *matrix, minimum, 0.0, 1.0)


GUIDES = {
    "none": lambda x, alpha, sigma: 0.0 * x.squeeze(-1),
    "intermediate": intermediate,
    "energy of the noised action": lambda x, alpha, sigma: energy(x).squeeze(-1),
    "energy of the predicted action": lambda x, alpha, sigma: energy(clean(x, alpha, sigma)[0]).squeeze(-1),
}


def sampled(guide: str, steps: int) -> tuple[float, float]:
    """Mean and variance of what is sampled by the prior's exact score less the gradient of a guide."""
    schedule = CosineSchedule(steps)
    plan = ddpm_plan(schedule)
    generator = torch.Generator().manual_seed(0)

    def predict(x: Tensor, j: int) -> Tensor:
        bar = float(schedule.alpha_bar[plan.steps[j]])
        alpha, sigma = bar**0.5, (1.0 - bar) ** 0.5
        noise = (x - alpha * clean(x, alpha, sigma)[0]) / sigma
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(GUIDES[guide](x, alpha, sigma).sum(), x)
        return noise + sigma * gradient

    start = torch.randn(SAMPLES, 1, dtype=torch.float64, generator=generator)
    x = denoise(plan, predict, start, std=plan.std, generator=generator, clip=None).x
    return float(x.mean()), float(x.var())


@pytest.mark.parametrize(("steps", "tolerance"), [(100, 0.015), (400, 0.005)])
def test_the_intermediate_energy_samples_the_gibbs_law(steps, tolerance):
    assert (round(POSTERIOR_MEAN, 4), round(POSTERIOR_VARIANCE, 4)) == (-0.5667, 0.1667)
    assert sampled("intermediate", steps) == pytest.approx((POSTERIOR_MEAN, POSTERIOR_VARIANCE), abs=tolerance)
    assert sampled("none", steps) == pytest.approx((MEAN, VARIANCE), abs=2.2 * tolerance)


@pytest.mark.parametrize("guide", ["energy of the noised action", "energy of the predicted action"])
def test_its_short_cuts_sample_another_law(guide):
    mean, variance = sampled(guide, 100)
    assert mean < POSTERIOR_MEAN - 0.05  # both pull too far
    assert variance < POSTERIOR_VARIANCE - 0.03
