"""Every config file, read as DI-engine reads it: it passes the check, fits its name, and its policy trains and acts.

Batches, states and support actions are made few, and nothing is compiled; networks, stages and options are the file's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config, read_config
from ding.policy import create_policy
from easydict import EasyDict

from ding_ebm.data.datasets import OfflineDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.envs.registry import Task, get_task
from ding_ebm.host.checks import check_run

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "dizoo_configs").rglob("*_config.py"))
ROWS = 16


def read(path: Path) -> tuple[EasyDict, EasyDict]:
    main, create = read_config(str(path))
    create.policy.type += "_command"
    return main, create


def compiled(path: Path) -> EasyDict:
    main, create = read(path)
    return compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False)


def parts(path: Path) -> tuple[str, str, str]:
    """Task, data set and algorithm that a file's name states; avoid has one data set, which its files do not name."""
    name = path.name[: -len("_config.py")]
    task = name.split("_")[0]
    rest = name[len(task) + 1 :]
    for data_set in sorted(get_task(task).data_sets, key=len, reverse=True):
        if rest.startswith(data_set + "_"):
            return task, data_set, rest[len(data_set) + 1 :]
    return task, next(iter(get_task(task).data_sets)), rest


def random_data(task: Task) -> Transitions:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((ROWS + 1, task.obs_dim)).astype(np.float32)
    ends = np.arange(ROWS) % 8 == 7
    low, high = task.action_range
    return Transitions(
        obs=states[:-1],
        action=rng.uniform(low, high, (ROWS, task.action_dim)).astype(np.float32),
        reward=rng.standard_normal(ROWS).astype(np.float32),
        next_obs=states[1:],
        terminated=ends & (np.arange(ROWS) < 8),
        truncated=ends & (np.arange(ROWS) >= 8),
        source="random",
    )


def test_there_is_a_config_for_every_task():
    assert {parts(path)[0] for path in FILES} == {"hopper", "walker2d", "halfcheetah", "avoid"}
    assert len(FILES) >= 25


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_passes_the_check_and_is_what_its_name_says(path):
    cfg = compiled(path)
    check_run(cfg)
    task, data_set, algorithm = parts(path)
    assert cfg.env.env_id == task
    assert list(cfg.policy.collect.data_path) == list(get_task(task).data_files(data_set))
    assert cfg.policy.collect.reward_tuning == get_task(task).reward_tuning
    assert cfg.policy.type == "ebm_qgpo_command"
    stem = f"{task}_{data_set}_{algorithm}" if len(get_task(task).data_sets) > 1 else f"{task}_{algorithm}"
    assert cfg.exp_name == f"{stem}_seed0"
    learn, evaluation = cfg.policy.learn, cfg.policy.eval
    total = learn.train_epoch * learn.iterations_per_epoch
    assert learn.behavior_policy_stop_training_iter < learn.q_value_stop_training_iter < total
    assert evaluation.evaluator.eval_freq <= total  # at least one evaluation
    for freq in (learn.learner.hook.save_ckpt_after_iter, evaluation.evaluator.eval_freq):
        assert freq % learn.iterations_per_epoch == 0  # checkpoints from which a run can resume


@pytest.mark.parametrize("path", [path for path in FILES if "_small" not in path.stem and "gym" in path.parts], ids=str)
def test_the_full_configs_hold_the_papers_numbers(path):
    policy = compiled(path).policy
    learn, critic = policy.learn, policy.model.qgpo_critic
    paper: dict[str, Any] = dict(
        batch_size=4096, batch_size_q=256, learning_rate=1e-4, critic_learning_rate=3e-4, guidance_learning_rate=3e-4,
        discount_factor=0.99, target_theta=0.005, M=16, diffusion_steps=15,
        behavior_policy_stop_training_iter=600_000, q_value_stop_training_iter=1_100_000,
    )  # fmt: skip
    assert {key: learn[key] for key in paper} == paper
    assert learn.train_epoch * learn.iterations_per_epoch == 1_600_000
    assert (critic.alpha, critic.q_alpha, critic.num_critics, critic.aggregation) == (3.0, 1.0, 2, "min")
    assert tuple(policy.model.behavior_widths) == (512, 256, 128) and policy.model.ema_decay is None
    assert tuple(critic.guidance_widths) == (256,) * 4 and tuple(critic.critic_widths) == (256,) * 3
    assert policy.collect.obs_normalization == "none" and policy.collect.action_normalization == "none"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_policy_makes_an_update_of_each_stage_and_acts(path):
    cfg = compiled(path)
    learn, collect = cfg.policy.learn, cfg.policy.collect
    learn.update(
        batch_size=4, batch_size_q=2, behavior_policy_stop_training_iter=1, q_value_stop_training_iter=2,
        energy_guided_policy_begin_training_iter=None, support_cache=None, compile=False, M=2, diffusion_steps=2,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = create_policy(cfg.policy, enable_field=["learn", "eval"])
    task = get_task(cfg.env.env_id)
    dataset = OfflineDataset(
        random_data(task),
        reward_tuning=collect.reward_tuning,
        obs_normalization=collect.obs_normalization,
        action_normalization=collect.action_normalization,
    )
    policy.set_statistic(dataset.statistics)
    stages = [set(policy.learn_mode.forward(dataset.__getitems__(range(4)))) for _ in range(3)]
    assert [len(losses) for losses in stages] == [1, 4, 2]
    output = policy.eval_mode.forward({0: torch.zeros(task.obs_dim), 1: torch.ones(task.obs_dim)})
    low, high = task.action_range
    for one in output.values():
        assert one["action"].shape == (task.action_dim,)
        assert (one["action"] >= low - 1e-6).all() and (one["action"] <= high + 1e-6).all()
