"""The demo, in its short form, from the command to the files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ding_ebm.evaluation.demo import SCALES
from ding_ebm.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_quick_demo_runs_twice_and_leaves_table_and_pictures(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment.pop("DING_EBM_DATA", None)
    command = [sys.executable, "-m", "ding_ebm.cli", "demo", "--quick", "--out", "demo"]
    for _ in range(2):  # the second finds the files of the first
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "train: 100%" in done.stderr
    assert "guidance scale 4: 100%" in done.stderr
    assert "Traceback" not in done.stderr
    assert "the behavior policy by more than both intervals" in done.stdout
    folder = tmp_path / "demo"
    results = read_results(folder / "results.csv")
    assert [row.guidance_scale for row in results] == list(SCALES)
    assert {(row.task, row.policy, row.train_iter, row.seed) for row in results} == {("avoid", "ebm_qgpo", 30, 0)}
    names = {path.name for path in folder.iterdir()}
    assert {"trajectories.png", "energy.png", "scales.png", "exactness.png", "train.log"} <= names
    assert [path.name for path in folder.glob("avoid_qgpo*")] == ["avoid_qgpo_seed0"]

    # every row says how to make it again
    again = results[2].command.replace("ding-ebm ", f"{sys.executable} -m ding_ebm.cli ", 1).split()
    subprocess.run([*again, "--out", "again.csv"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (row,) = read_results(tmp_path / "again.csv")
    assert (row.mean, row.low, row.high, row.seed) == (
        results[2].mean,
        results[2].low,
        results[2].high,
        results[2].seed,
    )


@pytest.mark.slow
def test_a_demo_whose_training_fails_ends_with_another_status(tmp_path):
    # No folder for support actions can be made where a file is.
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "cache").write_text("in the way")
    command = [sys.executable, "-m", "ding_ebm.cli", "demo", "--quick", "--out", "demo"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "train.log" in done.stderr
    assert not (tmp_path / "demo" / "results.csv").exists()
