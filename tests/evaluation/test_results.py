"""Rows of results: what they hold, their way through a CSV file, and their summary over runs."""

from __future__ import annotations

import csv
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from ding_ebm.envs.avoid_demos import make_demonstrations
from ding_ebm.evaluation import results as results_module
from ding_ebm.evaluation.results import (
    COLUMNS,
    append_results,
    code_version,
    describe,
    format_table,
    make_result,
    read_results,
    report,
    result_table,
)
from ding_ebm.evaluation.statistics import episode_interval, success_interval

FACTS = dict(
    task="hopper", data="hopper_medium", policy="ebm_qgpo", guidance_scale=1.0, seed=0, train_iter=40, command='a, "b"'
)


def result(seed: int = 0, normalized: float = 50.0, **changes):
    returns = np.array([1.0, 2.0, 6.0]) - 20.272305
    return replace(make_result(returns, None, **FACTS), seed=seed, normalized=normalized, **changes)


def test_a_row_holds_mean_interval_and_score():
    returns = np.array([100.0, 300.0, 50.0, 1000.0])
    row = make_result(returns, None, **FACTS)
    interval = episode_interval(returns)
    assert (row.mean, row.low, row.high) == (362.5, pytest.approx(interval.low), pytest.approx(interval.high))
    assert row.normalized == pytest.approx(100.0 * (362.5 + 20.272305) / (3234.3 + 20.272305), abs=0.01)
    assert row.episodes == 4
    assert (row.success, row.success_low, row.success_high) == (None, None, None)


def test_a_row_of_a_task_with_success_holds_its_share_and_interval():
    success = np.array([True, False, True, True])
    row = make_result(np.arange(4.0), success, **FACTS)
    interval = success_interval(success)
    assert row.success == 0.75
    assert (row.success_low, row.success_high) == pytest.approx((interval.low, interval.high), abs=1e-4)
    assert make_result(np.arange(4.0), ~success, **FACTS).success == 0.25


def test_a_task_without_reference_returns_has_no_score_anywhere(tmp_path):
    row = make_result(np.arange(4.0), None, **{**FACTS, "task": "humanoid"})
    assert row.normalized is None and row.mean == 1.5
    append_results(tmp_path / "results.csv", [row])
    assert read_results(tmp_path / "results.csv") == [row]
    assert cells(result_table([row]), 2)[-1] == "-"
    both = report([row, result(0), result(1)])
    assert cells(both, 3)[:2] == ["humanoid", "hopper_medium"] and cells(both, 3)[5:] == ["-"] * 5
    assert "all" not in both and cells(both, 2)[5] == "50.0"


def test_rows_come_back_from_the_file_as_they_went_in(tmp_path):
    path = tmp_path / "new" / "results.csv"
    known = dict(success=0.0, success_low=0.0, success_high=0.5614)
    rows = [result(0), result(1, -3.25, guidance_scale=0.5), result(2, guidance_scale=None, **known)]
    append_results(path, rows[:1])
    append_results(path, rows[1:])
    assert read_results(path) == rows
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert ",".join(lines[0]) == (
        "task,data,policy,guidance_scale,episodes,mean,low,high,normalized,success,success_low,success_high,"
        "seed,train_iter,commit,command"
    )
    assert len(lines) == 4
    assert lines[1][-1] == 'a, "b"'
    # what is not known is an empty cell, not a zero
    assert [line[3] for line in lines[1:]] == ["1.0", "0.5", ""]
    assert [line[9:12] for line in lines[1:]] == [[""] * 3, [""] * 3, ["0.0", "0.0", "0.5614"]]


def test_a_file_with_other_columns_is_neither_read_nor_written(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("task,return\nhopper,3\n")
    for action in (lambda: read_results(path), lambda: append_results(path, [result()])):
        with pytest.raises(ValueError, match=r"other\.csv: the columns must be task,data,.*, got task,return"):
            action()
    assert path.read_text() == "task,return\nhopper,3\n"


@pytest.mark.parametrize(
    "line",
    ["hopper,d,p,one" + ",1" * 12, "hopper,d,p,1,1,1,1," + ",1" * 8, "hopper,d,p,1", "hopper,d,p" + ",1" * 14],
    ids=["no number", "an empty cell", "too short", "too long"],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "results.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{line}\n")
    with pytest.raises(ValueError, match=r"results\.csv, line 2: not a row of results"):
        read_results(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        read_results(tmp_path / "nothing.csv")


def cells(text: str, line: int) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[line].split("  ") if cell.strip()]


def test_a_report_takes_runs_as_the_unit():
    text = report([result(seed, score) for seed, score in enumerate([10.0, 20.0, 30.0, 80.0])])
    row = [cell.strip() for cell in cells(text, 2)]
    assert row[:6] == ["hopper", "hopper_medium", "ebm_qgpo", "1", "4", "35.0"]
    # IQM of four runs: without the lowest and the highest
    assert row[7] == "25.0"
    assert row[-1] == "runs"
    low, high = map(float, row[6].split(" to "))
    assert 10.0 <= low < 35.0 < high <= 80.0


def test_a_report_on_one_run_says_that_its_interval_is_over_episodes():
    only = result(0)
    row = [cell.strip() for cell in cells(report([only]), 2)]
    assert row[-1] == "3 episodes"
    assert row[4] == "1"
    low = 100.0 * (only.low + 20.272305) / (3234.3 + 20.272305)
    assert row[6].startswith(f"{low:.1f} to")


def test_a_report_over_several_sets_resamples_within_each():
    rows = [result(seed, 10.0) for seed in range(3)] + [result(seed, 90.0, data="other") for seed in range(3)]
    last = [cell.strip() for cell in cells(report(rows), 4)]
    assert last[:6] == ["all", "2 sets", "ebm_qgpo", "1", "6", "50.0"]
    assert last[6] == "50.0 to 50.0"


def test_scales_are_not_mixed():
    text = report([result(seed, 10.0 * scale, guidance_scale=scale) for seed in range(2) for scale in (0.0, 2.0)])
    assert [cells(text, line)[5].strip() for line in (2, 3)] == ["0.0", "20.0"]


def test_policies_without_guidance_stand_beside_guided_ones():
    text = report([result(seed, guidance_scale=scale) for seed in range(2) for scale in (1.0, None, -2.0)])
    assert [cells(text, line)[3].strip() for line in (2, 3, 4)] == ["-", "-2", "1"]
    with pytest.raises(ValueError, match="seed 0 of ebm_qgpo on hopper at scale - is given twice"):
        report([result(0, guidance_scale=None, data="")] * 2)


def test_a_run_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match="seed 1 of ebm_qgpo on hopper_medium at scale 1 is given twice"):
        report([result(0), result(1), result(1, train_iter=50)])


def test_an_empty_report_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        report([])


def test_a_table_aligns_numbers_to_the_right_and_words_to_the_left():
    text = format_table(["name", "n"], [["a", "5"], ["bcdef", "123"]])
    assert text == "name     n\n-----  ---\na        5\nbcdef  123\n"


def test_the_table_for_people_has_a_line_a_result():
    lines = result_table([result(), result(guidance_scale=0.5)]).splitlines()
    assert len(lines) == 4
    assert "-17.27" in lines[2]


def test_the_table_shows_success_only_where_a_task_has_it():
    without, known = result(), result(success=0.5, success_low=0.25, success_high=0.75)
    assert "success" not in result_table([without])
    header, _, *lines = result_table([without, known]).splitlines()
    assert header.split()[-4:] == ["success", "95", "%", "interval"]
    assert lines[0].split()[-2:] == ["-", "-"]
    assert lines[1].endswith("0.500  0.250 to 0.750")


def test_a_data_set_is_described_by_its_episodes():
    data = make_demonstrations(20, seed=3)
    text = describe(data, "avoid")
    assert f"rows      {len(data)}, obs 4, action 2 in [-0.01, 0.01]" in text
    assert f"{int(data.terminated.sum())} terminated" in text
    score = 100.0 * (data.episode_returns().mean() + 0.3) / (2.862 + 0.3)
    assert f"normalized {score:.1f}" in text


def test_the_version_of_a_checkout_is_its_commit(tmp_path, monkeypatch):
    code_version.cache_clear()
    monkeypatch.setattr(results_module, "REPOSITORY", tmp_path)
    assert code_version().startswith("v")  # no checkout
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    code_version.cache_clear()
    assert head.startswith(code_version())
    code_version.cache_clear()
