"""Episodes to read, check and draw from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ding_ebm.data.formats import Transitions, write_d4rl_hdf5

Episodes = list[tuple[int, str]]


def make_transitions(episodes: Episodes, obs_dim: int = 3, action_dim: int = 2, seed: int = 0) -> Transitions:
    """Random episodes, each (length, how it ends: terminated, truncated, both or open)."""
    rng = np.random.default_rng(seed)
    obs, next_obs, terminated, truncated = [], [], [], []
    for length, end in episodes:
        states = rng.standard_normal((length + 1, obs_dim)).astype(np.float32)
        obs.append(states[:-1])
        next_obs.append(states[1:])
        last = np.arange(length) == length - 1
        terminated.append(last & (end in ("terminated", "both")))
        truncated.append(last & (end in ("truncated", "both")))
    rows = sum(length for length, _ in episodes)
    return Transitions(
        obs=np.concatenate(obs),
        action=rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        reward=rng.standard_normal(rows).astype(np.float32),
        next_obs=np.concatenate(next_obs),
        terminated=np.concatenate(terminated),
        truncated=np.concatenate(truncated),
        source="test",
    )


@pytest.fixture
def transitions_of() -> Callable[..., Transitions]:
    return make_transitions


@pytest.fixture
def transitions() -> Transitions:
    """Five finished episodes, one of them a single row, and an unfinished piece."""
    ends = [(7, "terminated"), (5, "truncated"), (1, "truncated"), (6, "both"), (4, "terminated"), (3, "open")]
    return make_transitions(ends)


@pytest.fixture
def d4rl_file(tmp_path: Path, transitions: Transitions) -> Path:
    """A file as D4RL's own are: with the groups that are not read."""
    path = tmp_path / "file.hdf5"
    write_d4rl_hdf5(path, transitions)
    with h5py.File(path, "a") as file:
        file["infos/qpos"] = np.zeros((len(transitions), 6))
        file["infos/action_log_probs"] = np.zeros(len(transitions))
        file["metadata/algorithm"] = "SAC"
        file["metadata/policy/fc0/weight"] = np.zeros((4, 3))
        file.attrs["rewarder"] = "none"
    return path
