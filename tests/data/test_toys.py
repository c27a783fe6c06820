"""The toy sets: where their points lie, what their energies are, and that the tilted draws follow q exp(-beta E)."""

from __future__ import annotations

import pytest
import torch

from ding_ebm.data.toys import TOYS, sample_tilted_toy, sample_toy


@pytest.mark.parametrize("name", list(TOYS))
def test_draws_repeat_with_the_seed_and_have_their_shapes(name):
    points, energies = sample_toy(name, 1000, torch.Generator().manual_seed(3))
    again, _ = sample_toy(name, 1000, torch.Generator().manual_seed(3))
    other, _ = sample_toy(name, 1000, torch.Generator().manual_seed(4))
    assert points.shape == (1000, 2)
    assert energies.shape == (1000,)
    assert points.dtype == energies.dtype == torch.float64
    assert torch.equal(points, again)
    assert not torch.equal(points, other)


@pytest.mark.parametrize("name", [name for name in TOYS if name != "swissroll"])
def test_a_reward_lies_in_the_unit_interval_and_the_energy_is_its_negative(name, generator):
    _, energies = sample_toy(name, 20_000, generator)
    assert -1.0 <= energies.min() < -0.95
    assert -0.1 < energies.max() <= 0.0


def test_the_energies_say_which_part_a_point_belongs_to(generator):
    points, energies = sample_toy("rings", 20_000, generator)
    radius = points.norm(dim=1)
    for center, reward in ((0.75, 0.0), (1.5, 1.0), (2.25, 1.0 / 3.0), (3.0, 2.0 / 3.0)):
        near = (radius - center).abs() < 0.1
        assert ((energies[near] + reward).abs() < 1e-12).double().mean() > 0.99
    points, energies = sample_toy("8gaussians", 20_000, generator)
    best = points[energies == -1.0].mean(0)  # index 7: one eighth of a turn clockwise from the top
    torch.testing.assert_close(best, torch.tensor([2.0, 2.0], dtype=torch.float64), rtol=0.0, atol=0.05)
    points, energies = sample_toy("checkerboard", 20_000, generator)
    column = torch.floor(points[:, 0] / 2.0)
    assert torch.equal(energies == -1.0, (column == -2.0) | (column == 0.0))
    assert torch.equal(torch.floor(points[:, 1] / 2.0) % 2, column % 2)
    points, energies = sample_toy("moons", 20_000, generator)
    assert points[energies == -1.0][:, 1].mean() < -0.1 < 0.9 < points[energies == 0.0][:, 1].mean()
    points, energies = sample_toy("2spirals", 20_000, generator)
    assert torch.corrcoef(torch.stack([points.norm(dim=1), energies]))[0, 1] > 0.98
    points, energies = sample_toy("swissroll", 20_000, generator)
    torch.testing.assert_close(energies, -points.square().sum(1) / 9.0)


@pytest.mark.parametrize("name", list(TOYS))
def test_tilted_draws_have_the_moments_of_reweighted_draws(name, generator):
    points, energies = sample_toy(name, 1_000_000, generator)
    weights = torch.softmax(-3.0 * energies, 0)
    tilted = sample_tilted_toy(name, 3.0, 200_000, generator)
    for moment in (lambda x: x, torch.square, lambda x: x.prod(1, keepdim=True), lambda x: torch.sin(3.0 * x)):
        error = (moment(tilted).mean(0) - weights @ moment(points)).abs()
        assert (error < 6.0 * moment(tilted).std(0) / 200_000**0.5).all()  # the reweighted side has its error too


@pytest.mark.parametrize("name", list(TOYS))
def test_beta_zero_draws_follow_the_set_itself(name, generator):
    points, _ = sample_toy(name, 200_000, generator)
    tilted = sample_tilted_toy(name, 0.0, 200_000, generator)
    spread = points.std(0)
    assert ((tilted.mean(0) - points.mean(0)).abs() < 0.02 * spread).all()
    assert ((tilted.std(0) / spread - 1.0).abs() < 0.02).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"toy set must be one of .*'rings'.* got 'ring'"):
        sample_toy("ring", 10)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        sample_toy("rings", 0)
    with pytest.raises(ValueError, match=r"swissroll cannot be tilted with beta = 120; beta must be below 112\.5"):
        sample_tilted_toy("swissroll", 120.0, 10)
    with pytest.raises(ValueError, match="need as many clean points"):
        sample_tilted_toy("2spirals", 1000.0, 4000)
