"""A trained policy from its config and one of the host's checkpoints, and its evaluation with fixed seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ding.config import compile_config, read_config
from ding.policy import create_policy
from easydict import EasyDict
from torch import Tensor

from ding_ebm.checkpoint import find_checkpoint, read_checkpoint
from ding_ebm.envs.batch import BatchEnv
from ding_ebm.evaluation.results import Result, make_result
from ding_ebm.evaluation.rollout import Episodes, rollout
from ding_ebm.evaluation.video import write_videos
from ding_ebm.evaluation.ways import describe_ways, has_ways, ways_of
from ding_ebm.host.backends import batch_env, task_of
from ding_ebm.host.checks import check_files, check_run
from ding_ebm.policy.base import BasePolicy


def read_run_config(path: str | Path, seed: int = 0) -> EasyDict:
    """A config file as the host's evaluation compiles it, checked; nothing is written.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it cannot be used.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no config at {str(path)!r}")
    config, create_config = read_config(str(path))
    check_files(config, create_config)
    config = compile_config(config, seed=seed, auto=True, create_cfg=create_config, save_cfg=False)
    check_run(config)
    return config


def load_policy(config_path: str | Path, checkpoint_path: str | Path, seed: int = 0) -> BasePolicy:
    """The policy of a config with the parameters of a checkpoint, ready to act.

    Nothing is written, and the global random state stays as it was.

    Args:
        config_path: The config file of the run.
        checkpoint_path: A checkpoint of the run, or its folder.
        seed: Of the policy's own random numbers.

    Raises:
        FileNotFoundError: If one of the files is missing.
        ValueError: If the config cannot be used, the file is no checkpoint, or it does not fit the config's model.
    """
    state = _read(checkpoint_path)
    config = read_run_config(config_path, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = create_policy(config.policy, enable_field=["eval"])
    problems = _misfits(state["model"], policy.eval_mode.state_dict()["model"])
    if problems:
        shown = problems[:4] + ([f"and {len(problems) - 4} more"] if len(problems) > 4 else [])
        raise ValueError(f"{checkpoint_path} does not fit {config_path}: " + "; ".join(shown))
    policy.eval_mode.load_state_dict(state)
    return policy


def evaluate_checkpoint(
    config_path: str | Path,
    checkpoint_path: str | Path,
    *,
    scales: Sequence[float] | None,
    episodes: int,
    first_seed: int,
    command: str,
    num_envs: int = 50,
    train_seed: int | None = None,
    say: Callable[[str], object] | None = None,
    video: str | Path | None = None,
    video_episodes: int = 1,
) -> list[Result]:
    """Evaluate a checkpoint on fixed episodes; a guided one at several scales, each with the same noise.

    Args:
        config_path: See :func:`load_policy`.
        checkpoint_path: See :func:`load_policy`.
        scales: Guidance scales; None: those of the config. A policy without guidance has none.
        episodes: Number of episodes a scale.
        first_seed: Episode i runs in an environment of seed ``first_seed + i``.
        command: What the rows say that made them.
        num_envs: Environments at a time.
        train_seed: Seed that the run was trained with; None: as the host noted it beside the checkpoint's folder.
        say: Takes a line on what a correction by an energy did to the actions, where the config asks for one, one on
            the ways that the episodes took, where the task has ways, and one on each film.
        video: Folder for films of the first episodes at each scale, which are made first; see
            :func:`~ding_ebm.evaluation.video.write_videos`.
        video_episodes: How many of them.

    Raises:
        ValueError: As :func:`load_policy`; if the seed of the run is not known, or a scale is given for a policy
            without guidance, or the task draws no pictures and is to be filmed.
    """
    config = read_run_config(config_path)
    evaluated = _scales(config, scales)
    policy = load_policy(config_path, checkpoint_path)
    seed = _seed_of_run(checkpoint_path) if train_seed is None else train_seed
    facts = dict(run_facts(config, policy), seed=seed, command=command)
    env, task = batch_env(config.env, min(num_envs, episodes)), task_of(config.env)
    seeds = range(first_seed, first_seed + episodes)
    results = []
    for scale in evaluated:
        if video is not None:
            label = "" if scale is None else f"_scale{scale:g}"
            _film(policy, config, seeds[:video_episodes], video, label, scale, say)
        name = config.policy.type if scale is None else f"scale {scale:g}"
        found = rollout_policy(
            policy, env, seeds, guidance_scale=scale, keep_trajectories=has_ways(task), description=name
        )
        correction = policy.eval_mode.get_attribute("energy_correction")
        if say is not None and correction is not None:
            say(f"{name}, {correction.summary()}")
        if say is not None and has_ways(task):
            say(f"{name}: {describe_ways(ways_of(task, found.trajectories or []))}")
        results.append(make_result(found.returns, found.success, guidance_scale=scale, **facts))
    return results


def _film(
    policy: BasePolicy,
    config: EasyDict,
    seeds: Sequence[int],
    folder: str | Path,
    label: str,
    scale: float | None,
    say: Callable[[str], object] | None,
) -> None:
    options = {} if scale is None else dict(guidance_scale=scale)
    policy.eval_mode.reset()
    name, chunks = task_of(config.env).name, chunk_lengths(policy)
    paths = write_videos(lambda obs: policy.act(obs, **options), name, seeds, folder, label=label, **chunks)
    if say is not None:
        say("\n".join(f"filmed {path}" for path in paths))


def rollout_policy(
    policy: BasePolicy,
    env: BatchEnv,
    seeds: Sequence[int],
    *,
    guidance_scale: float | None = None,
    keep_trajectories: bool = False,
    description: str | None = None,
) -> Episodes:
    """Episodes of a policy, by single actions or by chunks as its model says, beginning with the same noise every time.

    Args:
        policy: In its eval mode.
        env: See :func:`~ding_ebm.evaluation.rollout.rollout`.
        seeds: See there.
        guidance_scale: Of a guided policy; None: the config's, or a policy without guidance.
        keep_trajectories: See there.
        description: See there.
    """
    options = {} if guidance_scale is None else dict(guidance_scale=guidance_scale)
    policy.eval_mode.reset()
    return rollout(
        lambda obs: policy.act(obs, **options),
        env,
        seeds,
        **chunk_lengths(policy),
        keep_trajectories=keep_trajectories,
        description=description,
    )


def chunk_lengths(policy: BasePolicy) -> dict[str, int]:
    """``act_steps`` and ``cond_steps`` of a policy over chunks, nothing of one over single actions."""
    model = policy.eval_mode.get_attribute("cfg").model
    return {key: model[key] for key in ("act_steps", "cond_steps") if key in model}


def _scales(config: EasyDict, scales: Sequence[float] | None) -> list[float | None]:
    """The guidance scales to evaluate at; [None] for a policy whose config has no such key."""
    if "guidance_scale" not in config.policy.eval:
        if scales is not None:
            raise ValueError(
                f"{config.policy.type} has no guidance: a guidance scale (--guidance-scale) does not apply to it"
            )
        return [None]
    configured = config.policy.eval.guidance_scale if scales is None else scales
    return [float(scale) for scale in (configured if isinstance(configured, (list, tuple)) else [configured])]


def run_facts(config: EasyDict, policy: BasePolicy) -> dict[str, Any]:
    """What a row of results says of a policy's run: task, data (none if it collects), policy, training iterations.

    A policy whose actions an energy corrects is another one: ``dppo + best of 4 + 3 steps``.
    """
    paths = config.policy.collect.get("data_path")
    correction = policy.eval_mode.get_attribute("energy_correction")
    return dict(
        task=task_of(config.env).name,
        data="+".join(Path(path).stem for path in ([paths] if isinstance(paths, str) else paths or [])),
        policy=config.policy.type if correction is None else f"{config.policy.type} + {correction.name}",
        train_iter=policy.eval_mode.get_attribute("train_iter"),
    )


def _seed_of_run(checkpoint_path: str | Path) -> int:
    """The seed in the config that the host saves in a run's folder; read as text, not executed."""
    note = find_checkpoint(checkpoint_path).resolve().parents[1] / "total_config.py"
    found = re.search(r"^ {4}'seed': (\d+)\b", note.read_text("utf-8"), re.MULTILINE) if note.is_file() else None
    if found is None:
        raise ValueError(
            f"the seed of the run is not in {note}, where the host notes it; give the seed that it was trained with "
            "(--train-seed)"
        )
    return int(found[1])


def _read(path: str | Path) -> dict[str, Any]:
    path = find_checkpoint(path)
    state = read_checkpoint(path)
    if "model" not in state or "train_iter" not in state:
        raise ValueError(f"{path} is not a checkpoint of a policy of this package: 'model' and 'train_iter' expected")
    return state


def _misfits(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps a saved model from being loaded, one sentence a tensor."""
    problems = []
    for name in sorted({**saved, **expected}):
        if name not in saved or name not in expected:
            there, missing = ("model", "checkpoint") if name in expected else ("checkpoint", "model")
            problems.append(f"{name} is in the {there} but not in the {missing}")
        elif saved[name].shape != expected[name].shape:
            shapes = tuple(saved[name].shape), tuple(expected[name].shape)
            problems.append(f"{name} is {shapes[0]} in the checkpoint and {shapes[1]} in the config's model")
    return problems
