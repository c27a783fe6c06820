"""The pictures of docs/tasks.md: the running tasks in motion, and the mazes with the way of a scripted point.

    python benchmarks/task_pictures.py --data FOLDER   # of <task>_medium.hdf5, for the poses of hopper and the like

Rendering takes no display: MUJOCO_GL=egl, or osmesa where that is not installed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import h5py
import mujoco
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ding_ebm.envs.mazes import POINT_LAYOUTS, cells, make_maze
from ding_ebm.envs.registry import get_task, make_batch_env
from ding_ebm.envs.running import make_runner
from ding_ebm.evaluation.plots import BLUE
from ding_ebm.evaluation.results import REPOSITORY
from ding_ebm.evaluation.rollout import rollout
from ding_ebm.evaluation.trajectory_plots import draw_place

RUNNING = ("hopper", "walker2d", "halfcheetah", "ant", "humanoid")
SIZES = ("umaze", "medium", "large")
ROW = 5020  # of the data, some steps into an episode


def render(
    model: mujoco.MjModel, position: NDArray[np.float64] | None, camera: mujoco.MjvCamera | int
) -> NDArray[np.uint8]:
    """A picture of a model, (225, 300, 3), in a pose or in its own."""
    model.vis.quality.offsamples, model.vis.quality.shadowsize = 4, 0
    data = mujoco.MjData(model)
    if position is not None:
        data.qpos[:] = position
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 225, 300) as renderer:
        renderer.update_scene(data, camera)
        pixels: NDArray[np.uint8] = renderer.render()
    return pixels


def running(folder: Path) -> list[NDArray[np.uint8]]:
    """Each running task in a pose of its data, where there are some, or in its first pose."""
    pictures = []
    for name in RUNNING:
        model, position = make_runner(name, "v4").model, None
        file = folder / f"{name}_medium.hdf5"
        if file.is_file():
            with h5py.File(file) as data:
                position = np.concatenate([[0.0], data["observations"][ROW, : model.nq - 1]])
        camera = mujoco.MjvCamera()
        camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = (0.0, 0.0, 0.8), 4.5, 90.0, -20.0
        pictures.append(render(model, position, 0 if file.is_file() else camera))
    return pictures


def ant_mazes() -> list[NDArray[np.uint8]]:
    """Each AntMaze from above, at an angle."""
    pictures = []
    for size in SIZES:
        model = make_maze(f"antmaze_{size}", "v4").model
        walls = model.geom_pos[model.geom_type == mujoco.mjtGeom.mjGEOM_BOX]
        low, high = walls.min(axis=0), walls.max(axis=0)
        camera = mujoco.MjvCamera()
        camera.lookat[:] = (low + high) / 2
        camera.distance, camera.azimuth, camera.elevation = 1.25 * (high - low).max() + 3.0, 90.0, -60.0
        pictures.append(render(model, None, camera))
    return pictures


def next_cells(size: str) -> dict[tuple[int, int], tuple[int, int]]:
    """Of each free cell of a Maze2d the next one on a shortest way to the goal."""
    free = {(int(i), int(j)) for i, j in cells(POINT_LAYOUTS[size], " G")}
    goal = tuple(map(int, cells(POINT_LAYOUTS[size], "G")[0]))
    following, border = {goal: goal}, [goal]
    while border:
        cell = border.pop(0)
        for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            other = (cell[0] + i, cell[1] + j)
            if other in free and other not in following:
                following[other] = cell
                border.append(other)
    return following


def point_paths(size: str, episodes: int = 12) -> tuple[list[NDArray[np.float32]], float]:
    """Ways of a point that is steered from cell to cell, and the share that comes to the goal."""
    following = next_cells(size)

    def act(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        goals = np.array([following[tuple(map(int, np.rint(row[:2])))] for row in obs])
        return np.clip(10.0 * (goals - obs[:, :2]) - obs[:, 2:], -1.0, 1.0).astype(np.float32)

    env = make_batch_env(f"maze2d_{size}", episodes)
    found = rollout(act, env, range(episodes), keep_trajectories=True)
    return [path[:, :2] for path in found.trajectories or []], float((found.returns > 0).mean())


def sheet(pictures: list[NDArray[np.uint8]], titles: list[str], figure: Figure) -> None:
    """Pictures side by side."""
    for axes, picture, title in zip(np.atleast_1d(figure.subplots(1, len(pictures))), pictures, titles):
        axes.imshow(picture)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()


def save(figure: Figure, path: Path) -> None:
    """As a PNG of few colors, which is small."""
    figure.savefig(path, dpi=110)
    Image.open(path).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size // 1000} kB")


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/images", metavar="FOLDER")
    options = parser.parse_args()
    figure = Figure(figsize=(10.0, 1.7), layout="constrained")
    sheet(running(options.data), list(RUNNING), figure)
    save(figure, options.out / "tasks_locomotion.png")

    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.0, 1.25))
    sheet(ant_mazes(), [f"antmaze_{size}" for size in SIZES], above)
    for axes, size in zip(below.subplots(1, len(SIZES)), SIZES):
        draw_place(axes, get_task(f"maze2d_{size}"))
        paths, reached = point_paths(size)
        print(f"maze2d_{size}: the scripted point reaches the goal in {reached:.0%} of {len(paths)} episodes")
        axes.add_collection(LineCollection(paths, colors=BLUE, linewidths=0.9, alpha=0.8, zorder=3))
        axes.scatter(*np.array([path[0] for path in paths]).T, s=10, color="black", zorder=4)
        axes.set_title(f"maze2d_{size}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    save(figure, options.out / "tasks_mazes.png")


if __name__ == "__main__":
    main()
