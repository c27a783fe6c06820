"""Steps a second of our batches beside Gymnasium's, in one run: ``python benchmarks/env_speed.py [--out FILE]``.

Each round times every contender in turn, so that a change of the machine's speed meets all. A step counts if it was
executed: not what a chunk held behind the end of an episode, nor the call by which AsyncVectorEnv resets. CPU time is
that of the process with its threads and worker processes; the ratio is the median over rounds of ours with chunks of 4
over the other. Actions are random and small, so that hoppers and walkers stand for some time, and ended episodes begin
anew at once. On avoid, of which there are 1000, actions fill their range and drift upwards, so that episodes end at
cylinders; there is no process an environment there, for a step takes less than to hand it over. Linux only: the CPU
time of living workers is read from /proc.

Of robomimic's tasks (``--tasks lift``, with that extra) it is one environment by single steps in this process: ours,
with and without the images of its cameras, and robosuite's own ``step``.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
from gymnasium.vector import AsyncVectorEnv  # noqa: E402

from ding_ebm.envs.avoid import MAX_DISPLACEMENT  # noqa: E402
from ding_ebm.envs.batch import BatchEnv, GymBatch  # noqa: E402
from ding_ebm.envs.mujoco_batch import MujocoBatch  # noqa: E402
from ding_ebm.envs.registry import make_batch_env, make_env  # noqa: E402
from ding_ebm.envs.robomimic import SETUPS  # noqa: E402
from ding_ebm.envs.running import RUNNERS  # noqa: E402

SCALE = 0.3  # of the actions
AVOID = ("avoid", "avoid_m1")
AVOID_ENVS = 1000
OURS = "ours, chunks of 4"
STATE = "ours, state"


class Batch:
    """A :class:`BatchEnv` stepped by chunks; an ended environment begins anew before the next chunk.

    Actions are uniform within ``scale`` of ``drift``.
    """

    def __init__(self, env: BatchEnv, chunk: int, scale: float = SCALE, drift: Sequence[float] = (0.0,)) -> None:
        self._env, self._chunk = env, chunk
        self._scale, self._drift = scale, np.asarray(drift, dtype=np.float32)
        self._rng = np.random.default_rng(0)
        self._seed = env.num_envs
        env.reset(range(env.num_envs))

    def run(self, wanted: int) -> int:
        """Execute at least so many steps and return how many."""
        done, shape = 0, (self._env.num_envs, self._chunk, self._env.action_dim)
        while done < wanted:
            actions = self._scale * self._rng.uniform(-1, 1, shape).astype(np.float32) + self._drift
            if self._chunk == 1:
                self._env.step(actions[:, 0])
                done += self._env.num_envs
            else:
                done += int(self._env.step_chunk(actions).length.sum())
            ended = np.flatnonzero(~self._env.running)
            if len(ended):
                self._env.reset(range(self._seed, self._seed + len(ended)), ended)
                self._seed += len(ended)
        return done

    def cpu(self) -> float:
        """CPU seconds of this process until now."""
        return time.process_time()


class Async:
    """Gymnasium's AsyncVectorEnv, one process an environment."""

    def __init__(self, name: str, num_envs: int) -> None:
        self._env = AsyncVectorEnv([lambda: make_env(name)] * num_envs)
        self._rng = np.random.default_rng(0)
        self._env.reset(seed=0)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def run(self, wanted: int) -> int:
        """Execute at least so many steps and return how many."""
        done = 0
        while done < wanted:
            actions = SCALE * self._rng.uniform(-1, 1, self._env.action_space.shape).astype(np.float32)
            _, _, terminated, truncated, _ = self._env.step(actions)
            done += int((~self._ended).sum())
            self._ended = terminated | truncated
        return done

    def cpu(self) -> float:
        """CPU seconds of this process and of its workers until now."""
        return cpu_seconds(self._env.processes)

    def close(self) -> None:
        """End the workers."""
        self._env.close()


class Robot:
    """One of robomimic's tasks, step by step.

    Args:
        name: The task.
        kind: ``state``, ``images`` or ``robosuite``.
    """

    def __init__(self, name: str, kind: str) -> None:
        self._env: Any = make_env(name)
        self._kind, self._steps = kind, 0
        self._rng = np.random.default_rng(0)

    def run(self, wanted: int) -> int:
        """Execute so many steps and return how many."""
        for _ in range(wanted):
            if self._steps % 100 == 0:
                self._env.reset(seed=self._steps)
            self._steps += 1
            action = SCALE * self._rng.uniform(-1, 1, self._env.action_space.shape)
            if self._kind == "robosuite":
                self._env._robosuite.step(action)
            else:
                self._env.step(action)
            if self._kind == "images":
                self._env.images()
        return wanted

    def cpu(self) -> float:
        """CPU seconds of this process until now."""
        return time.process_time()


def cpu_seconds(workers: Sequence[Any]) -> float:
    """CPU seconds of this process and of living worker processes until now."""
    ticks = 0
    for process in workers:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def contenders_of(name: str, num_envs: int, threads: int) -> dict[str, Any]:
    """What is timed on a task."""
    if name in AVOID:
        reach = MAX_DISPLACEMENT
        return {
            who: Batch(env, chunk, reach, (0.0, 0.4 * reach))
            for who, env, chunk in (
                (OURS, make_batch_env(name, num_envs), 4),
                ("ours, single steps", make_batch_env(name, num_envs), 1),
                ("GymBatch", GymBatch(lambda: make_env(name), num_envs), 1),
            )
        }
    if name in SETUPS:
        return {
            STATE: Robot(name, "state"),
            "ours, with images": Robot(name, "images"),
            "robosuite's step": Robot(name, "robosuite"),
        }
    workers = Async(name, num_envs)  # first: it forks, which is not for a process with threads
    return {
        OURS: Batch(MujocoBatch(name, num_envs, num_threads=threads), 4),
        "ours, single steps": Batch(MujocoBatch(name, num_envs, num_threads=threads), 1),
        "GymBatch": Batch(GymBatch(lambda: make_env(name), num_envs), 1),
        "AsyncVectorEnv": workers,
    }


def measure(name: str, num_envs: int, threads: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Steps a second of every contender, with ranges over the rounds."""
    contenders = contenders_of(name, num_envs, threads)
    speeds: dict[str, list[tuple[float, float]]] = {who: [] for who in contenders}
    for round_number in range(rounds + 1):
        for who, contender in contenders.items():
            cpu, wall = contender.cpu(), time.perf_counter()
            done = contender.run(steps if round_number else max(num_envs, 20))  # the first round warms up
            if round_number:
                speeds[who].append((done / (contender.cpu() - cpu), done / (time.perf_counter() - wall)))
    for contender in contenders.values():
        if isinstance(contender, Async):
            contender.close()
    rows, first = [], speeds[STATE if name in SETUPS else OURS]
    for who, values in speeds.items():
        row: dict[str, Any] = {"task": name, "environments": who}
        for unit, index in (("cpu", 0), ("wall", 1)):
            summary(row, f"steps_per_{unit}_second", [value[index] for value in values], "{:.0f}")
            ratios = [ours[index] / other[index] for ours, other in zip(first, values)]
            summary(row, f"{unit}_ratio", ratios, "{:.2f}")
        rows.append(row)
    return rows


def summary(row: dict[str, Any], key: str, values: list[float], form: str) -> None:
    """Put median and range into a row."""
    write: Callable[[float], str] = form.format
    row[key] = write(statistics.median(values))
    row[f"{key}_range"] = f"{write(min(values))}-{write(max(values))}"


def main() -> None:
    """Measure everything, print it and write it to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=[*RUNNERS, *AVOID], choices=[*RUNNERS, *AVOID, *SETUPS])
    parser.add_argument("--num-envs", type=int, default=40, help="of the running tasks; of avoid 1000, of robomimic 1")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of our MuJoCo batch")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--steps", type=int, default=20_000, help="steps of every contender in a round")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    rows = []
    for name in args.tasks:
        num_envs, threads = (AVOID_ENVS, 1) if name in AVOID else (args.num_envs, args.threads)
        num_envs, threads = (1, 1) if name in SETUPS else (num_envs, threads)
        for row in measure(name, num_envs, threads, args.rounds, args.steps):
            row.update(num_envs=num_envs, threads=threads, rounds=args.rounds, commit=commit.stdout.strip())
            rows.append(row)
            print(
                f"{name:<12} {row['environments']:<20} steps a CPU second {row['steps_per_cpu_second']:>6} "
                f"({row['steps_per_cpu_second_range']}), a second {row['steps_per_wall_second']:>6}"
                f"   ours is {row['cpu_ratio']} ({row['cpu_ratio_range']}) / {row['wall_ratio']} times as fast",
                flush=True,
            )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
