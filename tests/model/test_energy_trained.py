"""Trained guidance against the closed form: eight Gaussians tilted by a quadratic energy at beta = 3.

The behavior model is exact in the fast tests, so that all error is the guidance's; the slow ones train it too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ding_ebm.diffusion.guidance import Guidance, guide
from ding_ebm.diffusion.oracles import GaussianMixture, MixtureGuidance, tilt_quadratic
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan, solve
from ding_ebm.model.diffusion import denoising_loss, random_times, sample_actions, standard_normal
from ding_ebm.model.energy import GuidanceNet, cep_labels, cep_loss, log_mean_exp, mse_guidance_loss
from ding_ebm.model.networks import NoiseNet

SCHEDULE = VPLinearSchedule()
BETA = 3.0
A = torch.tensor([[0.35, 0.105], [0.105, 0.21]])
b = torch.tensor([0.4, -0.7])
_ANGLE = torch.arange(8) * (math.pi / 4.0)
MIXTURE = GaussianMixture(
    torch.full((8,), 1.0 / 8.0).log(),
    4.0 / 1.414 * torch.stack([_ANGLE.cos(), _ANGLE.sin()], 1),
    (0.5 / 1.414) ** 2 * torch.eye(2).expand(8, 2, 2),
)
TILT = partial(tilt_quadratic, A=A, b=b, c=0.0)
TARGET, LOG_Z = TILT(MIXTURE, beta=BETA)
ORACLE = MixtureGuidance(SCHEDULE, MIXTURE, TILT)
PLAN = make_plan(SCHEDULE, 25)


def value(x: Tensor) -> Tensor:
    """Minus the energy, the Q of this problem."""
    return -0.5 * ((x @ A) * x).sum(-1) - x @ b


def bfloat16(enabled: bool) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def fit(parameters, loss: Callable[[], Tensor], iterations: int, learning_rate: float) -> None:
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        scheduler.step()


def train_guidance(
    kind: str,
    iterations: int,
    *,
    width: int = 128,
    batch: int = 64,
    beta: float | tuple[float, float] = BETA,
    in_bfloat16: bool = False,
) -> GuidanceNet:
    """A guidance trained on M = 16 draws of the mixture a row; a range of beta makes it conditioned."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    conditioned = isinstance(beta, tuple)
    net = GuidanceNet(0, 2, (width,) * 3, conditioned)
    pool = MIXTURE.sample(1 << 17, generator).float()
    values = value(pool)

    def loss() -> Tensor:
        rows = torch.randint(len(pool), (batch, 16), generator=generator)
        x_0, q = pool[rows], values[rows]
        t = random_times((batch,), SCHEDULE, generator)
        x_t = SCHEDULE.diffuse(x_0, t.unsqueeze(1), standard_normal(x_0, generator))
        betas = torch.full((batch,), BETA if conditioned else beta)
        if conditioned:
            betas = beta[0] + (beta[1] - beta[0]) * torch.rand(batch, generator=generator)
        with bfloat16(in_bfloat16):
            f = net(x_t, t, None, betas)
        if kind == "mse":
            return mse_guidance_loss(f, q, betas)
        log_z = log_mean_exp(betas.unsqueeze(1) * values[:4096])
        return cep_loss(f, cep_labels(q, betas, kind, log_z))

    fit(net.parameters(), loss, iterations, 3e-3)
    return net


def train_behavior(iterations: int, in_bfloat16: bool = False) -> NoiseNet:
    """A noise network for the mixture; its observation is always zero."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    net = NoiseNet(1, 2, (256, 128))
    pool = MIXTURE.sample(1 << 17, generator).float()

    def loss() -> Tensor:
        x_0 = pool[torch.randint(len(pool), (512,), generator=generator)]
        t = random_times((512,), SCHEDULE, generator)
        noise = standard_normal(x_0, generator)
        with bfloat16(in_bfloat16):
            return denoising_loss(net, SCHEDULE.diffuse(x_0, t, noise), t, torch.zeros(512, 1), noise)

    fit(net.parameters(), loss, iterations, 3e-3)
    return net


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    directions = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=0)
    return float(((x @ directions).sort(0).values - (y @ directions).sort(0).values).abs().mean())


def distance(guidance: Guidance, *, beta: float = BETA, scale: float = 1.0, n: int = 4000) -> float:
    """From samples of the exact behavior model under a guidance to draws of the target."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(n, 2, generator=generator)
    exact = lambda x, i: MIXTURE.noise(SCHEDULE, x, PLAN.times[i])  # noqa: E731
    with torch.no_grad():
        x = solve(PLAN, guide(PLAN, exact, guidance, inverse_temperature=beta, guidance_scale=scale), noise)
    return sliced_wasserstein(x, TARGET.sample(n, generator).float())


def guidance_error(guidance: Guidance, t: float) -> float:
    """Relative error of the gradient where the target's noised points are."""
    x_t = TARGET.diffused(SCHEDULE, t).sample(2000, torch.Generator().manual_seed(6)).float()
    with torch.no_grad():
        _, grad = guidance.value_and_grad(x_t, t, None, BETA)
    _, exact = ORACLE.value_and_grad(x_t, t, None, BETA)
    return float((grad - exact).norm() / exact.norm())


def test_contrastive_guidance_samples_the_tilted_law_and_regression_on_the_energy_does_not():
    assert distance(ORACLE) < 0.04  # the floor of two draws is 0.01 to 0.03
    contrastive = train_guidance("unnormalized", 2000)
    assert distance(contrastive) <= 0.10
    assert guidance_error(contrastive, 0.3) <= 0.30
    assert guidance_error(contrastive, 0.6) <= 0.25
    regression = train_guidance("mse", 700)
    assert distance(regression) >= 0.4
    assert guidance_error(regression, 0.3) >= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "unnormalized", "mse"])
def test_with_a_trained_behavior_model_contrastive_guidance_is_near_the_tilted_law(kind):
    behavior = train_behavior(3000)
    guidance = train_guidance(kind, 3000, width=256, batch=128)
    found = trained_distance(behavior, guidance)
    if kind == "mse":
        assert found >= 0.4
    else:
        assert found <= 0.10
        assert guidance_error(guidance, 0.3) <= 0.25
        assert guidance_error(guidance, 0.6) <= 0.25


def trained_distance(behavior: NoiseNet, guidance: GuidanceNet | None, in_bfloat16: bool = False) -> float:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(4000, 2, generator=generator)
    with bfloat16(in_bfloat16):
        x = sample_actions(
            behavior, PLAN, torch.zeros(4000, 1), noise, guidance=_Unconditional(guidance), inverse_temperature=BETA,
            clip="none",
        )  # fmt: skip
    assert x.dtype == torch.float32
    return sliced_wasserstein(x, TARGET.sample(4000, generator).float())


class _Unconditional(Guidance):
    """A guidance without observations beside a behavior model with one."""

    def __init__(self, inner: Guidance) -> None:
        self._inner = inner

    def value_and_grad(self, x_t, t, obs, inverse_temperature):
        return self._inner.value_and_grad(x_t, t, None, inverse_temperature)


@pytest.mark.slow
def test_bfloat16_training_and_sampling_are_as_near_the_target_as_float32():
    # The gate of precision="bfloat16": a fifth more, beside what two draws of the target differ by.
    found = {}
    for precision in (False, True):
        behavior = train_behavior(3000, in_bfloat16=precision)
        guidance = train_guidance("unnormalized", 2500, in_bfloat16=precision)
        found[precision] = trained_distance(behavior, guidance, in_bfloat16=precision)
    generator = torch.Generator().manual_seed(7)
    draws = [TARGET.sample(4000, generator).float() for _ in range(8)]
    floor = max(sliced_wasserstein(x, y) for x, y in zip(draws[::2], draws[1::2]))
    assert found[True] <= 1.2 * found[False] + floor, found


@pytest.mark.slow
def test_one_conditioned_guidance_is_better_at_a_temperature_than_a_scaled_one_of_another():
    conditioned = train_guidance("unnormalized", 4000, beta=(0.0, 4.0))
    plain = train_guidance("unnormalized", 2500, beta=1.0)
    asked, scaled = distance(conditioned, beta=3.0), distance(plain, scale=3.0)
    assert asked < 0.15 and scaled > 0.2 and asked < 0.5 * scaled, (asked, scaled)


def test_scaling_the_exact_guidance_is_not_exact_where_its_temperature_is():
    # No training: what is wrong with guidance_scale is not the network.
    assert distance(ORACLE, beta=3.0) < 0.04
    assert distance(ORACLE, beta=1.0, scale=3.0) > 0.3
