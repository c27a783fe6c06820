"""robomimic's tasks on robosuite, with DPPO's time limits; nobody has published returns of reference for them."""

from __future__ import annotations

from functools import partial

import gymnasium

from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.task import Task
from ding_ebm.envs.workers import WorkerBatch


def _single(task: Task) -> gymnasium.Env:
    from ding_ebm.envs.robomimic import RobomimicEnv  # imports the simulator

    return RobomimicEnv(task.name, max_episode_steps=task.max_episode_steps)


def _batch(task: Task, num_envs: int) -> BatchEnv:
    return WorkerBatch(partial(_single, task), num_envs)


def _robomimic(name: str, obs_dim: int, action_dim: int, limit: int) -> Task:
    return Task(
        name=name,
        extra="robomimic",
        obs_dim=obs_dim,
        action_dim=action_dim,
        action_range=(-1.0, 1.0),
        max_episode_steps=limit,
        make_batch=_batch,
        make_single=_single,
        data_sets={"demonstrations": (f"{name}_demonstrations.hdf5",)},
    )


TASKS = (
    _robomimic("lift", 19, 7, 300),
    _robomimic("can", 23, 7, 300),
    _robomimic("square", 23, 7, 400),
    _robomimic("transport", 59, 14, 800),
)
