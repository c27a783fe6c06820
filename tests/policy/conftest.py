"""Policies of a few thousand parameters, compiled as the host does, and small data for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.utils import deep_merge_dicts
from easydict import EasyDict

import ding_ebm.host
import ding_ebm.policy  # noqa: F401
from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.datasets import OfflineDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.policy.chunk_cloning import ChunkCloningPolicy
from ding_ebm.policy.qgpo import QGPOPolicy
from dizoo_configs.builder import imitation

# Four iterations of the behavior stage, four of critic and guidance, then the guidance alone.
MAIN = dict(
    exp_name="test",
    env=dict(env_id="avoid", evaluator_env_num=2, n_evaluator_episode=2),
    policy=dict(
        model=dict(
            obs_dim=4,
            action_dim=2,
            behavior_widths=(32, 16),
            qgpo_critic=dict(critic_widths=(16, 16), guidance_widths=(16, 16)),
        ),
        sampler=dict(clip="none"),  # untrained models go far out, where clipping would make all actions equal
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
        ),
        collect=dict(data_path="unused.hdf5"),
        eval=dict(diffusion_steps=4),
    ),
)
CREATE = dict(
    env=dict(type="ebm_env", import_names=["ding_ebm.host"]),
    env_manager=dict(type="base"),
    policy=dict(type="ebm_qgpo", import_names=["ding_ebm.policy", "ding_ebm.host"]),
)


def compiled(overrides: dict[str, Any] | None = None, policy_type: str = "ebm_qgpo_command") -> EasyDict:
    """The small config with overrides, merged with the host's defaults as ``serial_offline`` does it."""
    main = deep_merge_dicts(EasyDict(MAIN), EasyDict(overrides or {}))
    create = EasyDict(CREATE, policy=dict(CREATE["policy"], type=policy_type))
    return compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False)


def policy_of(
    overrides: dict[str, Any] | None = None,
    dataset: OfflineDataset | None = None,
    seed: int = 0,
    policy_type: str = "ebm_qgpo_command",
    enable_field: tuple[str, ...] = ("learn", "eval"),
) -> QGPOPolicy:
    """A policy whose ``policy`` config has overrides."""
    torch.manual_seed(seed)
    cfg = compiled(dict(policy=overrides or {}), policy_type)
    policy = create_policy(cfg.policy, enable_field=list(enable_field))
    if dataset is not None:
        policy.set_statistic(dataset.statistics)
    return policy


def transitions_of(episodes: int = 4, length: int = 12, reward: float | None = None, seed: int = 0) -> Transitions:
    """Random episodes of equal length that end by termination and by truncation in turn."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((episodes, length + 1, 4)).astype(np.float32)
    last = np.arange(length) == length - 1
    rows = episodes * length
    constant = np.full(rows, 0.0 if reward is None else reward, dtype=np.float32)
    return Transitions(
        obs=states[:, :-1].reshape(rows, 4),
        action=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        reward=rng.standard_normal(rows).astype(np.float32) if reward is None else constant,
        next_obs=states[:, 1:].reshape(rows, 4),
        terminated=np.concatenate([last if e % 2 == 0 else ~last & last for e in range(episodes)]),
        truncated=np.concatenate([last if e % 2 == 1 else ~last & last for e in range(episodes)]),
        source="test",
    )


def train(policy: QGPOPolicy, dataset: OfflineDataset, iterations: int, batch: int = 32) -> list[dict[str, float]]:
    """Updates on batches of the data set, as the host makes them."""
    return [policy.learn_mode.forward(dataset.__getitems__(range(batch))) for _ in range(iterations)]


@pytest.fixture
def make_cfg() -> Callable[..., EasyDict]:
    return compiled


@pytest.fixture
def make_policy() -> Callable[..., QGPOPolicy]:
    return policy_of


@pytest.fixture
def make_transitions() -> Callable[..., Transitions]:
    return transitions_of


@pytest.fixture
def dataset() -> OfflineDataset:
    return OfflineDataset(transitions_of())


@pytest.fixture
def make_dataset() -> Callable[..., OfflineDataset]:
    """A fresh data set of the same rows, whose batches begin anew."""
    return lambda **options: OfflineDataset(transitions_of(), **options)


@pytest.fixture
def run() -> Callable[..., list[dict[str, float]]]:
    return train


# Clones of action chunks.

TP, TA, TO = 4, 2, 2
CLONE = dict(
    env=dict(evaluator_env_num=2, n_evaluator_episode=2),
    policy=dict(
        model=dict(horizon_steps=TP, act_steps=TA, cond_steps=TO, mlp=dict(mlp_dims=[32, 32, 32])),
        learn=dict(
            train_epoch=10,
            iterations_per_epoch=10,
            batch_size=64,
            learning_rate=1e-3,
            ema_start_iter=4,
            ema_update_every=2,
        ),
        collect=dict(data_path="unused.hdf5"),
    ),
)


def clone_of(
    algorithm: str, overrides: dict[str, Any] | None = None, dataset: ChunkDataset | None = None, seed: int = 0
) -> ChunkCloningPolicy:
    """A policy over action chunks whose ``policy`` config has overrides."""
    main, create = imitation(algorithm, f"{algorithm}_command", "avoid", "demonstrations", CLONE)
    main = deep_merge_dicts(main, EasyDict(policy=overrides or {}))
    cfg = compile_config(main, seed=seed, auto=True, create_cfg=create, save_cfg=False)
    torch.manual_seed(seed)
    policy = create_policy(cfg.policy, enable_field=["learn", "eval"])
    if dataset is not None:
        policy.set_statistic(dataset.statistics)
    return policy


def chunks_of(
    offsets: Callable[[np.random.Generator, np.ndarray], np.ndarray], episodes: int = 200, seed: int = 0, **options: Any
) -> ChunkDataset:
    """One-chunk episodes that stay in a random state s, with actions s_0 + offsets.

    Args:
        offsets: From a generator and states, (episodes, TP, 4), what is added to s_0, broadcastable to (..., 2).
        episodes: Number of episodes.
        seed: Of the order of the batches.
        options: Of the data set.
    """
    rng = np.random.default_rng(0)
    state = np.repeat(rng.uniform(-0.4, 0.4, (episodes, 1, 4)), TP, 1).astype(np.float32)
    action = np.broadcast_to(state[:, :, :1] + offsets(rng, state), (episodes, TP, 2)).astype(np.float32)
    rows, last = episodes * TP, np.tile(np.arange(TP) == TP - 1, episodes)
    transitions = Transitions(
        state.reshape(rows, 4), action.reshape(rows, 2), np.zeros(rows, np.float32), state.reshape(rows, 4),
        last, np.zeros(rows, np.bool_), "chunks",
    )  # fmt: skip
    return ChunkDataset(transitions, horizon_steps=TP, cond_steps=TO, seed=seed, **options)


def two_ways(rng: np.random.Generator, state: np.ndarray) -> np.ndarray:
    """Either all of an episode's actions are s_0 + 0.5 or all are s_0 - 0.5."""
    return rng.choice([-0.5, 0.5], (len(state), 1, 1))


def random_histories(count: int, seed: int = 5) -> np.ndarray:
    state = np.random.default_rng(seed).uniform(-0.4, 0.4, (count, 1, 4)).astype(np.float32)
    return np.repeat(state, TO, 1)


@pytest.fixture
def make_clone() -> Callable[..., ChunkCloningPolicy]:
    return clone_of


@pytest.fixture
def make_chunks() -> Callable[..., ChunkDataset]:
    return chunks_of


@pytest.fixture
def make_two_ways() -> Callable[..., ChunkDataset]:
    """A fresh data set of the same rows, whose batches begin anew."""
    return lambda **options: chunks_of(two_ways, **options)


@pytest.fixture
def histories() -> Callable[..., np.ndarray]:
    return random_histories
