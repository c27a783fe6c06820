"""Where recorded and new episodes of a task went: those of a data set, of a policy, and of its fine-tuning's beginning.

Of any task that is about a place (``Task.position``).

Letters: n episodes, T steps of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ding.policy import create_policy
from easydict import EasyDict
from numpy.typing import NDArray

from ding_ebm.data.transitions import Transitions
from ding_ebm.envs.avoid import FINISH_Y
from ding_ebm.envs.avoid_modes import SUCCESS_REWARD
from ding_ebm.envs.avoid_ways import NONE, NUM_WAYS
from ding_ebm.envs.task import Task
from ding_ebm.evaluation.checkpoint import chunk_lengths, load_policy, read_run_config, rollout_policy
from ding_ebm.evaluation.rollout import Episodes, rollout
from ding_ebm.evaluation.ways import has_ways, way_entropy, ways_of
from ding_ebm.host.backends import batch_env, task_of


@dataclass(frozen=True)
class Trajectories:
    """Episodes of a task from above.

    Attributes:
        task: The task.
        title: What they are.
        paths: Positions of each, (T + 1, 2), in the units of its observations.
        success: Whether each succeeded, (n,), bool; None where that is not known.
        ways: Of an avoid task the way of each, see :func:`~ding_ebm.envs.avoid_ways.ways_taken`, (n,); else None.
    """

    task: Task
    title: str
    paths: list[NDArray[np.float32]]
    success: NDArray[np.bool_] | None
    ways: NDArray[np.int64] | None

    @property
    def outcomes(self) -> list[str]:
        """Of each ``success``, ``through`` (none, but past the last row of avoid), ``failure`` or ``unknown``."""
        if self.success is None:
            return ["unknown"] * len(self.paths)
        through = np.zeros(len(self.paths), dtype=np.bool_) if self.ways is None else self.ways != NONE
        return np.where(self.success, "success", np.where(through, "through", "failure")).tolist()


def of_data(task: Task, data: Transitions, title: str | None = None, most: int | None = None) -> Trajectories:
    """The episodes of a data set, at most ``most`` of them, drawn at random; ``title`` is "data" if it is None.

    Raises:
        ValueError: If the task is not about a place, or the data are not of its dimensions.
    """
    _check_place(task)
    if data.obs.shape[1] != task.obs_dim:
        raise ValueError(f"{data.source}: {data.obs.shape[1]} numbers an observation, {task.name} has {task.obs_dim}")
    ends = data.episode_ends
    starts = np.concatenate([[0], ends[:-1] + 1])
    chosen = np.arange(len(ends))
    if most is not None and most < len(ends):
        chosen = np.random.default_rng(0).choice(len(ends), most, replace=False)
    episodes = [(int(starts[i]), int(ends[i])) for i in chosen]
    observed = [np.concatenate([data.obs[a : b + 1], data.next_obs[b : b + 1]]) for a, b in episodes]
    success = np.array([_succeeded(task, data, a, b) for a, b in episodes], dtype=np.bool_)
    return _trajectories(task, title or "data", observed, success)


def of_policy(
    task: Task,
    config: str | Path,
    checkpoint: str | Path,
    seeds: Sequence[int],
    title: str | None = None,
    num_envs: int = 50,
) -> Trajectories:
    """Episodes of a trained policy as ``ding-ebm eval`` runs them: without exploration.

    Args:
        task: The task, of which the config must be.
        config: Config of the run.
        checkpoint: A checkpoint of it.
        seeds: Of the environment in each episode, (n,).
        title: What to call them; None: the policy's registered name.
        num_envs: Environments at a time.

    Raises:
        ValueError: If the task is not about a place, or the config is of another one.
        FileNotFoundError: If a file is missing.
    """
    found = _config_of(task, config)
    policy = load_policy(config, checkpoint)
    env = batch_env(found.env, min(num_envs, len(seeds)))
    title = title or found.policy.type
    return _of_episodes(task, title, rollout_policy(policy, env, seeds, keep_trajectories=True, description=title))


def of_collecting(
    task: Task,
    config: str | Path,
    base: str | Path | None,
    seeds: Sequence[int],
    title: str | None = None,
    num_envs: int = 50,
    seed: int = 0,
) -> Trajectories:
    """Episodes that the first iteration of a run of fine-tuning learns from: of the cloned policy, with exploration.

    Args:
        task: See :func:`of_policy`.
        config: Config of the run.
        base: The cloned policy, a checkpoint or the folder of its run; None: the config's ``base_policy_path``.
        seeds: See there.
        title: See there.
        num_envs: See there.
        seed: Of the policy's own random numbers.

    Raises:
        ValueError: As :func:`of_policy`; if the config's policy does not fine-tune a cloned one.
        FileNotFoundError: If a file is missing.
    """
    found = _config_of(task, config)
    if "base_policy_path" not in found.policy:
        raise ValueError(f"{config}: {found.policy.type} does not fine-tune a cloned policy, so it collects nothing")
    if base is not None:
        found.policy.base_policy_path = str(base)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = create_policy(found.policy, enable_field=["learn", "collect", "eval"])

    def act(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        chosen: NDArray[np.float32] = policy.collect_mode.forward(obs)["action"].cpu().numpy()
        return chosen

    env, title = batch_env(found.env, min(num_envs, len(seeds))), title or f"{found.policy.type}, first iteration"
    episodes = rollout(act, env, seeds, **chunk_lengths(policy), keep_trajectories=True, description=title)
    return _of_episodes(task, title, episodes)


def summary(sets: Sequence[Trajectories]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table: shares of successes and, of an avoid task, what is known of the ways."""
    header, lines = ["trajectories", "episodes", "success"], []
    for one in sets:
        share = "-" if one.success is None else f"{one.success.mean():.3f}"
        lines.append([" ".join(one.title.split()), str(len(one.paths)), share])
        if one.ways is not None:
            through = one.ways[one.ways != NONE]
            lines[-1] += [f"{len(through) / len(one.ways):.3f}", str(len(np.unique(through)))]
            lines[-1].append(f"{way_entropy(one.ways):.3f}" if len(through) else "-")
    if sets[0].ways is not None:
        header += ["got through", "ways", f"entropy / log {NUM_WAYS}"]
    return header, lines


def _of_episodes(task: Task, title: str, episodes: Episodes) -> Trajectories:
    return _trajectories(task, title, episodes.trajectories or [], episodes.success)


def _trajectories(
    task: Task, title: str, observed: list[NDArray[np.float32]], success: NDArray[np.bool_] | None
) -> Trajectories:
    """From the observations of each episode, (T + 1, Do)."""
    ways = ways_of(task, observed) if has_ways(task) else None
    return Trajectories(task, title, [path[:, task.position] for path in observed], success, ways)


def _succeeded(task: Task, data: Transitions, begin: int, end: int) -> bool:
    """Whether an episode of a data set, rows ``begin`` to ``end``, succeeded, by its rewards or where it ended."""
    reward = data.reward[begin : end + 1]
    if task.base == "avoid":
        return bool(data.terminated[end] and data.next_obs[end, task.position][1] > FINISH_Y)
    return bool((reward >= SUCCESS_REWARD).any() if has_ways(task) else (reward > 0.0).any())


def _config_of(task: Task, config: str | Path) -> EasyDict:
    _check_place(task)
    found = read_run_config(config)
    name = task_of(found.env).name
    if name != task.name:
        raise ValueError(f"{config} is of the task {name}, and trajectories of {task.name} are asked for")
    return found


def _check_place(task: Task) -> None:
    if task.position is None:
        raise ValueError(f"{task.name} is not about a place: trajectories of avoid and maze tasks can be shown")
