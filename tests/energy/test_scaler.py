"""The scaler against distributions of known median and spread, and against what naive running statistics get wrong."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from ding_ebm.energy.scaler import EnergyScalerPerK

REPEATS = 40  # streams of a distribution, one at each k


def fed(values: Tensor, per_update: int, scaler: EnergyScalerPerK | None = None, **options: object) -> EnergyScalerPerK:
    """A scaler that has seen row k of ``values``, (K + 1, n), at index k, in updates of so many each."""
    scaler = EnergyScalerPerK(len(values) - 1, **options) if scaler is None else scaler
    k = torch.arange(len(values)).unsqueeze(1)
    for part in values.split(per_update, dim=1):
        scaler.update(k.expand(part.shape), part)
    return scaler


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(name: str, count: int) -> tuple[Tensor, float, float]:
    """Energies (REPEATS, count), their median, and 1.4826 times their median absolute deviation."""
    uniform = torch.rand(REPEATS, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if name == "normal":
        return 5.0 + 2.0 * normal(REPEATS, count), 5.0, 2.0
    if name == "t3":
        chi = normal(3, REPEATS, count, seed=2).square().sum(0)
        return normal(REPEATS, count) / (chi / 3.0).sqrt(), 0.0, 1.4826 * 0.764892  # its upper quartile
    # P(|x - log 2| < m) = sinh m
    return -torch.log1p(-uniform), math.log(2.0), 1.4826 * math.asinh(0.5)


@pytest.mark.parametrize("name", ["normal", "t3", "exponential"])
def test_a_ring_finds_median_and_absolute_deviation(name):
    values, median, scale = stream(name, 4500)
    location, spread = fed(values, 500).statistics()
    assert float((location - median).abs().max()) / scale <= 0.10
    assert float((spread / scale - 1.0).abs().max()) <= 0.10


def test_a_ring_keeps_the_latest_energies_only():
    old, new = 100.0 + normal(3, 50), normal(3, 64, seed=1)
    kept = fed(torch.cat([old, new], 1), 19, window=64)
    for ours, alone in zip(kept.statistics(), fed(new, 64, window=64).statistics()):
        torch.testing.assert_close(ours, alone)
    # A call may bring more energies of an index than the ring holds.
    torch.testing.assert_close(fed(torch.cat([old, new], 1), 114, window=64).statistics()[0], kept.statistics()[0])
    assert kept.get_stats(2)["count"] == 114


@pytest.mark.parametrize("use_mad", [True, False])
def test_statistics_are_those_of_a_loop_over_the_indices(use_mad):
    energy = normal(300)
    k = torch.randint(0, 5, (300,), generator=torch.Generator().manual_seed(3))
    for estimator in ("ring", "ema"):
        scaler = EnergyScalerPerK(4, use_mad=use_mad, estimator=estimator)
        scaler.update(k, energy)
        for index in range(5):
            mine = energy[k == index]
            center = mine.quantile(0.5) if use_mad else mine.mean()
            spread = 1.4826 * (mine - center).abs().quantile(0.5) if use_mad else mine.std(correction=0)
            stats = scaler.get_stats(index)
            assert stats["mean"] == pytest.approx(float(center), rel=1e-9)
            assert stats["std"] == pytest.approx(float(spread), rel=1e-9)
            assert stats["count"] == len(mine)


def test_averages_are_unbiased_from_the_first_update_on():
    after_one = fed(5.0 + 2.0 * normal(400, 64), 64, estimator="ema")
    location, scale = after_one.statistics()
    assert float((location - 5.0).abs().max()) < 0.6 * 2.0  # 1.2533 / 8 is one standard deviation
    error = scale / 2.0 - 1.0  # standard deviation 1.1664 / 8
    assert float(error.mean().abs()) < 0.03 and float(error.square().mean().sqrt()) < 0.18
    assert float((error.abs() < 0.25).float().mean()) > 0.85
    after_many = fed(5.0 + 2.0 * normal(REPEATS, 6400), 64, estimator="ema")
    location, scale = after_many.statistics()
    assert float((location - 5.0).abs().max()) < 0.1 * 2.0 and float((scale / 2.0 - 1.0).abs().max()) < 0.1
    # Without the correction, averages that begin at 0 would still be at a third of the way down.
    assert float((after_many.moments[:, 0] - 5.0).abs().min()) > 1.5


@pytest.mark.parametrize("estimator", ["ring", "ema"])
@pytest.mark.parametrize("use_mad", [True, False])
def test_one_energy_an_update_is_enough(estimator, use_mad):
    scaler = fed(5.0 + 2.0 * normal(5, 800), 1, estimator=estimator, use_mad=use_mad)
    one_above = scaler.normalize(torch.arange(5), torch.full((5,), 7.0, dtype=torch.float64))
    assert float(one_above.min()) > 0.7 and float(one_above.max()) < 1.4


def test_outliers_move_medians_little_and_means_far():
    values = normal(REPEATS, 4000)
    values[:, ::20] = 1e6
    location, scale = fed(values, 400).statistics()
    assert float(location.abs().max()) < 0.12 and float((scale - 1.0).abs().max()) < 0.12
    location, scale = fed(values, 400, use_mad=False).statistics()
    torch.testing.assert_close(location, torch.full_like(location, 5e4), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(scale, torch.full_like(scale, 1e6 * math.sqrt(0.05 * 0.95)), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("estimator", ["ring", "ema"])
@pytest.mark.parametrize("use_mad", [True, False])
def test_the_spread_between_updates_counts(estimator, use_mad):
    updates, size = 400, 16
    values = (5.0 * normal(8, updates, 1) + 0.5 * normal(8, updates, size, seed=1)).flatten(1)
    _, scale = fed(values, size, estimator=estimator, use_mad=use_mad, momentum=0.995, window=8192).statistics()
    expected = math.sqrt(25.25)
    assert float((scale.mean() / expected - 1.0).abs()) < 0.1
    assert float((scale / expected - 1.0).abs().max()) < 0.2  # within updates it is a tenth


def test_an_index_that_saw_too_little_is_left_as_it_is():
    scaler = EnergyScalerPerK(3, clip=None)
    energy = normal(4) * 10.0
    assert torch.equal(scaler.normalize(torch.arange(4), energy), energy)
    scaler.update(torch.full((7,), 2), normal(7))
    assert scaler.get_stats(2) == dict(mean=0.0, std=1.0, count=7)
    scaler.update(torch.tensor([2]), normal(1))
    normalized = scaler.normalize(torch.arange(4), energy)
    assert torch.equal(normalized[[0, 1, 3]], energy[[0, 1, 3]]) and float(normalized[2] - energy[2]) != 0.0
    assert scaler.get_stats(1) == dict(mean=0.0, std=1.0, count=0)


def test_equal_energies_are_not_divided_by_nothing():
    scaler = fed(torch.full((1 + 1, 100), 3.0, dtype=torch.float64), 10, min_scale=0.1)
    energy = torch.tensor([3.0, 3.1], dtype=torch.float64)
    torch.testing.assert_close(scaler.normalize(torch.tensor([0, 1]), energy), (energy - 3.0) / (0.1 + 1e-6))
    assert float(fed(normal(2, 100), 10, clip=0.5).normalize(torch.tensor([0]), torch.tensor([99.0]))) == 0.5


@pytest.mark.parametrize("estimator", ["ring", "ema"])
def test_saved_copied_and_converted_scalers_normalize_alike(estimator):
    scaler = fed(5.0 + 2.0 * normal(4, 203), 7, estimator=estimator)
    scaler.freeze()
    restored = EnergyScalerPerK(3, estimator=estimator)
    restored.load_state_dict(scaler.state_dict())
    k, energy = torch.tensor([0, 3, 1]), normal(3)
    expected = scaler.normalize(k, energy)
    for other in (restored, copy.deepcopy(scaler), copy.deepcopy(scaler).to("cpu")):
        assert torch.equal(other.normalize(k, energy), expected) and other.frozen
    assert not torch.equal(EnergyScalerPerK(3).normalize(k, energy), expected)
    single = copy.deepcopy(scaler).float()
    torch.testing.assert_close(single.normalize(k, energy), expected, rtol=1e-5, atol=1e-5)
    assert scaler.normalize(k, energy.float()).dtype == torch.float32
    # What follows is the same too.
    for one in (scaler, restored):
        one.freeze(False)
        one.update(torch.zeros(10, dtype=torch.int64), normal(10, seed=5))
    assert torch.equal(restored.normalize(k, energy), scaler.normalize(k, energy))
    scaler.reset()
    assert torch.equal(scaler.normalize(k, energy), energy)


@pytest.mark.parametrize("estimator", ["ring", "ema"])
def test_the_order_of_a_batch_does_not_matter(estimator):
    k = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(1))
    energy = normal(500) + k
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    one, other = EnergyScalerPerK(3, estimator=estimator), EnergyScalerPerK(3, estimator=estimator)
    one.update(k, energy)
    other.update(k[order], energy[order])
    for ours, theirs in zip(one.statistics(), other.statistics()):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)
    two_dimensional = EnergyScalerPerK(3, estimator=estimator)
    two_dimensional.update(k.view(50, 10), energy.view(50, 10))
    assert torch.equal(two_dimensional.statistics()[0], one.statistics()[0])


def test_normalized_energies_carry_gradients():
    scaler = fed(5.0 + 2.0 * normal(1 + 1, 300), 300)
    energy = normal(2).requires_grad_()
    scaler.normalize(torch.tensor([0, 1]), energy).sum().backward()
    torch.testing.assert_close(energy.grad, 1.0 / (scaler.statistics()[1] + 1e-6))


def test_wrong_indices_lengths_and_energies_are_refused_and_nothing_is_taken():
    scaler = EnergyScalerPerK(3)
    one = torch.zeros(1, dtype=torch.float64)
    for call in (scaler.update, scaler.normalize):
        for k in (-1, 4):
            with pytest.raises(ValueError, match=f"k must be from 0 to K = 3 and energies finite, got k = {k}"):
                call(torch.tensor([k]), one)
        with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(1,\)"):
            call(torch.tensor([0, 1]), one)
        with pytest.raises(ValueError, match="k = 2 and E = nan at 1"):
            call(torch.tensor([0, 2]), torch.tensor([0.0, math.nan]))
        with pytest.raises(ValueError, match="k_vec must be int64"):
            call(torch.tensor([0.0]), one)
    with pytest.raises(ValueError, match="k must be from 0 to K = 3, got 4"):
        scaler.get_stats(4)
    scaler.freeze()
    with pytest.raises(ValueError, match="the scaler is frozen"):
        scaler.update(torch.tensor([0]), one)
    assert int(scaler.count.sum()) == 0
    for options in (dict(K=0), dict(K=3, estimator="mean"), dict(K=3, momentum=1.0), dict(K=3, min_group=1)):
        with pytest.raises(ValueError, match="must be"):
            EnergyScalerPerK(**options)
