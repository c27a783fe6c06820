"""Pictures of an energy: over lengths of a step, over slices of the actions, against the error, while it was trained.

Letters: B rows, W points of an axis, L sizes of noise, n logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ding_ebm.energy.diagnostics import AlphaSweep, ErrorProfile
from ding_ebm.evaluation.plots import BLUE, GRAY, GREEN, ORANGE

_DPI = 100


@dataclass(frozen=True)
class Slice:
    """The energy of one state over two numbers of the chunk.

    Attributes:
        title: Of the panel.
        x: Values of the first number, (W,).
        y: Values of the second, (W,).
        energy: (W, W), y first.
        data: The two numbers as the data have them.
        labels: Names of the two.
    """

    title: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    energy: NDArray[np.floating]
    data: tuple[float, float]
    labels: tuple[str, str]


def plot_sweeps(path: str | Path, sweeps: Sequence[tuple[str, AlphaSweep]]) -> None:
    """Mean energy, distance to the expert's chunk and clip rate against the length of a step.

    Args:
        path: Where to.
        sweeps: Labels and sweeps over the same lengths, in pairs of one color: without a clip, and with one. What
            climbs far above all that begins or is clipped leaves the picture.
    """
    figure = Figure(figsize=(11.0, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    shown: list[list[float]] = [[], [], [0.0, 1.0]]
    for i, (label, sweep) in enumerate(sweeps):
        assert sweep.error is not None
        style = dict(color=(BLUE, ORANGE)[i // 2], linestyle=("-", "--")[i % 2], marker="o", markersize=3)
        for axes, values, inside in zip(panels, (sweep.energy, sweep.error, sweep.clip_rate), shown):
            axes.plot(range(len(values)), values, label=label, **style)
            inside += [float(values[0]), float(values.min()), *(values.tolist() if i % 2 else [])]
    titles = ("mean energy after one step", "mean distance to the data's chunk", "share of steps that are clipped")
    for axes, title, inside in zip(panels, titles, shown):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("alpha")
        axes.set_xticks(range(len(sweeps[0][1].alphas)), [f"{alpha:g}" for alpha in sweeps[0][1].alphas.tolist()])
        axes.set_ylim(*_padded(min(inside), max(inside)))
        _bare(axes)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=_DPI)


def plot_slices(path: str | Path, slices: Sequence[Slice]) -> None:
    """Energies over a slice of the chunks of a few states, bright where they are low, with the data's action."""
    figure = Figure(figsize=(3.3 * len(slices), 4.4), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(slices), squeeze=False)[0], slices):
        mesh = axes.pcolormesh(one.x, one.y, one.energy, cmap="cividis_r", shading="gouraud")
        axes.contour(one.x, one.y, one.energy, levels=10, colors="black", linewidths=0.3, alpha=0.6)
        row, column = np.unravel_index(one.energy.argmin(), one.energy.shape)
        axes.scatter(
            *one.data, marker="x", s=60, color=ORANGE, linewidths=2.2, label="the data's action", clip_on=False
        )
        least = dict(marker="o", s=45, facecolors="none", edgecolors="black", linewidths=1.4, clip_on=False, zorder=3)
        axes.scatter(one.x[column], one.y[row], label="least energy of the slice", **least)
        axes.set_title(one.title, fontsize=10)
        axes.set_xlabel(one.labels[0])
        axes.locator_params(nbins=5)
        figure.colorbar(mesh, ax=axes, location="bottom", aspect=25, label="energy")
    figure.axes[0].set_ylabel(slices[0].labels[1])
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=_DPI)


def plot_error(path: str | Path, profile: ErrorProfile) -> None:
    """How far the energy rises with the distance from the data's chunk, and whether its gradient points back."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.4, 1.0])
    rise = (profile.moved_energy - profile.energy).double().numpy()
    error, noise = profile.error.double().numpy(), profile.noise.numpy()
    left.scatter(error, rise, s=3, color=BLUE, alpha=0.25, linewidths=0, label="a chunk, moved by noise")
    low, middle, high = np.quantile(rise, [0.25, 0.5, 0.75], axis=1)
    bars = np.stack([middle - low, high - middle])
    style = dict(color=ORANGE, marker="o", markersize=4, capsize=3)
    left.errorbar(np.median(error, axis=1), middle, bars, label="median and quartiles of each size of noise", **style)
    left.axhline(0.0, color=GRAY, linestyle=":", linewidth=1.0)
    # A few chunks far outside would leave the others no room.
    left.set_ylim(*_padded(*np.quantile(rise, [0.005, 0.995])))
    left.set(xlabel="distance from the data's chunk", ylabel="energy above that of the data's chunk")
    left.legend(frameon=False, fontsize=9, markerscale=1.5)
    correlations = f"{profile.spearman:.3f} within a state, {profile.pooled_spearman:.3f} over all"
    left.set_title(f"energy against action error: Spearman {correlations}", fontsize=10)
    low, middle, high = np.nanquantile(profile.cosine.double().numpy(), [0.25, 0.5, 0.75], axis=1)
    right.errorbar(noise, middle, np.stack([middle - low, high - middle]), **style)
    right.axhline(0.0, color=GRAY, linestyle=":", linewidth=1.0)
    right.set(xlabel="standard deviation of the noise", ylabel="cosine, median and quartiles", ylim=(-1.05, 1.05))
    right.set_title("steepest descent and the way back", fontsize=10)
    for axes in (left, right):
        _bare(axes)
    figure.savefig(path, dpi=_DPI)


def plot_training(path: str | Path, curves: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]) -> None:
    """Loss, energies of the data's pairs and of others, and the share of data's chunks that have the least energy.

    Args:
        path: Where to.
        curves: Iterations and values by the names of the log, (n,) each; what was not logged has no panel.
    """
    kinds = (
        ("loss", {"energy_loss": ("loss", BLUE), "mi_bound": ("bound on the mutual information", GREEN)}),
        ("mean energy", {"E_pos": ("the data's pairs", BLUE), "E_neg": ("other pairs", ORANGE)}),
        ("top 1: share of rows whose own\nchunk has the least energy", {"top1": ("top 1", BLUE)}),
    )
    shown = [(title, lines) for title, lines in kinds if curves.keys() & lines.keys()]
    figure = Figure(figsize=(3.7 * len(shown), 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for name, (label, color) in lines.items():
            if name in curves:
                axes.plot(*curves[name], color=color, marker="o", markersize=3, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        _bare(axes)
    figure.savefig(path, dpi=_DPI)


def _padded(low: float, high: float) -> tuple[float, float]:
    """The range and a twentieth of it on both sides; of equal ends a range around them."""
    margin = 0.05 * (high - low) if high > low else 1.0
    return low - margin, high + margin


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
