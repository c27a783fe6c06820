"""Speed and memory of loading and sampling data, in one run: ``python benchmarks/data_speed.py --out data_speed.csv``.

Each line times the reference and ours in turn, round by round, in CPU time of one thread; the ratio is the median over
rounds. Loading compares ``read_data`` of a file in D4RL's layout with h5py's own reading of the same arrays (ours over
theirs: at most 1.5 is asked for), with and without compression and recorded next observations; the memory is the most
that a fresh process takes above what it takes without data, over the size of the arrays it returns. Sampling compares
a data set of one window an item behind a ``DataLoader``, as the reference implementation of DPPO has it, with
``ChunkDataset`` (theirs over ours).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.d4rl_layout import KEYS
from ding_ebm.data.formats import read_data
from ding_ebm.data.transitions import Transitions

OBS, ACTION, EPISODE = 11, 3, 1000  # hopper
SEVERAL = 8
Work = Callable[[], Any]
Line = dict[str, object]


def compare(theirs: Work, ours: Work, rounds: int) -> tuple[float, float, float]:
    """Least seconds of both, and the median of their ratio, theirs over ours; the first round only warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for work, times in zip((theirs, ours), seconds):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    ratios = [a / b for a, b in list(zip(*seconds))[1:]]
    return min(seconds[0]), min(seconds[1]), statistics.median(ratios)


def random_rows(rows: int) -> Transitions:
    """Rows of episodes of 1000 steps, half of which terminate."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((rows, OBS)).astype(np.float32)
    next_obs = np.concatenate([obs[1:], obs[:1]])
    number = np.arange(1, rows + 1)
    ends, terminated = number % EPISODE == 0, number % (2 * EPISODE) == 0
    action = rng.uniform(-1, 1, (rows, ACTION)).astype(np.float32)
    return Transitions(obs, action, obs[:, 0].copy(), next_obs, terminated, ends & ~terminated, "random rows")


def write(path: Path, data: Transitions, compression: str | None, keys: list[str]) -> None:
    """A file in D4RL's layout with some of its keys."""
    with h5py.File(path, "w") as file:
        for key in keys:
            file.create_dataset(key, data=getattr(data, KEYS[key]), compression=compression)


def plain_read(path: Path) -> list[Any]:
    """The arrays by h5py alone."""
    with h5py.File(path, "r") as file:
        return [file[key][()] for key in file]


MEMORY = """
import sys
from ding_ebm.data.formats import read_data
from ding_ebm.data.transitions import COLUMNS

def most():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])

small, large = sys.argv[1:]
read_data(small)
before = most()
data = read_data(large)
print((most() - before) / sum(getattr(data, name).nbytes for name in COLUMNS))
"""


def memory(small: Path, large: Path) -> float:
    """The most that a fresh process takes to read a file, above what it took for a small one, over its arrays."""
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def loading(rows: int, rounds: int, folder: Path) -> Iterator[Line]:
    """Reading ``rows`` rows of a file, of each kind."""
    data, few = random_rows(rows), random_rows(2 * EPISODE)
    for compression in (None, "gzip"):
        for recorded in (True, False):
            keys = [key for key in KEYS if recorded or key != "next_observations"]
            large, small = folder / "large.hdf5", folder / "small.hdf5"
            write(large, data, compression, keys), write(small, few, compression, keys)
            theirs, ours, ratio = compare(partial(plain_read, large), partial(read_data, large), rounds)
            what = f"load {rows} rows, {compression or 'plain'}, {'' if recorded else 'no '}next observations"
            yield dict(what=what, theirs=theirs, ours=ours, ratio=1.0 / ratio, memory=memory(small, large))


class ItemWindows(Dataset):
    """One window an item: a slice of actions and a stack of observations, the first repeated before it."""

    def __init__(self, data: Transitions, cond_steps: int, horizon_steps: int) -> None:
        self._obs, self._action = torch.from_numpy(data.obs), torch.from_numpy(data.action)
        self._cond_steps, self._horizon_steps = cond_steps, horizon_steps
        self._indices = [
            (i, i - start)
            for start, stop in zip(*(bound.tolist() for bound in data.pieces))
            for i in range(start, stop - horizon_steps + 1)
        ]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start, before = self._indices[index]
        history = [self._obs[start - min(back, before)] for back in reversed(range(self._cond_steps))]
        return torch.stack(history), self._action[start : start + self._horizon_steps]


def draw(loader: Callable[[], DataLoader], count: int) -> Work:
    """Work that draws some batches, of epoch after epoch."""

    def endless() -> Iterator[Any]:
        while True:
            yield from loader()

    batches = endless()
    next(batches)
    return lambda: [next(batches) for _ in range(count)]


def sampling(rows: int, batch: int, rounds: int) -> Iterator[Line]:
    """Drawing batches of windows."""
    data = random_rows(rows)
    for cond_steps, horizon_steps in ((1, 4), (2, 16)):
        items = ItemWindows(data, cond_steps, horizon_steps)
        theirs = draw(partial(DataLoader, items, batch, shuffle=True), 1)
        for padding in ("dppo", "diffusion_policy"):
            options = dict(horizon_steps=horizon_steps, cond_steps=cond_steps, act_steps=horizon_steps)
            dataset = ChunkDataset(data, padding=padding, **options)
            # A batch of ours is too short for the clock: several are timed against one of theirs.
            ours = draw(partial(DataLoader, dataset, batch, shuffle=True, collate_fn=lambda x: x), SEVERAL)
            first, second, ratio = compare(theirs, ours, rounds)
            what = f"{padding} windows, batch {batch}, To {cond_steps}, Tp {horizon_steps}, {rows} rows"
            yield dict(what=what, theirs=first, ours=second / SEVERAL, ratio=SEVERAL * ratio, memory=None)


def main() -> None:
    """Print a line for each comparison, and write them where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", metavar="FILE.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for line in (
            *loading(options.rows, options.rounds, Path(folder)),
            *sampling(min(options.rows, 200_000), options.batch, options.rounds),
        ):
            lines.append(line)
            took = "" if line["memory"] is None else f", memory {line['memory']:.2f} times the arrays"
            print(
                f"{line['what']:62s} {line['theirs']:8.4f} s {line['ours']:8.4f} s {line['ratio']:7.2f}{took}",
                flush=True,
            )
    if options.out:
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
