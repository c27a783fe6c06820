"""An environment manager over all environments of a task at once, chunk by chunk.

It takes the place of DI-engine's managers, which hold one Python object or process an environment: one call steps all
of them, and nothing is kept by dictionaries but what the host's evaluator asks for.

Letters: E environments, To observation history, Ta executed actions, Do observation, Da action.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ding.envs import BaseEnvTimestep
from ding.utils import ENV_MANAGER_REGISTRY
from easydict import EasyDict
from numpy.typing import NDArray

from ding_ebm.envs.batch import check_actions, check_outcome, latest_observations, replay
from ding_ebm.host.backends import batch_env, task_of


@dataclass(frozen=True)
class Decisions:
    """What came of one decision in every environment.

    Attributes:
        next_obs: Observation histories after it, (E, To, Do); at an episode's end those of its own last observation.
        reward: Sum of its steps' rewards, (E,), float32.
        terminated: Whether the task ended the episode, (E,).
        truncated: Whether the time limit did, (E,).
        length: Environment steps made, (E,), int64.
        returns: Return of each episode that ended, by environment number.
        lengths: Length in environment steps of each episode that ended, by environment number.
        successes: Whether each episode that ended succeeded, by environment number; None where the task has no notion
            of success.
    """

    next_obs: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    length: NDArray[np.int64]
    returns: dict[int, float]
    lengths: dict[int, int]
    successes: dict[int, bool] | None


@ENV_MANAGER_REGISTRY.register("ebm_vector")
class VectorEnvManager:
    """All environments of a run as one :class:`~ding_ebm.envs.batch.BatchEnv`, each begun anew when it ends.

    Episode n of environment i has the seed that the run's seed, i and n determine. An evaluation begins with the same
    episodes every time; collecting goes on to new ones.

    Args:
        env_fn: One factory for each environment, as the host makes them; only their configs are used.
        cfg: The manager's config; it has no keys of its own.

    Raises:
        ValueError: If the environments are not all of one task.
    """

    config: dict[str, Any] = {}

    @classmethod
    def default_config(cls) -> EasyDict:
        """A copy of the declared keys and their defaults."""
        return EasyDict(copy.deepcopy(cls.config), cfg_type=f"{cls.__name__}Dict")

    def __init__(self, env_fn: list[Callable[..., Any]], cfg: Mapping[str, Any]) -> None:
        configs = [function.keywords["cfg"] for function in env_fn]  # type: ignore[attr-defined]
        names = {task_of(config).name for config in configs}
        if len(names) != 1:
            raise ValueError(f"the environments of a vector manager must be of one task, got {sorted(names)}")
        self.env_num = len(configs)
        self._config = configs[0]
        self._history: int = configs[0].get("cond_steps", 1)
        self._chunked = "act_steps" in configs[0]
        self._env: Any = None
        self._seed, self._same_every_time = 0, False
        self._episode = np.zeros(self.env_num, dtype=np.int64)
        # What was done in each running episode, (n, Da) a decision.
        self._done: list[list[NDArray[np.float32]]] = [[] for _ in configs]
        self._returns: list[list[float]] = [[] for _ in configs]

    # What the host's evaluator and pipelines call.

    def seed(self, seed: int | list[int] | dict[int, int], dynamic_seed: bool = True) -> None:
        """Take the run's seed; with ``dynamic_seed=False`` every :meth:`reset` begins with the same episodes."""
        if not isinstance(seed, int):
            raise ValueError(f"seed must be one integer for all environments, got {seed!r}")
        self._seed, self._same_every_time = seed, not dynamic_seed

    def launch(self, reset_param: Any = None) -> None:
        """Make the environments and begin an episode in each."""
        self._env = batch_env(self._config, self.env_num)
        self.reset()

    def reset(self, reset_param: Any = None) -> None:
        """Begin an episode in every environment."""
        if self._env is None:
            self.launch()
            return
        if self._same_every_time:
            self._episode[:] = 0
        self._returns = [[] for _ in range(self.env_num)]
        self._begin(np.arange(self.env_num))

    @property
    def ready_obs(self) -> dict[int, NDArray[np.float32]]:
        """The observation of each environment by its number: (To, Do), or (Do,) for policies over single actions."""
        return {i: row if self._chunked else row[-1] for i, row in enumerate(self.batch_obs)}

    @property
    def done(self) -> bool:
        """Never: environments begin anew."""
        return False

    def step(self, actions: Mapping[int, NDArray[Any]]) -> dict[int, BaseEnvTimestep]:
        """One decision in every environment, for the host's evaluator."""
        if sorted(actions) != list(range(self.env_num)):
            raise ValueError(f"actions must be given for all {self.env_num} environments, got {sorted(actions)}")
        chunk = np.stack([np.asarray(actions[i], dtype=np.float32) for i in range(self.env_num)])
        made = self.batch_step(chunk if self._chunked else chunk[:, None])
        timesteps = {}
        for i in range(self.env_num):
            info: dict[str, Any] = dict(
                terminated=bool(made.terminated[i]), truncated=bool(made.truncated[i]), steps=int(made.length[i])
            )
            if i in made.returns:
                info["eval_episode_return"] = made.returns[i]
                info["episode_info"] = dict(length=float(made.lengths[i]))
                if made.successes is not None:
                    info["episode_info"]["success"] = float(made.successes[i])
            obs = made.next_obs[i] if self._chunked else made.next_obs[i, -1]
            timesteps[i] = BaseEnvTimestep(obs, made.reward[i], i in made.returns, info)
        return timesteps

    def close(self) -> None:
        """Release the environments, if they hold anything."""
        if hasattr(self._env, "close"):
            self._env.close()

    @property
    def mean_return(self) -> float | None:
        """Of episodes that ended since the last :meth:`reset`, as many of each environment; None if there is none."""
        count = min(map(len, self._returns))
        return float(np.mean([some[:count] for some in self._returns])) if count else None

    # What the chunk collector calls.

    @property
    def batch_obs(self) -> NDArray[np.float32]:
        """Observation histories of all environments, the latest last, (E, To, Do)."""
        return self._seen.copy()

    def batch_step(self, chunk: NDArray[np.float32]) -> Decisions:
        """One decision in every environment, (E, Ta, Da); where an episode ends, the next one begins.

        Raises:
            ValueError: If an action is not finite or the shape is wrong, and no environment has been stepped then; or
                if an observation or a reward is not finite.
        """
        check_actions(chunk, self._length)
        made = self._env.step_chunk(chunk)
        check_outcome(made.obs, made.reward, self._length + made.length)
        for done, actions, count in zip(self._done, chunk, made.length):
            done.append(actions[:count].copy())
        self._seen = latest_observations(self._seen, made.obs, made.length)
        next_obs, reward = self._seen.copy(), made.reward.sum(axis=1)
        self._return += reward
        self._length += made.length
        ended = np.flatnonzero(made.terminated | made.truncated)
        returns = {int(i): float(self._return[i]) for i in ended}
        lengths = {int(i): int(self._length[i]) for i in ended}
        for i, value in returns.items():
            self._returns[i].append(value)
        success = self._env.success
        successes = None if success is None else {int(i): bool(success[i]) for i in ended}
        if ended.size:
            self._begin(ended)
        return Decisions(
            next_obs,
            reward.astype(np.float32),
            made.terminated,
            made.truncated,
            made.length,
            returns,
            lengths,
            successes,
        )

    # What checkpoints hold of it.

    def state_dict(self) -> dict[str, Any]:
        """The running episodes as their seeds' numbers and what was done in them: no simulator's state is needed."""
        empty = np.zeros((0, self._env.action_dim), dtype=np.float32)
        actions = [torch.from_numpy(np.concatenate([empty, *done])) for done in self._done]
        seen, returns = (torch.from_numpy(x.copy()) for x in (self._seen, self._return))
        episode = torch.from_numpy(self._episode.copy())
        return dict(seed=self._seed, episode=episode, actions=actions, seen=seen, returns=returns)

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Begin the episodes of :meth:`state_dict` again, and do in them what was done.

        Returns:
            Numbers of the environments whose episode came out otherwise, as it need not where a simulator keeps more
            than a seed begins: they begin a new one.

        Raises:
            ValueError: If it is of another seed or number of environments.
        """
        there, here = (state["seed"], len(state["episode"])), (self._seed, self.env_num)
        if there != here:
            raise ValueError(
                f"the checkpoint's episodes are of seed {there[0]} in {there[1]} environments, this run has seed "
                f"{here[0]} and {here[1]} (env.collector_env_num): resume with the same"
            )
        actions, seen = [one.numpy() for one in state["actions"]], state["seen"].numpy()
        self._episode = state["episode"].numpy().copy()
        obs = replay(self._env, [self._episode_seed(i, n - 1) for i, n in enumerate(self._episode)], actions)
        self._seen, self._return = seen.copy(), state["returns"].numpy().copy()
        self._length = np.array([len(one) for one in actions])
        self._done = [[one] for one in actions]
        lost = np.flatnonzero((obs != seen[:, -1]).any(axis=1) | ~self._env.running)
        if lost.size:
            self._begin(lost)
        return [int(i) for i in lost]

    def _episode_seed(self, env: int, number: int) -> int:
        return int(np.random.SeedSequence([self._seed, int(env), int(number)]).generate_state(1)[0])

    def _begin(self, rows: NDArray[np.int64]) -> None:
        """Begin the next episode of some environments."""
        obs = self._env.reset([self._episode_seed(i, self._episode[i]) for i in rows], rows=rows)
        check_outcome(obs, np.zeros(self.env_num), np.zeros(self.env_num, dtype=np.int64))
        self._episode[rows] += 1
        for i in rows:
            self._done[i] = []
        if len(rows) == self.env_num:
            self._seen = np.repeat(obs[:, None], self._history, axis=1)
            self._return, self._length = np.zeros(self.env_num), np.zeros(self.env_num, dtype=np.int64)
        else:
            self._seen[rows] = obs[rows, None]
            self._return[rows], self._length[rows] = 0.0, 0
