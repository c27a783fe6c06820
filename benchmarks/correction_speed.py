"""What better actions by an energy cost beside the policy: ``python benchmarks/correction_speed.py [--out FILE.csv]``.

DPPO's MLP policy at hopper's sizes (observation 11, action 3, chunks of 4, 20 steps of DDPM, hidden widths of 512) acts
in 40 environments, with an energy MLP of three layers of 256: T steps of descent, the best of N samples, and both.
Each setting is called ten times in turn, and so is the policy without an energy; times are medians over all calls, and
the 10 % quantile is what they are on a machine that does little else. What is added is the whole call's.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import time
import warnings
from pathlib import Path
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
PLAIN = (1, 0)
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


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row a setting."""
    energy = make_energy()
    energy_correction.load_energy = lambda path, device: energy
    policies = {setting: make_policy(*setting) for setting in [PLAIN, *SETTINGS]}
    obs = np.random.default_rng(0).standard_normal((ENVS, 1, OBS)).astype(np.float32)
    found: dict[tuple[int, int], list[dict[str, float]]] = {setting: [] for setting in policies}
    for _ in range(rounds):
        for setting, policy in policies.items():
            for number in range(-2, 10):
                policy.eval_mode.reset()
                start = time.perf_counter()
                policy.act(obs)
                call = 1e3 * (time.perf_counter() - start)
                correction = policy.eval_mode.get_attribute("energy_correction")
                if number >= 0:
                    found[setting].append(dict(call_ms=call, **(correction.averages() if correction else {})))
    plain = found.pop(PLAIN)
    return [row_of(setting, calls, plain) for setting, calls in found.items()]


def row_of(setting: tuple[int, int], calls: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    """Times of a setting's calls and of its energies in them, and what it adds to a plain call, in percent."""
    row: dict[str, Any] = dict(candidates=setting[0], steps=setting[1])
    for name, share in (("median", 0.5), ("quantile_10", 0.1)):
        call, energy = (float(np.quantile([c[key] for c in calls], share)) for key in ("call_ms", "energy_ms"))
        once = float(np.quantile([c["call_ms"] for c in plain], share))
        row[f"plain_call_ms_{name}"], row[f"call_ms_{name}"] = round(once, 2), round(call, 2)
        row[f"energy_ms_{name}"], row[f"added_percent_{name}"] = round(energy, 3), round(100.0 * (call / once - 1.0), 1)
    return row


def main() -> None:
    """Measure, print, and write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="tens of calls of each setting")
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
