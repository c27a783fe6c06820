"""D4RL's kitchen (Fu et al. 2020, arXiv:2004.07219), with its reference returns: none and all of four subtasks."""

from __future__ import annotations

from functools import partial

import gymnasium

from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.kitchen import ACTION_DIM, MAX_EPISODE_STEPS, OBS_DIM, KitchenEnv
from ding_ebm.envs.task import Task
from ding_ebm.envs.workers import WorkerBatch

# Partial differs from complete in its data only: the environment is the same.
_COMPLETE = ("microwave", "kettle", "light switch", "slide cabinet")
SUBTASKS_OF = {
    "kitchen_complete": _COMPLETE,
    "kitchen_partial": _COMPLETE,
    "kitchen_mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}


def _single(task: Task) -> gymnasium.Env:
    return KitchenEnv(SUBTASKS_OF[task.name], task.max_episode_steps)


def _batch(task: Task, num_envs: int) -> BatchEnv:
    return WorkerBatch(partial(_single, task), num_envs)  # a step spends much of its time in Python


def _kitchen(name: str) -> Task:
    return Task(
        name=name,
        extra="kitchen",
        obs_dim=OBS_DIM,
        action_dim=ACTION_DIM,
        action_range=(-1.0, 1.0),
        max_episode_steps=MAX_EPISODE_STEPS,
        make_batch=_batch,
        make_single=_single,
        reference_returns=(0.0, 4.0),
        data_sets={"demonstrations": (f"{name}.hdf5",)},
        d4rl_id=f"{name.replace('_', '-')}-v0",
    )


TASKS = tuple(_kitchen(name) for name in SUBTASKS_OF)
