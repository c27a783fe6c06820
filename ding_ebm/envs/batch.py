"""Many environments stepped together: what evaluation and data collection ask of an environment.

Letters: E environments, Do and Da dimensions of an observation and of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

Step = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]


class BatchEnv(Protocol):
    """E environments of one task. One that has ended stays as it is, with reward 0 and its flags set, until reset.

    Attributes:
        num_envs: E.
        obs_dim: Do.
        action_dim: Da.
        action_low: Lowest action, (Da,).
        action_high: Highest action, (Da,).
        max_episode_steps: Steps after which an episode is truncated.
    """

    num_envs: int
    obs_dim: int
    action_dim: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]
    max_episode_steps: int

    def reset(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        """Begin an episode in every environment.

        Args:
            seeds: One an environment; the same seed begins, and under the same actions repeats, the same episode.

        Returns:
            First observations, (E, Do).
        """

    def step(self, action: NDArray[Any]) -> Step:
        """Act once in every environment that has not ended.

        Args:
            action: In the environment's units, (E, Da), finite; those of ended environments are ignored.

        Returns:
            Observations (E, Do), rewards (E,), terminated (E,) and truncated (E,).
        """


def check_seeds(seeds: Sequence[int], num_envs: int) -> None:
    """Refuse a number of seeds that is not the number of environments."""
    if len(seeds) != num_envs:
        raise ValueError(f"reset takes one seed for each of the {num_envs} environments, got {len(seeds)}")


def checked_action(action: NDArray[Any], num_envs: int, action_dim: int) -> NDArray[Any]:
    """The actions as an array, refused if their shape is wrong or one is not finite."""
    action = np.asarray(action)
    if action.shape != (num_envs, action_dim):
        raise ValueError(f"actions must be of shape {(num_envs, action_dim)}, got {action.shape}")
    if not np.isfinite(action).all():
        rows = np.flatnonzero(~np.isfinite(action).all(axis=1))
        raise ValueError(f"actions must be finite, got {action[rows[0]]} for environment {rows[0]}")
    return action


class GymBatch:
    """:class:`BatchEnv` over single Gymnasium environments with vector observations and actions, one after another.

    Args:
        make_env: Makes one environment, whose spec or attribute ``max_episode_steps`` gives its time limit.
        num_envs: E.

    Raises:
        ValueError: If the number or the environment's spaces are not as described.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env[Any, Any]], num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self._envs = [make_env() for _ in range(num_envs)]
        first = self._envs[0]
        for name, space in (("observation", first.observation_space), ("action", first.action_space)):
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise ValueError(f"the {name} space must be a Box of one dimension, got {space}")
        assert isinstance(first.action_space, gymnasium.spaces.Box) and first.observation_space.shape is not None
        steps = first.spec.max_episode_steps if first.spec else getattr(first.unwrapped, "max_episode_steps", None)
        if steps is None:
            raise ValueError(f"{first} has no time limit: its spec must state max_episode_steps")
        self.num_envs = num_envs
        self.obs_dim = first.observation_space.shape[0]
        self.action_dim = first.action_space.shape[0]
        self.action_low = first.action_space.low.astype(np.float32)
        self.action_high = first.action_space.high.astype(np.float32)
        self.max_episode_steps: int = steps
        self._obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)

    def reset(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        """See :class:`BatchEnv`."""
        check_seeds(seeds, self.num_envs)
        for i, (env, seed) in enumerate(zip(self._envs, seeds)):
            self._obs[i], _ = env.reset(seed=int(seed))
        self._terminated[:] = False
        self._truncated[:] = False
        return self._obs.copy()

    def step(self, action: NDArray[Any]) -> Step:
        """See :class:`BatchEnv`."""
        action = checked_action(action, self.num_envs, self.action_dim)
        reward = np.zeros(self.num_envs)
        for i in np.flatnonzero(~(self._terminated | self._truncated)):
            self._obs[i], reward[i], self._terminated[i], self._truncated[i], _ = self._envs[i].step(action[i])
        return self._obs.copy(), reward, self._terminated.copy(), self._truncated.copy()

    def close(self) -> None:
        """Release the environments."""
        for env in self._envs:
            env.close()
