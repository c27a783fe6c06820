"""A trained policy from its config and one of the host's checkpoints, for evaluation only."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ding.config import compile_config, read_config
from ding.policy import create_policy
from torch import Tensor

from ding_ebm.host.checks import check_run
from ding_ebm.policy.base import BasePolicy, read_checkpoint


def load_policy(config_path: str | Path, checkpoint_path: str | Path, seed: int = 0) -> BasePolicy:
    """The policy of a config with the parameters of a checkpoint, ready to act.

    Nothing is written, and the global random state stays as it was.

    Args:
        config_path: The config file of the run.
        checkpoint_path: A checkpoint of the run.
        seed: Of the policy's own random numbers.

    Raises:
        FileNotFoundError: If one of the files is missing.
        ValueError: If the config cannot be used, the file is no checkpoint, or it does not fit the config's model.
    """
    if not Path(config_path).is_file():
        raise FileNotFoundError(f"no config at {str(config_path)!r}")
    state = _read(checkpoint_path)
    config, create_config = read_config(str(config_path))
    config = compile_config(config, seed=seed, auto=True, create_cfg=create_config, save_cfg=False)
    check_run(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = create_policy(config.policy, enable_field=["eval"])
    problems = _misfits(state["model"], policy.eval_mode.state_dict()["model"])
    if problems:
        shown = problems[:4] + ([f"and {len(problems) - 4} more"] if len(problems) > 4 else [])
        raise ValueError(f"{checkpoint_path} does not fit {config_path}: " + "; ".join(shown))
    policy.eval_mode.load_state_dict(state)
    return policy


def _read(path: str | Path) -> dict[str, Any]:
    try:
        state = read_checkpoint(str(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint, it may be cut short: {reason}") from error
    if not isinstance(state, dict) or "model" not in state or "train_iter" not in state:
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
