"""Furniture-Bench: assembly by a Franka arm, as arXiv:2409.00588 uses it; needs IsaacGym, and is not run here."""

from __future__ import annotations

from functools import partial

from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.furniture import ACTION_DIM, FurnitureBatch
from ding_ebm.envs.task import Task

# Do, time limit, and parts to assemble for success.
_FURNITURE = {"one_leg": (58, 700, 1), "lamp": (44, 1000, 2), "round_table": (44, 1000, 2)}


def _batch(furniture: str, randomness: str, task: Task, num_envs: int) -> BatchEnv:
    parts = _FURNITURE[furniture][2]
    return FurnitureBatch(
        furniture,
        randomness,
        num_envs,
        obs_dim=task.obs_dim,
        parts_to_assemble=parts,
        max_episode_steps=task.max_episode_steps,
    )


def _assembly(furniture: str, randomness: str) -> Task:
    obs_dim, limit, parts = _FURNITURE[furniture]
    name = f"{furniture}_{randomness}"
    return Task(
        name=name,
        extra="furniture",
        obs_dim=obs_dim,
        action_dim=ACTION_DIM,
        action_range=(-1.0, 1.0),
        max_episode_steps=limit,
        make_batch=partial(_batch, furniture, randomness),
        # A return is the number of parts that have been assembled.
        reference_returns=(0.0, float(parts)),
        data_sets={"demonstrations": (f"{name}.hdf5",)},
        note="needs IsaacGym, not run here",
    )


TASKS = tuple(_assembly(furniture, randomness) for furniture in _FURNITURE for randomness in ("low", "med"))
