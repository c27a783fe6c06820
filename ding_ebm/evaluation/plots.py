"""Pictures: ways over the avoid table and their outcomes, values and energies, return by scale, points in the plane.

Drawn without a display and without pyplot's global state. Colors are of the maps and the palette that color-blind
readers can tell apart (viridis, cividis, Okabe and Ito).

Letters: n episodes, T steps, P points, H and W cells of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from ding_ebm.envs.avoid import CYLINDERS, FIELD_X, FINISH_Y, LANE_BONUS, ROD_RADIUS, ROWS_X, START
from ding_ebm.evaluation.statistics import Interval

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
_DPI = 150
_TABLE_Y = (-0.32, 0.46)
_CROSS = dict(s=14, marker="x", color=ORANGE, linewidths=1.2, zorder=4)
_LAST_ROW = 3  # number of its first cylinder, left of which the rewarded gate is


@dataclass(frozen=True)
class Ways:
    """Episodes on the avoid table.

    Attributes:
        title: Of the panel.
        paths: Actual positions of each episode, (T + 1, 2).
        returns: (n,).
        success: Whether each episode succeeded, (n,), bool; None where that is not known.
    """

    title: str
    paths: Sequence[NDArray[np.floating]]
    returns: NDArray[np.floating]
    success: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Curve:
    """What came of learning, n times.

    Attributes:
        label: Of the legend.
        steps: Environment steps made before, (n,).
        success: Share of the episodes that succeeded, (n,).
    """

    label: str
    steps: NDArray[np.int64]
    success: NDArray[np.floating]


@dataclass(frozen=True)
class Decision:
    """What the policy knows of one state: functions of the action, and actions drawn.

    Attributes:
        name: Letter of the state on the map.
        position: Of the point, (2,).
        axis: Displacements in meters at which the grids are taken, (W,), in x and in y.
        value: Q(s, a), (W, W), y first.
        energies: Time to learned energy over alpha, (W, W).
        behavior: Actions of the behavior policy, (P, 2).
        guided: Actions of the guided policy, (P, 2).
    """

    name: str
    position: tuple[float, float]
    axis: NDArray[np.floating]
    value: NDArray[np.floating]
    energies: Mapping[float, NDArray[np.floating]]
    behavior: NDArray[np.floating]
    guided: NDArray[np.floating]


@dataclass(frozen=True)
class ValueMap:
    """Value of the guided policy over the table, NaN where there are no data.

    Attributes:
        x: Centers of the columns, (W,).
        y: Centers of the rows, (H,).
        value: (H, W).
    """

    x: NDArray[np.floating]
    y: NDArray[np.floating]
    value: NDArray[np.floating]


@dataclass(frozen=True)
class Cloud:
    """Points in the plane, (P, 2), under a title."""

    title: str
    points: NDArray[np.floating]


def plot_ways(path: str | Path, panels: Sequence[Ways], most: int = 100) -> None:
    """Trajectories side by side, colored by return; at most ``most`` of each panel, the first ones."""
    figure = Figure(figsize=(3.6 * len(panels) + 0.9, 5.2), layout="constrained")
    returns = np.concatenate([panel.returns[:most] for panel in panels])
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels):
        draw_table(axes)
        _draw_lanes(axes)
        lines = LineCollection(panel.paths[:most], cmap="viridis", linewidths=1.0, alpha=0.75, zorder=3)
        lines.set_array(panel.returns[:most])
        lines.set_clim(float(returns.min()), float(returns.max()))
        axes.add_collection(lines)
        ends = np.array([steps[-1] for steps in panel.paths[:most]])
        failed = ends[:, 1] < FINISH_Y
        axes.scatter(*ends[failed].T, **_CROSS, label="did not arrive")
        axes.set_title(panel.title, fontsize=11)
        axes.set_xlabel("x (m)")
    figure.axes[0].set_ylabel("y (m)")
    figure.axes[0].legend(loc="lower left", frameon=False, fontsize=8, handletextpad=0.1, borderpad=0.1)
    bar = figure.colorbar(lines, ax=figure.axes, shrink=0.8, pad=0.01, label="return of the episode")
    bar.solids.set_alpha(1.0)
    figure.savefig(path, dpi=_DPI)


def plot_outcomes(
    path: str | Path, panels: Sequence[Ways], evaluated: Curve, collected: Curve, most: int = 100
) -> None:
    """Trajectories side by side, colored by success, the rewarded gate marked, and success while learning.

    Of each panel at most ``most`` trajectories are shown, the first ones, failures above.
    """
    ratios = [*[1.0] * len(panels), 1.15]
    figure = Figure(figsize=(3.3 * sum(ratios), 5.3), layout="constrained")
    *tables, last = figure.subplots(1, len(ratios), width_ratios=ratios)
    for axes, panel in zip(tables, panels):
        draw_table(axes)
        x, y, radius = CYLINDERS[_LAST_ROW]
        gate = [FIELD_X[0], x - radius - ROD_RADIUS]
        axes.text(FIELD_X[1] - 0.01, FINISH_Y + 0.006, "finish", ha="right", va="bottom", fontsize=8)
        axes.plot(gate, [y, y], color=GREEN, linewidth=7, alpha=0.5, solid_capstyle="butt", label="rewarded gate")
        for done, color, label in ((True, BLUE, "success"), (False, ORANGE, "failure")):
            chosen = [steps for steps, success in zip(panel.paths[:most], panel.success) if success == done]
            axes.add_collection(LineCollection(chosen, colors=color, linewidths=0.8, alpha=0.55, zorder=3 + (not done)))
            axes.plot([], [], color=color, label=label)
        ends = np.array([steps[-1] for steps in panel.paths[:most]])
        axes.scatter(*ends[ends[:, 1] < FINISH_Y].T, **_CROSS, label="did not arrive")
        axes.set_title(panel.title, fontsize=11)
        axes.set_xlabel("x (m)")
        axes.tick_params(labelleft=axes is tables[0])
    tables[0].set_ylabel("y (m)")
    last.plot(collected.steps / 1000.0, collected.success, color=GRAY, linewidth=1.2, label=collected.label)
    last.plot(evaluated.steps / 1000.0, evaluated.success, color=BLUE, marker="o", label=evaluated.label)
    last.set(xlim=(0.0, None), ylim=(0.0, 1.03), box_aspect=1.0, xlabel="environment steps (thousands)")
    last.set_title("share of successes while fine-tuning", fontsize=11)
    last.spines[["top", "right"]].set_visible(False)
    last.legend(loc="lower right", frameon=False, fontsize=9)
    figure.legend(*tables[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
    figure.savefig(path, dpi=_DPI)


def plot_energy(path: str | Path, values: ValueMap, decisions: Sequence[Decision]) -> None:
    """The value over the table, and at a few states Q beside the learned energy, with the actions that are drawn."""
    columns = 1 + len(decisions[0].energies)
    figure = Figure(figsize=(5.6 + 2.7 * columns, 2.85 * len(decisions)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[5.6, 2.7 * columns])
    _draw_values(left, values, decisions)
    right.suptitle("what actions are worth in three states (bright: preferred), and the actions drawn", fontsize=11)
    grid = right.subplots(len(decisions), columns, sharex=True, sharey=True, squeeze=False)
    for row, decision in zip(grid, decisions):
        titles = ["Q(s, a)", *(f"learned energy at t = {t:g}" for t in decision.energies)]
        fields = [decision.value, *(-energy for energy in decision.energies.values())]
        for axes, title, field in zip(row, titles, fields):
            _draw_field(axes, decision, field)
            if decision is decisions[0]:
                axes.set_title(title, fontsize=10)
        row[0].set_ylabel(f"state {decision.name}\ndy (mm)")
    for axes in grid[-1]:
        axes.set_xlabel("dx (mm)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    right.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, markerscale=2.5)
    figure.savefig(path, dpi=_DPI)


def plot_scales(
    path: str | Path, results: Mapping[float, Interval], references: Mapping[str, float], fixed_scale: float
) -> None:
    """Mean return against guidance scale with 95 % intervals, beside horizontal reference lines."""
    figure = Figure(figsize=(6.2, 4.3), layout="constrained")
    axes = figure.subplots()
    scales = sorted(results)
    means = np.array([results[s].estimate for s in scales])
    errors = np.array([[m - results[s].low, results[s].high - m] for m, s in zip(means, scales)]).T
    axes.errorbar(scales, means, errors, color=BLUE, marker="o", capsize=3, label="policy, 95 % interval over episodes")
    axes.axvline(fixed_scale, color=BLUE, linewidth=6, alpha=0.15, label="the config's scale, fixed beforehand")
    for (name, value), style in zip(references.items(), ("--", ":", "-.")):
        axes.axhline(value, color=GRAY, linestyle=style, label=name)
    axes.set_xlabel("guidance scale (0: behavior policy)")
    axes.set_ylabel("return")
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI)


def plot_clouds(path: str | Path, rows: Sequence[Sequence[Cloud]], limit: float = 4.5) -> None:
    """Point clouds in a grid, all with the same axes."""
    figure = Figure(figsize=(2.1 * len(rows[0]), 2.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes, cloud in zip(grid.flat, (cloud for row in rows for cloud in row)):
        is_target = cloud.title.startswith("target")
        axes.scatter(*cloud.points.T, s=1.5, alpha=0.5, linewidths=0, color=GRAY if is_target else BLUE)
        axes.set_title(cloud.title, fontsize=9)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    figure.savefig(path, dpi=_DPI)


def draw_table(axes: Axes) -> None:
    """Cylinders with the reach of the rod around them, start and finish line."""
    for x, y, radius in CYLINDERS:
        axes.add_patch(Circle((x, y), radius + ROD_RADIUS, color="#d9d9d9", zorder=1))
        axes.add_patch(Circle((x, y), radius, color="#8c8c8c", zorder=2))
    axes.axhline(FINISH_Y, color="black", linestyle="--", linewidth=1.0, zorder=2)
    axes.plot(*START, marker="o", markersize=6, color="black", zorder=5)
    axes.text(START[0] + 0.018, START[1], "start", ha="left", va="center", fontsize=8)
    axes.set(xlim=FIELD_X, ylim=_TABLE_Y, aspect="equal")


def _draw_lanes(axes: Axes) -> None:
    """What each lane of the finish line pays."""
    edges = (FIELD_X[0], *ROWS_X[-1], FIELD_X[1])
    for left, right, bonus in zip(edges, edges[1:], LANE_BONUS):
        axes.text(0.5 * (left + right), _TABLE_Y[1] - 0.018, f"+{bonus:g}", ha="center", va="center", fontsize=10)
    for x in ROWS_X[-1]:
        axes.plot([x, x], [FINISH_Y, _TABLE_Y[1]], color="black", linewidth=0.6)


def _draw_values(figure: Figure, values: ValueMap, decisions: Sequence[Decision]) -> None:
    axes = figure.subplots()
    draw_table(axes)
    _draw_lanes(axes)
    mesh = axes.pcolormesh(values.x, values.y, values.value, cmap="cividis", shading="nearest", zorder=0)
    for decision in decisions:
        axes.plot(*decision.position, marker="o", markersize=13, color="white", markeredgecolor="black", zorder=6)
        axes.text(*decision.position, decision.name, ha="center", va="center", fontsize=9, zorder=7)
    axes.set(xlabel="x (m)", ylabel="y (m)")
    axes.set_title("learned value V(s) of the guided policy, where there are data", fontsize=10)
    figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.8, aspect=30, label="discounted return to come")


def _draw_field(axes: Axes, decision: Decision, field: NDArray[np.floating]) -> None:
    """A preference over the action plane (bright: preferred) with drawn actions; millimeters."""
    millimeters = 1000.0 * decision.axis
    axes.pcolormesh(millimeters, millimeters, field, cmap="cividis", shading="gouraud")
    for actions, color, label in (
        (decision.behavior, "white", "actions of the behavior policy"),
        (decision.guided, ORANGE, "actions of the guided policy"),
    ):
        axes.scatter(*(1000.0 * actions.T), s=5, color=color, edgecolors="black", linewidths=0.25, label=label)
    limit = float(millimeters[-1])
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
