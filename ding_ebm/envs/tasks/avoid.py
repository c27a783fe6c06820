"""Avoid: a point between cylinders, in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium

from ding_ebm.envs.avoid import MAX_DISPLACEMENT, AvoidBatch, AvoidEnv
from ding_ebm.envs.avoid_modes import MAX_EPISODE_STEPS, AvoidModesBatch, AvoidModesEnv
from ding_ebm.envs.task import Task


def _arguments(task: Task) -> dict[str, Any]:
    """What the dynamics' name says: how the target is followed, and whether observations are those before a step."""
    tracking, _, stale = (task.dynamics or "ideal").partition("-")
    return dict(tracking=tracking, stale_obs=bool(stale), max_episode_steps=task.max_episode_steps)


def _avoid_batch(task: Task, num_envs: int) -> AvoidBatch:
    return AvoidBatch(num_envs, **_arguments(task))


def _avoid_single(task: Task) -> gymnasium.Env:
    return AvoidEnv(**_arguments(task))


def _modes_batch(task: Task, num_envs: int) -> AvoidModesBatch:
    return AvoidModesBatch(num_envs, **_arguments(task))


def _modes_single(task: Task) -> gymnasium.Env:
    return AvoidModesEnv(**_arguments(task))


_AVOID = Task(
    name="avoid",
    extra="core",
    obs_dim=4,
    action_dim=2,
    action_range=(-MAX_DISPLACEMENT, MAX_DISPLACEMENT),
    max_episode_steps=150,
    make_batch=_avoid_batch,
    make_single=_avoid_single,
    # 0: stand still for 150 steps; 100: from the middle of the start to the best lane at full speed, in 69 steps.
    reference_returns=(-0.3, 2.862),
    data_sets={"demonstrations": ("avoid_demonstrations.hdf5",)},
    dynamics="ideal",
    other_dynamics={"arx": 4, "arx-stale": 4},
    position=slice(2, 4),
)


def _avoid_modes(name: str) -> Task:
    return replace(
        _AVOID,
        name=name,
        max_episode_steps=MAX_EPISODE_STEPS,
        make_batch=_modes_batch,
        make_single=_modes_single,
        # 0: stand still; 100: from the middle of the start by the rewarded gate, as straight as the cylinders allow.
        reference_returns=(0.0, 78.0),
        data_sets={"demonstrations": (f"{name}_demonstrations.hdf5",)},
    )


TASKS = (_AVOID, *(_avoid_modes(f"avoid_m{number}") for number in (1, 2, 3)))
