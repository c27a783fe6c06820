"""The table of tasks: environments, their dimensions, data sets, reward tuning and reference returns.

Importing it needs no simulator; making an environment needs the extra that its task names.
"""

from __future__ import annotations

import difflib
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import gymnasium
from numpy.typing import NDArray

from ding_ebm.envs.avoid import MAX_DISPLACEMENT, AvoidBatch, AvoidEnv
from ding_ebm.envs.avoid_modes import MAX_EPISODE_STEPS, AvoidModesBatch, AvoidModesEnv
from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.single import SingleEnv

T = TypeVar("T")

# Modules that the environments of an extra import (Gymnasium's MuJoCo tasks import imageio and packaging too).
_NEEDED = {"mujoco": ("mujoco", "imageio", "packaging")}


@dataclass(frozen=True)
class Task:
    """What is known of a task without making its environment.

    Attributes:
        name: Its name in configs and file names.
        extra: Extra of the package that its environment needs, ``core`` for none.
        env_id: Gymnasium's name of the environment; ``avoid``, ``avoid_modes`` and ``mazes`` are modules here.
        obs_dim: Do.
        action_dim: Da.
        action_range: Lowest and highest action, the same in every dimension.
        max_episode_steps: Time limit in steps.
        reference_returns: Returns that score 0 and 100; None if nobody has published any.
        reward_tuning: How its rewards are tuned for training, see :func:`ding_ebm.data.rewards.tune_rewards`.
        data_sets: Files of each data set; several are read as one.
        dynamics: Which of its dynamics it has; None if there is but one.
        other_dynamics: The others, and Do under each.
        d4rl_id: D4RL's name of the environment; None if it has no such one.
    """

    name: str
    extra: str
    env_id: str
    obs_dim: int
    action_dim: int
    action_range: tuple[float, float]
    max_episode_steps: int
    reference_returns: tuple[float, float] | None
    reward_tuning: str
    data_sets: Mapping[str, tuple[str, ...]]
    dynamics: str | None = None
    other_dynamics: Mapping[str, int] = field(default_factory=dict)
    d4rl_id: str | None = None

    def data_files(self, data_set: str) -> tuple[str, ...]:
        """File names of one of the task's data sets.

        Raises:
            ValueError: If it has no such data set.
        """
        return _look_up(self.data_sets, data_set, f"data set of {self.name}")


def _locomotion(
    name: str, env_id: str, obs_dim: int, action_dim: int, reference: tuple[float, float], v5_obs_dim: int | None = None
) -> Task:
    """A Gymnasium v4 task: v5 rewards and ends episodes differently from D4RL's data, v4 does not."""
    medium, expert = f"{name}_medium.hdf5", f"{name}_expert.hdf5"
    return Task(
        name=name,
        extra="mujoco",
        env_id=env_id,
        obs_dim=obs_dim,
        action_dim=action_dim,
        action_range=(-1.0, 1.0),
        max_episode_steps=1000,
        reference_returns=reference,
        reward_tuning="locomotion",
        data_sets={
            "medium": (medium,),
            "medium_replay": (f"{name}_medium_replay.hdf5",),
            "medium_expert": (medium, expert),
            "expert": (expert,),
        },
        dynamics="v4",
        other_dynamics={"v5": v5_obs_dim or obs_dim, "d4rl-v2": obs_dim},
        d4rl_id=f"{name}-medium-v2",
    )


# D4RL has no humanoid, and nobody else a data set that its results are compared on.
_HUMANOID = Task(
    name="humanoid",
    extra="mujoco",
    env_id="Humanoid-v4",
    obs_dim=376,
    action_dim=17,
    action_range=(-0.4, 0.4),
    max_episode_steps=1000,
    reference_returns=None,
    reward_tuning="locomotion",
    data_sets={"medium": ("humanoid_medium.hdf5",)},
    dynamics="v4",
    other_dynamics={"v5": 348},
)

# D4RL's play and diverse differ in their data only: the environment is the same.
_ANT_MAZE = Task(
    name="antmaze",
    extra="mujoco",
    env_id="mazes",
    obs_dim=29,
    action_dim=8,
    action_range=(-1.0, 1.0),
    max_episode_steps=1000,
    reference_returns=(0.0, 1.0),
    reward_tuning="antmaze",
    data_sets={},
    dynamics="v4",
    other_dynamics={"d4rl-v2": 29},
)


def _ant_maze(name: str, limit: int = 1000) -> Task:
    files = {"demonstrations": (f"{name}.hdf5",)}
    d4rl_id = f"{name.replace('_', '-')}-v2"
    return replace(_ANT_MAZE, name=name, max_episode_steps=limit, data_sets=files, d4rl_id=d4rl_id)


def _point_maze(size: str, limit: int, reference: tuple[float, float]) -> Task:
    return Task(
        name=f"maze2d_{size}",
        extra="mujoco",
        env_id="mazes",
        obs_dim=4,
        action_dim=2,
        action_range=(-1.0, 1.0),
        max_episode_steps=limit,
        reference_returns=reference,
        reward_tuning="none",
        data_sets={"demonstrations": (f"maze2d_{size}.hdf5",)},
        d4rl_id=f"maze2d-{size}-v1",
    )


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


# Reference returns of locomotion and mazes: D4RL (Fu et al. 2020, arXiv:2004.07219), of a random and an expert policy.
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _locomotion("hopper", "Hopper-v4", 11, 3, (-20.272305, 3234.3)),
        _locomotion("walker2d", "Walker2d-v4", 17, 6, (1.629008, 4592.3)),
        _locomotion("halfcheetah", "HalfCheetah-v4", 17, 6, (-280.178953, 12135.0)),
        _locomotion("ant", "Ant-v4", 27, 8, (-325.6, 3879.7), v5_obs_dim=105),
        _HUMANOID,
        _ant_maze("antmaze_umaze", limit=700),
        _ant_maze("antmaze_umaze_diverse", limit=700),
        _ant_maze("antmaze_medium_play"),
        _ant_maze("antmaze_medium_diverse"),
        _ant_maze("antmaze_large_play"),
        _ant_maze("antmaze_large_diverse"),
        _point_maze("umaze", 300, (23.85, 161.86)),
        _point_maze("medium", 600, (13.13, 277.39)),
        _point_maze("large", 800, (6.7, 273.99)),
        _AVOID,
        *(_avoid_modes(f"avoid_m{number}") for number in (1, 2, 3)),
    )
}


def get_task(name: str, dynamics: str | None = None) -> Task:
    """The task of that name, under the dynamics that it has by default or others.

    Under others its name says which, as in ``hopper-v5``, and such a name is understood here too.

    Raises:
        ValueError: If there is none.
    """
    base, _, named = name.partition("-")
    task, wanted = _look_up(TASKS, base, "task"), dynamics or named or None
    if wanted in (None, task.dynamics):
        return task
    if wanted not in task.other_dynamics:
        known = ", ".join([task.dynamics, *task.other_dynamics]) if task.dynamics else "there is but one kind"
        raise ValueError(f"unknown dynamics {wanted!r} of the task {base}. Known: {known}")
    return replace(
        task,
        name=f"{base}-{wanted}",
        env_id=task.env_id.replace("-v4", "-v5") if wanted == "v5" else task.env_id,
        obs_dim=task.other_dynamics[wanted],
        dynamics=wanted,
    )


def make_env(name: str, dynamics: str | None = None) -> gymnasium.Env[Any, Any]:
    """One environment of a task, with raw observations, actions and rewards.

    Raises:
        ValueError: If there is no such task, or it has no such dynamics.
        ModuleNotFoundError: If the extra that it needs is not installed.
    """
    task = get_task(name, dynamics)
    if task.extra == "core":
        single = AvoidEnv if task.env_id == "avoid" else AvoidModesEnv
        return single(max_episode_steps=task.max_episode_steps)
    _check_extra(task)
    if task.env_id == "mazes":
        return SingleEnv(make_batch_env(task.name, 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date.*", DeprecationWarning)
        env = gymnasium.make(task.env_id)
    if task.dynamics == "d4rl-v2":
        from ding_ebm.envs.inertia import use_legacy_capsules  # imports the simulator
        from ding_ebm.envs.running import RUNNERS

        simulated: Any = env.unwrapped
        use_legacy_capsules(simulated.model, RUNNERS[name.partition("-")[0]][1].total_mass)
    return env


def make_batch_env(name: str, num_envs: int, dynamics: str | None = None) -> BatchEnv:
    """Many environments of a task, stepped together; raises as :func:`make_env`."""
    task = get_task(name, dynamics)
    if task.extra == "core":
        batch = AvoidBatch if task.env_id == "avoid" else AvoidModesBatch
        return batch(num_envs, max_episode_steps=task.max_episode_steps)
    _check_extra(task)
    from ding_ebm.envs.mujoco_batch import MujocoBatch  # imports the simulator

    base = task.name.partition("-")[0]
    return MujocoBatch(base, num_envs, dynamics=task.dynamics or "v4", max_episode_steps=task.max_episode_steps)


def normalized_score(name: str, ret: float | NDArray[Any]) -> Any:
    """Returns on the scale of the task's reference returns, 0 to 100, elementwise; None where there are none."""
    reference = get_task(name).reference_returns
    return None if reference is None else 100.0 * (ret - reference[0]) / (reference[1] - reference[0])


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
