"""Data sets made by a policy: a trained one, a scripted one or a random one, in many environments at once.

Letters: n episodes, E environments, To observation history, Ta actions of a chunk, Do and Da dimensions of an
observation and of an action.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ding_ebm.data.transitions import Transitions, concatenate
from ding_ebm.envs.avoid_demos import OTHER_GATES, make_demonstrations, make_mode_demonstrations
from ding_ebm.envs.batch import BatchEnv
from ding_ebm.envs.registry import make_batch_env
from ding_ebm.envs.robomimic_demos import SCRIPTS
from ding_ebm.envs.robomimic_demos import make_demonstrations as make_robomimic_demonstrations
from ding_ebm.evaluation.rollout import Act, decisions

# Makes demonstrations of a task from: number of episodes, seed, and ``noise``, see :func:`collect`.
SCRIPTED: Mapping[str, Callable[..., Transitions]] = {
    "avoid": make_demonstrations,
    **{task: partial(make_mode_demonstrations, task) for task in OTHER_GATES},
    "avoid-arx": partial(make_demonstrations, tracking="arx"),
    **{f"{task}-arx": partial(make_mode_demonstrations, task, tracking="arx") for task in OTHER_GATES},
    **{task: partial(make_robomimic_demonstrations, task) for task in SCRIPTS},
}


def collect(
    task: str,
    policy: str,
    *,
    episodes: int,
    seed: int = 0,
    noise: float = 0.0,
    config: str | Path | None = None,
    num_envs: int = 50,
    description: str | None = None,
) -> Transitions:
    """Episodes of a task by a policy, with what was done and seen in each step.

    The same arguments give the same rows.

    Args:
        task: Name of the task.
        policy: ``scripted``, ``random`` (uniform over the actions), or the path of a checkpoint.
        episodes: n.
        seed: Of the starts, the noise and the policy.
        noise: Standard deviation of Gaussian noise on every action, as a share of half the range of actions. Noisy
            actions are clipped to the range; rows hold what was executed.
        config: Config of the run that the checkpoint is of.
        num_envs: E.
        description: Name of a progress bar over episodes; None: no bar.

    Raises:
        ValueError: If there is no such task or no script for it, the noise is negative, or the checkpoint is not of
            the task, lacks a config, or does not fit it.
        FileNotFoundError: If the checkpoint or the config is missing.
        ModuleNotFoundError: If the extra that the task needs is not installed.
    """
    if noise < 0.0:
        raise ValueError(f"noise must not be negative, got {noise:g}")
    facts = dict(task=task, policy=policy, seed=str(seed), noise=f"{noise:g}")
    if policy == "scripted":
        if task not in SCRIPTED:
            raise ValueError(
                f"{task} has no scripted demonstrator, only {', '.join(SCRIPTED)} have; give a checkpoint or 'random'"
            )
        made = SCRIPTED[task](episodes, seed, noise=noise)
    else:
        env = make_batch_env(task, min(num_envs, episodes))
        rng = np.random.default_rng(seed)
        seeds = rng.integers(2**31, size=episodes).tolist()
        act, chunks = _random(env, rng) if policy == "random" else _trained(task, policy, config, seed)
        source = f"{episodes} episodes of {task} by {policy}, noise {noise:g}, seed {seed}"
        made = record(act, env, seeds, **chunks, noise=noise, rng=rng, source=source, description=description)
    return replace(made, metadata={**made.metadata, **facts})


def record(
    act: Act,
    env: BatchEnv,
    seeds: Sequence[int],
    *,
    rng: np.random.Generator,
    source: str,
    act_steps: int | None = None,
    cond_steps: int = 1,
    noise: float = 0.0,
    description: str | None = None,
) -> Transitions:
    """Run one episode for each seed, E at a time, and keep every step that was executed.

    Args:
        act: As of :func:`~ding_ebm.evaluation.rollout.rollout`.
        env: The environments; every one is reset.
        seeds: Seed of the environment for each episode.
        rng: Of the noise.
        source: What the rows say of their origin.
        act_steps: Ta; None: a policy over single actions.
        cond_steps: To, of a policy over chunks.
        noise: See :func:`collect`.
        description: See there.
    """
    std = 0.5 * noise * (env.action_high - env.action_low)

    def decide(seen: NDArray[np.float32]) -> NDArray[np.float32]:
        chosen = np.asarray(act(seen[:, -1] if act_steps is None else seen), dtype=np.float32)
        chosen = chosen.reshape(len(seen), act_steps or 1, env.action_dim)
        if noise:
            chosen = chosen + std * rng.standard_normal(chosen.shape)
        return np.clip(chosen, env.action_low, env.action_high).astype(np.float32)

    parts = []
    quiet = description is None
    interval = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(total=len(seeds), desc=description, unit="episode", disable=quiet, mininterval=interval) as progress:
        for start in range(0, len(seeds), env.num_envs):
            batch = seeds[start : start + env.num_envs]
            parts.append(_record_batch(decide, env, batch, cond_steps, source, progress))
    return replace(concatenate(parts), source=source)


def _record_batch(
    decide: Act, env: BatchEnv, seeds: Sequence[int], cond_steps: int, source: str, progress: tqdm
) -> Transitions:
    """Rows of one episode for each of at most E seeds, episode by episode."""
    steps = []
    for running, latest, actions, step in decisions(decide, env, seeds, cond_steps):
        number = np.arange(actions.shape[1])
        executed = running[:, None] & (number < step.length[:, None])
        last = executed & (number == step.length[:, None] - 1)
        before = np.concatenate([latest[:, None], step.obs[:, :-1]], axis=1)
        ends = (last & step.terminated[:, None], last & step.truncated[:, None])
        steps.append((before, actions, step.reward.astype(np.float32), step.obs, *ends, executed))
        progress.update(int((running & (step.terminated | step.truncated)).sum()))
    *columns, executed = (np.concatenate(column, axis=1) for column in zip(*steps))
    return Transitions(*(column[executed] for column in columns), source)


def _random(env: BatchEnv, rng: np.random.Generator) -> tuple[Act, dict[str, int]]:
    def act(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        return rng.uniform(env.action_low, env.action_high, (len(obs), env.action_dim)).astype(np.float32)

    return act, {}


def _trained(task: str, checkpoint: str, config: str | Path | None, seed: int) -> tuple[Act, dict[str, int]]:
    """What a checkpoint does, and the lengths of its chunks."""
    from ding_ebm.evaluation.checkpoint import chunk_lengths, load_policy, read_run_config

    if not Path(checkpoint).exists():
        raise FileNotFoundError(f"no checkpoint at {checkpoint!r}; a policy is 'scripted', 'random' or a checkpoint")
    if config is None:
        raise ValueError(
            f"the config that {checkpoint} was trained by is needed to build its policy; give it (--config)"
        )
    trained_on = read_run_config(config).env.env_id
    if trained_on != task:
        raise ValueError(f"{config} is of the task {trained_on}, and data of {task} are asked for")
    policy = load_policy(config, checkpoint, seed)
    policy.eval_mode.reset()
    return policy.act, chunk_lengths(policy)
