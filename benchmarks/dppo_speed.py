"""Speed of DPPO beside the reference implementation: ``python benchmarks/dppo_speed.py [--reference FOLDER]``.

The sizes are those of hopper in arXiv:2409.00588: observation 11, action 3, 40 environments, chunks of 4 actions,
K = 20 denoising steps of which F = 10 are fine-tuned, 500 decisions an environment, 5 passes by 50 000 rows. FOLDER is
a checkout of the reference; without it only our side is measured. What of it is called as it is, and what had to be
restated, is said in ``dppo_reference.py``.

Both sides are timed in turn, round by round. CPU time is that of the process with its threads and workers, wall time
that of the clock; a ratio is the median over rounds of reference over ours. An iteration runs in a process of its own;
its memory is the peak above what the process held before. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ding.utils import deep_merge_dicts  # noqa: E402
from dppo_reference import (  # noqa: E402
    ACTION,
    CHUNK,
    ENVS,
    OBS,
    PARTS,
    POLICY,
    PREPARING,
    STEPPING,
    TASK,
    Clock,
    F,
    Reference,
    ReferenceCloning,
    alone,
    endless,
    make_workers,
    memory,
)
from easydict import EasyDict  # noqa: E402
from env_speed import SCALE, cpu_seconds  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ding_ebm.data.chunks import ChunkDataset  # noqa: E402
from ding_ebm.data.formats import Transitions  # noqa: E402
from ding_ebm.host.collector import ChunkCollector  # noqa: E402
from ding_ebm.host.env import ChunkTaskEnv  # noqa: E402
from ding_ebm.host.vector_env import VectorEnvManager  # noqa: E402
from ding_ebm.policy.base import PRECISIONS  # noqa: E402
from ding_ebm.policy.diffusion_bc import DiffusionBCPolicy  # noqa: E402
from ding_ebm.policy.dppo import DPPOPolicy  # noqa: E402

DECISIONS, BATCH, PASSES = 500, 50_000, 5
MODEL = dict(task=TASK, obs_dim=OBS, action_dim=ACTION)
Function = Callable[[], Any]
Times = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Work:
    """One line of the table.

    Attributes:
        name: What is done.
        sides: The call that does it, by ``reference``, if that is at hand, and ``ours``.
        repeat: Calls a round.
        cpu: CPU seconds until now.
    """

    name: str
    sides: dict[str, Function]
    repeat: int = 1
    cpu: Callable[[], float] = time.process_time


def make_manager() -> VectorEnvManager:
    """Ours."""
    config = EasyDict(env_id=TASK, act_steps=CHUNK, cond_steps=1)
    manager = VectorEnvManager([partial(ChunkTaskEnv, cfg=config)] * ENVS, EasyDict())
    manager.seed(0)
    return manager


class Ours:
    """Our policy and collector."""

    def __init__(self, decisions: int, batch: int, passes: int, precision: str = "float32") -> None:
        override = dict(
            model=MODEL,
            learn=dict(batch_size=batch, epoch_per_collect=passes, precision=precision),
            collect=dict(n_sample=ENVS * decisions),
        )
        cfg = deep_merge_dicts(DPPOPolicy.default_config(), EasyDict(override))
        self.policy = DPPOPolicy(cfg, enable_field=["learn", "collect"])
        self.policy._model.action_normalizer.scale.fill_(SCALE)  # small actions, so that hoppers stand for some time

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Chunks for all environments, (E, Ta, Da)."""
        return self.policy.collect_chunks(obs)["action"].cpu().numpy()

    def collector(self, clock: Clock) -> ChunkCollector:
        """The collector that DI-engine's pipeline calls, with its environments; parts of it are timed."""
        policy, manager = self.policy, make_manager()
        manager.batch_step = clock.wrapped(STEPPING, manager.batch_step)  # type: ignore[method-assign]
        policy._prepared = clock.wrapped(PREPARING, policy._prepared)  # type: ignore[method-assign]
        mode = SimpleNamespace(
            forward=clock.wrapped(POLICY, policy._forward_collect), get_attribute=lambda name: policy._cfg
        )
        return ChunkCollector(ChunkCollector.default_config(), manager, mode)

    def iterate(self, clock: Clock, collector: ChunkCollector) -> None:
        """Collect and learn."""
        with clock.part("all"):
            data = collector.collect()
            with clock.part("update"):
                self.policy._forward_learn(data)

    def collection(self, decisions: int) -> dict[str, torch.Tensor]:
        """What the collector would hand over, of environments that give noise."""
        obs = np.random.default_rng(0).standard_normal((decisions + 1, ENVS, 1, OBS)).astype(np.float32)
        outputs = [self.policy.collect_chunks(row) for row in obs[:-1]]
        return dict(
            obs=torch.from_numpy(obs[:-1]),
            next_obs=torch.from_numpy(obs[1:]),
            reward=torch.randn(decisions, ENVS),
            terminated=torch.zeros(decisions, ENVS, dtype=torch.bool),
            boundary=torch.zeros(decisions, ENVS, dtype=torch.bool),
            **{key: torch.stack([output[key] for output in outputs]) for key in ("chain", "log_prob")},
        )


def update_works(reference: bool, precision: str) -> list[Work]:
    """A collection of 5000 decisions and one pass over it, which is one minibatch."""
    decisions = BATCH // F // ENVS
    ours = Ours(decisions, BATCH, 1, precision)
    data = ours.collection(decisions)
    sides = dict(ours=lambda: ours.policy._forward_learn(data))
    if reference:
        theirs = Reference(decisions, BATCH, 1)
        collected = theirs.collection()
        sides = dict(reference=lambda: theirs.update(*theirs.prepare(*collected)), **sides)
    return [Work(f"update, {BATCH} rows once ({precision})", sides)]


def policy_works(reference: bool) -> list[Work]:
    """Chunks for all environments."""
    obs = np.random.default_rng(0).standard_normal((ENVS, 1, OBS)).astype(np.float32)
    sides: dict[str, Function] = dict(ours=partial(Ours(1, 1, 1).act, obs))
    if reference:
        sides = dict(reference=partial(Reference(1, 1, 1).act, obs), **sides)
    return [Work(f"policy call, {ENVS} environments", sides, repeat=20)]


def stepping_works(reference: bool) -> list[Work]:
    """Chunks of small random actions."""
    actions = SCALE * np.random.default_rng(0).uniform(-1, 1, (100, ENVS, CHUNK, ACTION)).astype(np.float32)
    manager, cpu = make_manager(), time.process_time
    sides: dict[str, Function] = dict(ours=lambda: [manager.batch_step(chunk) for chunk in actions])
    if reference:
        workers = make_workers()  # first: it forks, which is not for a process with threads
        workers.reset(seed=0)
        cpu = partial(cpu_seconds, workers.processes)
        sides = dict(reference=lambda: [workers.step(chunk / SCALE) for chunk in actions], **sides)
    manager.launch()
    return [Work(f"100 chunks in {ENVS} environments", sides, cpu=cpu)]


def cloning_works(reference: bool, precision: str, rows: int, folder: Path) -> list[Work]:
    """Updates of pre-training with their batches, beside the reference's and beside our network alone."""
    rng = np.random.default_rng(0)
    obs, action = (rng.uniform(-1, 1, (rows, size)).astype(np.float32) for size in (OBS, ACTION))
    ends = np.zeros(rows, dtype=np.bool_)
    ends[999::1000] = True
    transitions = Transitions(obs, action, np.zeros(rows, np.float32), obs, np.zeros_like(ends), ends, "random")
    dataset = ChunkDataset(transitions, horizon_steps=CHUNK)
    if reference:
        np.savez(folder / "train.npz", states=obs, actions=action, traj_lengths=np.full(rows // 1000, 1000))
    works: list[Work] = []
    for batch, repeat in ((128, 50), (4096, 5)):
        learn = dict(batch_size=batch, ema_start_iter=0, precision=precision)
        cfg = deep_merge_dicts(DiffusionBCPolicy.default_config(), EasyDict(model=MODEL, learn=learn))
        policy = DiffusionBCPolicy(cfg, enable_field=["learn"])
        batches = endless(partial(DataLoader, dataset, batch, shuffle=True, collate_fn=lambda x: x))
        ours = lambda policy=policy, batches=batches: policy._forward_learn(next(batches))  # noqa: E731
        name, sides = f"pre-training update, batch {batch} ({precision})", dict(ours=ours)
        if reference:
            sides = dict(reference=ReferenceCloning(folder / "train.npz", batch).step, **sides)
        works.append(Work(name, sides, repeat))
        works.append(
            Work(f"{name}; for the reference: our network alone", dict(reference=alone(batch), ours=ours), repeat)
        )
    return works


def measure(work: Work, rounds: int) -> Times:
    """Milliseconds of CPU and wall of the sides in turn."""
    times: Times = {who: [] for who in work.sides}
    for round_number in range(rounds + 1):  # the first warms up
        for who, function in work.sides.items():
            cpu, wall = work.cpu(), time.perf_counter()
            for _ in range(work.repeat):
                function()
            spent = (work.cpu() - cpu) / work.repeat * 1e3, (time.perf_counter() - wall) / work.repeat * 1e3
            if round_number:
                times[who].append(spent)
    return times


def row_of(name: str, times: Times) -> dict[str, Any]:
    """Medians, and ratios where both sides were measured."""
    row: dict[str, Any] = {"work": name}
    for who in ("reference", "ours"):
        for unit, index in (("cpu", 0), ("wall", 1)):
            values = [spent[index] for spent in times.get(who, [])]
            row[f"{who}_{unit}_ms"] = round(statistics.median(values), 2) if values else "-"
    for unit, index in (("cpu", 0), ("wall", 1)):
        ratios = sorted(a[index] / max(b[index], 1e-6) for a, b in zip(times.get("reference", []), times["ours"]))
        row[f"{unit}_ratio"] = round(statistics.median(ratios), 2) if ratios else "-"
        row[f"{unit}_ratio_range"] = f"{ratios[0]:.2f}-{ratios[-1]:.2f}" if ratios else "-"
    return row


def one_iteration(side: str, decisions: int, batch: int, precision: str) -> None:
    """One iteration of one side in this process; prints its times and its memory as JSON."""
    clock = Clock(time.process_time)
    if side == "reference":
        workers = make_workers()
        clock = Clock(partial(cpu_seconds, workers.processes))
        reference = Reference(decisions, batch, PASSES)
        iterate, act = partial(reference.iterate, clock, workers), reference.act
    else:
        ours = Ours(decisions, batch, PASSES, precision)
        iterate, act = partial(ours.iterate, clock, ours.collector(clock)), ours.act
    for _ in range(3):
        act(np.zeros((ENVS, 1, OBS), dtype=np.float32))
    before = memory("VmRSS")
    iterate()
    print(json.dumps(dict(spent=clock.spent, megabytes=memory("VmHWM") - before)))


def iteration_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole iterations, each in a process of its own, and their parts."""
    decisions = max(1, round(DECISIONS * args.scale))
    batch = min(BATCH, ENVS * decisions * F // 4)
    sides = ["reference", "ours"] if args.reference else ["ours"]
    spent: dict[str, Times] = {part: {who: [] for who in sides} for part in PARTS}
    megabytes: dict[str, list[float]] = {who: [] for who in sides}
    for _ in range(args.iterations):
        for side in sides:
            command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--threads", str(args.threads)]
            command += ["--decisions", str(decisions), "--batch", str(batch), "--precision", args.precision]
            command += ["--reference", str(args.reference.resolve())] if args.reference else []
            with tempfile.TemporaryDirectory() as folder:  # the collector logs into it
                done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            megabytes[side].append(result["megabytes"])
            for part in PARTS:
                cpu, wall = result["spent"][part]
                spent[part][side].append((cpu * 1e3, wall * 1e3))
    name = f"iteration, {ENVS} x {decisions} decisions, {PASSES} passes by {batch} rows ({args.precision})"
    rows = [row_of(name if part == "all" else f"{name}: {part}", times) for part, times in spent.items()]
    for who, values in megabytes.items():
        rows[0][f"{who}_mb"] = round(statistics.median(values))
    return rows


def line_of(row: dict[str, Any]) -> str:
    """A row for people."""
    memories = "".join(f"   {who} {row[f'{who}_mb']} MB" for who in ("reference", "ours") if f"{who}_mb" in row)
    return (
        f"{row['work']:<70} reference {row['reference_cpu_ms']:>10} ms CPU {row['reference_wall_ms']:>10}"
        f"   ours {row['ours_cpu_ms']:>9} / {row['ours_wall_ms']:>9}"
        f"   ratio {row['cpu_ratio']:>5} ({row['cpu_ratio_range']}) / {row['wall_ratio']}{memories}"
    )


def all_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every line that is asked for, as it is measured."""
    reference = args.reference is not None
    with tempfile.TemporaryDirectory() as folder:
        makers = [
            partial(stepping_works, reference),
            partial(policy_works, reference),
            partial(update_works, reference, args.precision),
            partial(cloning_works, reference, args.precision, args.rows, Path(folder)),
        ]
        for work in (work for maker in makers for work in maker() if args.only in work.name):
            yield row_of(work.name, measure(work, args.rounds)) | dict(rounds=args.rounds)
    if args.iterations and args.only in "iteration":
        for row in iteration_rows(args):
            yield row | dict(rounds=args.iterations)


def main() -> None:
    """Measure everything, print it and write it to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="checkout of the reference")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each line")
    parser.add_argument("--iterations", type=int, default=2, help="whole iterations of each side; 0 for none")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the decisions of an iteration")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the data set")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of our updates")
    parser.add_argument("--only", default="", help="measure the lines that contain this")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    for name, kind in (("--side", str), ("--decisions", int), ("--batch", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.reference:
        sys.path.insert(0, str(args.reference))
    if args.side:
        one_iteration(args.side, args.decisions, args.batch, args.precision)
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows = []
    for row in all_rows(args):
        rows.append(row | dict(device="cpu", threads=args.threads, commit=commit.stdout.strip()))
        print(line_of(row), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
