"""The table of tasks: environments, their dimensions, data sets, reward tuning and reference returns.

Importing it needs no simulator; making an environment needs the extra that its task names.
"""

from __future__ import annotations

import difflib
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import gymnasium
from numpy.typing import NDArray

from ding_ebm.envs.avoid import MAX_DISPLACEMENT, AvoidBatch, AvoidEnv
from ding_ebm.envs.avoid_modes import MAX_EPISODE_STEPS, AvoidModesBatch, AvoidModesEnv
from ding_ebm.envs.batch import BatchEnv

T = TypeVar("T")

# Modules that the environments of an extra import (Gymnasium's MuJoCo tasks import imageio and packaging too).
_NEEDED = {"mujoco": ("mujoco", "imageio", "packaging")}


@dataclass(frozen=True)
class Task:
    """What is known of a task without making its environment.

    Attributes:
        name: Its name in configs and file names.
        extra: Extra of the package that its environment needs, ``core`` for none.
        env_id: Gymnasium's name of the environment; ``avoid`` and ``avoid_modes`` are the classes here.
        obs_dim: Do.
        action_dim: Da.
        action_range: Lowest and highest action, the same in every dimension.
        max_episode_steps: Time limit in steps.
        reference_returns: Returns that score 0 and 100.
        reward_tuning: How its rewards are tuned for training, see :func:`ding_ebm.data.rewards.tune_rewards`.
        data_sets: Files of each data set; several are read as one.
    """

    name: str
    extra: str
    env_id: str
    obs_dim: int
    action_dim: int
    action_range: tuple[float, float]
    max_episode_steps: int
    reference_returns: tuple[float, float]
    reward_tuning: str
    data_sets: Mapping[str, tuple[str, ...]]

    def data_files(self, data_set: str) -> tuple[str, ...]:
        """File names of one of the task's data sets.

        Raises:
            ValueError: If it has no such data set.
        """
        return _look_up(self.data_sets, data_set, f"data set of {self.name}")


def _locomotion(name: str, env_id: str, obs_dim: int, action_dim: int, reference: tuple[float, float]) -> Task:
    """A Gymnasium v4 task: v5 rewards and ends episodes differently from D4RL's data, v4 does not."""
    medium, expert = f"{name}_medium.hdf5", f"{name}_expert.hdf5"
    data_sets = {
        "medium": (medium,),
        "medium_replay": (f"{name}_medium_replay.hdf5",),
        "medium_expert": (medium, expert),
        "expert": (expert,),
    }
    return Task(name, "mujoco", env_id, obs_dim, action_dim, (-1.0, 1.0), 1000, reference, "locomotion", data_sets)


_AVOID = Task(
    name="avoid",
    extra="core",
    env_id="avoid",
    obs_dim=4,
    action_dim=2,
    action_range=(-MAX_DISPLACEMENT, MAX_DISPLACEMENT),
    max_episode_steps=150,
    # 0: stand still for 150 steps; 100: from the middle of the start to the best lane at full speed, in 69 steps.
    reference_returns=(-0.3, 2.862),
    reward_tuning="none",
    data_sets={"demonstrations": ("avoid_demonstrations.hdf5",)},
)


def _avoid_modes(name: str) -> Task:
    # 0: stand still; 100: from the middle of the start by the rewarded gate, as straight as the cylinders allow.
    return replace(
        _AVOID,
        name=name,
        env_id="avoid_modes",
        max_episode_steps=MAX_EPISODE_STEPS,
        reference_returns=(0.0, 78.0),
        data_sets={"demonstrations": (f"{name}_demonstrations.hdf5",)},
    )


# Reference returns of the locomotion tasks: D4RL (Fu et al. 2020, arXiv:2004.07219), of a random and an expert policy.
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _locomotion("hopper", "Hopper-v4", 11, 3, (-20.272305, 3234.3)),
        _locomotion("walker2d", "Walker2d-v4", 17, 6, (1.629008, 4592.3)),
        _locomotion("halfcheetah", "HalfCheetah-v4", 17, 6, (-280.178953, 12135.0)),
        _AVOID,
        *(_avoid_modes(f"avoid_m{number}") for number in (1, 2, 3)),
    )
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: If there is none.
    """
    return _look_up(TASKS, name, "task")


def make_env(name: str) -> gymnasium.Env[Any, Any]:
    """One environment of a task, with raw observations, actions and rewards.

    Raises:
        ValueError: If there is no such task.
        ModuleNotFoundError: If the extra that it needs is not installed.
    """
    task = get_task(name)
    if task.extra == "core":
        single = AvoidEnv if task.env_id == "avoid" else AvoidModesEnv
        return single(max_episode_steps=task.max_episode_steps)
    _check_extra(task)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date.*", DeprecationWarning)
        return gymnasium.make(task.env_id)


def make_batch_env(name: str, num_envs: int) -> BatchEnv:
    """Many environments of a task, stepped together; raises as :func:`make_env`."""
    task = get_task(name)
    if task.extra == "core":
        batch = AvoidBatch if task.env_id == "avoid" else AvoidModesBatch
        return batch(num_envs, max_episode_steps=task.max_episode_steps)
    _check_extra(task)
    from ding_ebm.envs.mujoco_batch import MujocoBatch  # imports the simulator

    return MujocoBatch(name, num_envs, max_episode_steps=task.max_episode_steps)


def normalized_score(name: str, ret: float | NDArray[Any]) -> Any:
    """Returns on the scale of the task's reference returns, 0 to 100, elementwise."""
    low, high = get_task(name).reference_returns
    return 100.0 * (ret - low) / (high - low)


def _check_extra(task: Task) -> None:
    missing = [module for module in _NEEDED[task.extra] if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the task {task.name} needs {', '.join(missing)}, which pip install 'ding_ebm[{task.extra}]' installs"
        )


def _look_up(table: Mapping[str, T], key: str, what: str) -> T:
    if key in table:
        return table[key]
    near = difflib.get_close_matches(key, table, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {what} {key!r}{hint} Known: {', '.join(table)}")
