"""Negatives: their law, their shape and whose generator they come from."""

from __future__ import annotations

import pytest
import torch

from ding_ebm.energy import negatives

B, TP, DA = 5, 4, 3


@pytest.fixture
def action() -> torch.Tensor:
    return torch.arange(B * TP * DA, dtype=torch.float64).view(B, TP, DA)


def test_uniform_ones_fill_their_box_and_nothing_else(action, generator):
    low, high = torch.tensor([-1.0, 0.0, 5.0]), torch.tensor([1.0, 4.0, 5.5])
    found = negatives.uniform(action, 4000, low, high, generator)
    assert found.shape == (B, 4000, TP, DA) and found.dtype == action.dtype
    assert (found >= low).all() and (found <= high).all()
    flat = (found.flatten(0, 2) - low) / (high - low)
    torch.testing.assert_close(flat.mean(0), torch.full((DA,), 0.5, dtype=flat.dtype), rtol=0.0, atol=0.005)
    torch.testing.assert_close(flat.T.cov(), torch.eye(DA, dtype=flat.dtype) / 12.0, rtol=0.0, atol=0.002)


def test_gaussian_ones_lie_about_their_own_chunk(action, generator):
    std = torch.tensor([0.1, 1.0, 0.0])
    noise = negatives.gaussian(action, 4000, std, generator) - action[:, None]
    torch.testing.assert_close(noise.mean(1), torch.zeros_like(action), rtol=0.0, atol=0.08)
    wanted = torch.diag(std.double().square())
    torch.testing.assert_close(noise.flatten(0, 2).T.cov(), wanted, rtol=0.0, atol=0.02)


def test_time_shifted_ones_are_rolls_of_their_own_chunk_by_every_shift_but_none(action, generator):
    found = negatives.time_shifted(action, 3000, generator)
    counts = torch.zeros(TP)
    for shift in range(TP):
        rolled = action.roll(shift, dims=1)[:, None]
        counts[shift] = (found == rolled).all(dim=-1).all(dim=-1).double().mean()
    assert counts[0] == 0.0 and counts.sum() == 1.0
    torch.testing.assert_close(counts[1:], torch.full((TP - 1,), 1.0 / (TP - 1)), rtol=0.0, atol=0.02)


def test_a_pool_is_drawn_from_evenly_and_a_row_draws_from_its_own(action, generator):
    shared = negatives.from_pool(action, 7, 6000, generator)
    share = (shared[:, :, None] == action).all(dim=-1).all(dim=-1).double().mean(dim=(0, 1))
    torch.testing.assert_close(share, torch.full((B,), 1.0 / B, dtype=share.dtype), rtol=0.0, atol=0.01)
    own = negatives.from_pool(torch.stack([action, action + 1000.0]), 2, 50, generator)
    assert (own[0] < 500.0).all() and (own[1] >= 1000.0).all()


def test_a_mix_keeps_all_of_each_in_order(action, generator):
    first, second = (negatives.gaussian(action, num, 1.0, generator) for num in (2, 3))
    mixed = negatives.mix(first, second)
    assert torch.equal(mixed[:, :2], first) and torch.equal(mixed[:, 2:], second)


MAKERS = {
    "uniform": lambda action, g: negatives.uniform(action, 2, -1.0, 1.0, g),
    "gaussian": lambda action, g: negatives.gaussian(action, 2, 1.0, g),
    "time_shifted": lambda action, g: negatives.time_shifted(action, 2, g),
    "from_pool": lambda action, g: negatives.from_pool(action, B, 2, g),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_they_come_from_the_generator_alone(make, action):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (make(action, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, g: negatives.uniform(a, 2, torch.tensor([0.0, 1.0, 0.0]), 1.0, g), "low must be below high"),
        (lambda a, g: negatives.time_shifted(a[:, :1], 2, g), "no other time"),
        (lambda a, g: negatives.gaussian(a, 0, 1.0, g), "num >= 1"),
        (lambda a, g: negatives.gaussian(a[0], 2, 1.0, g), r"got \(4, 3\)"),
        (lambda a, g: negatives.from_pool(torch.stack([a, a]), 3, 2, g), "B = 3, got"),
        (lambda a, g: negatives.mix(a[:, None], a[:, None, :2]), r"same B, Tp and Da, got"),
        (lambda a, g: negatives.mix(), "must be"),
    ],
)
def test_what_makes_no_negatives_is_refused(call, message, action, generator):
    with pytest.raises(ValueError, match=message):
        call(action, generator)
