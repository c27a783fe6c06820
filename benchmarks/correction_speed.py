"""What better actions by an energy cost beside the policy: ``python benchmarks/correction_speed.py [--out FILE.csv]``.

DPPO's MLP policy at hopper's sizes (observation 11, action 3, chunks of 4, 20 steps of DDPM, hidden widths of 512) acts
in 40 environments, with an energy MLP of three layers of 256: T steps of descent, the best of N samples, and both.
In each round the policy without an energy is called ten times before each setting is; what is added is the ratio of the
medians of these whole calls, and the table has medians over rounds.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ding.utils import deep_merge_dicts  # noqa: E402
from easydict import EasyDict  # noqa: E402

from ding_ebm.data.normalizer import Normalizer  # noqa: E402
from ding_ebm.model.energy_model import EnergyMLP  # noqa: E402
from ding_ebm.policy import energy_correction  # noqa: E402
from ding_ebm.policy.dppo import DPPOPolicy  # noqa: E402
from ding_ebm.policy.trained_energy import TrainedEnergy  # noqa: E402

ENVS, OBS, ACTION, CHUNK = 40, 11, 3, 4
SETTINGS = [(1, steps) for steps in (1, 3, 5, 10)] + [(count, steps) for count in (4, 16) for steps in (0, 3)]


def make_energy() -> TrainedEnergy:
    """An energy that has learned nothing."""
    network = EnergyMLP(OBS, ACTION, 1, CHUNK)
    torch.nn.init.normal_(network.last.weight)
    return TrainedEnergy(network, Normalizer(OBS), Normalizer(ACTION), "hopper", cond_steps=1, horizon_steps=CHUNK)


def make_policy(candidates: int, steps: int) -> DPPOPolicy:
    """A policy that has learned nothing, corrected as asked for."""
    settings = dict(energy_checkpoint="made here", energy_candidates=candidates, energy_correction_steps=steps)
    model = dict(task="hopper", obs_dim=OBS, action_dim=ACTION)
    return DPPOPolicy(
        deep_merge_dicts(DPPOPolicy.default_config(), EasyDict(model=model, eval=settings)), enable_field=["eval"]
    )


def calls_of(policy: DPPOPolicy, obs: np.ndarray) -> list[dict[str, float]]:
    """Milliseconds of ten calls, after two that are not counted, and of the energy in each."""
    found = []
    for number in range(-2, 10):
        policy.eval_mode.reset()
        start = time.perf_counter()
        policy.act(obs)
        call = 1e3 * (time.perf_counter() - start)
        correction = policy.eval_mode.get_attribute("energy_correction")
        if number >= 0:
            found.append(dict(call=call, energy=correction.averages()["energy_ms"] if correction else 0.0))
    return found


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row a setting."""
    energy = make_energy()
    energy_correction.load_energy = lambda path, device: energy
    policies = {setting: make_policy(*setting) for setting in SETTINGS}
    plain = make_policy(1, 0)
    obs = np.random.default_rng(0).standard_normal((ENVS, 1, OBS)).astype(np.float32)
    found: dict[tuple[int, int], list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
    for _ in range(rounds):
        for setting, policy in policies.items():
            without, calls = (calls_of(one, obs) for one in (plain, policy))
            once, call = (median(c["call"] for c in part) for part in (without, calls))
            row = dict(plain_call_ms=once, call_ms=call, energy_ms=median(c["energy"] for c in calls))
            found[setting].append(row | dict(added_percent=100.0 * (call / once - 1.0)))
    return [row_of(setting, found[setting]) for setting in SETTINGS]


def row_of(setting: tuple[int, int], rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over rounds, and the middle half of what is added in a round."""
    row: dict[str, Any] = dict(candidates=setting[0], steps=setting[1])
    for key, digits in (("plain_call_ms", 2), ("call_ms", 2), ("energy_ms", 3), ("added_percent", 1)):
        row[key] = round(median(one[key] for one in rounds), digits)
    low, high = np.quantile([one["added_percent"] for one in rounds], [0.25, 0.75])
    return row | dict(added_percent_middle_half=f"{low:.1f} to {high:.1f}")


def main() -> None:
    """Measure, print, and write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="ten calls of each setting in each")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = dict(rounds=args.rounds, device="cpu", threads=args.threads, commit=commit.stdout.strip())
    rows = [row | facts for row in measure(args.rounds)]
    for row in rows:
        print("   ".join(f"{key} {value}" for key, value in row.items()))
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
