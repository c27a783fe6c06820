"""The VP schedule against 40-digit arithmetic, its identities, its inverse and what it refuses."""

from __future__ import annotations

from decimal import Decimal, getcontext

import pytest
import torch

from ding_ebm.diffusion.schedules import VPLinearSchedule

TIMES = [1e-3, 2e-3, 0.01, 0.067, 0.1, 0.3, 0.5, 0.8, 0.999, 1.0]


@pytest.fixture
def times() -> torch.Tensor:
    return torch.tensor(TIMES, dtype=torch.float64)


def in_forty_digits(t: float) -> tuple[float, float, float, float]:
    """log alpha, alpha, sigma and log(alpha / sigma) of the paper's formulas."""
    getcontext().prec = 40
    time = Decimal(t)
    log_alpha = -(Decimal("20") - Decimal("0.1")) * time * time / 4 - Decimal("0.1") * time / 2
    sigma = (1 - (2 * log_alpha).exp()).sqrt()
    return float(log_alpha), float(log_alpha.exp()), float(sigma), float(log_alpha - sigma.ln())


def test_every_coefficient_equals_the_formula_in_forty_digits(times):
    schedule = VPLinearSchedule()
    ours = torch.stack(
        [schedule.log_alpha(times), schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times)]
    )
    exact = torch.tensor([in_forty_digits(t) for t in TIMES], dtype=torch.float64).T
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=0.0)


def test_float32_keeps_its_digits_at_small_times_where_one_minus_alpha_squared_loses_them():
    schedule, t = VPLinearSchedule(), torch.tensor(1e-3)
    exact = in_forty_digits(t.item())[2]
    naive = torch.sqrt(1.0 - torch.exp(2.0 * schedule.log_alpha(t)))
    assert abs(schedule.sigma(t).item() / exact - 1.0) < 2e-7
    assert abs(naive.item() / exact - 1.0) > 1e-5


def test_alpha_squared_and_sigma_squared_sum_to_one(times):
    schedule = VPLinearSchedule(rate_min=0.3, rate_max=12.0)
    total = schedule.alpha(times).square() + schedule.sigma(times).square()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("rates", [(0.1, 20.0), (1e-4, 5.0), (3.0, 3.5)])
def test_the_inverse_returns_the_time_and_the_log_snr(times, rates):
    schedule = VPLinearSchedule(*rates)
    torch.testing.assert_close(schedule.time_of_log_snr(schedule.log_snr(times)), times, rtol=1e-10, atol=0.0)
    low, high = schedule.log_snr_range
    log_snr = torch.linspace(low, high, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(schedule.time_of_log_snr(log_snr)), log_snr, rtol=0.0, atol=1e-10)


def test_log_snr_falls_with_time_and_its_range_belongs_to_the_ends_of_sampling():
    schedule = VPLinearSchedule(t_min=5e-3)
    log_snr = schedule.log_snr(torch.linspace(1e-4, 1.0, 1000, dtype=torch.float64))
    assert (log_snr.diff() < 0).all()
    low, high = schedule.log_snr_range
    assert low == pytest.approx(in_forty_digits(1.0)[3], abs=1e-10)
    assert high == pytest.approx(in_forty_digits(5e-3)[3], abs=1e-10)


def test_the_rate_is_minus_two_times_the_slope_of_log_alpha(times):
    schedule = VPLinearSchedule()
    t = times.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.log_alpha(t).sum(), t)
    torch.testing.assert_close(schedule.rate(times), -2.0 * slope, rtol=1e-10, atol=0.0)


def test_diffused_unit_gaussian_data_stay_a_unit_gaussian(generator):
    schedule = VPLinearSchedule()
    x_0, noise = torch.randn(2, 200_000, 1, dtype=torch.float64, generator=generator)
    t = torch.rand(200_000, dtype=torch.float64, generator=generator)
    x_t = schedule.diffuse(x_0, t, noise)
    assert x_t.shape == x_0.shape
    assert x_t.var().item() == pytest.approx(1.0, abs=0.015)  # 4 standard errors
    expected = schedule.alpha(t).unsqueeze(1) * x_0 + schedule.sigma(t).unsqueeze(1) * noise
    torch.testing.assert_close(x_t, expected)


@pytest.mark.parametrize("rates", [(0.0, 20.0), (-1.0, 20.0), (20.0, 20.0), (20.0, 0.1), (0.1, float("nan"))])
def test_rates_out_of_order_are_refused(rates):
    with pytest.raises(ValueError, match="0 < rate_min < rate_max"):
        VPLinearSchedule(*rates)


@pytest.mark.parametrize("t_min", [0.0, 1.0, -0.1, float("nan")])
def test_a_smallest_time_outside_the_unit_interval_is_refused(t_min):
    with pytest.raises(ValueError, match=r"t_min must be in \(0, 1\)"):
        VPLinearSchedule(t_min=t_min)
