"""Ways through the avoid tasks: of the data, of cloned policies, and of what fine-tuning collects first.

The figure of structured exploration in arXiv:2409.00588, with a table of success and of the entropy over the ways. In a
folder with the data and the runs of each task, made by

    ding-ebm data collect avoid_m1 --out avoid_m1_demonstrations.hdf5
    ding -m serial_offline -c dizoo_configs/avoid/avoid_m1_diffusion_bc_config.py -s 0   # and gaussian_bc, gmm_bc

    python benchmarks/avoid_ways.py --runs FOLDER
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from PIL import Image

from ding_ebm.checkpoint import find_checkpoint
from ding_ebm.data.formats import read_data
from ding_ebm.envs.registry import get_task
from ding_ebm.evaluation.results import REPOSITORY, code_version
from ding_ebm.evaluation.statistics import success_interval
from ding_ebm.evaluation.trajectories import Trajectories, of_collecting, of_data, of_policy, summary
from ding_ebm.evaluation.trajectory_plots import plot_trajectories

TASKS = ("avoid_m1", "avoid_m2", "avoid_m3")
# Title, policy whose run is taken, and policy that collects from it at the beginning of its fine-tuning.
PANELS = (
    ("diffusion, cloned", "diffusion_bc", None),
    ("DPPO, first iteration", "diffusion_bc", "dppo"),
    ("Gaussian, cloned", "gaussian_bc", None),
    ("mixture, cloned", "gmm_bc", None),
)
TRAINING_SEED = 0
FIRST_SEED = 1000


def measure(runs: Path, name: str, episodes: int, command: str) -> tuple[list[Trajectories], list[dict[str, str]]]:
    """Panels and rows of a task."""
    task, seeds = get_task(name), range(FIRST_SEED, FIRST_SEED + episodes)
    panels = [of_data(task, read_data(runs / f"{name}_demonstrations.hdf5"), "demonstrations")]
    facts = [("", "")]
    for title, cloned, fine_tuned in PANELS:
        run = runs / f"{name}_{cloned}_seed{TRAINING_SEED}"
        if not run.is_dir():
            print(f"no run at {run}: its panel is left out", file=sys.stderr)
            continue
        checkpoint = find_checkpoint(str(run))
        config = REPOSITORY / "dizoo_configs" / "avoid" / f"{name}_{fine_tuned or cloned}_config.py"
        make = of_policy if fine_tuned is None else of_collecting
        panels.append(make(task, config, checkpoint, seeds, title))
        facts.append((str(TRAINING_SEED), checkpoint.name.split("_")[1].split(".")[0]))
    header, lines = summary(panels)
    rows = []
    for panel, line, (seed, iterations) in zip(panels, lines, facts):
        row = {"task": name, **dict(zip(header, line))}
        share = success_interval(panel.success)
        row["success"] = f"{share.estimate:.3f} ({share.low:.2f} to {share.high:.2f})" if seed else row["success"]
        rows.append(
            {**row, "training seed": seed, "iterations": iterations, "commit": code_version(), "command": command}
        )
    return panels, rows


def main() -> None:
    """Run every policy, write the table and draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path(), metavar="FOLDER", help="of data and runs; default: this")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="of a policy; default: %(default)s")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/results/avoid_ways.csv")
    parser.add_argument("--figure", type=Path, default=REPOSITORY / "docs/images/avoid_ways.png")
    options = parser.parse_args()
    command = "python benchmarks/avoid_ways.py --runs FOLDER"
    panels, rows = [], []
    for name in options.tasks:
        shown, lines = measure(options.runs, name, options.episodes, command)
        panels.append(shown)
        rows += lines
        for row in lines:
            print(" | ".join(list(row.values())[:7]), flush=True)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    plot_trajectories(options.figure, panels, most=40, dpi=100, width=2.0)
    # Few colors make a small file.
    Image.open(options.figure).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        options.figure, optimize=True
    )
    print(f"wrote {options.out} and {options.figure}", file=sys.stderr)


if __name__ == "__main__":
    main()
