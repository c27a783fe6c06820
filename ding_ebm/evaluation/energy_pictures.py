"""What ``ding-ebm energy`` shows of a trained energy: tables and pictures of it on chunks of a data set.

All actions, lengths of a step and sizes of noise are in normalized units of the action, as in ``eval.energy_*``.

Letters: B rows, To observation history, Tp actions of a chunk, Do observation, Da action, n logged numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ding_ebm.checkpoint import find_checkpoint
from ding_ebm.data.checks import check_transitions
from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.formats import find_data_file, read_data
from ding_ebm.energy.diagnostics import AlphaSweep, ErrorProfile, alpha_sweep, error_profile, landscape, plane
from ding_ebm.energy.line_search import EnergyFn, Rescaled
from ding_ebm.envs.registry import TASKS
from ding_ebm.evaluation.energy_plots import Slice, plot_error, plot_slices, plot_sweeps, plot_training
from ding_ebm.evaluation.logs import read_scalars, scalar_names
from ding_ebm.policy.energy_correction import BOUNDS
from ding_ebm.policy.trained_energy import TrainedEnergy, load_energy

ALPHAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
NOISE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
START_NOISE = 0.3  # of the chunks that stand for those of a policy
CLIP_FRAC = 0.2  # of the range, the default of eval.energy_clip_frac
STATES, POINTS = 4, 61
LOGGED = ("energy_loss", "E_pos", "E_neg", "top1", "mi_bound")

Curves = dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


@dataclass(frozen=True)
class Rows:
    """Chunks of a data set and the states that they were made in.

    Attributes:
        obs: Histories in the environment's units, (B, To, Do).
        action: Chunks in the energy's normalized units, (B, Tp, Da).
        step: Steps of the episode made before, (B,).
    """

    obs: Tensor
    action: Tensor
    step: Tensor


@dataclass(frozen=True)
class Sweep:
    """A sweep over lengths of a step: where its corrections began, and which clip they had."""

    start: str
    clip: str
    values: AlphaSweep


def write_energy_pictures(
    load_path: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    log: str | Path | None = None,
    count: int = 512,
    say: Callable[[str], object],
) -> None:
    """Write the pictures and tables of an energy into a folder; files of the same names are replaced.

    Args:
        load_path: Checkpoint of an energy, or folder of a run that trained one.
        data: A data set of the energy's task, in any format; best of episodes that it was not trained on.
        out: Folder, which is made.
        seed: Of the choice of rows and of the noise.
        log: Folder of the run whose logs show the training; None: that of the checkpoint, and no picture of the
            training if nothing is logged there.
        count: B.
        say: Takes lines on what was found.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the checkpoint has no energy, the data are not of its task, or the logs not of its training.
    """
    curves = _curves(load_path, log)
    energy = load_energy(str(load_path), "cpu")
    first, second = _numbers(energy)
    rows = read_rows(energy, data, count, seed)
    say(f"energy of {energy.task}: {len(rows.action)} chunks of {data}, drawn with seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    energy_fn = energy_of_chunks(energy, rows.obs)
    sweeps = sweep_both_starts(energy_fn, rows.action, generator)
    profile = error_profile(energy_fn, rows.action, NOISE, generator, BOUNDS)
    slices = [slice_of(energy, rows, row, first, second) for row in _spread(rows.step)]

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "energy_alpha.csv", _SWEEP_COLUMNS, sweep_lines(sweeps))
    _write(folder / "energy_error.csv", _ERROR_COLUMNS, error_lines(profile))
    plot_sweeps(folder / "energy_alpha.png", [(f"{one.start}, {one.clip}", one.values) for one in sweeps])
    plot_error(folder / "energy_error.png", profile)
    plot_slices(folder / "energy_landscape.png", slices)
    if curves is None:
        say("no picture of the training: nothing was logged beside the checkpoint; --log names the run's folder")
    else:
        plot_training(folder / "energy_training.png", curves)
    for line in _findings(sweeps, profile):
        say(line)
    say(f"written to {folder}: " + ", ".join(sorted(path.name for path in folder.glob("energy_*"))))


def read_rows(energy: TrainedEnergy, data: str | Path, count: int, seed: int) -> Rows:
    """Chunks of a data file, drawn without replacement; all of them if there are fewer.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of the energy's task, or too short for its chunks.
    """
    transitions = read_data(find_data_file(data))
    task = TASKS.get(energy.task)
    action_range = None if task is None else task.action_bounds
    check_transitions(transitions, energy.obs_dim, energy.action_dim, action_range)
    windows = ChunkDataset(
        transitions,
        horizon_steps=energy.horizon_steps,
        cond_steps=energy.cond_steps,
        obs_normalization="none",
        action_normalization="none",
    )
    order = torch.randperm(len(windows.start), generator=torch.Generator().manual_seed(seed))
    batch = windows.gather(order[:count])
    return Rows(batch["obs"], energy.action_normalizer(batch["action"]), batch["index"] - batch["episode"])


def energy_of_chunks(energy: TrainedEnergy, obs: Tensor) -> EnergyFn:
    """The energy as a function of normalized chunks (B, Tp, Da), after histories (B, To, Do)."""
    return Rescaled(energy.bind(obs), energy.action_normalizer.scale, energy.action_normalizer.shift)


def sweep_both_starts(energy_fn: EnergyFn, action: Tensor, generator: torch.Generator) -> list[Sweep]:
    """One step from the data's chunks, and from chunks beside them, without a clip and with that of ``eval``."""
    noise = torch.randn(action.shape, generator=generator, dtype=action.dtype)
    starts = {
        "from the data's chunks": action,
        f"from noise of {START_NOISE:g} on them": (action + START_NOISE * noise).clamp(*BOUNDS),
    }
    clips: dict[str, dict[str, Any]] = {
        "no clip": {},
        f"clip at {CLIP_FRAC:g} of the range": dict(clip="range", clip_frac=CLIP_FRAC, bounds=BOUNDS),
    }
    return [
        Sweep(start, clip, alpha_sweep(energy_fn, chunk, ALPHAS, expert=action, **options))
        for start, chunk in starts.items()
        for clip, options in clips.items()
    ]


def slice_of(energy: TrainedEnergy, rows: Rows, row: int, first: tuple[int, int], second: tuple[int, int]) -> Slice:
    """The energy over two numbers of a row's chunk, the others as the data have them, in the environment's units.

    Args:
        energy: The energy.
        rows: The data.
        row: Number of the row.
        first: Action of the chunk and its dimension, along x.
        second: The same along y.
    """
    chunk, normalizer = rows.action[row], energy.action_normalizer
    obs = rows.obs[row].expand(POINTS * POINTS, -1, -1)
    found = landscape(energy_of_chunks(energy, obs), *plane(chunk, first, second), BOUNDS[1], POINTS)
    places = (first, second)
    x, y = (found.axis * normalizer.scale[dim] + normalizer.shift[dim] for _, dim in places)
    raw = normalizer.inverse(chunk)
    labels = [f"action {step + 1} of the chunk, number {dim + 1}" for step, dim in places]
    data = (float(raw[first]), float(raw[second]))
    return Slice(
        f"step {int(rows.step[row])} of an episode",
        x.numpy(),
        y.numpy(),
        found.energy.numpy(),
        data,
        (labels[0], labels[1]),
    )


def training_curves(run: str | Path) -> Curves:
    """What a run logged of the training of an energy, against iterations; of score matching there is the loss alone.

    Raises:
        ValueError: If it logged nothing of an energy.
    """
    names = scalar_names(run)
    for prefix in ("learner_iter/", "learner_iter/energy/"):  # by itself, and beside a policy
        if f"{prefix}energy_loss_avg" in names:
            found = [name for name in LOGGED if f"{prefix}{name}_avg" in names]
            return {name: read_scalars(run, f"{prefix}{name}_avg") for name in found}
    raise ValueError(
        f"{run} has no log of the training of an energy: nothing is there as learner_iter/energy_loss_avg; give the "
        "folder of the run, <exp_name>, whose log/serial/ has the host's event files"
    )


def sweep_lines(sweeps: Sequence[Sweep]) -> list[list[Any]]:
    """Lines of ``energy_alpha.csv``, by ``_SWEEP_COLUMNS``."""
    lines: list[list[Any]] = []
    for one in sweeps:
        v = one.values
        assert v.error is not None
        numbers = torch.stack([t.double() for t in (v.alphas, v.energy, v.rose, v.displacement, v.clip_rate, v.error)])
        lines += [[one.start, one.clip, *line] for line in numbers.T.tolist()]
    return lines


def error_lines(profile: ErrorProfile) -> list[list[float]]:
    """Lines of ``energy_error.csv``, by ``_ERROR_COLUMNS``."""
    rise = profile.moved_energy - profile.energy
    by_size = [profile.noise, profile.error.mean(dim=1), rise.mean(dim=1), (rise > 0.0).double().mean(dim=1)]
    by_size.append(profile.cosine.nanmean(dim=1))
    correlations = [profile.spearman, profile.pooled_spearman]
    return [[*line, *correlations] for line in torch.stack([t.double() for t in by_size]).T.tolist()]


_SWEEP_COLUMNS = ("start", "clip", "alpha", "energy", "rose", "displacement", "clip_rate", "error")
_ERROR_COLUMNS = ("noise", "error", "energy_rise", "share_higher", "cosine", "spearman", "pooled_spearman")


def _write(path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([x if isinstance(x, str) else f"{x:.6g}" for x in line] for line in lines)


def _findings(sweeps: Sequence[Sweep], profile: ErrorProfile) -> list[str]:
    """The tables in a few lines."""
    lines = [
        f"energy against action error: Spearman {profile.spearman:.3f} within a state, {profile.pooled_spearman:.3f} "
        "over all states; cosine of the descent with the way back "
        + ", ".join(f"{c:.2f} at noise {n:g}" for n, *_, c, _, _ in error_lines(profile)[1::3])
    ]
    for one in sweeps[::2]:
        assert one.values.error is not None
        best = int(one.values.error.argmin())
        lines.append(
            f"one step {one.start}, {one.clip}: energy least at alpha {ALPHAS[int(one.values.energy.argmin())]:g}; "
            f"distance to the data's chunk least at alpha {ALPHAS[best]:g}, {one.values.error[0]:.3f} before and "
            f"{one.values.error[best]:.3f} after"
        )
    return lines


def _curves(load_path: str | Path, log: str | Path | None) -> Curves | None:
    """The training that a log shows; None if none was asked for and the checkpoint's run has none."""
    if log is not None:
        return training_curves(log)
    parents = find_checkpoint(load_path).resolve().parents
    return training_curves(parents[1]) if len(parents) > 1 and scalar_names(parents[1]) else None


def _numbers(energy: TrainedEnergy) -> tuple[tuple[int, int], tuple[int, int]]:
    """Which two numbers of a chunk a slice is over: of the first action, or of two actions of one dimension."""
    if energy.action_dim > 1:
        return (0, 0), (0, 1)
    if energy.horizon_steps > 1:
        return (0, 0), (1, 0)
    raise ValueError(
        f"the energy of {energy.task} is of chunks of one number, of which there is no 2-D slice; chunks of at least "
        "two are expected"
    )


def _spread(step: Tensor) -> list[int]:
    """Rows that lie early to late in their episodes, evenly."""
    order = step.argsort(stable=True)
    return [int(order[(2 * i + 1) * len(order) // (2 * STATES)]) for i in range(STATES)]
