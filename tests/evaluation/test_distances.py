"""Distances between samples against closed forms and against two draws of one law."""

from __future__ import annotations

import math

import pytest
import torch

from ding_ebm.evaluation.distances import sliced_wasserstein, squared_mmd, two_draw_floor


def normal(n: int, dim: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_shift_is_as_far_as_its_projections_are_long_on_average(dim):
    x, shift = normal(500, dim), torch.zeros(dim, dtype=torch.float64)
    shift[0] = 3.0
    # E|u_1| of a uniform unit vector in D dimensions.
    mean_projection = math.gamma(dim / 2) / (math.sqrt(math.pi) * math.gamma((dim + 1) / 2))
    distance = sliced_wasserstein(x, x + shift, num_projections=4_000)
    assert distance == pytest.approx(3.0 * mean_projection, rel=0.03)


def test_order_does_not_matter_and_a_sample_has_distance_zero_to_itself():
    x, y = normal(300), normal(300, seed=1)
    assert sliced_wasserstein(x, x.flip(0)) == 0.0
    assert sliced_wasserstein(x, y) == pytest.approx(sliced_wasserstein(y.flip(0), x), rel=1e-12)
    assert sliced_wasserstein(x.float(), y.float()) == pytest.approx(sliced_wasserstein(x, y), rel=1e-5)


def test_widening_a_gaussian_costs_the_mean_distance_of_its_quantiles():
    x = normal(20_000, 1)
    expected = math.sqrt(2.0 / math.pi)  # E|2 z - z|
    assert sliced_wasserstein(x, 2.0 * normal(20_000, 1, seed=1)) == pytest.approx(expected, rel=0.03)


def test_squared_mmd_equals_a_double_loop():
    x, y = normal(7), normal(5, seed=1) + 0.5

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        square = float((a - b).square().sum())
        return 0.5 * math.exp(-square / (2 * 0.5**2)) + 0.5 * math.exp(-square / (2 * 2.0**2))

    within_x = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (7 * 6)
    within_y = sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (5 * 4)
    across = sum(kernel(a, b) for a in x for b in y) / (7 * 5)
    assert squared_mmd(x, y, bandwidths=(0.5, 2.0)) == pytest.approx(within_x + within_y - 2 * across, abs=1e-12)


def test_squared_mmd_of_two_gaussians_is_its_closed_form():
    x, y = normal(4000), normal(4000, seed=1) + torch.tensor([1.0, 0.0], dtype=torch.float64)
    # E k(a, b) with a - b ~ N(d, 2 I) is h^2 / (h^2 + 2) exp(-|d|^2 / (2 (h^2 + 2))) in two dimensions.
    expected = 2.0 * (1.0 / 3.0) * (1.0 - math.exp(-1.0 / 6.0))
    assert squared_mmd(x, y, bandwidths=(1.0,)) == pytest.approx(expected, rel=0.1)


def test_squared_mmd_is_unbiased_and_the_floor_shrinks_with_the_sample():
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> torch.Tensor:
        return torch.randn(n, 2, dtype=torch.float64, generator=generator)

    values = two_draw_floor(draw, squared_mmd, 200, 60)
    assert values.min() < 0.0 < values.max()
    assert abs(values.mean()) < 4.0 * values.std() / 60**0.5
    small, large = (two_draw_floor(draw, sliced_wasserstein, n, 20).mean().item() for n in (250, 4000))
    assert small / large == pytest.approx(4.0, rel=0.25)  # sqrt(4000 / 250)


def test_bad_samples_are_refused():
    x = normal(10)
    with pytest.raises(ValueError, match="same number of points, got 10 and 9"):
        sliced_wasserstein(x, x[:9])
    with pytest.raises(ValueError, match=r"must be \(n, D\) and \(m, D\), got \(10, 2\) and \(10, 1\)"):
        squared_mmd(x, x[:, :1])
    with pytest.raises(ValueError, match="at least two points, got 10 and 1"):
        squared_mmd(x, x[:1])
    with pytest.raises(ValueError, match="finite"):
        sliced_wasserstein(x, x / 0.0)
