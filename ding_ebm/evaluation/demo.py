"""What ``make demo`` does: demonstrations, training by the host in two processes, evaluation, pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ding_ebm.evaluation.demo_offline import OfflineHalf
from ding_ebm.evaluation.demo_online import OnlineHalf
from ding_ebm.evaluation.demo_runs import THREADS, shown
from ding_ebm.evaluation.process import run_logged
from ding_ebm.evaluation.results import append_results, result_table

Say = Callable[[str], None]

EPISODES, QUICK_EPISODES = 200, 6


def run_demo(folder: Path, *, quick: bool, say: Say) -> int:
    """Run all steps, which write to ``folder``; files of an earlier demo are replaced.

    Args:
        folder: Made if it is not there.
        quick: A few iterations only, to see that every part runs.
        say: Takes each line for the user.

    Returns:
        The exit status: 0, or 1 if one of the halves does not show what it should.

    Raises:
        RuntimeError: If a training process fails.
    """
    began, episodes = time.monotonic(), QUICK_EPISODES if quick else EPISODES
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    halves = (OfflineHalf(folder, quick), OnlineHalf(folder, quick))

    say("[1/4] scripted demonstrations of two tasks")
    for half in halves:
        say(half.collect())

    say(f"[2/4] training, two processes side by side, with the output in {shown(folder)}/*.log")
    for run in (run for half in halves for run in half.runs):
        say(f"{run.name}: {run.typed}")
    run_logged(*([run.job() for run in half.runs] for half in halves))

    say(f"\n[3/4] {episodes} episodes of each policy; those of a task with the same starts and the same noise")
    results = [row for half in halves for row in half.evaluate(episodes)]
    (folder / "results.csv").unlink(missing_ok=True)
    append_results(folder / "results.csv", results)
    say(f"\n{result_table(results)}")

    say("[4/4] pictures")
    for half in halves:
        half.draw()
        for name, what in half.pictures.items():
            say(f"      {shown(folder / name)}: {what}")
    say(f"      {shown(folder / 'results.csv')}: the table above, with the command of each row\n")
    for half in halves:
        say(f"{half.verdict()}\n")
    say(
        f"{(time.monotonic() - began) / 60.0:.1f} minutes in all. Next: `ding-ebm tasks` lists the other tasks; "
        "docs/algorithms/ explains what was learned."
    )
    if quick:
        say("(--quick trains for a few iterations, which teach nothing.)")
    return 0 if quick or all(half.holds for half in halves) else 1
