"""Episodes of a policy in many environments at once, one batched call of the policy a step or a chunk of steps.

Letters: n episodes, E environments, To observation history, Ta actions of a chunk, Do and Da dimensions of an
observation and of an action, T steps of an episode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ding_ebm.envs.batch import BatchEnv, ChunkStep, check_actions, check_outcome, latest_observations

Act = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Episodes:
    """What was observed of n episodes, in the order of their seeds.

    Attributes:
        returns: Undiscounted sums of rewards, (n,), float64.
        lengths: Numbers of steps T, (n,), int64.
        terminated: Whether the task ended an episode, and not its time limit, (n,), bool.
        success: Whether the task was done, (n,), bool; None where it has no notion of success.
        trajectories: Observations of each episode, (T + 1, Do), the last one after its last action; None unless kept.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    success: NDArray[np.bool_] | None
    trajectories: list[NDArray[np.float32]] | None


def rollout(
    act: Act,
    env: BatchEnv,
    seeds: Sequence[int],
    *,
    act_steps: int | None = None,
    cond_steps: int = 1,
    keep_trajectories: bool = False,
    description: str | None = None,
) -> Episodes:
    """Run one episode for each seed, E at a time.

    Environments whose episode has ended are not shown to the policy. The same policy state, seeds and number of
    environments give the same episodes bit by bit; another number of environments hands a random policy its random
    numbers in another order.

    Args:
        act: Of the k <= E environments still running, maps observations (k, Do) to actions (k, Da); or, with
            ``act_steps``, the latest observations (k, To, Do), an episode's first repeated before it, to chunks of
            actions (k, Ta, Da), of which those after an episode's end are not executed.
        env: The environments; every one is reset.
        seeds: Seed of the environment for each episode, (n,).
        act_steps: Ta; None: a policy over single actions.
        cond_steps: To, of a policy over chunks.
        keep_trajectories: Whether to return the observations.
        description: Name of a progress bar over steps; None: no bar.

    Raises:
        ValueError: If there are no seeds, or the policy's actions have the wrong shape.
    """
    if len(seeds) == 0:
        raise ValueError("a rollout needs at least one seed, got none")
    shape = (env.action_dim,) if act_steps is None else (act_steps, env.action_dim)

    def decide(seen: NDArray[np.float32]) -> NDArray[np.float32]:
        chosen = np.asarray(act(seen[:, -1] if act_steps is None else seen), dtype=np.float32)
        if chosen.shape != (len(seen), *shape):
            raise ValueError(f"act must return {(len(seen), *shape)} actions, got {chosen.shape}")
        return chosen.reshape(len(seen), -1, env.action_dim)

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
            batch = seeds[start : start + env.num_envs]
            parts.append(_run_batch(decide, env, batch, cond_steps, keep_trajectories, progress))
            progress.update(number * env.max_episode_steps - progress.n)  # episodes may end before their limit
    successes = [part.success for part in parts if part.success is not None]
    return Episodes(
        np.concatenate([part.returns for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.terminated for part in parts]),
        np.concatenate(successes) if len(successes) == len(parts) else None,
        [path for part in parts for path in part.trajectories or []] if keep_trajectories else None,
    )


def decisions(
    decide: Act, env: BatchEnv, seeds: Sequence[int], cond_steps: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32], ChunkStep]]:
    """Run one episode for each of at most E seeds, decision by decision.

    Args:
        decide: Maps histories of running environments, (k, To, Do), to chunks (k, Ta, Da).
        env: The environments; every one is reset.
        seeds: Seed of the environment for each episode.
        cond_steps: To.

    Yields:
        Which environments run, (E,), their latest observations before the decision, (E, Do), the actions, (E, Ta, Da),
        and what came of them.
    """
    count, size = len(seeds), env.num_envs
    seen = np.repeat(env.reset([*seeds, *[seeds[-1]] * (size - count)])[:, None], cond_steps, axis=1)
    made = np.zeros(size, dtype=np.int64)
    running = np.arange(size) < count  # environments without a seed of their own are not looked at
    while running.any():
        chosen = decide(seen[running])
        actions = np.zeros((size, *chosen.shape[1:]), dtype=np.float32)
        actions[running] = chosen
        check_actions(actions, made)
        step = env.step_chunk(actions)
        made += step.length
        # Environments without an episode of their own are not looked at.
        shown = np.where(running[:, None, None], step.obs, 0.0), np.where(running[:, None], step.reward, 0.0)
        check_outcome(*shown, made)
        yield running, seen[:, -1], actions, step
        running = running & ~(step.terminated | step.truncated)
        seen = latest_observations(seen, step.obs, step.length)


def _run_batch(
    decide: Act, env: BatchEnv, seeds: Sequence[int], cond_steps: int, keep: bool, progress: tqdm
) -> Episodes:
    """One episode for each of at most E seeds; ``decide`` maps histories (k, To, Do) to chunks (k, Ta, Da)."""
    count, size = len(seeds), env.num_envs
    returns, lengths = np.zeros(size), np.zeros(size, dtype=np.int64)
    ended_by_task = np.zeros(size, dtype=np.bool_)
    made: list[NDArray[np.float32]] = []
    for running, before, _, step in decisions(decide, env, seeds, cond_steps):
        returns += np.where(running, step.reward.sum(axis=1), 0.0)
        lengths += np.where(running, step.length, 0)
        ended_by_task |= running & step.terminated
        progress.update(int(step.length[running].max()))
        if keep:
            made += [step.obs] if made else [before[:, None], step.obs]
    paths = None
    if keep:
        everything = np.concatenate(made, axis=1)
        paths = [everything[i, : lengths[i] + 1].copy() for i in range(count)]
    success = env.success
    known = None if success is None else success[:count].copy()
    return Episodes(returns[:count], lengths[:count], ended_by_task[:count], known, paths)
