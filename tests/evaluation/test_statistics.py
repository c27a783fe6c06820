"""Estimates in closed form, and intervals that cover as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from ding_ebm.evaluation.statistics import episode_interval, iqm, mean, run_interval, success_interval


def test_the_interquartile_mean_leaves_a_quarter_out_on_each_side():
    assert iqm(np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0])) == 3.5
    assert iqm(np.arange(12.0)) == 5.5
    # floor(n / 4): three values are all kept, of five the ends are left out
    assert iqm(np.array([0.0, 0.0, 9.0])) == 3.0
    assert iqm(np.array([-7.0, 1.0, 2.0, 3.0, 900.0])) == 2.0


def test_the_interquartile_mean_is_taken_over_the_last_axis():
    values = np.random.default_rng(0).normal(size=(3, 4, 9))
    expected = [[np.mean(sorted(row)[2:7]) for row in rows] for rows in values]
    np.testing.assert_allclose(iqm(values), expected)


def test_estimates_are_those_of_the_values_and_intervals_hold_them():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    interval = episode_interval(values)
    assert interval.estimate == 4.0
    assert 1.0 <= interval.low < 4.0 < interval.high <= 9.0
    assert run_interval([values], iqm).estimate == 3.0


@pytest.mark.parametrize("draw", [lambda r, n: r.normal(3.0, 2.0, n), lambda r, n: 3.0 * r.exponential(1.0, n)])
def test_the_interval_over_episodes_covers_the_mean_as_often_as_it_says(draw):
    rng = np.random.default_rng(1)
    hits = [i.low <= 3.0 <= i.high for i in (episode_interval(draw(rng, 60), 0.9, 400) for _ in range(400))]
    # 400 trials of 0.9 have a standard deviation of 0.015; the bootstrap of skewed values covers a little less
    assert 0.84 <= np.mean(hits) <= 0.95


def test_few_runs_are_covered_less_often_than_the_level_says():
    # What the module's text warns of; a change of method that repairs it should change the text too.
    rng = np.random.default_rng(2)
    hits = [i.low <= 0.0 <= i.high for i in (run_interval([rng.normal(size=3)], mean, 0.95, 300) for _ in range(300))]
    assert 0.6 <= np.mean(hits) <= 0.88


def test_the_width_is_that_of_the_normal_approximation_for_many_values():
    values = np.random.default_rng(3).normal(size=4000)
    interval = episode_interval(values, level=0.95)
    expected = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.high - interval.estimate == pytest.approx(expected, rel=0.06)
    assert interval.estimate - interval.low == pytest.approx(expected, rel=0.06)


def test_runs_are_resampled_within_their_task():
    # Two tasks far apart, equal runs within each: nothing is uncertain, though the values differ much.
    interval = run_interval([[1.0, 1.0, 1.0], [90.0, 90.0, 90.0]], mean)
    assert (interval.low, interval.estimate, interval.high) == (45.5, 45.5, 45.5)
    pooled = run_interval([[1.0, 1.0, 1.0, 90.0, 90.0, 90.0]], mean)
    assert pooled.high - pooled.low > 30.0


def test_a_run_counts_once_however_many_episodes_stand_behind_it():
    # 2 runs of 500 episodes that disagree: over episodes the mean seems certain, over runs it is not.
    rng = np.random.default_rng(4)
    runs = [rng.normal(0.0, 1.0, 500), rng.normal(5.0, 1.0, 500)]
    over_episodes = episode_interval(np.concatenate(runs))
    over_runs = run_interval([[run.mean() for run in runs]], mean)
    assert over_episodes.estimate == pytest.approx(over_runs.estimate)
    assert over_runs.high - over_runs.low > 10.0 * (over_episodes.high - over_episodes.low)


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, table I.
PUBLISHED = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize(("hits", "n", "low", "high"), PUBLISHED)
def test_the_interval_of_a_share_is_the_published_one_and_mirrors_that_of_failures(hits, n, low, high):
    success = np.arange(n) < hits
    interval = success_interval(success)
    assert interval.estimate == hits / n
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    failures = success_interval(~success)
    assert (failures.low, failures.high) == (pytest.approx(1.0 - interval.high), pytest.approx(1.0 - interval.low))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_ends_of_the_interval_of_a_share_are_those_that_the_score_test_just_accepts(level):
    interval = success_interval(np.arange(40) < 13, level)
    quantile = {0.8: 1.2815515655446, 0.95: 1.9599639845401}[level]
    for p in (interval.low, interval.high):
        assert abs(13 / 40 - p) / np.sqrt(p * (1.0 - p) / 40) == pytest.approx(quantile, abs=1e-9)


def test_all_successes_leave_room_for_failures_where_the_bootstrap_leaves_none():
    always = np.ones(200, dtype=bool)
    assert success_interval(always).high == 1.0 > success_interval(always).low > 0.97
    assert episode_interval(always.astype(float)).low == 1.0


@pytest.mark.parametrize("success", [[], [0.5, 1.0], [1, 0], [[True]]])
def test_a_share_of_what_are_no_successes_is_refused(success):
    with pytest.raises(ValueError, match=r"needs booleans \(n,\), n >= 1, got"):
        success_interval(success)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(5).normal(size=20)
    assert episode_interval(values) == episode_interval(values)
    assert episode_interval(values) != episode_interval(values, seed=1)


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ([[1.0]], "at least two values"),
        ([[1.0, 2.0], []], "at least two values"),
        ([[1.0, float("nan")]], "finite values, got nan"),
        ([], "got 0 strata"),
    ],
)
def test_what_has_no_interval_is_refused(strata, message):
    with pytest.raises(ValueError, match=message):
        run_interval(strata)
