"""The demo, in its short form, from the command to the files, and what its exit status says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ding_ebm.evaluation import demo as module
from ding_ebm.evaluation.demo_offline import SCALES, OfflineHalf
from ding_ebm.evaluation.demo_online import OnlineHalf
from ding_ebm.evaluation.logs import read_scalars
from ding_ebm.evaluation.results import make_result, read_results

ROOT = Path(__file__).resolve().parents[2]
FACTS = dict(task="avoid", data="d", policy="p", seed=0, train_iter=1, command="c")


def a_result(**changes):
    return replace(make_result(np.arange(4.0), None, guidance_scale=None, **FACTS), **changes)


@pytest.mark.slow
def test_the_quick_demo_runs_twice_and_leaves_table_and_pictures(tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment.pop("DING_EBM_DATA", None)
    command = [sys.executable, "-m", "ding_ebm.cli", "demo", "--quick", "--out", "demo"]
    for _ in range(2):  # the second finds the files of the first
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for bar in ("QGPO train: 100%", "cloning train: 100%", "DPPO train: 100%", "guidance scale 4: 100%"):
        assert bar in done.stderr
    assert "Traceback" not in done.stderr
    assert "the behavior policy by more than both intervals" in done.stdout
    assert "than the cloned one by more than both intervals" in done.stdout
    folder = tmp_path / "demo"
    results = read_results(folder / "results.csv")
    assert [row.guidance_scale for row in results] == [*SCALES, None, None]
    expected = [("avoid", "ebm_qgpo", 30)] * len(SCALES) + [("avoid_m1", "diffusion_bc", 30), ("avoid_m1", "dppo", 2)]
    assert [(row.task, row.policy, row.train_iter) for row in results] == expected
    assert {row.seed for row in results} == {0} and None not in {row.success for row in results}
    names = {path.name for path in folder.iterdir()}
    assert {"trajectories.png", "energy.png", "scales.png", "exactness.png", "dppo.png"} <= names
    assert {"QGPO.log", "cloning.log", "DPPO.log"} <= names
    assert sorted(path.name for path in folder.glob("*_seed0*")) == [
        "avoid_m1_diffusion_bc_seed0", "avoid_m1_dppo_seed0", "avoid_qgpo_seed0",
    ]  # fmt: skip
    # fine-tuning began with the cloned policy: its first evaluation is of the same episodes as that of the cloning
    cloned, tuned = (
        read_scalars(folder / f"avoid_m1_{algo}_seed0", "evaluator_iter/reward_mean")[1]
        for algo in ("diffusion_bc", "dppo")
    )
    assert tuned[0] == cloned[-1]

    # every row says how to make it again
    for row in (results[2], results[-1]):
        again = row.command.replace("ding-ebm ", f"{sys.executable} -m ding_ebm.cli ", 1).split()
        subprocess.run([*again, "--out", "again.csv"], cwd=tmp_path, env=environment, check=True, capture_output=True)
        *_, made = read_results(tmp_path / "again.csv")
        assert replace(made, commit="", command="") == replace(row, commit="", command="")


@pytest.mark.slow
def test_a_demo_whose_training_fails_ends_with_another_status(tmp_path):
    # No folder for support actions can be made where a file is.
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "cache").write_text("in the way")
    command = [sys.executable, "-m", "ding_ebm.cli", "demo", "--quick", "--out", "demo"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "QGPO.log" in done.stderr
    assert not (tmp_path / "demo" / "results.csv").exists()


@pytest.mark.parametrize(("low", "high", "holds"), [(0.5, 0.9, False), (0.7, 0.9, False), (0.71, 0.9, True)])
def test_a_half_holds_if_the_intervals_are_apart_in_the_right_order(tmp_path, low, high, holds):
    online, offline = OnlineHalf(tmp_path, quick=True), OfflineHalf(tmp_path, quick=True)
    share = dict(success=0.5, success_low=0.3, success_high=0.7)
    before, after = a_result(**share), a_result(success=0.8, success_low=low, success_high=high)
    online._results = [before, after]
    offline._results = {0.0: a_result(low=0.3, high=0.7), 1.0: a_result(low=low, high=high)}
    assert online.holds is offline.holds is holds
    assert ("does NOT" in online.verdict()) is not holds
    online._results = [after, before]  # worse than before
    assert not online.holds


@pytest.mark.parametrize("holds", [(True, True), (True, False), (False, True)])
def test_the_exit_status_says_whether_both_halves_hold(tmp_path, monkeypatch, holds):
    def half(value: bool):
        class Half:
            runs, pictures = (), {"picture.png": "what it shows"}

            def __init__(self, folder: Path, quick: bool) -> None:
                self.holds = value

            def collect(self) -> str:
                return "data"

            def evaluate(self, count: int) -> list:
                return [a_result(episodes=count)]

            def draw(self) -> None: ...

            def verdict(self) -> str:
                return f"holds: {value}"

        return Half

    monkeypatch.setattr(module, "OfflineHalf", half(holds[0]))
    monkeypatch.setattr(module, "OnlineHalf", half(holds[1]))
    said: list[str] = []
    assert module.run_demo(tmp_path / "demo", quick=False, say=said.append) == (0 if all(holds) else 1)
    assert [f"holds: {value}\n" in said for value in holds] == [True, True]
    assert [row.episodes for row in read_results(tmp_path / "demo" / "results.csv")] == [module.EPISODES] * 2
    assert module.run_demo(tmp_path / "demo", quick=True, say=said.append) == 0
