"""The offline data sets of DI-engine's ``serial_offline`` pipeline."""

from __future__ import annotations

import logging
from typing import Any

from ding.utils import DATASET_REGISTRY
from easydict import EasyDict

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.datasets import OfflineDataset
from ding_ebm.data.doubts import doubts
from ding_ebm.data.formats import Transitions, concatenate, find_data_file, read_data
from ding_ebm.host.backends import task_of
from ding_ebm.host.checks import check_run
from ding_ebm.host.run_state import take_part


@DATASET_REGISTRY.register("ebm_offline")
class HostOfflineDataset(OfflineDataset):
    """Data files of a config as one resident data set; an epoch draws ``learn.iterations_per_epoch`` batches.

    The host builds it first of all parts, so the whole config is checked here, before any file is read.

    Args:
        cfg: The run's compiled config.

    Raises:
        ConfigError: If the config cannot be used.
        FileNotFoundError: If a data file is missing.
        ValueError: If a file is malformed or is not of the config's task.
    """

    def __init__(self, cfg: EasyDict) -> None:
        super().__init__(_read(cfg), reward_tuning=cfg.policy.collect.reward_tuning, **_options(cfg))
        take_part(cfg.exp_name, "data set", self)


@DATASET_REGISTRY.register("ebm_chunks")
class HostChunkDataset(ChunkDataset):
    """The same as action chunks of the lengths of the policy's model; arguments and errors are the same."""

    def __init__(self, cfg: EasyDict) -> None:
        transitions, model = _read(cfg), cfg.policy.model
        windows = dict(padding=cfg.policy.collect.padding, act_steps=model.act_steps)
        super().__init__(
            transitions, horizon_steps=model.horizon_steps, cond_steps=model.cond_steps, **windows, **_options(cfg)
        )
        take_part(cfg.exp_name, "data set", self)


def _read(cfg: EasyDict) -> Transitions:
    """Check the whole config, then read its data files as one set."""
    check_run(cfg)
    collect, task = cfg.policy.collect, task_of(cfg.env)
    if collect.data_path is None:
        known = ", ".join(sorted({file for files in task.data_sets.values() for file in files}))
        raise ValueError(f"policy.collect.data_path must name a data file; task {task.name!r} has {known}")
    names = [collect.data_path] if isinstance(collect.data_path, str) else list(collect.data_path)
    transitions = concatenate([read_data(path) for path in [find_data_file(name) for name in names]])
    check_transitions(transitions, task.obs_dim, task.action_dim, task.action_bounds, task.max_episode_steps)
    for doubt in doubts(transitions, **task.expectations):
        logging.getLogger("ding_ebm").warning("%s: %s", transitions.source, doubt)
    return transitions


def _options(cfg: EasyDict) -> dict[str, Any]:
    """What every data set takes from a config."""
    learn, collect = cfg.policy.learn, cfg.policy.collect
    return dict(
        obs_normalization=collect.obs_normalization,
        action_normalization=collect.action_normalization,
        device="cuda" if cfg.policy.cuda else "cpu",
        seed=cfg.seed,
        length=learn.iterations_per_epoch * learn.batch_size,
    )
