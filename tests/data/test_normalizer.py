"""Normalization is an exact affine map with the statistics it says, and its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ding_ebm.data.normalizer import MODES, Normalizer

ROWS = np.random.default_rng(0).normal([0.0, 5.0, -300.0], [1.0, 0.01, 40.0], (1000, 3)).astype(np.float32)


def test_mean_std_gives_zero_mean_and_unit_variance() -> None:
    y = Normalizer.fit(ROWS, "mean_std").double()(torch.from_numpy(ROWS).double())
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_min_max_reaches_both_ends() -> None:
    y = Normalizer.fit(ROWS, "min_max")(torch.from_numpy(ROWS))
    torch.testing.assert_close(y.amin(0), -torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.amax(0), torch.ones(3), atol=1e-4, rtol=0)


def test_none_changes_no_bit() -> None:
    normalizer, x = Normalizer.fit(ROWS, "none"), torch.from_numpy(ROWS)
    assert torch.equal(normalizer(x), x) and torch.equal(normalizer.inverse(x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_inverse_undoes_it_for_rows_and_single_values_in_any_dtype(mode: str, dtype: torch.dtype) -> None:
    normalizer = Normalizer.fit(ROWS, mode)
    x = torch.from_numpy(ROWS[:20]).to(dtype)
    for values in (x, x[0]):
        y = normalizer(values)
        back = normalizer.inverse(y)
        assert y.dtype == back.dtype == dtype and y.shape == back.shape == values.shape
        # Rounding of y is carried back by the scale, rounding of x by its size.
        step = torch.finfo(dtype).eps * (4 * values.abs() + 8 * normalizer.scale.to(dtype) * (1 + y.abs()))
        assert ((back - values).abs() <= step).all()


@pytest.mark.parametrize("mode", ["mean_std", "min_max"])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-12, 1e12])
def test_constant_dimension_maps_to_zero_and_back_exactly(mode: str, value: float) -> None:
    rows = ROWS.copy()
    rows[:, 1] = value
    normalizer, x = Normalizer.fit(rows, mode), torch.from_numpy(rows)
    y = normalizer(x)
    assert (y[:, 1] == 0).all()
    assert torch.equal(normalizer.inverse(y)[:, 1], x[:, 1])
    assert normalizer.scale[1] == 1.0


def test_rounding_noise_counts_as_constant_but_a_small_scale_does_not() -> None:
    rows = np.stack([np.float32([1.0, np.nextafter(np.float32(1), np.float32(2))] * 5), np.linspace(0, 1e-9, 10)], 1)
    normalizer = Normalizer.fit(rows.astype(np.float32), "min_max")
    assert normalizer.scale[0] == 1.0
    assert normalizer.scale[1].item() == pytest.approx(5e-10, rel=1e-5)


def test_state_dict_carries_the_statistics() -> None:
    fitted, fresh = Normalizer.fit(ROWS, "mean_std"), Normalizer(3)
    x = torch.from_numpy(ROWS)
    assert torch.equal(fresh(x), x), "the identity before it is fitted"
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh(x), fitted(x))
    assert list(fitted.parameters()) == [], "statistics are not trained"


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of .*got 'minmax'"):
        Normalizer.fit(ROWS, "minmax")
    with pytest.raises(ValueError, match=r"shape \(N, D\) with N >= 1, got shape \(0, 3\)"):
        Normalizer.fit(ROWS[:0], "min_max")
    with pytest.raises(ValueError, match="got shape"):
        Normalizer.fit(ROWS[0], "none")
    for value in (np.nan, np.inf):
        rows = ROWS.copy()
        rows[5, 2] = value
        with pytest.raises(ValueError, match="finite values, column 2"):
            Normalizer.fit(rows, "mean_std")
