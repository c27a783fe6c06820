"""D4RL's AntMaze and Maze2d, with its reference returns (Fu et al. 2020, arXiv:2004.07219)."""

from __future__ import annotations

from ding_ebm.envs.task import Task
from ding_ebm.envs.tasks.locomotion import simulated_batch


def _ant_maze(name: str, limit: int = 1000) -> Task:
    """D4RL's play and diverse differ in their data only: the environment is the same."""
    return Task(
        name=name,
        extra="mujoco",
        obs_dim=29,
        action_dim=8,
        action_range=(-1.0, 1.0),
        max_episode_steps=limit,
        make_batch=simulated_batch,
        reference_returns=(0.0, 1.0),
        reward_tuning="antmaze",
        data_sets={"demonstrations": (f"{name}.hdf5",)},
        dynamics="v4",
        other_dynamics={"d4rl-v2": 29},
        d4rl_id=f"{name.replace('_', '-')}-v2",
        position=slice(0, 2),
    )


def _point_maze(size: str, limit: int, reference: tuple[float, float]) -> Task:
    return Task(
        name=f"maze2d_{size}",
        extra="mujoco",
        obs_dim=4,
        action_dim=2,
        action_range=(-1.0, 1.0),
        max_episode_steps=limit,
        make_batch=simulated_batch,
        reference_returns=reference,
        data_sets={"demonstrations": (f"maze2d_{size}.hdf5",)},
        d4rl_id=f"maze2d-{size}-v1",
        position=slice(0, 2),
    )


TASKS = (
    _ant_maze("antmaze_umaze", limit=700),
    _ant_maze("antmaze_umaze_diverse", limit=700),
    _ant_maze("antmaze_medium_play"),
    _ant_maze("antmaze_medium_diverse"),
    _ant_maze("antmaze_large_play"),
    _ant_maze("antmaze_large_diverse"),
    _point_maze("umaze", 300, (23.85, 161.86)),
    _point_maze("medium", 600, (13.13, 277.39)),
    _point_maze("large", 800, (6.7, 273.99)),
)
