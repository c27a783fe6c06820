"""Learning curves of fine-tuning runs, read from their logs: a table and a picture.

    ding -m serial_onpolicy -c dizoo_configs/avoid/avoid_m1_dppo_config.py -s 0 --train-iter 51
    python benchmarks/dppo_learning.py avoid_m1_dppo_seed0

Each run's evaluations become rows; the picture has a panel a task, a thin line a run and a thick one for their mean.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ding_ebm.evaluation.logs import read_scalars

COLUMNS = ("task", "seed", "iteration", "env_steps", "return", "return_std", "episodes")


@dataclass(frozen=True)
class LearningCurve:
    """Evaluations of one run: iterations, environment steps, mean and standard deviation of returns, (n,) each."""

    task: str
    seed: int
    episodes: int
    iterations: NDArray[np.int64]
    env_steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def read_curve(run: Path) -> LearningCurve:
    """The evaluations that a run has logged; task, seed and episodes as the host noted them beside, read as text."""
    note = (run / "total_config.py").read_text("utf-8")
    facts = {}
    for key, pattern in (("env_id", r"'([^']+)'"), ("seed", r"(\d+)"), ("n_evaluator_episode", r"(\d+)")):
        found = re.search(rf"'{key}': {pattern}", note)
        if found is None:
            raise ValueError(f"{run}/total_config.py does not say {key}")
        facts[key] = found[1]
    iterations, mean = read_scalars(run, "evaluator_iter/reward_mean")
    env_steps, _ = read_scalars(run, "evaluator_step/reward_mean")
    _, std = read_scalars(run, "evaluator_iter/reward_std")
    episodes = int(facts["n_evaluator_episode"])
    return LearningCurve(facts["env_id"], int(facts["seed"]), episodes, iterations, env_steps, mean, std)


def write_table(curves: list[LearningCurve], path: Path) -> None:
    """One line an evaluation."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for curve in curves:
            for iteration, steps, mean, std in zip(curve.iterations, curve.env_steps, curve.mean, curve.std):
                row = (curve.task, curve.seed, iteration, steps, f"{mean:.1f}", f"{std:.1f}", curve.episodes)
                writer.writerow(row)


def draw(curves: list[LearningCurve], path: Path) -> None:
    """Return against environment steps, a panel a task."""
    by_task: dict[str, list[LearningCurve]] = defaultdict(list)
    for curve in curves:
        by_task[curve.task].append(curve)
    figure = Figure(figsize=(3.6 * len(by_task), 3.4), layout="constrained")
    for axes, (task, runs) in zip(np.atleast_1d(figure.subplots(1, len(by_task))), by_task.items()):
        for curve in runs:
            alone = len(runs) == 1
            axes.plot(curve.env_steps / 1e6, curve.mean, color="C0", linewidth=2.4 if alone else 0.9,
                      alpha=1.0 if alone else 0.5)  # fmt: skip
        if len(runs) > 1:
            shortest = min(len(curve.mean) for curve in runs)
            steps = np.mean([curve.env_steps[:shortest] for curve in runs], axis=0)
            mean = np.mean([curve.mean[:shortest] for curve in runs], axis=0)
            axes.plot(steps / 1e6, mean, color="C0", linewidth=2.4)
        start = np.mean([curve.mean[0] for curve in runs])
        axes.axhline(start, color="0.5", linestyle="--", linewidth=1.0)
        axes.annotate("cloned policy", (1.0, start), (-2, 3), ("axes fraction", "data"), "offset points", color="0.4",
                      ha="right", fontsize=8)  # fmt: skip
        axes.set(title=f"{task}, {len(runs)} run{'s' if len(runs) > 1 else ''}", xlabel="environment steps (million)")
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("return of an evaluation")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read all runs, write the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, <exp_name>")
    parser.add_argument("--out", type=Path, default=Path("docs/results/dppo_curves.csv"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/dppo_learning.png"))
    options = parser.parse_args()
    curves = sorted((read_curve(run) for run in options.runs), key=lambda curve: (curve.task, curve.seed))
    write_table(curves, options.out)
    draw(curves, options.figure)
    print(f"wrote {options.out} and {options.figure}: {len(curves)} runs")


if __name__ == "__main__":
    main()
