"""The solvers on data whose score is known: convergence orders, samples against the truth, and exact cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from ding_ebm.diffusion.guidance import guide
from ding_ebm.diffusion.oracles import GaussianMixture, MixtureGuidance, tilt_components, tilt_quadratic
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import METHODS, SPACINGS, make_plan, solve, time_grid
from ding_ebm.evaluation.distances import sliced_wasserstein, two_draw_floor

SCHEDULE = VPLinearSchedule()
CLEAN_CALLS = [("ddim", 1), ("singlestep", 1), ("singlestep", 2), ("singlestep", 3)]
CLEAN_CALLS += [("multistep", 1), ("multistep", 2), ("multistep", 3)]
ANGLE = torch.arange(8, dtype=torch.float64) * math.pi / 4
BEHAVIOR = GaussianMixture(
    torch.full((8,), -math.log(8.0), dtype=torch.float64),
    4.0 / 1.414 * torch.stack([ANGLE.cos(), ANGLE.sin()], 1),
    0.125 * torch.eye(2).expand(8, 2, 2),
)
TILTS = {
    "quadratic": partial(
        tilt_quadratic, A=0.35 * torch.tensor([[1.0, 0.3], [0.3, 0.6]]), b=torch.tensor([0.4, -0.7]), c=0.2
    ),
    "label": partial(tilt_components, energies=-torch.arange(8) / 7.0),
}


def draw(
    z: Tensor,
    nfe: int,
    *,
    method: str,
    order: int,
    spacing: str,
    scale: float = 1.0,
    beta: float = 3.0,
    tilt: str = "quadratic",
) -> Tensor:
    """Samples from noise ``z`` by the exact guided score of the eight Gaussians."""
    plan = make_plan(SCHEDULE, nfe, method=method, order=order, spacing=spacing)
    guidance = MixtureGuidance(SCHEDULE, BEHAVIOR, TILTS[tilt])

    def behavior(x_t: Tensor, i: int) -> Tensor:
        return BEHAVIOR.noise(SCHEDULE, x_t, plan.times[i])

    return solve(plan, guide(plan, behavior, guidance, inverse_temperature=beta, guidance_scale=scale), z)


def standard_normal(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def endpoint(scale: float) -> Tensor:
    """Where the guided (scale 1) or behavior (scale 0) flow takes 300 fixed noises, to about 1e-8."""
    return draw(standard_normal(300), 1500, method="multistep", order=3, spacing="log_snr", scale=scale)


def endpoint_error(nfe: int, scale: float, **how: object) -> float:
    """Median distance to the true end of the flow, for the same noise."""
    samples = draw(standard_normal(300), nfe, scale=scale, **how)
    return (samples - endpoint(scale)).norm(dim=1).median().item()


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize(
    ("method", "order", "spacing", "low", "high"),
    [
        ("ddim", 1, "time", 1.8, 2.1),
        ("ddim", 1, "quadratic", 1.8, 2.1),
        ("ddim", 1, "log_snr", 1.8, 2.1),
        # The singlestep solver on a uniform time grid is left out: its last steps are as long as the log-SNR that is
        # left, so its error falls irregularly (ratios from 1 to 10).
        ("singlestep", 2, "quadratic", 3.4, 5.0),
        ("singlestep", 2, "log_snr", 3.4, 5.0),
        ("multistep", 2, "quadratic", 3.4, 5.0),
        ("multistep", 2, "log_snr", 3.4, 5.0),
    ],
)
def test_the_endpoint_error_falls_by_two_to_the_order_from_20_to_40_steps(scale, method, order, spacing, low, high):
    how = dict(method=method, order=order, spacing=spacing)
    ratio = endpoint_error(20, scale, **how) / endpoint_error(40, scale, **how)
    assert low < ratio < high


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("method", ["singlestep", "multistep"])
def test_the_third_order_solvers_have_slope_three(scale, method):
    errors = [endpoint_error(n, scale, method=method, order=3, spacing="log_snr") for n in (61, 121, 241)]
    slope = math.log(errors[0] / errors[2]) / math.log(241 / 61)
    assert slope == pytest.approx(3.0, abs=0.25)


@pytest.mark.parametrize(("method", "order"), CLEAN_CALLS)
def test_a_gaussian_is_carried_by_its_closed_form_flow(method, order):
    mean, variance = torch.tensor([1.5, -0.5], dtype=torch.float64), 0.3
    law = GaussianMixture(torch.zeros(1), mean.unsqueeze(0), variance * torch.eye(2).unsqueeze(0))
    plan = make_plan(SCHEDULE, 600, method=method, order=order, spacing="log_snr")
    z = standard_normal(50)
    samples = solve(plan, lambda x, i: law.noise(SCHEDULE, x, plan.times[i]), z)
    ends = torch.tensor([1.0, SCHEDULE.t_min], dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha(ends), SCHEDULE.sigma(ends)
    spread = (alpha.square() * variance + sigma.square()).sqrt()
    expected = alpha[1] * mean + spread[1] / spread[0] * (z - alpha[0] * mean)
    tolerance = {1: 1e-2, 2: 3e-4, 3: 1e-6}[order]
    torch.testing.assert_close(samples, expected, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("method", "order"), CLEAN_CALLS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 7])
def test_data_of_one_point_are_reached_without_error_however_few_the_steps(method, order, spacing, nfe):
    plan = make_plan(SCHEDULE, nfe, method=method, order=order, spacing=spacing)
    point = torch.tensor([0.7, -0.2], dtype=torch.float64)
    z = standard_normal(5)
    samples = solve(plan, lambda x, i: (x - plan.alpha[i] * point) / plan.sigma[i], z)
    ends = torch.tensor([1.0, SCHEDULE.t_min], dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha(ends), SCHEDULE.sigma(ends)
    expected = alpha[1] * point + sigma[1] / sigma[0] * (z - alpha[0] * point)
    torch.testing.assert_close(samples, expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("tilt", ["quadratic", "label"])
@pytest.mark.parametrize(("method", "spacing"), [("multistep", "quadratic"), ("singlestep", "quadratic")])
def test_guided_samples_are_within_the_floor_of_two_draws_at_25_evaluations(tilt, method, spacing):
    target, _ = TILTS[tilt](BEHAVIOR, beta=3.0)
    generator = torch.Generator().manual_seed(0)
    floor = two_draw_floor(lambda n: target.sample(n, generator), sliced_wasserstein, 4000, 10).median().item()
    truth = target.sample(4000, generator)
    samples = draw(standard_normal(4000), 25, method=method, order=2, spacing=spacing, tilt=tilt)
    assert 0.005 < floor < 0.06
    assert sliced_wasserstein(samples, truth) <= 1.5 * floor
    # Negative control: the distance sees that the behavior is another law.
    assert sliced_wasserstein(BEHAVIOR.sample(4000, generator), truth) > 10.0 * floor


@pytest.mark.parametrize("off", ["scale", "beta"])
def test_guidance_scale_zero_and_inverse_temperature_zero_return_the_behavior_law(off):
    generator = torch.Generator().manual_seed(0)
    floor = two_draw_floor(lambda n: BEHAVIOR.sample(n, generator), sliced_wasserstein, 4000, 10).median().item()
    nothing = dict(scale=0.0) if off == "scale" else dict(beta=0.0)
    samples = draw(standard_normal(4000), 25, method="multistep", order=2, spacing="quadratic", **nothing)
    assert sliced_wasserstein(samples, BEHAVIOR.sample(4000, generator)) <= 1.5 * floor


def test_scaling_the_gradient_is_not_scaling_beta():
    generator = torch.Generator().manual_seed(0)
    target, _ = TILTS["quadratic"](BEHAVIOR, beta=3.0)
    truth, z = target.sample(4000, generator), standard_normal(4000)
    how = dict(method="multistep", order=2, spacing="quadratic")
    assert sliced_wasserstein(draw(z, 25, beta=3.0, **how), truth) < 0.05
    assert sliced_wasserstein(draw(z, 25, beta=1.0, scale=3.0, **how), truth) > 0.25


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("method", "order"), CLEAN_CALLS)
def test_the_network_is_called_exactly_nfe_times_at_falling_times(method, order, spacing):
    for nfe in range(1, 26):
        plan = make_plan(SCHEDULE, nfe, method=method, order=order, spacing=spacing)
        calls: list[int] = []

        def count(x: Tensor, i: int, calls: list[int] = calls) -> Tensor:
            calls.append(i)
            return x

        solve(plan, count, torch.zeros(1, 2))
        assert plan.nfe == nfe
        assert calls == list(range(nfe))
        assert plan.times[0] == 1.0
        assert all(a > b for a, b in zip(plan.times, (*plan.times[1:], SCHEDULE.t_min)))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_grid_runs_from_one_to_t_min_uniformly_in_its_variable(spacing):
    grid = time_grid(SCHEDULE, 12, spacing)
    assert grid[0].item() == 1.0
    assert grid[-1].item() == pytest.approx(SCHEDULE.t_min, rel=1e-12)
    variable: dict[str, Callable[[Tensor], Tensor]] = dict(
        time=lambda t: t, quadratic=torch.sqrt, log_snr=SCHEDULE.log_snr
    )
    steps = variable[spacing](grid).diff()
    torch.testing.assert_close(steps, steps.mean().expand(12), rtol=1e-8, atol=0.0)


@pytest.mark.parametrize(("method", "order"), CLEAN_CALLS)
def test_every_clean_prediction_is_clipped_so_that_samples_keep_the_range(method, order):
    plan = make_plan(SCHEDULE, 9, method=method, order=order)
    z = standard_normal(64)

    def outwards(x: Tensor, i: int) -> Tensor:
        return (x - plan.alpha[i] * 5.0 * x.sign()) / plan.sigma[i]  # its clean samples are +5 and -5

    end = torch.tensor(SCHEDULE.t_min, dtype=torch.float64)
    margin = 1e-9 + 5.0 * SCHEDULE.sigma(end).item()
    free, clipped = solve(plan, outwards, z), solve(plan, outwards, z, clip=(-1.0, 1.0))
    assert free.abs().min() > 4.0
    assert clipped.abs().max() <= 1.0 + margin
    assert clipped.abs().min() >= SCHEDULE.alpha(end).item() - margin


def test_the_noise_is_left_alone_and_the_state_keeps_its_dtype_and_leading_shape():
    plan = make_plan(SCHEDULE, 6)
    z = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    before = z.clone()
    samples = solve(plan, lambda x, i: x.to(torch.bfloat16), z)
    assert torch.equal(z, before)
    assert samples.dtype == torch.float32
    assert samples.shape == (3, 4, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(nfe=0), "nfe must be at least 1, got 0"),
        (dict(nfe=5, method="euler"), f"method must be one of .*{METHODS[1]}.*'euler'"),
        (dict(nfe=5, order=4), "order must be 1, 2 or 3, got 4"),
        (dict(nfe=5, order=0), "order must be 1, 2 or 3, got 0"),
        (dict(nfe=5, spacing="cosine"), "spacing must be one of .*'cosine'"),
    ],
)
def test_a_plan_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(SCHEDULE, **arguments)
