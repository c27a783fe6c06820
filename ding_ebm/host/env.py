"""One environment of the task table as a DI-engine environment, by single actions or by action chunks."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import numpy as np
from ding.envs import BaseEnv, BaseEnvTimestep
from ding.utils import ENV_REGISTRY
from easydict import EasyDict
from numpy.typing import NDArray

from ding_ebm.envs.batch import reported_success
from ding_ebm.host.backends import single_env, task_of
from ding_ebm.host.checks import check_env


@ENV_REGISTRY.register("ebm_env")
class TaskEnv(BaseEnv):
    """A task by its name, stepped in raw units.

    ``done`` is an episode's end of either kind; ``info`` keeps ``terminated`` and ``truncated`` apart. The environment
    is seeded once: its episodes differ from each other, and repeat from run to run.
    """

    config = dict(
        # (str) Name of the task in ``ding-ebm tasks``; the config must say it.
        env_id=None,
        # (str) Which dynamics, of those that the task has (docs/tasks.md): 'v4', 'v5' or 'd4rl-v2'; None: its default.
        dynamics=None,
        # (str) Who simulates: 'batch' (this package), 'gymnasium', 'envpool' or 'd4rl'; see ding_ebm/host/backends.py.
        env_backend="batch",
        # (int) Number of environments that the host collects with; offline policies have none.
        collector_env_num=1,
        # (int) Number of environments that the host evaluates with.
        evaluator_env_num=8,
        # (int) Number of episodes of an evaluation.
        n_evaluator_episode=8,
        # (float) Mean return at which the host ends the run.
        stop_value=float("inf"),
        # (str) Folder for videos of the host's evaluation; not supported: use ding-ebm eval --video.
        replay_path=None,
    )

    @classmethod
    def default_config(cls) -> EasyDict:
        """A copy of the declared keys and their defaults."""
        return EasyDict(copy.deepcopy(cls.config), cfg_type=f"{cls.__name__}Dict")

    @staticmethod
    def create_evaluator_env_cfg(cfg: EasyDict) -> list[EasyDict]:
        """One config for each environment of an evaluation, which is where every pipeline begins with them."""
        check_env({"collector_env_num": 1, **cfg})  # the host has taken that key out before, where it collects
        return BaseEnv.create_evaluator_env_cfg(cfg)

    def __init__(self, cfg: EasyDict) -> None:
        self._name = task_of(cfg).name
        self._env = single_env(cfg)
        self._seed: int | None = None
        self._return = 0.0
        self._length = 0
        self._success: bool | None = None
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self.reward_space = None

    def seed(self, seed: int, dynamic_seed: bool = True) -> None:
        """Take the seed of the next reset; later resets go on from there, whatever ``dynamic_seed`` says."""
        self._seed = seed

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode and return its first observation, (Do,)."""
        obs, said = self._env.reset(seed=self._seed)
        self._success = reported_success(said)
        self._seed = None
        self._return, self._length = 0.0, 0
        return np.asarray(obs, dtype=np.float32)

    def step(self, action: NDArray[Any]) -> BaseEnvTimestep:
        """Act once; at the end of an episode ``info`` holds ``eval_episode_return``, the plain sum of rewards.

        Beside it ``episode_info`` has what the host's evaluator averages: ``length``, and ``success`` (0 or 1) where
        the task reports it.
        """
        action = np.asarray(action, dtype=np.float32)
        if not np.isfinite(action).all():
            raise ValueError(f"{self._name}: action {action} at step {self._length} is not finite")
        obs, reward, terminated, truncated, said = self._env.step(action)
        self._return += float(reward)
        self._length += 1
        for name, value in (("observation", obs), ("reward", reward)):
            if not np.isfinite(value).all():
                raise ValueError(f"{self._name}: the {name} after step {self._length} is not finite: {value}")
        success = reported_success(said)
        self._success = self._success if success is None else success
        info: dict[str, Any] = dict(terminated=bool(terminated), truncated=bool(truncated))
        if terminated or truncated:
            info["eval_episode_return"] = self._return
            info["episode_info"] = dict(length=float(self._length))
            if self._success is not None:
                info["episode_info"]["success"] = float(self._success)
        done = bool(terminated or truncated)
        return BaseEnvTimestep(np.asarray(obs, dtype=np.float32), np.float32(reward), done, info)

    def close(self) -> None:
        """Release the environment."""
        self._env.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name})"


@ENV_REGISTRY.register("ebm_chunk_env")
class ChunkTaskEnv(TaskEnv):
    """A task for policies over action chunks: sees the latest To observations, executes Ta actions a decision.

    A chunk stops where the episode ends. A decision's reward is the sum of its steps' rewards, ``info["steps"]`` their
    number; an observation from before the episode's first is its first.
    """

    config = dict(
        # (int) Ta, number of actions that are executed a decision; the policy's model has the same.
        act_steps=1,
        # (int) To, number of observations that are seen; the policy's model has the same.
        cond_steps=1,
    )

    def __init__(self, cfg: EasyDict) -> None:
        super().__init__(cfg)
        self._act_steps: int = cfg.act_steps
        self._seen: deque[NDArray[np.float32]] = deque(maxlen=cfg.cond_steps)

    @classmethod
    def default_config(cls) -> EasyDict:
        """The keys of :class:`TaskEnv`, and those of chunks."""
        return EasyDict(TaskEnv.default_config(), **copy.deepcopy(cls.config), cfg_type=f"{cls.__name__}Dict")

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode and return its first observation, repeated, (To, Do)."""
        self._seen.extend([super().reset()] * self._seen.maxlen)
        return np.stack(self._seen)

    def step(self, action: NDArray[Any]) -> BaseEnvTimestep:
        """Execute a chunk, (Ta, Da), and return the observations (To, Do) after it."""
        chunk = np.asarray(action, dtype=np.float32)
        if chunk.ndim != 2 or len(chunk) != self._act_steps:
            raise ValueError(f"{self._name}: a decision is of {self._act_steps} actions (Ta, Da), got {chunk.shape}")
        reward, steps = np.float32(0.0), 0
        for single in chunk:
            timestep = super().step(single)
            steps += 1
            self._seen.append(timestep.obs)
            reward += timestep.reward
            if timestep.done:
                break
        return BaseEnvTimestep(np.stack(self._seen), reward, timestep.done, dict(timestep.info, steps=steps))
