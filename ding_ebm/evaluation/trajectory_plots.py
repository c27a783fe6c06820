"""The picture of trajectories: a panel for each set of episodes, seen from above, with what stands in the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle

from ding_ebm.envs.task import Task
from ding_ebm.evaluation.plots import BLUE, GRAY, GREEN, ORANGE, draw_table
from ding_ebm.evaluation.trajectories import Trajectories
from ding_ebm.evaluation.ways import has_ways

# Failures are drawn above.
_OUTCOMES = {
    "unknown": (GRAY, "episode"),
    "through": (GREEN, "through, but no success"),
    "success": (BLUE, "success"),
    "failure": (ORANGE, "failure"),
}


def plot_trajectories(
    path: str | Path, rows: Sequence[Sequence[Trajectories]], most: int = 50, dpi: int = 100, width: float = 2.3
) -> None:
    """Panels in rows, the trajectories colored by their outcome; a cross ends each failure.

    Args:
        path: PNG file to write.
        rows: Of each row the sets of episodes, those of one task.
        most: Episodes of a panel that are drawn, the first ones.
        dpi: Pixels an inch.
        width: Of a panel, inches.
    """
    columns = max(len(row) for row in rows)
    heights = [_height_of_width(row[0].task) for row in rows]
    size = (width * columns + 0.5, width * sum(heights) + 0.3 * len(rows) + 0.5)  # with labels, titles and legend
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row", height_ratios=heights)
    seen: set[str] = set()
    for line, row in zip(grid, rows):
        for axes, shown in zip(line, row):
            draw_place(axes, shown.task)
            seen |= _draw_paths(axes, shown, most)
            axes.set_title(shown.title, fontsize=8)
            axes.tick_params(labelsize=6)
        line[0].set_ylabel(f"{row[0].task.name}\ny (m)", fontsize=8)
        for axes in line[len(row) :]:
            axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("x (m)", fontsize=8)
    kinds = [_OUTCOMES[name] for name in _OUTCOMES if name in seen]
    handles = [Line2D([], [], color=color, label=label) for color, label in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False, fontsize=8)
    figure.savefig(path, dpi=dpi)


def _draw_paths(axes: Axes, shown: Trajectories, most: int) -> set[str]:
    """Lines of the first episodes; the outcomes that there are."""
    outcomes = shown.outcomes[:most]
    for order, (name, (color, _)) in enumerate(_OUTCOMES.items()):
        paths = [path for path, outcome in zip(shown.paths, outcomes) if outcome == name]
        axes.add_collection(LineCollection(paths, colors=color, linewidths=0.6, alpha=0.6, zorder=3 + order))
        if name == "failure" and paths:
            ends = np.array([path[-1] for path in paths])
            axes.scatter(*ends.T, s=8, marker="x", color=color, linewidths=0.8, zorder=8)
    return set(outcomes)


def draw_place(axes: Axes, task: Task) -> None:
    """What stands in the way, and where to go."""
    if has_ways(task):
        draw_table(axes)
        return
    from ding_ebm.envs.mazes import GOAL_RADIUS, floor_plan  # imports the simulator

    plan = floor_plan(task.base)
    squares = [Rectangle(tuple(center - plan.half), 2 * plan.half, 2 * plan.half) for center in plan.walls]
    axes.add_collection(PatchCollection(squares, facecolor="#8c8c8c", edgecolor="none", zorder=1))
    # All points within the goal's radius of where it may be.
    angles = np.linspace(0.0, 2.0 * np.pi, 80, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    corners = np.where(around > 0.0, plan.goals[1], plan.goals[0])
    axes.add_patch(Polygon(corners + GOAL_RADIUS * around, color=GREEN, alpha=0.4, linewidth=0.0, zorder=2))
    lowest, highest = plan.walls.min(axis=0) - plan.half, plan.walls.max(axis=0) + plan.half
    axes.set(xlim=(lowest[0], highest[0]), ylim=(lowest[1], highest[1]), aspect="equal")


def _height_of_width(task: Task) -> float:
    """Height of a panel over its width."""
    axes = Figure().subplots()
    draw_place(axes, task)
    return float(np.ptp(axes.get_ylim()) / np.ptp(axes.get_xlim()))
