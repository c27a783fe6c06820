"""A row of the task table made from any Gymnasium environment that this package does not know."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Union

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from ding_ebm.envs.batch import BatchEnv, GymBatch, time_limit
from ding_ebm.envs.task import PerDimension, Task

# A Gymnasium id, or what makes an environment: a class or a function.
Maker = Union[str, Callable[[], gymnasium.Env[Any, Any]]]


@dataclass(frozen=True)
class OwnEnvironment:
    """Makes single environments of a task: limited in time, with actions clipped to their range.

    Attributes:
        make: Gymnasium id, class or function.
        max_episode_steps: Time limit; None: the environment's own.
    """

    make: Maker
    max_episode_steps: int | None

    @property
    def origin(self) -> str:
        """What the environments are made by, in words that are the same when a file is imported again."""
        if isinstance(self.make, str):
            return self.make
        inner = self.make.func if isinstance(self.make, partial) else self.make
        return getattr(inner, "__qualname__", type(inner).__name__)

    def __call__(self, task: Task) -> gymnasium.Env[Any, Any]:
        """One environment, ready to be stepped."""
        env = self.limited(task.name)
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        low, high = space.low, space.high
        return gymnasium.wrappers.TransformAction(env, lambda action: np.clip(action, low, high), space)

    def batch(self, task: Task, num_envs: int) -> BatchEnv:
        """Many of them, one after another."""
        return GymBatch(lambda: self(task), num_envs)

    def limited(self, name: str) -> gymnasium.Env[Any, Any]:
        """One environment that has a time limit and says so in its spec.

        Raises:
            TypeError: If what is made is no Gymnasium environment.
            ValueError: If there is no such id, or no time limit, or one below what is asked for.
        """
        made = self._registered(name, self.make) if isinstance(self.make, str) else self.make()
        if not isinstance(made, gymnasium.Env):
            raise TypeError(f"{name}: {self.origin} must make a gymnasium.Env, got {type(made).__name__}")
        own = time_limit(made)
        limit = own if self.max_episode_steps is None else self.max_episode_steps
        if limit is None:
            raise ValueError(f"{name}: {self.origin} has no time limit: give max_episode_steps")
        if own is not None and own < limit:
            raise ValueError(
                f"{name}: {self.origin} ends an episode after {own} steps, before max_episode_steps={limit}"
            )
        if own != limit:
            made = gymnasium.wrappers.TimeLimit(made, limit)
        if made.spec is None:
            entry_point: Any = self.make
            made.unwrapped.spec = EnvSpec(id=name, entry_point=entry_point, max_episode_steps=limit)
        return made

    def _registered(self, name: str, gym_id: str) -> gymnasium.Env[Any, Any]:
        try:
            return gymnasium.make(gym_id, max_episode_steps=self.max_episode_steps)
        except gymnasium.error.Error as error:
            raise ValueError(f"{name}: Gymnasium does not make {gym_id!r}: {error}") from error


def own_task(
    name: str,
    make: Maker,
    max_episode_steps: int | None,
    reference_returns: tuple[float, float] | None,
    reward_tuning: str,
    data_sets: Mapping[str, Sequence[str]] | None,
) -> Task:
    """The row of an environment, read off one that is made and reset for it; arguments as of the registration.

    Raises:
        TypeError: If it is no environment.
        ValueError: If the name, the spaces, the limit, or what its reset does is not as a task needs it.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(
            f"the name of a task must be letters, digits and '_' and begin with a letter, got {name!r} (what follows "
            "a '-' is a task's dynamics)"
        )
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"{name}: max_episode_steps must be at least 1, got {max_episode_steps}")
    if reference_returns is not None and not reference_returns[0] < reference_returns[1]:
        raise ValueError(f"{name}: reference_returns must be a lower and a higher return, got {reference_returns}")
    maker = OwnEnvironment(make, max_episode_steps)
    env = maker.limited(name)
    obs_dim = _vector(name, "observation", env.observation_space).shape[0]
    action = _vector(name, "action", env.action_space)
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise ValueError(f"{name}: the action space must have finite ends, got {action}")
    _check_reset(name, env, obs_dim)
    steps = time_limit(env)
    assert steps is not None
    env.close()
    return Task(
        name=name,
        extra="core",
        obs_dim=obs_dim,
        action_dim=action.shape[0],
        action_range=(_ends(action.low), _ends(action.high)),
        max_episode_steps=steps,
        make_batch=maker.batch,
        make_single=maker,
        reference_returns=reference_returns,
        reward_tuning=reward_tuning,
        data_sets={key: tuple(files) for key, files in (data_sets or {"demonstrations": [f"{name}.hdf5"]}).items()},
        gym_id=make if isinstance(make, str) else None,
    )


def is_same(one: Task, other: Task) -> bool:
    """Whether two rows are of the same environment and say the same, as when a config is read twice."""
    return (
        isinstance(one.make_single, OwnEnvironment)
        and isinstance(other.make_single, OwnEnvironment)
        and one.make_single.origin == other.make_single.origin
        and _facts(one) == _facts(other)
    )


def _facts(task: Task) -> dict[str, Any]:
    return {key: value for key, value in vars(task).items() if key not in ("make_batch", "make_single")}


def _vector(name: str, what: str, space: gymnasium.Space[Any]) -> gymnasium.spaces.Box:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        hint = ""
        if what == "observation":
            hint = "; gymnasium.wrappers.FlattenObservation makes one of a dictionary or an array"
        raise ValueError(f"{name}: the {what} space must be a Box of one dimension, got {space}{hint}")
    return space


def _ends(values: np.ndarray[Any, Any]) -> PerDimension:
    """One number where all are the same."""
    ends = tuple(float(value) for value in values)
    return ends[0] if len(set(ends)) == 1 else ends


def _check_reset(name: str, env: gymnasium.Env[Any, Any], obs_dim: int) -> None:
    """Refuse an environment whose observations are not what its space says, or that its seed does not determine."""
    first, again = (np.asarray(env.reset(seed=0)[0], dtype=np.float64) for _ in range(2))
    if first.shape != (obs_dim,) or not np.isfinite(first).all():
        raise ValueError(f"{name}: reset must return {obs_dim} finite numbers, got {first}")
    if not np.array_equal(first, again):
        raise ValueError(
            f"{name}: two resets with seed 0 began different episodes ({first} and {again}), and evaluation needs them "
            "to be the same: call super().reset(seed=seed) in reset and draw from self.np_random"
        )
