"""Who simulates a config's environments: this package, or others that run the same tasks.

``batch``: this package, all environments by one call. ``gymnasium``: Gymnasium's own environments, one after another.
Where both have a task, their episodes are the same. ``envpool``: EnvPool, whose engine is another version of MuJoCo, so
that episodes are like those of the others but not the same. ``d4rl``: D4RL's own environments on mujoco-py.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import BatchEnv, ChunkStep, GymBatch, Step, checked_action, checked_rows, step_chunk_by_steps
from ding_ebm.envs.registry import get_task, make_batch_env, make_env
from ding_ebm.envs.seeding import global_seed
from ding_ebm.envs.single import SingleEnv
from ding_ebm.envs.task import Task

BACKENDS = ("batch", "gymnasium", "envpool", "d4rl")
_INSTALL = {
    "envpool": "pip install envpool==1.2.5",
    "gym": "pip install --no-deps gym==0.23.1",
    "d4rl": "pip install --no-deps d4rl==1.1, and mujoco-py with MuJoCo 2.1.0 as its README says",
}


def task_of(cfg: Mapping[str, Any]) -> Task:
    """The task of an environment's config, under its dynamics."""
    return get_task(cfg["env_id"], cfg.get("dynamics"))


def single_env(cfg: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """One environment of a config.

    Raises:
        ValueError: If the config's task is unknown, or its backend has no such task.
        ModuleNotFoundError: If a package that it takes is not installed.
    """
    task, backend = task_of(cfg), cfg.get("env_backend", "batch")
    if backend == "d4rl":
        return D4rlEnv(task)
    return SingleEnv(EnvpoolBatch(task, 1)) if backend == "envpool" else make_env(task.name)


def batch_env(cfg: Mapping[str, Any], num_envs: int) -> BatchEnv:
    """Many environments of a config, stepped together; raises as :func:`single_env`."""
    task, backend = task_of(cfg), cfg.get("env_backend", "batch")
    if backend == "batch":
        return make_batch_env(task.name, num_envs)
    return EnvpoolBatch(task, num_envs) if backend == "envpool" else GymBatch(lambda: single_env(cfg), num_envs)


class D4rlEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One of D4RL's environments, of the old interface of gym, with Gymnasium's.

    D4RL's ant shows 84 contact forces behind what the task here does, all of them 0; they are left out.

    Args:
        task: A task that D4RL has.

    Raises:
        ValueError: If D4RL does not have it.
        ModuleNotFoundError: If gym or d4rl is not installed.
    """

    def __init__(self, task: Task) -> None:
        if task.d4rl_id is None or task.dynamics == "v5":
            raise ValueError(f"env_backend='d4rl': D4RL has no task {task.name}")
        _module("d4rl", "d4rl")  # registers its environments
        self._env = _module("gym", "d4rl").make(task.d4rl_id)
        self._obs_dim, self._steps = task.obs_dim, 0
        self.max_episode_steps = task.max_episode_steps
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(*task.action_bounds, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin the episode of ``seed``; without one, the next of the sequence that the last seed began."""
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        self._env.seed(episode)
        self._steps = 0
        with global_seed(episode):  # from where D4RL draws the goals of its mazes
            return self._shown(self._env.reset()), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Act once; gym tells the time limit by a key of ``info``."""
        obs, reward, done, info = self._env.step(action)
        self._steps += 1
        terminated = bool(done) and not info.get("TimeLimit.truncated", False)
        return self._shown(obs), float(reward), terminated, self._steps >= self.max_episode_steps, {}

    def close(self) -> None:
        """Release the environment."""
        self._env.close()

    def _shown(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(obs[: self._obs_dim], dtype=np.float32)


class EnvpoolBatch:
    """EnvPool's environments of a running task as a :class:`~ding_ebm.envs.batch.BatchEnv`.

    EnvPool is linked to MuJoCo 3.6, whose dynamics are not quite those of the version that this package asks for, and
    its environments cannot be seeded anew: where some rows are reset, each goes on to the next episode of the
    seed that it got when all were. Runs repeat, but an episode is not its seed's.

    Args:
        task: A running task, of version 4 or 5.
        num_envs: E.

    Attributes:
        success: None: running has no notion of it.

    Raises:
        ValueError: If EnvPool does not have the task.
        ModuleNotFoundError: If envpool is not installed.
    """

    success = None

    def __init__(self, task: Task, num_envs: int) -> None:
        if task.gym_id is None or task.dynamics not in ("v4", "v5"):
            raise ValueError(f"env_backend='envpool': EnvPool has no task {task.name}")
        self._task, self._envpool = task, _module("envpool", "envpool")
        self.num_envs, self.obs_dim, self.action_dim = num_envs, task.obs_dim, task.action_dim
        self.action_low, self.action_high = task.action_bounds
        self.max_episode_steps = task.max_episode_steps
        self._pool: Any = None
        self._obs = np.zeros((num_envs, task.obs_dim), dtype=np.float32)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self.reset(range(num_envs))

    @property
    def running(self) -> NDArray[np.bool_]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return ~(self._terminated | self._truncated)

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`; but seeds count only where all rows are reset."""
        index = checked_rows(seeds, self.num_envs, rows)
        if len(index) == self.num_envs:
            order = [int(seeds[i]) % 2**31 for i in np.argsort(index)]
            limit = self.max_episode_steps
            self._pool = self._envpool.make(
                self._task.gym_id, env_type="gymnasium", num_envs=self.num_envs, seed=order, max_episode_steps=limit
            )
        if index.size:
            obs, info = self._pool.reset(index.astype(np.int32))
            self._obs[info["env_id"]] = obs
        self._terminated[index] = self._truncated[index] = False
        return self._obs.copy()

    def step(self, action: NDArray[Any]) -> Step:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        action = checked_action(action, self.num_envs, self.action_dim)
        reward, rows = np.zeros(self.num_envs), np.flatnonzero(self.running).astype(np.int32)
        if rows.size:
            obs, paid, terminated, truncated, info = self._pool.step(action[rows].astype(np.float64), rows)
            made = info["env_id"]
            self._obs[made], reward[made] = obs, paid
            self._terminated[made], self._truncated[made] = terminated, truncated
        return self._obs.copy(), reward, self._terminated.copy(), self._truncated.copy()

    def step_chunk(self, actions: NDArray[Any]) -> ChunkStep:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return step_chunk_by_steps(self, actions)


def _module(name: str, backend: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"env_backend={backend!r} takes {name}, and {error.name} is not installed: {_INSTALL[name]}"
        ) from error
