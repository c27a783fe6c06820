"""The oracles against routes that share none of their algebra: the posterior of x_0, quadrature, sums and autograd.

The independent route writes the posterior q(x_0 | x_t) of each component by its precision and integrates
exp(-beta E) against it, in NumPy; the oracle takes the difference of two diffused densities.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from ding_ebm.diffusion import oracles
from ding_ebm.diffusion.guidance import guide
from ding_ebm.diffusion.oracles import (
    EmpiricalGuidance,
    GaussianMixture,
    MixtureGuidance,
    tilt_components,
    tilt_quadratic,
)
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan

SCHEDULE = VPLinearSchedule()
TIMES = [1e-3, 0.05, 0.4, 1.0]
SHAPES = [(1, 1), (1, 7), (2, 1), (2, 8), (2, 50), (6, 3), (6, 50)]  # (D, J)


def random_mixture(dim: int, count: int, seed: int = 0, smallest: float = 0.05) -> GaussianMixture:
    """Means of a few units, random axes, variances from ``smallest`` to about 1."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(count))
    axes = np.linalg.qr(rng.normal(size=(count, dim, dim)))[0]
    variances = smallest ** rng.uniform(0.0, 1.0, size=(count, dim))
    variances[:, 0] = smallest
    covariances = (axes * variances[:, None]) @ axes.transpose(0, 2, 1)
    covariances = 0.5 * (covariances + covariances.transpose(0, 2, 1))
    means = 2.0 * rng.normal(size=(count, dim))
    return GaussianMixture(*(torch.from_numpy(a) for a in (np.log(weights), means, covariances)))


def random_energy(dim: int, kind: str, seed: int = 1) -> tuple[Tensor, Tensor, float]:
    """A, b, c of E(x) = x'Ax/2 + b'x + c."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim)) * 0.4
    A = root @ root.T if kind == "quadratic" else np.zeros((dim, dim))
    return torch.from_numpy(A), torch.from_numpy(rng.normal(size=dim)), float(rng.normal())


def noised(mixture: GaussianMixture, t: float, n: int = 5, seed: int = 2) -> Tensor:
    """Draws from the diffused mixture."""
    generator = torch.Generator().manual_seed(seed)
    return mixture.diffused(SCHEDULE, t).sample(n, generator)


def by_posterior(mixture: GaussianMixture, label_energies, A, b, c, beta: float, x_t: np.ndarray, t: float):
    """log E[exp(-beta E(x_0)) | x_t] and its gradient for one x_t, from the posterior of x_0 of each component.

    The gradient is alpha / sigma^2 times the difference of the tilted and the untilted posterior mean (Tweedie).
    """
    log_alpha = -19.9 * t * t / 4 - 0.05 * t
    alpha, variance = math.exp(log_alpha), -math.expm1(2 * log_alpha)
    A, b = A.numpy(), b.numpy()
    log_w, log_tilted, means, tilted_means = [], [], [], []
    for log_weight, mean, covariance, label in zip(
        mixture.log_weights.numpy(), mixture.means.numpy(), mixture.covariances.numpy(), label_energies
    ):
        spread = alpha**2 * covariance + variance * np.eye(len(mean))
        offset = x_t - alpha * mean
        evidence = -0.5 * (offset @ np.linalg.solve(spread, offset) + np.linalg.slogdet(2 * np.pi * spread)[1])
        prior = np.linalg.inv(covariance)
        precision = prior + alpha**2 / variance * np.eye(len(mean))
        center = np.linalg.solve(precision, prior @ mean + alpha / variance * x_t)
        tilted = precision + beta * A
        tilted_center = np.linalg.solve(tilted, precision @ center - beta * b)
        log_integral = 0.5 * (np.linalg.slogdet(precision)[1] - np.linalg.slogdet(tilted)[1]) - beta * (c + label)
        log_integral += 0.5 * (tilted_center @ tilted @ tilted_center - center @ precision @ center)
        log_w.append(log_weight + evidence)
        log_tilted.append(log_weight + evidence + log_integral)
        means.append(center)
        tilted_means.append(tilted_center)

    def log_sum_and_mean(logs, centers):
        top = max(logs)
        weights = np.exp(np.array(logs) - top)
        return top + math.log(weights.sum()), weights @ np.array(centers) / weights.sum()

    log_q, mean = log_sum_and_mean(log_w, means)
    log_p, tilted_mean = log_sum_and_mean(log_tilted, tilted_means)
    return log_p - log_q, alpha / variance * (tilted_mean - mean)


def assert_equals_posterior(guidance, mixture, labels, A, b, c, beta, t, tolerance=1e-6):
    x_t = noised(mixture, t)
    value, grad = guidance.value_and_grad(x_t, t, None, beta)
    expected = [by_posterior(mixture, labels, A, b, c, beta, row.numpy(), t) for row in x_t]
    expected_value = torch.tensor([v for v, _ in expected], dtype=torch.float64)
    expected_grad = torch.from_numpy(np.stack([g for _, g in expected]))
    torch.testing.assert_close(value, expected_value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad, expected_grad, rtol=tolerance, atol=tolerance * (1.0 + beta))


@pytest.mark.parametrize(("dim", "count"), SHAPES)
@pytest.mark.parametrize("kind", ["quadratic", "linear"])
def test_mixture_guidance_equals_the_route_over_the_posterior(dim, count, kind):
    mixture = random_mixture(dim, count)
    A, b, c = random_energy(dim, kind)
    guidance = MixtureGuidance(SCHEDULE, mixture, partial(tilt_quadratic, A=A, b=b, c=c))
    for beta in (0.0, 1.0, 20.0):
        for t in TIMES:
            assert_equals_posterior(guidance, mixture, np.zeros(count), A, b, c, beta, t)


@pytest.mark.parametrize(("dim", "count"), SHAPES)
def test_label_guidance_equals_the_route_over_the_posterior(dim, count):
    mixture = random_mixture(dim, count)
    labels = torch.linspace(-1.0, 1.0, count, dtype=torch.float64)
    guidance = MixtureGuidance(SCHEDULE, mixture, partial(tilt_components, energies=labels))
    zero = torch.zeros(dim, dim, dtype=torch.float64)
    for beta in (0.0, 3.0, 20.0):
        for t in TIMES:
            assert_equals_posterior(guidance, mixture, labels.numpy(), zero, zero[0], 0.0, beta, t)


@pytest.mark.parametrize("dim", [2, 6])
def test_nearly_singular_covariances_do_not_spoil_the_guidance(dim):
    mixture = random_mixture(dim, 4, smallest=1e-6)
    A, b, c = random_energy(dim, "quadratic")
    guidance = MixtureGuidance(SCHEDULE, mixture, partial(tilt_quadratic, A=A, b=b, c=c))
    for t in TIMES:
        assert_equals_posterior(guidance, mixture, np.zeros(4), A, b, c, 20.0, t)


def test_guidance_equals_quadrature_over_x_0_for_an_energy_that_falls_outwards():
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64).log(),
        torch.tensor([[-1.0], [1.5]]),
        torch.tensor([[[0.04]], [[0.5]]]),
    )
    A, b, c = torch.tensor([[-0.4]]), torch.tensor([0.7]), 0.3  # S^-1 + beta A = 2 - 1.2 > 0 at beta 3
    guidance = MixtureGuidance(SCHEDULE, mixture, partial(tilt_quadratic, A=A, b=b, c=c))
    grid = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64)
    log_q = torch.logsumexp(
        mixture.log_weights
        + torch.distributions.Normal(mixture.means[:, 0], mixture.covariances[:, 0, 0].sqrt()).log_prob(
            grid.unsqueeze(1)
        ),
        1,
    )
    energy = -0.2 * grid**2 + 0.7 * grid + 0.3
    for t in (0.02, 0.3, 1.0):
        x_t = torch.tensor([[-0.8], [0.1], [0.9]], dtype=torch.float64)
        alpha, sigma = (f(torch.tensor(t, dtype=torch.float64)) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        logits = log_q - 0.5 * ((x_t - alpha * grid) / sigma) ** 2
        expected = torch.logsumexp(logits - 3.0 * energy, 1) - torch.logsumexp(logits, 1)
        value, _ = guidance.value_and_grad(x_t, t, None, 3.0)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t", [1e-3, 0.1, 0.7])
def test_the_gradient_is_that_of_the_value_by_finite_differences(t):
    mixture = random_mixture(3, 5)
    A, b, c = random_energy(3, "quadratic")
    guidance = MixtureGuidance(SCHEDULE, mixture, partial(tilt_quadratic, A=A, b=b, c=c))
    points = EmpiricalGuidance(SCHEDULE, mixture.sample(40, torch.Generator().manual_seed(0)), torch.arange(40) / 40.0)
    x_t = noised(mixture, t)
    step = 1e-5 if t > 1e-3 else 1e-6
    for oracle in (guidance, points):
        grad = oracle.value_and_grad(x_t, t, None, 3.0)[1]
        for d in range(3):
            shift = torch.zeros(3, dtype=torch.float64)
            shift[d] = step
            above, below = (oracle.value_and_grad(x_t + sign * shift, t, None, 3.0)[0] for sign in (1.0, -1.0))
            torch.testing.assert_close((above - below) / (2.0 * step), grad[:, d], rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize(("dim", "count"), SHAPES)
@pytest.mark.parametrize("t", TIMES)
def test_diffused_density_and_score_equal_those_of_torch_distributions(dim, count, t):
    mixture = random_mixture(dim, count).diffused(SCHEDULE, t)
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=mixture.log_weights),
        torch.distributions.MultivariateNormal(mixture.means, mixture.covariances),
    )
    x = mixture.sample(20, torch.Generator().manual_seed(1)).requires_grad_()
    log_prob = reference.log_prob(x)
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    x = x.detach()
    torch.testing.assert_close(mixture.log_prob(x), log_prob.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixture.score(x), score, rtol=1e-8, atol=1e-8)
    sigma = SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(random_mixture(dim, count).noise(SCHEDULE, x, t), -sigma * score, rtol=1e-8, atol=1e-8)


def test_the_tilted_density_is_the_density_times_exp_minus_beta_energy_over_z_at_every_point():
    mixture = random_mixture(6, 10)
    A, b, c = random_energy(6, "quadratic")
    x = 3.0 * torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    energy = 0.5 * ((x @ A) * x).sum(1) + x @ b + c
    for beta in (0.0, 3.0, 20.0):
        tilted, log_z = tilt_quadratic(mixture, A, b, c, beta)
        expected = mixture.log_prob(x) - beta * energy - log_z
        torch.testing.assert_close(tilted.log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_beta_zero_leaves_the_mixture_alone():
    mixture = random_mixture(2, 8)
    A, b, c = random_energy(2, "quadratic")
    for tilted, log_z in (tilt_quadratic(mixture, A, b, c, 0.0), tilt_components(mixture, torch.arange(8.0), 0.0)):
        assert abs(log_z.item()) < 1e-12
        torch.testing.assert_close(tilted.means, mixture.means, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(tilted.covariances, mixture.covariances, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(tilted.log_weights, mixture.log_weights, rtol=0.0, atol=1e-12)


def test_the_normalizer_of_eight_gaussians_is_the_recorded_one_and_that_of_monte_carlo():
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 4.0 / 1.414 * torch.stack([angle.cos(), angle.sin()], 1)
    mixture = GaussianMixture(
        torch.full((8,), -math.log(8.0), dtype=torch.float64), means, torch.eye(2).expand(8, 2, 2) * 0.125
    )
    A, b = 0.35 * torch.tensor([[1.0, 0.3], [0.3, 0.6]], dtype=torch.float64), torch.tensor([0.4, -0.7])
    _, log_z = tilt_quadratic(mixture, A, b, 0.2, 3.0)
    x = mixture.sample(1_000_000, torch.Generator().manual_seed(0))
    energy = 0.5 * ((x @ A) * x).sum(1) + x @ b.double() + 0.2
    monte_carlo = torch.logsumexp(-3.0 * energy, 0) - math.log(len(x))
    assert log_z.item() == pytest.approx(2.1817, abs=1e-4)
    assert monte_carlo.item() == pytest.approx(log_z.item(), abs=0.02)


def test_samples_have_the_mean_and_covariance_of_the_mixture():
    mixture = random_mixture(2, 5)
    x = mixture.sample(400_000, torch.Generator().manual_seed(0))
    weights = mixture.log_weights.exp()
    mean = weights @ mixture.means
    offset = mixture.means - mean
    covariance = torch.einsum("j,jab->ab", weights, mixture.covariances + offset.unsqueeze(2) * offset.unsqueeze(1))
    torch.testing.assert_close(x.mean(0), mean, rtol=0.0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.0, atol=0.05)


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_empirical_guidance_equals_a_plain_sum_over_the_points(dim, monkeypatch):
    monkeypatch.setattr(oracles, "_TABLE_ENTRIES", 100)  # several blocks of rows
    rng = np.random.default_rng(dim)
    points, energies = 50.0 + rng.normal(size=(30, dim)), rng.normal(size=30)
    oracle = EmpiricalGuidance(SCHEDULE, torch.from_numpy(points), torch.from_numpy(energies))
    for beta in (0.0, 3.0, 20.0):
        for t in TIMES:
            alpha, sigma = (f(torch.tensor(t, dtype=torch.float64)).item() for f in (SCHEDULE.alpha, SCHEDULE.sigma))
            x_t = alpha * points[:10] + sigma * rng.normal(size=(10, dim))
            value, grad = oracle.value_and_grad(torch.from_numpy(x_t), t, None, beta)
            noise = oracle.noise(torch.from_numpy(x_t), t)
            for i, x in enumerate(x_t):
                likelihood = np.array([-sum((x - alpha * p) ** 2) / (2 * sigma**2) for p in points])
                q = np.exp(likelihood - likelihood.max())
                p = q * np.exp(-beta * (energies - energies.min()))
                expected = math.log(p.sum() / q.sum()) - beta * energies.min()
                q, p = q / q.sum(), p / p.sum()
                assert value[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
                np.testing.assert_allclose(grad[i], alpha / sigma**2 * (p - q) @ points, rtol=1e-6, atol=1e-5)
                np.testing.assert_allclose(noise[i], (x - alpha * q @ points) / sigma, rtol=1e-6, atol=1e-6)


def test_points_are_the_limit_of_a_mixture_with_vanishing_covariances():
    points = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    energies = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64)
    mixture = GaussianMixture(
        torch.full((12,), -math.log(12.0), dtype=torch.float64), points, torch.eye(2).expand(12, 2, 2) * 1e-12
    )
    smooth = MixtureGuidance(SCHEDULE, mixture, partial(tilt_components, energies=energies))
    empirical = EmpiricalGuidance(SCHEDULE, points, energies)
    for t in TIMES:
        x_t = noised(mixture, t)
        for ours, theirs in zip(empirical.value_and_grad(x_t, t, None, 5.0), smooth.value_and_grad(x_t, t, None, 5.0)):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(empirical.noise(x_t, t), mixture.noise(SCHEDULE, x_t, t), rtol=1e-6, atol=1e-6)


def test_empirical_guidance_of_many_draws_approaches_the_closed_form():
    mixture = random_mixture(2, 8, smallest=0.1)
    A, b, c = random_energy(2, "quadratic")
    exact = MixtureGuidance(SCHEDULE, mixture, partial(tilt_quadratic, A=A, b=b, c=c))
    x_t = noised(tilt_quadratic(mixture, A, b, c, 1.0)[0], 0.4, n=200)
    grad = exact.value_and_grad(x_t, 0.4, None, 1.0)[1]
    errors = []
    for n in (300, 30_000):
        x_0 = mixture.sample(n, torch.Generator().manual_seed(n))
        oracle = EmpiricalGuidance(SCHEDULE, x_0, 0.5 * ((x_0 @ A) * x_0).sum(1) + x_0 @ b + c)
        errors.append(((oracle.value_and_grad(x_t, 0.4, None, 1.0)[1] - grad).norm() / grad.norm()).item())
    assert errors[1] < 0.05
    assert errors[1] < 0.3 * errors[0]  # 1/10 is expected


@pytest.mark.parametrize("kind", ["mixture", "empirical"])
def test_a_time_a_row_equals_one_call_a_row_and_float32_is_answered_in_float32(kind):
    mixture = random_mixture(2, 8)
    A, b, c = random_energy(2, "quadratic")
    if kind == "mixture":
        oracle = MixtureGuidance(SCHEDULE, mixture, partial(tilt_quadratic, A=A, b=b, c=c))
        noise = partial(mixture.noise, SCHEDULE)
    else:
        oracle = EmpiricalGuidance(SCHEDULE, mixture.means, mixture.means @ b)
        noise = oracle.noise
    times = torch.tensor([1e-3, 0.2, 1.0], dtype=torch.float64)
    x_t = torch.cat([noised(mixture, t.item(), n=1) for t in times]).float()
    value, grad = oracle.value_and_grad(x_t, times, None, 3.0)
    assert value.dtype == grad.dtype == noise(x_t, times).dtype == torch.float32
    for i, t in enumerate(times.tolist()):
        row = x_t[i : i + 1].double()
        exact_value, exact_grad = oracle.value_and_grad(row, t, None, 3.0)
        torch.testing.assert_close(value[i : i + 1].double(), exact_value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad[i : i + 1].double(), exact_grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(noise(x_t, times)[i : i + 1].double(), noise(row, t), rtol=1e-4, atol=1e-4)


def test_guide_subtracts_sigma_times_scale_times_the_gradient_and_is_free_at_scale_zero():
    mixture = random_mixture(2, 8)
    A, b, c = random_energy(2, "quadratic")
    guidance = MixtureGuidance(SCHEDULE, mixture, partial(tilt_quadratic, A=A, b=b, c=c))
    plan = make_plan(SCHEDULE, 10)

    def behavior(x_t: Tensor, i: int) -> Tensor:
        return mixture.noise(SCHEDULE, x_t, plan.times[i])

    x_t, i = noised(mixture, plan.times[6]), 6
    target = tilt_quadratic(mixture, A, b, c, 3.0)[0]
    guided = guide(plan, behavior, guidance, inverse_temperature=3.0)(x_t, i)
    torch.testing.assert_close(guided, target.noise(SCHEDULE, x_t, plan.times[i]), rtol=1e-9, atol=1e-9)
    doubled = guide(plan, behavior, guidance, inverse_temperature=3.0, guidance_scale=2.0)(x_t, i)
    torch.testing.assert_close(doubled - guided, guided - behavior(x_t, i), rtol=1e-9, atol=1e-9)
    assert guide(plan, behavior, guidance, inverse_temperature=3.0, guidance_scale=0.0) is behavior


def mixture_arguments(**changes: Tensor) -> dict[str, Tensor]:
    log_weights = torch.full((2,), -math.log(2.0), dtype=torch.float64)
    return dict(log_weights=log_weights, means=torch.zeros(2, 3), covariances=torch.eye(3).expand(2, 3, 3)) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(means=torch.zeros(3)), r"means must be \(J, D\)"),
        (dict(log_weights=torch.zeros(3)), r"log_weights must have shape \(2,\), got \(3,\)"),
        (dict(covariances=torch.eye(3)), r"covariances must have shape \(2, 3, 3\)"),
        (dict(log_weights=torch.zeros(2)), "sum to one, got 2"),
        (dict(means=torch.full((2, 3), float("nan"))), "means must be finite"),
        (
            dict(covariances=torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0]))])),
            "component 1 must be",
        ),
        (
            dict(covariances=torch.stack([torch.eye(3) + 0.1 * torch.eye(3).roll(1, 0), torch.eye(3)])),
            "component 0 must",
        ),
    ],
)
def test_a_mixture_that_is_none_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**mixture_arguments(**changes))


def test_an_energy_that_falls_faster_than_a_component_is_refused_by_its_name():
    covariances = torch.stack([torch.eye(3), 4.0 * torch.eye(3)])
    mixture = GaussianMixture(**mixture_arguments(covariances=covariances))
    A, b = -0.1 * torch.eye(3), torch.zeros(3)
    tilt_quadratic(mixture, A, b, 0.0, 2.4)  # 1/4 - 0.24 > 0
    with pytest.raises(ValueError, match=r"component 1 at beta = 2\.6"):
        tilt_quadratic(mixture, A, b, 0.0, 2.6)
    with pytest.raises(ValueError, match="A must be symmetric"):
        tilt_quadratic(mixture, torch.eye(3).roll(1, 0), b, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"b must have shape \(3,\)"):
        tilt_quadratic(mixture, A, torch.zeros(2), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"energies must have shape \(2,\)"):
        tilt_components(mixture, torch.zeros(3), 1.0)


def test_samples_and_points_of_the_wrong_shape_are_refused():
    mixture = GaussianMixture(**mixture_arguments())
    with pytest.raises(ValueError, match=r"x must have shape \(4, 3\), got \(4, 2\)"):
        mixture.log_prob(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"points must be \(n, D\)"):
        EmpiricalGuidance(SCHEDULE, torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match=r"energies must have shape \(4,\)"):
        EmpiricalGuidance(SCHEDULE, torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="energies must be finite"):
        EmpiricalGuidance(SCHEDULE, torch.zeros(4, 2), torch.full((4,), float("inf")))
    with pytest.raises(ValueError, match=r"x_t must have shape \(5, 2\)"):
        EmpiricalGuidance(SCHEDULE, torch.zeros(4, 2), torch.zeros(4)).noise(torch.zeros(5, 3), 0.5)
