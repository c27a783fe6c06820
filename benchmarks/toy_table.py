"""Guided sampling on six toy sets as numbers: ``python benchmarks/toy_table.py [--quick]``.

For every set one behavior model is trained, and three guidance networks, conditioned on the inverse temperature, on the
same batches: contrastive energy prediction with softmax and with unnormalized labels over M = 16 points, and regression
on the energy (mse), which learns another thing. The fourth guidance, the oracle, is the exact one of a finite data set.
All four guide the same behavior model by the same solver from the same noise, so that rows of a set differ in the
guidance alone; ``none`` is the behavior model unguided, at beta 0 against its own data.

Each row is the mean over repeated draws of model and truth of the sliced Wasserstein distance and of the unbiased
squared MMD, with a 95 % bootstrap interval over those draws. The floor is what two draws of the truth have. An interval
says nothing of another training run, which ``--seed`` makes. One thread; about 25 CPU minutes.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from ding_ebm.data.toys import TOYS, sample_tilted_toy, sample_toy
from ding_ebm.diffusion.guidance import Guidance
from ding_ebm.diffusion.oracles import EmpiricalGuidance
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan
from ding_ebm.evaluation.distances import sliced_wasserstein, squared_mmd
from ding_ebm.evaluation.statistics import episode_interval
from ding_ebm.model.diffusion import denoising_loss, random_times, sample_actions
from ding_ebm.model.energy import GuidanceNet, cep_labels, cep_loss, log_mean_exp, mse_guidance_loss
from ding_ebm.model.networks import FourierTimeEmbedding, NoiseNet

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = VPLinearSchedule()
PLAN = make_plan(SCHEDULE, 20)
BETAS = (3.0, 10.0, 20.0)
TRAIN_BETAS = torch.linspace(0.5, 20.0, 40)
M = 16
METHODS = ("cep_softmax", "cep_unnormalized", "mse", "oracle")
LINE = (
    "   beta {beta:>2} {method:16} swd {swd:.3f} [{swd_low:.3f}, {swd_high:.3f}] floor {floor_swd:.3f}   "
    "mmd2 {mmd2:.5f} floor {floor_mmd2:.5f}"
)
Row = dict[str, Any]
COLUMNS = "set beta method swd swd_low swd_high mmd2 mmd2_low mmd2_high floor_swd floor_mmd2 seed train_steps commit"


@dataclass(frozen=True)
class Budget:
    """What a run spends.

    Attributes:
        behavior_steps: Updates of the behavior model.
        guidance_steps: Updates of each guidance network.
        batch: Points of one update; a multiple of M.
        oracle_points: Size of the oracle's data set.
        samples: Points of one draw.
        repeats: Draws a row.
    """

    behavior_steps: int = 4000
    guidance_steps: int = 8000
    batch: int = 1024
    oracle_points: int = 8192
    samples: int = 2000
    repeats: int = 6


QUICK = Budget(behavior_steps=100, guidance_steps=100, batch=256, oracle_points=500, samples=300, repeats=2)


def progress(label: str, total: int) -> Iterator[int]:
    """Count to ``total`` and say every ten seconds how fast it goes and how long it will take."""
    start = last = time.monotonic()
    for done in range(total):
        yield done
        now = time.monotonic()
        if now - last > 10.0 or done + 1 == total:
            rate = (done + 1) / (now - start)
            print(f"  {label}: {done + 1}/{total}, {rate:.1f}/s, {(total - done - 1) / rate:.0f} s left", flush=True)
            last = now


def optimize(networks: list[nn.Module], loss: Callable[[], Tensor], steps: int, label: str) -> None:
    """Adam from 1e-3 down to zero along a cosine."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in progress(label, steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        scheduler.step()


def train_behavior(name: str, budget: Budget, generator: torch.Generator) -> NoiseNet:
    """The diffusion model of a toy set, trained on fresh points."""
    network = NoiseNet(1, 2, widths=(128, 64))

    def loss() -> Tensor:
        x_0 = sample_toy(name, budget.batch, generator)[0].float()
        t = random_times((budget.batch,), SCHEDULE, generator)
        noise = torch.randn(budget.batch, 2, generator=generator)
        return denoising_loss(network, SCHEDULE.diffuse(x_0, t, noise), t, nothing(x_0), noise)

    optimize([network], loss, budget.behavior_steps, f"{name}: behavior")
    return network


def train_guidance(name: str, budget: Budget, generator: torch.Generator) -> dict[str, Guidance]:
    """The three learned guidances, on the same batches; M points share a time and an inverse temperature."""
    networks = {kind: GuidanceNet(1, 2, (128,) * 4, condition_on_temperature=True) for kind in METHODS[:3]}
    for network in networks.values():
        # Some thousand updates do not learn how f changes with time from frequencies of 30 periods, the default.
        network.time = FourierTimeEmbedding(scale=1.0)
    groups = budget.batch // M
    reward = -sample_toy(name, 1 << 20, generator)[1]
    log_partitions = torch.stack([log_mean_exp(beta * reward) for beta in TRAIN_BETAS]).float()

    def loss() -> Tensor:
        x_0, energy = (values.float() for values in sample_toy(name, groups * M, generator))
        t = random_times((groups,), SCHEDULE, generator)
        noise = torch.randn(groups, M, 2, generator=generator)
        x_t = SCHEDULE.diffuse(x_0.view(groups, M, 2), t.unsqueeze(1), noise)
        q, chosen = -energy.view(groups, M), torch.randint(len(TRAIN_BETAS), (groups,), generator=generator)
        beta = TRAIN_BETAS[chosen]
        f = {kind: network(x_t, t, nothing(x_t[:, 0]), beta) for kind, network in networks.items()}
        unnormalized = cep_labels(q, beta, "unnormalized", log_partitions[chosen])
        return (
            cep_loss(f["cep_softmax"], cep_labels(q, beta, "softmax"))
            + cep_loss(f["cep_unnormalized"], unnormalized)
            + mse_guidance_loss(f["mse"], q, beta)
        )

    optimize(list(networks.values()), loss, budget.guidance_steps, f"{name}: three guidances")
    return dict(networks)


def draw(behavior: NoiseNet, noise: Tensor, guidance: Guidance | None, beta: float) -> Tensor:
    """Samples from noise by the behavior model and one guidance."""
    obs = nothing(noise)
    return sample_actions(behavior, PLAN, obs, noise, guidance=guidance, inverse_temperature=beta, clip="none")


def nothing(points: Tensor) -> Tensor:
    """An observation that says nothing, (B, 1): the toy sets have none, the networks want one."""
    return torch.zeros(len(points), 1)


def measure(
    name: str,
    beta: float,
    behavior: NoiseNet,
    guidances: dict[str, Guidance | None],
    budget: Budget,
    generator: torch.Generator,
) -> tuple[list[Row], dict[str, Tensor]]:
    """One row a guidance, and the points of the first draw (and of the truth, under ``target``)."""
    distances: dict[str, list[tuple[float, float]]] = {key: [] for key in ("floor", *guidances)}
    first: dict[str, Tensor] = {}
    for _ in progress(f"{name}: draws at beta {beta:g}", budget.repeats):
        truth, again = (sample_tilted_toy(name, beta, budget.samples, generator) for _ in range(2))
        noise = torch.randn(budget.samples, 2, generator=generator)
        drawn = {"floor": again, **{key: draw(behavior, noise, guidances[key], beta) for key in guidances}}
        first = first or {**drawn, "target": truth}
        for key, points in drawn.items():
            distances[key].append((sliced_wasserstein(points, truth), squared_mmd(points, truth)))
    table = {key: torch.tensor(values, dtype=torch.float64).T for key, values in distances.items()}
    floors = dict(zip(("floor_swd", "floor_mmd2"), table["floor"].mean(1).tolist()))
    rows = []
    for key in guidances:
        row: Row = dict(set=name, beta=f"{beta:g}", method=key, **floors)
        for column, values in zip(("swd", "mmd2"), table[key]):
            found = episode_interval(values.numpy())
            row.update({column: found.estimate, f"{column}_low": found.low, f"{column}_high": found.high})
        learned = key in METHODS[:3]
        row["train_steps"] = budget.behavior_steps + (budget.guidance_steps if learned else 0)
        rows.append(row)
    return rows, first


def run_set(name: str, budget: Budget, seed: int, panel_beta: float) -> tuple[list[Row], dict[str, Tensor]]:
    """All rows of one toy set, and the points for its panels."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    behavior = train_behavior(name, budget, generator)
    oracle = EmpiricalGuidance(SCHEDULE, *sample_toy(name, budget.oracle_points, generator))
    guidances: dict[str, Guidance | None] = {**train_guidance(name, budget, generator), "oracle": oracle}
    rows, _ = measure(name, 0.0, behavior, {"none": None}, budget, generator)
    panels: dict[str, Tensor] = {}
    for beta in BETAS:
        more, points = measure(name, beta, behavior, {"none": None, **guidances}, budget, generator)
        rows += more
        if beta == panel_beta:
            panels = points
    return rows, panels


def draw_panels(panels: dict[str, dict[str, Tensor]], beta: float, path: Path) -> None:
    """One row a set: behavior, truth and the four guidances."""
    columns = dict(none="behavior model", target=f"truth, beta {beta:g}", cep_softmax="CEP, softmax labels")
    columns |= dict(cep_unnormalized="CEP, unnormalized labels", mse="MSE guidance", oracle="finite-data oracle")
    figure, axes = plt.subplots(len(panels), len(columns), figsize=(12, 2 * len(panels)), squeeze=False)
    for axis, title in zip(axes[0], columns.values()):
        axis.set_title(title, fontsize=9)
    for line, (name, points) in zip(axes, panels.items()):
        reach = 1.05 * max(points["none"].abs().max().item(), points["target"].abs().max().item())
        for axis, key in zip(line, columns):
            axis.scatter(*points[key][:1500].T, s=0.6, linewidths=0, color="#1f4e79" if key == "target" else "#b5532a")
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        line[0].set_ylabel(name, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def write_table(rows: list[Row], path: Path) -> None:
    """Write the CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS.split())
        writer.writeheader()
        writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke run of half a CPU minute, into runs/")
    parser.add_argument("--sets", nargs="+", choices=TOYS, default=list(TOYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--panel-beta", type=float, choices=BETAS, default=10.0, help="beta of the figure")
    parser.add_argument("--output", type=Path, help="CSV file; default docs/results/toy_table.csv")
    parser.add_argument("--figure", type=Path, help="PNG file; default docs/images/toy_panels.png")
    arguments = parser.parse_args()
    folders = ("runs", "runs") if arguments.quick else ("docs/results", "docs/images")
    arguments.output = arguments.output or ROOT / folders[0] / "toy_table.csv"
    arguments.figure = arguments.figure or ROOT / folders[1] / "toy_panels.png"
    return arguments


def main() -> None:
    """Measure the sets one by one; the table is written after each."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    plt.switch_backend("Agg")
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    rows: list[Row] = []
    panels: dict[str, dict[str, Tensor]] = {}
    start = time.monotonic()
    for done, name in enumerate(arguments.sets, 1):
        more, panels[name] = run_set(name, QUICK if arguments.quick else Budget(), arguments.seed, arguments.panel_beta)
        for row in more:
            row.update(seed=arguments.seed, commit=commit)
            print(LINE.format(**row))
        rows += more
        write_table(rows, arguments.output)
        spent = (time.monotonic() - start) / 60.0
        left = spent / done * (len(arguments.sets) - done)
        print(f"{name}: set {done} of {len(arguments.sets)}, {spent:.1f} min spent, {left:.1f} min left", flush=True)
    draw_panels(panels, arguments.panel_beta, arguments.figure)
    print(f"wrote {arguments.output} and {arguments.figure}")


if __name__ == "__main__":
    main()
