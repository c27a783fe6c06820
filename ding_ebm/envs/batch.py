"""Many environments stepped together: what evaluation and data collection ask of an environment.

Letters: E environments, To observation history, Ta actions of a chunk, Do and Da dimensions of an observation and of
an action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

Step = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]


@dataclass(frozen=True)
class ChunkStep:
    """What came of a chunk of actions. An episode that ends inside it stops there: the rest is not executed.

    Attributes:
        obs: Observation after each action, (E, Ta, Do); once an episode has ended, its last one.
        reward: Reward of each action, (E, Ta); 0 for what was not executed.
        terminated: Whether the task has ended the episode, (E,).
        truncated: Whether the time limit has, (E,).
        length: Number of actions executed, (E,), int64; 0 where the episode had ended before.
    """

    obs: NDArray[np.float32]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    length: NDArray[np.int64]


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

    @property
    def running(self) -> NDArray[np.bool_]:
        """Which environments have not ended, (E,)."""

    @property
    def success(self) -> NDArray[np.bool_] | None:
        """Whether each episode has succeeded so far, by the task's own definition, (E,); None where it has none.

        Once an episode has ended it stays as it is until that environment is reset, which begins with False: read it
        before. A task may take success back within an episode; what counts is what it says when the episode has ended.
        """

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Begin an episode in every environment, or in some; the others go on where they are.

        Args:
            seeds: One for each of ``rows``; the same seed begins, and under the same actions repeats, the same episode.
            rows: Which environments begin anew; None: all.

        Returns:
            Observations of all environments, (E, Do).
        """

    def step(self, action: NDArray[Any]) -> Step:
        """Act once in every environment that has not ended.

        Args:
            action: In the environment's units, (E, Da), finite; those of ended environments are ignored.

        Returns:
            Observations (E, Do), rewards (E,), terminated (E,) and truncated (E,).
        """

    def step_chunk(self, actions: NDArray[Any]) -> ChunkStep:
        """Act up to Ta times in every environment that has not ended, each until its episode ends.

        Args:
            actions: In the environment's units, (E, Ta, Da) with Ta at least 1, finite.
        """


def checked_rows(seeds: Sequence[int], num_envs: int, rows: Sequence[int] | None) -> NDArray[np.int64]:
    """The environments to reset, refused if one is unknown or named twice or has no seed of its own."""
    if rows is None:
        if len(seeds) != num_envs:
            raise ValueError(f"reset takes one seed for each of the {num_envs} environments, got {len(seeds)}")
        return np.arange(num_envs)
    index = np.asarray(rows)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise ValueError(f"rows must be indices of environments, got {rows!r}")
    if len(seeds) != len(index):
        raise ValueError(f"reset takes one seed for each of the {len(index)} rows, got {len(seeds)}")
    if len(np.unique(index)) != len(index) or (index < 0).any() or (index >= num_envs).any():
        raise ValueError(f"rows must be different indices from 0 to {num_envs - 1}, got {index.tolist()}")
    return index.astype(np.int64)


def checked_action(action: NDArray[Any], num_envs: int, action_dim: int) -> NDArray[Any]:
    """The actions of a step as an array, refused if their shape is wrong or one is not finite."""
    action = np.asarray(action)
    if action.shape != (num_envs, action_dim):
        raise ValueError(f"actions must be of shape {(num_envs, action_dim)}, got {action.shape}")
    _check_finite(action)
    return action


def checked_chunk(actions: NDArray[Any], num_envs: int, action_dim: int) -> NDArray[Any]:
    """The actions of a chunk as an array, refused if their shape is wrong or one is not finite."""
    actions = np.asarray(actions)
    if actions.ndim != 3 or actions.shape[1] < 1 or actions.shape[::2] != (num_envs, action_dim):
        raise ValueError(f"actions must be of shape ({num_envs}, Ta, {action_dim}), Ta >= 1, got {actions.shape}")
    _check_finite(actions)
    return actions


def _check_finite(action: NDArray[Any]) -> None:
    if not np.isfinite(action).all():
        where = tuple(np.argwhere(~np.isfinite(action))[0][:-1])
        raise ValueError(f"actions must be finite, got {action[where]} for environment {where[0]}")


def check_actions(actions: NDArray[Any], steps: NDArray[np.int64]) -> None:
    """Refuse actions that are not finite before any environment gets one.

    Args:
        actions: (E, ...).
        steps: Steps of its episode that each environment has made, (E,).

    Raises:
        ValueError: Names the first environment and its step.
    """
    if not np.isfinite(actions).all():
        env = int(np.argwhere(~np.isfinite(actions))[0, 0])
        raise ValueError(
            f"the action of environment {env} at step {steps[env]} of its episode is not finite: "
            f"{np.asarray(actions)[env].tolist()}; no environment has been stepped"
        )


def check_outcome(obs: NDArray[Any], reward: NDArray[Any], steps: NDArray[np.int64]) -> None:
    """Refuse observations and rewards of environments that are not finite.

    Args:
        obs: (E, ..., Do).
        reward: (E, ...).
        steps: Steps of its episode that each environment has made, with those that gave them, (E,).

    Raises:
        ValueError: Names the first environment, its step, and the number.
    """
    for name, values in (("observation", obs), ("reward", reward)):
        if not np.isfinite(values).all():
            where = tuple(np.argwhere(~np.isfinite(values))[0])
            raise ValueError(
                f"the {name} of environment {where[0]} after step {steps[where[0]]} of its episode is not finite: "
                f"{np.asarray(values)[where]} in column {where[-1] if len(where) > 1 else 0}"
            )


def step_chunk_by_steps(env: BatchEnv, actions: NDArray[Any]) -> ChunkStep:
    """:meth:`BatchEnv.step_chunk` over ``env.step``; a chunk with a bad action is refused before the first step."""
    actions = checked_chunk(actions, env.num_envs, env.action_dim)
    length = np.zeros(env.num_envs, dtype=np.int64)
    steps = []
    for t in range(actions.shape[1]):
        length += env.running
        steps.append(env.step(actions[:, t]))
    obs, reward = (np.stack(column, axis=1) for column in list(zip(*steps))[:2])
    return ChunkStep(obs, reward, *steps[-1][2:], length)


def replay(env: BatchEnv, seeds: Sequence[int], actions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Begin an episode in every environment, and do in each what is given: where it was, it is again.

    All arrive at the same time: an episode of n actions begins n steps before the end.

    Args:
        env: The environments.
        seeds: Seed of each episode.
        actions: What was done in each, (n, Da), n its own.

    Returns:
        Observations after it, (E, Do).
    """
    count = np.array([len(one) for one in actions])
    longest = int(count.max())
    everything = np.zeros((env.num_envs, longest, env.action_dim), dtype=np.float32)
    for row, one in zip(everything, actions):
        row[longest - len(one) :] = one
    begins = sorted({longest - int(n) for n in count})
    for begin, until in zip(begins, [*begins[1:], longest]):
        rows = np.flatnonzero(longest - count == begin).tolist()
        obs = env.reset([seeds[i] for i in rows], rows=rows)
        if until > begin:
            obs = env.step_chunk(everything[:, begin:until]).obs[:, -1]
    return obs


def latest_observations(
    seen: NDArray[np.float32], obs: NDArray[np.float32], length: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Histories after a chunk: of each environment the latest To of what was seen before and in its steps.

    Args:
        seen: Histories before it, the latest last, (E, To, Do).
        obs: Observations of the chunk, see :class:`ChunkStep`, (E, Ta, Do).
        length: Number of actions executed, (E,).

    Returns:
        (E, To, Do).
    """
    history = seen.shape[1]
    last = history + length[:, None] + np.arange(-history, 0)
    return np.take_along_axis(np.concatenate([seen, obs], axis=1), last[:, :, None], axis=1)


def reported_success(info: Mapping[str, Any]) -> bool | None:
    """Whether an episode has succeeded so far, as a Gymnasium environment says by ``success``; None if it does not."""
    return bool(info["success"]) if "success" in info else None


def time_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Steps after which an environment truncates an episode, by its spec or attribute; None if neither says."""
    steps: int | None = env.spec.max_episode_steps if env.spec else getattr(env.unwrapped, "max_episode_steps", None)
    return steps


class GymBatch:
    """:class:`BatchEnv` over single Gymnasium environments with vector observations and actions, one after another.

    An episode has succeeded if the latest ``info["success"]`` says so; as long as no environment has reported it, the
    task has no notion of success.

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
        steps = time_limit(first)
        if steps is None:
            raise ValueError(f"{first} has no time limit: its spec must state max_episode_steps")
        self.num_envs = num_envs
        self.obs_dim = first.observation_space.shape[0]
        self.action_dim = first.action_space.shape[0]
        self.action_low = first.action_space.low.astype(np.float32)
        self.action_high = first.action_space.high.astype(np.float32)
        self.max_episode_steps = steps
        self._obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._success = np.zeros(num_envs, dtype=np.bool_)
        self._reports_success = False

    @property
    def running(self) -> NDArray[np.bool_]:
        """See :class:`BatchEnv`."""
        return ~(self._terminated | self._truncated)

    @property
    def success(self) -> NDArray[np.bool_] | None:
        """See :class:`BatchEnv`."""
        return self._success.copy() if self._reports_success else None

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """See :class:`BatchEnv`."""
        index = checked_rows(seeds, self.num_envs, rows)
        self._success[index] = False
        for i, seed in zip(index, seeds):
            self._obs[i], info = self._envs[i].reset(seed=int(seed))
            self._note_success(i, info)
        self._terminated[index] = False
        self._truncated[index] = False
        return self._obs.copy()

    def step(self, action: NDArray[Any]) -> Step:
        """See :class:`BatchEnv`."""
        action = checked_action(action, self.num_envs, self.action_dim)
        reward = np.zeros(self.num_envs)
        for i in np.flatnonzero(self.running):
            self._obs[i], reward[i], self._terminated[i], self._truncated[i], info = self._envs[i].step(action[i])
            self._note_success(i, info)
        return self._obs.copy(), reward, self._terminated.copy(), self._truncated.copy()

    def step_chunk(self, actions: NDArray[Any]) -> ChunkStep:
        """See :class:`BatchEnv`."""
        return step_chunk_by_steps(self, actions)

    def _note_success(self, i: np.int64, info: Mapping[str, Any]) -> None:
        said = reported_success(info)
        if said is not None:
            self._success[i], self._reports_success = said, True

    def close(self) -> None:
        """Release the environments."""
        for env in self._envs:
            env.close()
