"""Estimates with bootstrap intervals, over the episodes of one policy or over independent training runs.

What is resampled is what the interval speaks of. Over the episodes of one trained policy it says how well this policy
is known; another run of the same training may be far outside. Over runs (seeds) it says what training yields, and then
a run is one number, however many episodes stand behind it.

Letters: n episodes, R runs.

A share of successes has Wilson's interval: the bootstrap's is a single point where all episodes succeed, or none.

Source:
    Agarwal et al. 2021 (arXiv:2108.13264) for the interquartile mean and the bootstrap stratified by task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], Any]


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval."""

    estimate: float
    low: float
    high: float


def mean(values: NDArray[np.float64]) -> Any:
    """Mean over the last axis."""
    return values.mean(axis=-1)


def iqm(values: NDArray[np.float64]) -> Any:
    """Interquartile mean over the last axis: without the floor(n / 4) lowest and as many highest values."""
    count = values.shape[-1]
    cut = count // 4
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(axis=-1)


def episode_interval(returns: ArrayLike, level: float = 0.95, resamples: int = 5000, seed: int = 0) -> Interval:
    """Mean return of one policy, with an interval over its episodes.

    Args:
        returns: One an episode, (n,), n >= 2.
        level: Coverage.
        resamples: Number of bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there are fewer than two episodes, or a value is not finite.
    """
    return _bootstrap([returns], mean, level, resamples, seed)


def success_interval(success: ArrayLike, level: float = 0.95) -> Interval:
    """Share of the episodes of one policy that succeeded, with Wilson's score interval.

    The p for which |share - p| <= z sqrt(p (1 - p) / n), z the normal quantile of (1 + level) / 2:
    (share + z^2 / 2n +- z sqrt(share (1 - share) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Args:
        success: One an episode, (n,), bool, n >= 1.
        level: Coverage.

    Raises:
        ValueError: If there are no episodes, the values are not booleans, or the level is not in (0, 1).

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22.
    """
    values = np.asarray(success)
    if values.ndim != 1 or values.size < 1 or values.dtype != np.bool_:
        raise ValueError(f"a share of successes needs booleans (n,), n >= 1, got {values.dtype} {values.shape}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"the level must be in (0, 1), got {level}")
    n, share = values.size, float(values.mean())
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    center = share + z**2 / (2.0 * n)
    half = z * sqrt(share * (1.0 - share) / n + z**2 / (4.0 * n**2))
    low, high = ((center + sign * half) / (1.0 + z**2 / n) for sign in (-1.0, 1.0))
    return Interval(share, max(low, 0.0), min(high, 1.0))


def run_interval(
    runs: Sequence[ArrayLike],
    statistic: Statistic = iqm,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """A statistic over independent runs, with an interval from a bootstrap over runs, stratified by task.

    Every run counts once. Few runs make a rough interval: with three, a percentile bootstrap at 95 % covers the truth
    clearly less often than that.

    Args:
        runs: For each task (a stratum) the score of each of its runs, (R,), R >= 2; several strata need scores that
            can be compared, such as normalized ones.
        statistic: :func:`iqm` or :func:`mean`; of the last axis.
        level: Coverage.
        resamples: Number of bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: If a stratum has fewer than two runs, or a value is not finite.
    """
    return _bootstrap(runs, statistic, level, resamples, seed)


def _bootstrap(strata: Sequence[ArrayLike], statistic: Statistic, level: float, resamples: int, seed: int) -> Interval:
    """Percentile bootstrap that keeps the size of every stratum."""
    arrays = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    for array in arrays:
        if array.ndim != 1 or array.size < 2:
            raise ValueError(f"an interval needs at least two values in one dimension, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"an interval needs finite values, got {array[~np.isfinite(array)][0]}")
    if not arrays or not 0.0 < level < 1.0:
        raise ValueError(f"an interval needs values and a level in (0, 1), got {len(arrays)} strata and {level}")
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([a[rng.integers(a.size, size=(resamples, a.size))] for a in arrays], axis=1)
    low, high = np.quantile(statistic(drawn), [0.5 - level / 2.0, 0.5 + level / 2.0])
    return Interval(float(statistic(np.concatenate(arrays))), float(low), float(high))
