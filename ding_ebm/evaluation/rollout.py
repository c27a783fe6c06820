"""Episodes of a policy in many environments at once, one batched call of the policy a step.

Letters: n episodes, E environments, Do and Da dimensions of an observation and of an action, T steps of an episode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ding_ebm.envs.batch import BatchEnv

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Episodes:
    """What was observed of n episodes, in the order of their seeds.

    Attributes:
        returns: Undiscounted sums of rewards, (n,), float64.
        lengths: Numbers of steps T, (n,), int64.
        terminated: Whether the task ended an episode, and not its time limit, (n,), bool.
        trajectories: Observations of each episode, (T + 1, Do), the last one after its last action; None unless kept.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    trajectories: list[NDArray[np.float32]] | None


def rollout(
    act: Act,
    env: BatchEnv,
    seeds: Sequence[int],
    keep_trajectories: bool = False,
    description: str | None = None,
) -> Episodes:
    """Run one episode for each seed, E at a time.

    Environments whose episode has ended are not shown to the policy. The same policy state, seeds and number of
    environments give the same episodes bit by bit; another number of environments hands a random policy its random
    numbers in another order.

    Args:
        act: Maps observations (k, Do) of the k <= E environments still running to actions (k, Da).
        env: The environments; every one is reset.
        seeds: Seed of the environment for each episode, (n,).
        keep_trajectories: Whether to return the observations.
        description: Name of a progress bar over steps; None: no bar.

    Raises:
        ValueError: If there are no seeds, or the policy's actions have the wrong shape.
    """
    if len(seeds) == 0:
        raise ValueError("a rollout needs at least one seed, got none")
    starts = range(0, len(seeds), env.num_envs)
    parts = []
    with tqdm(
        total=len(starts) * env.max_episode_steps,
        desc=description,
        unit="step",
        disable=description is None,
        mininterval=0.5 if sys.stderr.isatty() else 15.0,  # a file takes a line a report: few of them
    ) as progress:
        for number, start in enumerate(starts, start=1):
            parts.append(_run_batch(act, env, seeds[start : start + env.num_envs], keep_trajectories, progress))
            progress.update(number * env.max_episode_steps - progress.n)  # episodes may end before their limit
    return Episodes(
        np.concatenate([part.returns for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.terminated for part in parts]),
        [path for part in parts for path in part.trajectories or []] if keep_trajectories else None,
    )


def _run_batch(act: Act, env: BatchEnv, seeds: Sequence[int], keep: bool, progress: tqdm) -> Episodes:
    """One episode for each of at most E seeds."""
    count, size = len(seeds), env.num_envs
    obs = env.reset([*seeds, *[seeds[-1]] * (size - count)])
    running = np.arange(size) < count  # environments without a seed of their own never run
    returns, lengths = np.zeros(size), np.zeros(size, dtype=np.int64)
    ended_by_task = np.zeros(size, dtype=np.bool_)
    seen = [obs]
    while running.any():
        action = np.zeros((size, env.action_dim), dtype=np.float32)
        chosen = np.asarray(act(obs[running]))
        if chosen.shape != (int(running.sum()), env.action_dim):
            raise ValueError(f"act must return {(int(running.sum()), env.action_dim)} actions, got {chosen.shape}")
        action[running] = chosen
        obs, reward, terminated, truncated = env.step(action)
        returns += np.where(running, reward, 0.0)
        lengths += running
        ended_by_task |= running & terminated
        progress.update()
        running &= ~(terminated | truncated)
        if keep:
            seen.append(obs)
    paths = [np.stack([o[i] for o in seen[: lengths[i] + 1]]) for i in range(count)] if keep else None
    return Episodes(returns[:count], lengths[:count], ended_by_task[:count], paths)
