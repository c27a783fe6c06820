"""What an energy does for fine-tuning: curves of several kinds of runs, side by side.

    python benchmarks/energy_ablation.py FOLDER

FOLDER has a folder for each kind of run, named after it, with the folders of its runs. Each evaluation of a run becomes
a row; one table has the mean over runs at each iteration with a bootstrap interval over runs (of a single run over its
episodes), another the differences to ``dppo``, seed by seed; the picture has a panel a task and a line a kind.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from dppo_learning import LearningCurve, read_curve
from matplotlib.figure import Figure

from ding_ebm.evaluation.statistics import Interval, mean, run_interval

# Order and names in table and picture, by folder.
KINDS = {
    "dppo": "dppo",
    "shaping": "shaped by the energy",
    "both": "shaped, energies scaled",
    "value": "shaped by a value",
    "reward": "energy in the reward",
}
Curves = dict[str, dict[str, list[LearningCurve]]]  # by task, then by kind


def read_all(folder: Path) -> Curves:
    """Every run that has been evaluated.

    Raises:
        ValueError: If a seed is there twice.
    """
    curves: Curves = defaultdict(lambda: defaultdict(list))
    for kind in KINDS:
        for log in sorted((folder / kind).glob("*_seed*/log")):
            if log.parent.is_symlink() or not list(log.glob("serial/events*")):
                continue
            curve = read_curve(log.parent)
            if any(curve.seed == other.seed for other in curves[curve.task][kind]):
                raise ValueError(f"{folder / kind} has two runs of {curve.task} with seed {curve.seed}")
            curves[curve.task][kind].append(curve)
    return {task: curves[task] for task in sorted(curves)}


def interval_at(runs: list[LearningCurve], index: int) -> Interval:
    """Mean over runs of an evaluation, with its interval; of a single run that over its episodes."""
    if len(runs) == 1:
        (run,) = runs
        half = 1.96 * run.std[index] / math.sqrt(run.episodes)
        return Interval(run.mean[index], run.mean[index] - half, run.mean[index] + half)
    return run_interval([np.array([run.mean[index] for run in runs])], statistic=mean)


def write_tables(curves: Curves, out: Path) -> None:
    """``<out>_curves.csv``, a line an evaluation, and ``<out>.csv``, a line a task and kind."""
    with out.with_name(f"{out.stem}_curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "kind", "seed", "iteration", "env_steps", "return", "return_std", "episodes"))
        for task, kinds in curves.items():
            for kind, runs in kinds.items():
                for run in runs:
                    for row in zip(run.iterations, run.env_steps, run.mean, run.std):
                        iteration, steps, average, std = row
                        numbers = (int(iteration), int(steps), f"{average:.1f}", f"{std:.1f}", run.episodes)
                        writer.writerow((task, KINDS[kind], run.seed, *numbers))
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        longest = max((run.iterations for kinds in curves.values() for runs in kinds.values() for run in runs), key=len)
        writer.writerow(("task", "kind", "runs", *(f"iteration {iteration}" for iteration in longest)))
        for task, kinds in curves.items():
            for kind, runs in kinds.items():
                cells = []
                for index in range(len(longest)):
                    there = [run for run in runs if len(run.mean) > index]
                    found = interval_at(there, index) if there else None
                    cells.append(f"{found.estimate:.1f} ({found.low:.1f} to {found.high:.1f})" if found else "-")
                writer.writerow((task, KINDS[kind], len(runs), *cells))


def write_differences(curves: Curves, path: Path) -> None:
    """Mean return over the evaluations after the first, less that of ``dppo`` with the same seed; of several seeds."""

    def later(run: LearningCurve) -> float:
        return float(run.mean[1:].mean())

    curves = {task: kinds for task, kinds in curves.items() if all(len(kinds[kind]) > 1 for kind in KINDS)}
    if not curves:
        return

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", *curves, "all"))
        for kind in KINDS:
            strata = []
            for kinds in curves.values():
                plain = {run.seed: later(run) for run in kinds["dppo"]}
                strata.append(np.array([later(run) - plain[run.seed] for run in kinds[kind]]))
            found = [run_interval(part, statistic=mean) for part in (*([x] for x in strata), strata)]
            if kind != "dppo":
                writer.writerow((KINDS[kind], *(f"{i.estimate:+.1f} ({i.low:+.1f} to {i.high:+.1f})" for i in found)))


def draw(curves: Curves, path: Path) -> None:
    """Return against environment steps."""
    figure = Figure(figsize=(4.0 * len(curves), 3.6), layout="constrained")
    for axes, (task, kinds) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items()):
        for color, kind in enumerate(KINDS):
            runs = kinds.get(kind, [])
            if not runs:
                continue
            shortest = min(len(run.mean) for run in runs)
            steps = np.mean([run.env_steps[:shortest] for run in runs], axis=0) / 1e3
            average = np.mean([run.mean[:shortest] for run in runs], axis=0)
            axes.plot(steps, average, color=f"C{color}", linewidth=1.8, label=f"{KINDS[kind]} ({len(runs)})")
            bounds = [interval_at(runs, index) for index in range(shortest)]
            low, high = [bound.low for bound in bounds], [bound.high for bound in bounds]
            axes.fill_between(steps, low, high, color=f"C{color}", alpha=0.15, linewidth=0.0)
        axes.set(title=task, xlabel="environment steps (thousand)")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("return of an evaluation")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read all runs, write the tables and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results/energy_ablation.csv"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/energy_ablation.png"))
    options = parser.parse_args()
    curves = read_all(options.folder)
    write_tables(curves, options.out)
    write_differences(curves, options.out.with_name(f"{options.out.stem}_differences.csv"))
    draw(curves, options.figure)
    print(f"wrote {options.out} and {options.figure}")


if __name__ == "__main__":
    main()
