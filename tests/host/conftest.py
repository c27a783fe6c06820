"""A tiny run of QGPO on the avoid task: its config, its data, and the config compiled as the host does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ding.config import compile_config
from ding.utils import deep_merge_dicts
from easydict import EasyDict

from ding_ebm.data.formats import Transitions, write_d4rl_hdf5
from dizoo_configs.builder import offline

TINY = dict(
    exp_name="tiny",
    env=dict(evaluator_env_num=2, n_evaluator_episode=2),
    policy=dict(
        model=dict(behavior_widths=(32, 16), qgpo_critic=dict(critic_widths=(16, 16), guidance_widths=(16, 16))),
        learn=dict(
            train_epoch=3,
            iterations_per_epoch=4,
            batch_size=32,
            batch_size_q=16,
            M=4,
            diffusion_steps=4,
            behavior_policy_stop_training_iter=4,
            q_value_stop_training_iter=8,
            support_cache=None,
            learner=dict(hook=dict(log_show_after_iter=2, save_ckpt_after_iter=4)),
        ),
        collect=dict(data_path="data.hdf5", obs_normalization="mean_std", action_normalization="min_max"),
        eval=dict(diffusion_steps=4, evaluator=dict(eval_freq=4)),
    ),
)


def compiled(overrides: dict[str, Any] | None = None) -> EasyDict:
    """The tiny config with overrides of the main config, merged with the defaults as ``serial_offline`` does it."""
    main, create = offline("qgpo", "ebm_qgpo", "avoid", "demonstrations", TINY)
    create.policy.type += "_command"
    main = deep_merge_dicts(main, EasyDict(overrides or {}))
    return compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False)


def transitions_of(episodes: int = 4, length: int = 12, seed: int = 0) -> Transitions:
    """Random walks in avoid's units that end by termination and by truncation in turn."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-0.01, 0.01, (episodes, length, 2)).astype(np.float32)
    start = np.array([0.525, -0.28], dtype=np.float32)
    target = np.concatenate([np.zeros((episodes, 1, 2)), action.cumsum(1)], 1).astype(np.float32) + start
    states = np.concatenate([target, target], 2)
    last = np.arange(length) == length - 1
    rows = episodes * length
    return Transitions(
        obs=states[:, :-1].reshape(rows, 4),
        action=action.reshape(rows, 2),
        reward=rng.uniform(-1, 1, rows).astype(np.float32),
        next_obs=states[:, 1:].reshape(rows, 4),
        terminated=np.concatenate([last if e % 2 == 0 else ~last & last for e in range(episodes)]),
        truncated=np.concatenate([last if e % 2 == 1 else ~last & last for e in range(episodes)]),
        source="test",
    )


@pytest.fixture
def make_cfg() -> Callable[..., EasyDict]:
    return compiled


@pytest.fixture
def make_transitions() -> Callable[..., Transitions]:
    return transitions_of


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.hdf5"
    write_d4rl_hdf5(path, transitions_of())
    return path


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    return TINY
