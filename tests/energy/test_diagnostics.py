"""Sweeps, slices and profiles of energies whose answers are known, and of energies that must not get them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.energy.diagnostics import alpha_sweep, error_profile, landscape, plane, spearman

B, TP, DA = 200, 2, 3
CURVATURE = 2.5
NOISE = (0.1, 0.2, 0.4, 0.8, 1.6)


def bowl(bottom: Tensor | float = 0.0, curvature: float = CURVATURE):
    """0.5 L |a - bottom|^2."""
    return lambda x: 0.5 * curvature * (x - bottom).flatten(1).square().sum(dim=1)


def chunks(generator: torch.Generator, count: int = B) -> Tensor:
    return torch.randn(count, TP, DA, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 3])
def test_over_a_quadratic_the_sweep_is_its_closed_form(steps, generator):
    action, alphas = chunks(generator), [0.0, 0.3 / CURVATURE, 1.0 / CURVATURE, 1.9 / CURVATURE, 2.5 / CURVATURE]
    sweep = alpha_sweep(bowl(), action, alphas, steps=steps, expert=torch.zeros_like(action))
    factor = (1.0 - sweep.alphas * CURVATURE) ** steps
    length = action.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(sweep.energy, factor.square() * bowl()(action).mean(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sweep.displacement, (1.0 - factor).abs() * length, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sweep.error, factor.abs() * length, rtol=1e-10, atol=1e-12)
    # beyond 2 / L every row climbs; there is no line search
    assert sweep.rose.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert sweep.clip_rate.tolist() == [0.0] * 5


def test_a_clip_makes_the_curve_flat_and_the_clip_rate_says_so(generator):
    action, alphas = 0.3 * chunks(generator).sign(), [0.01, 0.5 / CURVATURE, 1.0 / CURVATURE]
    sweep = alpha_sweep(bowl(), action, alphas, clip="range", clip_frac=0.05, bounds=(-1.0, 1.0))
    assert sweep.clip_rate.tolist() == [0.0, 1.0, 1.0]  # steps of 0.0075, 0.15 and 0.3 where 0.1 is allowed
    assert float(sweep.energy[1]) == float(sweep.energy[2])
    # without the clip they differ: what is flat is not the landscape
    free = alpha_sweep(bowl(), action, alphas)
    assert float(free.energy[2]) < 1e-20 < float(free.energy[1])


def test_the_error_is_that_to_the_expert_and_not_to_the_minimum(generator):
    expert = chunks(generator)
    away = torch.zeros_like(expert)
    away[:, 0, 0] = 0.7
    sweep = alpha_sweep(bowl(expert + away), expert, [0.0, 1.0 / CURVATURE], expert=expert)
    assert sweep.energy.tolist() == pytest.approx([0.5 * CURVATURE * 0.49, 0.0])
    assert sweep.error.tolist() == pytest.approx([0.0, 0.7])  # the energy falls while the action gets worse


def test_what_cannot_be_swept_is_refused(generator):
    action = chunks(generator)
    with pytest.raises(ValueError, match="at least one length"):
        alpha_sweep(bowl(), action, [])
    with pytest.raises(ValueError, match=r"expert must be of the shape of action, \(200, 2, 3\), got \(1, 2, 3\)"):
        alpha_sweep(bowl(), action, [0.1], expert=action[:1])
    with pytest.raises(ValueError, match="must be finite"):
        alpha_sweep(lambda x: x.flatten(1).pow(4).sum(dim=1), action, [1e3], steps=8)


def test_a_landscape_is_the_energy_on_the_plane_with_the_second_direction_first(generator):
    bottom = chunks(generator, 1)[0]
    center, directions = plane(chunks(generator, 1)[0], (0, 1), (1, 2))
    weights = torch.linspace(0.5, 2.0, TP * DA, dtype=torch.float64).view(TP, DA)
    found = landscape(lambda x: (weights * (x - bottom).square()).flatten(1).sum(dim=1), center, directions, 1.5, 7)
    u, v = found.axis.unsqueeze(0), found.axis.unsqueeze(1)
    assert found.axis.tolist() == pytest.approx([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    rest = weights * (center - bottom).square()
    rest[0, 1] = rest[1, 2] = 0.0
    expected = weights[0, 1] * (u - bottom[0, 1]).square() + weights[1, 2] * (v - bottom[1, 2]).square() + rest.sum()
    torch.testing.assert_close(found.energy, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found.energy, expected.T)


def test_a_landscape_follows_oblique_directions(generator):
    center, directions = chunks(generator, 1)[0], chunks(generator, 2)
    found = landscape(bowl(), center, directions, 2.0, 5)
    corner = center + 2.0 * directions[0] - 2.0 * directions[1]
    assert float(found.energy[0, -1]) == pytest.approx(float(bowl()(corner.unsqueeze(0))))


def test_what_is_no_plane_is_refused(generator):
    chunk = chunks(generator, 1)[0]
    with pytest.raises(ValueError, match=r"two different numbers of a chunk, got \(0, 1\) twice"):
        plane(chunk, (0, 1), (0, 1))
    center, directions = plane(chunk, (0, 0), (0, 1))
    with pytest.raises(ValueError, match=r"directions \(2, Tp, Da\), got \(2, 3\) and \(1, 2, 3\)"):
        landscape(bowl(), center, directions[:1], 1.0, 5)
    for extent, points in ((0.0, 5), (1.0, 1)):
        with pytest.raises(ValueError, match="extent must be above 0 and points at least 2"):
            landscape(bowl(), center, directions, extent, points)
    with pytest.raises(ValueError, match=r"one energy a row, \(25,\)"):
        landscape(lambda x: x.sum(dim=1), center, directions, 1.0, 5)


def test_a_bowl_around_the_expert_orders_by_error_and_points_back(generator):
    expert = chunks(generator)
    for sign in (1.0, -1.0):
        profile = error_profile(bowl(expert, sign * CURVATURE), expert, NOISE, generator)
        torch.testing.assert_close(profile.moved_energy, sign * 0.5 * CURVATURE * profile.error.square())
        assert profile.energy.tolist() == [0.0] * B
        assert (profile.spearman, profile.pooled_spearman) == pytest.approx((sign, sign))
        torch.testing.assert_close(profile.cosine, torch.full_like(profile.error, sign))
    # of noise of this size in Tp Da numbers
    expected = profile.noise * math.sqrt(2.0) * math.gamma(0.5 * TP * DA + 0.5) / math.gamma(0.5 * TP * DA)
    torch.testing.assert_close(profile.error.mean(dim=1), expected, rtol=0.08, atol=0.0)


def test_an_energy_that_knows_nothing_of_the_expert_has_no_order(generator):
    expert = chunks(generator)
    slope = torch.randn(B, TP, DA, generator=generator, dtype=torch.float64)
    profile = error_profile(lambda x: (slope * x).flatten(1).sum(dim=1), expert, NOISE, generator)
    assert abs(profile.spearman) < 0.15  # its standard deviation is 0.5 / sqrt(B) = 0.035
    assert abs(profile.pooled_spearman) < 0.15
    assert abs(float(profile.cosine.mean())) < 0.1


def test_an_offset_by_state_hides_the_order_over_states_and_not_the_one_within(generator):
    expert = chunks(generator)
    offset = 1e3 * torch.randn(B, generator=generator, dtype=torch.float64)
    profile = error_profile(lambda x: bowl(expert)(x) + offset, expert, NOISE, generator)
    assert profile.spearman == pytest.approx(1.0)
    assert abs(profile.pooled_spearman) < 0.2


def test_a_minimum_beyond_the_expert_shows_in_the_cosine_at_small_noise(generator):
    expert = chunks(generator)
    profile = error_profile(bowl(1.2 * expert), expert, (0.001, 3.0), generator)
    small, large = profile.cosine.mean(dim=1).tolist()
    assert abs(small) < 0.1 < 0.9 < large


def test_noise_stays_within_bounds_and_what_it_cannot_move_has_no_cosine(generator):
    expert = torch.ones(B, 1, 1)
    profile = error_profile(bowl(expert), expert, (0.5, 1.0), generator, bounds=(-1.0, 1.0))
    still = profile.error == 0.0
    assert 0.3 < float(still.float().mean()) < 0.7
    assert profile.cosine[still].isnan().all()
    torch.testing.assert_close(profile.cosine[~still], torch.ones(int((~still).sum())))


def test_a_profile_is_that_of_its_seed_and_leaves_a_module_as_it_was(generator):
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return bowl()(x)

    energy_fn = Noisy()
    first, again = (
        error_profile(energy_fn, chunks(generator.manual_seed(1)), NOISE, generator.manual_seed(2)) for _ in range(2)
    )
    assert torch.equal(first.moved_energy, again.moved_energy)
    assert energy_fn.training


@pytest.mark.parametrize("noise", [(0.1,), (0.0, 0.1), (0.1, math.nan)])
def test_sizes_of_noise_that_give_no_order_are_refused(noise, generator):
    with pytest.raises(ValueError, match="at least two standard deviations above 0"):
        error_profile(bowl(), chunks(generator), noise, generator)


def test_an_energy_without_a_gradient_is_refused(generator):
    with pytest.raises(ValueError, match="have no gradient in the actions"):
        error_profile(lambda x: bowl()(x).detach(), chunks(generator), NOISE, generator)


def test_rank_correlation_of_known_samples():
    x = torch.tensor([[1.0, 2.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    y = torch.tensor([1.0, 2.0, 3.0, 40.0]).expand(3, -1)
    found = spearman(x, y).tolist()
    assert found[:2] == pytest.approx([math.sqrt(0.9), -1.0])  # ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4
    assert math.isnan(found[2])
