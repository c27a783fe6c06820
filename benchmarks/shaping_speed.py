"""What an energy costs DPPO: ``python benchmarks/shaping_speed.py [--scale 0.2] [--out FILE.csv]``.

Iterations of hopper as in ``dppo_speed.py``, of ``dppo`` and of ``dppo_ebm`` by each of its uses of an energy MLP of
three layers of 256, in turn in one process. A ratio is the median over rounds of a kind's time over ``dppo``'s. By
default a fifth of the decisions, by minibatches in proportion; every part of an iteration is linear in them.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from dppo_reference import ACTION, CHUNK, ENVS, OBS, TASK, Clock  # noqa: E402
from dppo_speed import PASSES, Ours, sizes  # noqa: E402

from ding_ebm.data.normalizer import Normalizer  # noqa: E402
from ding_ebm.model.energy_model import EnergyMLP  # noqa: E402
from ding_ebm.policy import dppo_ebm  # noqa: E402
from ding_ebm.policy.trained_energy import TrainedEnergy  # noqa: E402

SHAPING = dict(use_pbrs=True, use_energy_scaling=True, ebm_ckpt_path="made here")
KINDS: dict[str, dict[str, Any] | None] = {
    "dppo": None,
    "scaling alone": dict(use_energy_scaling=True, ebm_ckpt_path="made here"),
    "shaping, chains of means": SHAPING,
    "shaping, 4 random chains": dict(SHAPING, pbrs_use_mu_only=False, pbrs_M=4),
    "energy reward, 4 chains": dict(use_ebm_reward=True, ebm_ckpt_path="made here"),
}


class WithEnergy(Ours):
    """The same with an energy that has learned nothing."""

    kind = dppo_ebm.DPPOEBMPolicy


def make_energy() -> TrainedEnergy:
    """An energy of noised chunks too."""
    network = EnergyMLP(OBS, ACTION, 1, CHUNK, num_steps=20)
    sizes_of_chunk = dict(cond_steps=1, horizon_steps=CHUNK, num_steps=20)
    return TrainedEnergy(network, Normalizer(OBS), Normalizer(ACTION), TASK, **sizes_of_chunk)


def main() -> None:
    """Measure, print, and write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=0.2, help="share of the decisions of an iteration")
    parser.add_argument("--rounds", type=int, default=3, help="iterations of each kind")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    decisions, batch = sizes(args)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    out = args.out and args.out.resolve()
    with tempfile.TemporaryDirectory() as folder:  # the collector logs into it
        os.chdir(folder)
        energy = make_energy()
        dppo_ebm.load_energy = lambda path, device: energy
        clock = Clock(time.process_time)
        runs = {}
        for name, settings in KINDS.items():
            side = Ours(decisions, batch, PASSES) if settings is None else None
            side = side or WithEnergy(decisions, batch, PASSES, extra=dict(energy=settings))
            runs[name] = (side, side.collector(clock))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, (side, collector) in runs.items():
                cpu, wall = time.process_time(), time.perf_counter()
                side.iterate(clock, collector)
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        os.chdir("/")
    rows = []
    for name, found in times.items():
        row: dict[str, Any] = dict(kind=name, decisions=f"{ENVS} x {decisions}")
        for index, unit in enumerate(("cpu", "wall")):
            ratios = sorted(a[index] / b[index] for a, b in zip(found, times["dppo"]))
            row[f"{unit}_s"] = round(statistics.median(f[index] for f in found), 2)
            row[f"{unit}_ratio"] = round(statistics.median(ratios), 3)
            row[f"{unit}_ratio_range"] = f"{ratios[0]:.3f}-{ratios[-1]:.3f}"
        rows.append(row | dict(rounds=args.rounds, threads=args.threads, commit=commit.stdout.strip()))
        print("   ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if out:
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
