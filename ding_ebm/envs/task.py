"""What is known of a task without making its environment, and how its environments are made."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, Union

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import BatchEnv

T = TypeVar("T")
# One number for all dimensions, or one for each.
PerDimension = Union[float, tuple[float, ...]]

# Modules that the environments of an extra import (Gymnasium's MuJoCo tasks import imageio and packaging too).
NEEDED: Mapping[str, tuple[str, ...]] = {
    "core": (),
    "mujoco": ("mujoco", "imageio", "packaging"),
    "robomimic": ("robosuite", "mujoco"),
    "kitchen": ("gymnasium_robotics", "mujoco"),
    "furniture": ("isaacgym", "furniture_bench"),
}
# Where they come from, of what is no extra of the package.
ELSEWHERE: Mapping[str, str] = {
    "furniture": "IsaacGym Preview 4 is to be had from NVIDIA by registered users, and furniture_bench from "
    "github.com/ankile/furniture-bench",
}


@dataclass(frozen=True)
class Task:
    """A row of the task table.

    Attributes:
        name: Its name in configs and file names.
        extra: Extra of the package that its environment needs, ``core`` for none.
        obs_dim: Do.
        action_dim: Da.
        action_range: Lowest and highest action, each one number for all dimensions or one for each; see
            :attr:`action_bounds`.
        max_episode_steps: Time limit in steps.
        make_batch: Makes E environments of the task, stepped together.
        make_single: Makes the environment that the batch is many of; None: a batch of one is it.
        reference_returns: Returns that score 0 and 100; None if nobody has published any.
        reward_tuning: How its rewards are tuned for training, see :func:`ding_ebm.data.rewards.tune_rewards`.
        data_sets: Files of each data set; several are read as one.
        dynamics: Which of its dynamics it has; None if there is but one.
        other_dynamics: The others, and Do under each.
        gym_id: Gymnasium's name of the environment; None if it has no such one.
        d4rl_id: D4RL's name of the environment; None if it has no such one.
        position: Which numbers of an observation are x and y of what moves; None if it is not about a place.
        note: What to know before one tries to run it; empty if nothing.
    """

    name: str
    extra: str
    obs_dim: int
    action_dim: int
    action_range: tuple[PerDimension, PerDimension]
    max_episode_steps: int
    make_batch: Callable[[Task, int], BatchEnv]
    make_single: Callable[[Task], gymnasium.Env[Any, Any]] | None = None
    reference_returns: tuple[float, float] | None = None
    reward_tuning: str = "none"
    data_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dynamics: str | None = None
    other_dynamics: Mapping[str, int] = field(default_factory=dict)
    gym_id: str | None = None
    d4rl_id: str | None = None
    position: slice | None = None
    note: str = ""

    @property
    def base(self) -> str:
        """Its name without the dynamics."""
        return self.name.partition("-")[0]

    @property
    def action_bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lowest and highest action, each (Da,)."""
        low, high = (np.full(self.action_dim, end, dtype=np.float32) for end in self.action_range)
        return low, high

    @property
    def expectations(self) -> dict[str, Any]:
        """What :func:`ding_ebm.data.doubts.doubts` compares the task's data with."""
        facts = dict(max_episode_steps=self.max_episode_steps, reference_returns=self.reference_returns)
        return dict(facts, action_range=self.action_bounds)

    @property
    def missing_modules(self) -> list[str]:
        """Modules that its environments need and that are not installed."""
        return [module for module in NEEDED[self.extra] if importlib.util.find_spec(module) is None]

    @property
    def remedy(self) -> str:
        """How to come by the modules that its environments need."""
        return ELSEWHERE.get(self.extra, f"pip install 'ding_ebm[{self.extra}]'")

    def data_files(self, data_set: str) -> tuple[str, ...]:
        """File names of one of the task's data sets.

        Raises:
            ValueError: If it has no such data set.
        """
        return look_up(self.data_sets, data_set, f"data set of {self.name}")

    def under(self, dynamics: str | None) -> Task:
        """The task under other dynamics, which its name then says, as in ``hopper-v5``; None: under its own.

        Raises:
            ValueError: If it has no such dynamics.
        """
        if dynamics in (None, self.dynamics):
            return self
        if dynamics not in self.other_dynamics:
            known = ", ".join([self.dynamics, *self.other_dynamics]) if self.dynamics else "there is but one kind"
            raise ValueError(f"unknown dynamics {dynamics!r} of the task {self.name}. Known: {known}")
        gym_id = self.gym_id.replace("-v4", "-v5") if self.gym_id and dynamics == "v5" else self.gym_id
        obs_dim = self.other_dynamics[dynamics]
        return replace(self, name=f"{self.name}-{dynamics}", gym_id=gym_id, obs_dim=obs_dim, dynamics=dynamics)


def look_up(table: Mapping[str, T], key: str, what: str, note: str = "") -> T:
    """An entry of a table.

    Raises:
        ValueError: If there is none of that name; it tells the nearest, and the note.
    """
    if key in table:
        return table[key]
    near = difflib.get_close_matches(key, table, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {what} {key!r}{hint} Known: {', '.join(table)}{'; ' if note else ''}{note}")
