"""Speed of DPPO beside the reference implementation: ``python benchmarks/dppo_speed.py [--reference FOLDER]``.

The sizes are those of hopper in arXiv:2409.00588: observation 11, action 3, 40 environments, chunks of 4 actions,
K = 20 denoising steps of which F = 10 are fine-tuned, 500 decisions an environment, 5 passes by 50 000 rows. FOLDER is
a checkout of the reference; without it only our side is measured. What of it is called as it is, and what had to be
restated, is said in ``dppo_reference.py``.

Each side runs in a process of its own, and both are timed in turn, round by round. CPU time is that of the process with
its threads and workers, wall time that of the clock; a ratio is the median over rounds of reference over ours. The
memory of an iteration is the peak above what the process held before. Linux only.
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
from itertools import product
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
SIDES = ("reference", "ours")


@dataclass
class Unit:
    """What one side does in a round.

    Attributes:
        run: The call.
        repeat: Calls a round.
        cpu: CPU seconds until now.
        clock: Where the parts of the call are counted, if they are.
    """

    run: Callable[[], Any]
    repeat: int = 1
    cpu: Callable[[], float] = time.process_time
    clock: Clock | None = None


def make_manager() -> VectorEnvManager:
    """Ours."""
    config = EasyDict(env_id=TASK, act_steps=CHUNK, cond_steps=1)
    manager = VectorEnvManager([partial(ChunkTaskEnv, cfg=config)] * ENVS, EasyDict())
    manager.seed(0)
    return manager


class Ours:
    """Our policy and collector."""

    kind: type[DPPOPolicy] = DPPOPolicy

    def __init__(
        self, decisions: int, batch: int, passes: int, precision: str = "float32", extra: dict[str, Any] | None = None
    ) -> None:
        override = dict(
            extra or {},
            model=MODEL,
            learn=dict(batch_size=batch, epoch_per_collect=passes, precision=precision),
            collect=dict(n_sample=ENVS * decisions),
        )
        cfg = deep_merge_dicts(self.kind.default_config(), EasyDict(override))
        self.policy = self.kind(cfg, enable_field=["learn", "collect"])
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


def stepping(side: str, args: argparse.Namespace) -> Unit:
    """100 chunks of small random actions."""
    actions = np.random.default_rng(0).uniform(-1, 1, (100, ENVS, CHUNK, ACTION)).astype(np.float32)
    if side == "reference":
        workers = make_workers()
        workers.reset(seed=0)
        return Unit(lambda: [workers.step(chunk) for chunk in actions], cpu=partial(cpu_seconds, workers.processes))
    manager = make_manager()
    manager.launch()
    return Unit(lambda: [manager.batch_step(SCALE * chunk) for chunk in actions])


def policy_call(side: str, args: argparse.Namespace) -> Unit:
    """Chunks for all environments."""
    obs = np.random.default_rng(0).standard_normal((ENVS, 1, OBS)).astype(np.float32)
    return Unit(partial((Reference if side == "reference" else Ours)(1, 1, 1).act, obs), repeat=20)


def update(side: str, args: argparse.Namespace) -> Unit:
    """A collection of 5000 decisions and one pass over it, which is one minibatch."""
    decisions = BATCH // F // ENVS
    if side == "reference":
        theirs = Reference(decisions, BATCH, 1)
        collected = theirs.collection()
        return Unit(lambda: theirs.update(*theirs.prepare(*collected)))
    ours = Ours(decisions, BATCH, 1, args.precision)
    data = ours.collection(decisions)
    return Unit(lambda: ours.policy._forward_learn(data))


def cloning(side: str, args: argparse.Namespace, batch: int, beside_network: bool = False) -> Unit:
    """Updates of pre-training with their batches; or, as the reference, of our network alone."""
    repeat = 100 if batch < 1000 else 5
    if side == "reference" and beside_network:
        return Unit(alone(batch), repeat)
    rng, rows = np.random.default_rng(0), args.rows
    obs, action = (rng.uniform(-1, 1, (rows, size)).astype(np.float32) for size in (OBS, ACTION))
    if side == "reference":
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, states=obs, actions=action, traj_lengths=np.full(rows // 1000, 1000))
            file.flush()
            return Unit(ReferenceCloning(Path(file.name), batch).step, repeat)
    ends = np.zeros(rows, dtype=np.bool_)
    ends[999::1000] = True
    transitions = Transitions(obs, action, np.zeros(rows, np.float32), obs, np.zeros_like(ends), ends, "random")
    dataset = ChunkDataset(transitions, horizon_steps=CHUNK)
    batches = endless(partial(DataLoader, dataset, batch, shuffle=True, collate_fn=lambda x: x))
    learn = dict(batch_size=batch, ema_start_iter=0, precision=args.precision)
    cfg = deep_merge_dicts(DiffusionBCPolicy.default_config(), EasyDict(model=MODEL, learn=learn))
    policy = DiffusionBCPolicy(cfg, enable_field=["learn"])
    return Unit(lambda: policy._forward_learn(next(batches)), repeat)


def sizes(args: argparse.Namespace) -> tuple[int, int]:
    """Decisions an environment, and rows of a minibatch: fewer decisions are as many minibatches."""
    decisions = max(1, round(DECISIONS * args.scale))
    return decisions, min(BATCH, ENVS * decisions * F // 4)


def iteration(side: str, args: argparse.Namespace) -> Unit:
    """Collecting and learning."""
    decisions, batch = sizes(args)
    if side == "reference":
        workers = make_workers()
        clock = Clock(partial(cpu_seconds, workers.processes))
        reference = Reference(decisions, batch, PASSES)
        run, act = partial(reference.iterate, clock, workers), reference.act
    else:
        clock = Clock(time.process_time)
        ours = Ours(decisions, batch, PASSES, args.precision)
        run, act = partial(ours.iterate, clock, ours.collector(clock)), ours.act
    for _ in range(3):
        act(np.zeros((ENVS, 1, OBS), dtype=np.float32))
    return Unit(run, cpu=clock.cpu, clock=clock)


def works(args: argparse.Namespace) -> dict[str, Callable[..., Unit]]:
    """Everything that is measured, by its name in the table."""
    kind, (decisions, batch) = args.precision, sizes(args)
    small, large = (f"pre-training update, batch {rows} ({kind})" for rows in (128, 4096))
    return {
        f"100 chunks in {ENVS} environments": stepping,
        f"policy call, {ENVS} environments": policy_call,
        f"update, {BATCH} rows once ({kind})": update,
        small: partial(cloning, batch=128),
        large: partial(cloning, batch=4096),
        f"{small}, beside our network alone": partial(cloning, batch=128, beside_network=True),
        f"{large}, beside our network alone": partial(cloning, batch=4096, beside_network=True),
        f"iteration, {ENVS} x {decisions} decisions, {PASSES} passes by {batch} rows ({kind})": iteration,
    }


def serve(unit: Unit) -> None:
    """Run a round for each line of the input and print what it took."""
    before = memory("VmRSS")
    for _ in sys.stdin:
        cpu, wall = unit.cpu(), time.perf_counter()
        for _ in range(unit.repeat):
            unit.run()
        spent = (unit.cpu() - cpu) / unit.repeat, (time.perf_counter() - wall) / unit.repeat
        parts = {} if unit.clock is None else dict(unit.clock.spent)
        print(json.dumps(dict(parts, all=spent, megabytes=memory("VmHWM") - before)), flush=True)
        if unit.clock is not None:
            unit.clock.spent.clear()


def measure(name: str, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What rounds took on each side, in turn."""
    here = SIDES if args.reference or "beside" in name else SIDES[1:]
    long = name.startswith("iteration")
    replies: dict[str, list[dict[str, Any]]] = {side: [] for side in here}
    with tempfile.TemporaryDirectory() as folder:  # the collector logs into it
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--work", name]
        command += ["--reference", str(args.reference)] if args.reference else []
        processes = {
            side: subprocess.Popen(
                [*command, "--side", side], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for side in here
        }
        for number in range(args.iterations if long else args.rounds + 1):
            for side, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                reply = next((line for line in process.stdout if line.startswith("{")), None)
                if reply is None:
                    raise RuntimeError(f"{side} ended in {name!r}")
                if long or number:  # the first round warms up
                    replies[side].append(json.loads(reply))
        for process in processes.values():
            process.communicate()
    return replies


def rows_of(name: str, replies: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Medians in milliseconds, and ratios where both sides were measured; of the whole and of its parts."""
    for part in (part for part in PARTS if part in replies["ours"][0]):
        row: dict[str, Any] = {"work": name if part == "all" else f"{name}: {part}"}
        for side, (index, unit) in product(SIDES, enumerate(("cpu", "wall"))):
            values = [1e3 * reply[part][index] for reply in replies.get(side, [])]
            row[f"{side}_{unit}_ms"] = round(statistics.median(values), 2) if values else "-"
        for index, unit in enumerate(("cpu", "wall")):
            pairs = zip(replies.get("reference", []), replies["ours"])
            ratios = sorted(a[part][index] / max(b[part][index], 1e-9) for a, b in pairs)
            row[f"{unit}_ratio"] = round(statistics.median(ratios), 2) if ratios else "-"
            row[f"{unit}_ratio_range"] = f"{ratios[0]:.2f}-{ratios[-1]:.2f}" if ratios else "-"
        if name.startswith("iteration") and part == "all":
            for side, given in replies.items():
                row[f"{side}_mb"] = round(max(reply["megabytes"] for reply in given))
        yield row | dict(rounds=len(replies["ours"]))


def line_of(row: dict[str, Any]) -> str:
    """A row for people."""
    memories = "".join(f"   {side} {row[f'{side}_mb']} MB" for side in SIDES if f"{side}_mb" in row)
    return (
        f"{row['work']:<90} reference {row['reference_cpu_ms']:>10} ms CPU {row['reference_wall_ms']:>10}"
        f"   ours {row['ours_cpu_ms']:>9} / {row['ours_wall_ms']:>9}"
        f"   ratio {row['cpu_ratio']:>5} ({row['cpu_ratio_range']}) / {row['wall_ratio']}{memories}"
    )


def main() -> None:
    """Measure everything, print it and write it to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=lambda path: Path(path).resolve(), help="checkout of the reference")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each line")
    parser.add_argument("--iterations", type=int, default=2, help="whole iterations of each side; 0 for none")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the decisions of an iteration")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the data set")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of our updates")
    parser.add_argument("--only", default="", help="measure the lines that contain this")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        sys.path.insert(0, str(args.reference))
        serve(works(args)[args.work](args.side, args))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows = []
    for name in works(args):
        if args.only not in name or (name.startswith("iteration") and not args.iterations):
            continue
        for row in rows_of(name, measure(name, args)):
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
