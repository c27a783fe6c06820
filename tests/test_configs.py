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

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.datasets import OfflineDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.envs.registry import TASKS, get_task
from ding_ebm.envs.task import Task
from ding_ebm.host.checks import check_run
from dizoo_configs.gym import builder

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "dizoo_configs").rglob("*_config.py"))
QGPO = [path for path in FILES if "_qgpo" in path.stem]
CLONES = ("diffusion_bc", "diffusion_bc_small", "gaussian_bc", "gmm_bc", "energy")
# What each fine-tuning begins with.
BASES = {
    "dppo": "diffusion_bc",
    "dppo_ddim": "diffusion_bc",
    "dppo_small": "diffusion_bc_small",
    "dppo_ebm": "diffusion_bc",
    "dppo_ebm_small": "diffusion_bc_small",
}
ROWS = 16


def read(path: Path) -> tuple[EasyDict, EasyDict]:
    main, create = read_config(str(path))
    create.policy.type += "_command"
    return main, create


def compiled(path: Path) -> EasyDict:
    main, create = read(path)
    return compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False)


def parts(path: Path) -> tuple[str, str, str]:
    """Task, data set and algorithm that a file's name states; a task's only or first data set need not be named."""
    name = path.name[: -len("_config.py")]
    task = max((task for task in TASKS if name.startswith(task + "_")), key=len)
    rest = name[len(task) + 1 :]
    for data_set in sorted(get_task(task).data_sets, key=len, reverse=True):
        if rest.startswith(data_set + "_"):
            return task, data_set, rest[len(data_set) + 1 :]
    return task, next(iter(get_task(task).data_sets)), rest


def random_data(task: Task) -> Transitions:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((ROWS + 1, task.obs_dim)).astype(np.float32)
    ends = np.arange(ROWS) % 8 == 7
    low, high = task.action_bounds
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
    assert {parts(path)[0] for path in FILES} == set(TASKS)
    assert len(QGPO) == 41
    measured = {"hopper", "walker2d", "halfcheetah"}
    of_the_paper = measured | {"avoid_m1", "avoid_m2", "avoid_m3"}
    robomimic = {"lift", "can", "square", "transport"}
    for algorithm in (*CLONES, *BASES):
        tasks = {parts(path)[0] for path in FILES if parts(path)[2] == algorithm}
        if algorithm in ("diffusion_bc", "energy", "dppo", "dppo_ebm"):
            assert tasks == set(TASKS) - {"avoid"}
        elif algorithm.endswith("_small"):
            assert tasks == (measured | {"lift"} if algorithm == "diffusion_bc_small" else measured)
        else:
            assert tasks == (of_the_paper if algorithm == "dppo_ddim" else of_the_paper | robomimic)


def test_a_file_that_asks_for_other_dynamics_gets_their_dimensions():
    main, _ = builder.dppo("ant", dict(env=dict(dynamics="v5")))
    assert (main.env.dynamics, main.policy.model.obs_dim, main.env.env_id) == ("v5", 105, "ant")
    main, _ = builder.qgpo("hopper", "medium", dict(env=dict(dynamics="d4rl-v2")))
    assert main.policy.model.obs_dim == 11 and main.exp_name == "hopper_medium_qgpo_seed0"


@pytest.mark.parametrize("path", [path for path in FILES if path not in QGPO], ids=lambda path: path.stem)
def test_a_config_of_action_chunks_passes_the_check_and_its_policy_learns_and_acts(path, tmp_path):
    cfg = compiled(path)
    check_run(cfg)
    task, _, algorithm = parts(path)
    assert cfg.env.env_id == cfg.policy.model.task == task and cfg.exp_name == f"{task}_{algorithm}_seed0"
    policy_cfg, model = cfg.policy, cfg.policy.model
    torch.manual_seed(0)
    if algorithm in CLONES:
        policy_cfg.learn.batch_size = 4
        policy = create_policy(policy_cfg, enable_field=["learn", "eval"])
        dataset = ChunkDataset(
            random_data(get_task(task)),
            horizon_steps=model.horizon_steps,
            cond_steps=model.cond_steps,
            obs_normalization=policy_cfg.collect.obs_normalization,
            action_normalization=policy_cfg.collect.action_normalization,
        )
        policy.set_statistic(dataset.statistics)
        policy.learn_mode.forward(dataset.__getitems__(range(4)))
    else:
        assert policy_cfg.base_policy_path == f"{task}_{BASES[algorithm]}_seed0"
        assert policy_cfg.collect.n_sample % cfg.env.collector_env_num == 0
        rows = policy_cfg.collect.n_sample * policy_cfg.sampler.ft_denoising_steps
        assert policy_cfg.learn.batch_size <= rows
        policy_cfg.update(base_policy_path=None)
        if "energy" in policy_cfg:
            assert policy_cfg.energy.ebm_ckpt_path == f"{task}_energy_seed0"
            energy = create_policy(compiled(path.with_name(f"{task}_energy_config.py")).policy, enable_field=["learn"])
            write_checkpoint(energy.learn_mode.state_dict(), tmp_path / "iteration_0.pth.tar")
            policy_cfg.energy.ebm_ckpt_path = str(tmp_path)
        policy_cfg.learn.update(batch_size=4, epoch_per_collect=1)
        policy = create_policy(policy_cfg, enable_field=["learn", "collect", "eval"])
        decision = policy.collect_chunks(np.zeros((3, 1, model.obs_dim), dtype=np.float32))
        obs = torch.zeros(1, 3, 1, model.obs_dim)
        ends = torch.ones(1, 3, dtype=torch.bool)
        policy.learn_mode.forward(
            dict(
                obs=obs,
                next_obs=obs,
                chain=decision["chain"][None],
                log_prob=decision["log_prob"][None],
                reward=torch.rand(1, 3),
                terminated=ends,
                boundary=ends,
            )
        )
    output = policy.eval_mode.forward({0: torch.zeros(1, model.obs_dim), 1: torch.ones(1, model.obs_dim)})
    assert all(one["action"].shape == (model.act_steps, model.action_dim) for one in output.values())


def test_a_cloned_policy_and_its_fine_tuning_have_the_same_model():
    for path in FILES:
        task, _, algorithm = parts(path)
        if algorithm in BASES:
            base = compiled(path.with_name(f"{task}_{BASES[algorithm]}_config.py")).policy.model
            model = compiled(path).policy.model
            assert {key: model[key] for key in base} == base


@pytest.mark.parametrize("path", QGPO, ids=lambda path: path.stem)
def test_a_config_passes_the_check_and_is_what_its_name_says(path):
    cfg = compiled(path)
    check_run(cfg)
    task, data_set, algorithm = parts(path)
    assert cfg.env.env_id == task
    assert list(cfg.policy.collect.data_path) == list(get_task(task).data_files(data_set))
    assert cfg.policy.collect.reward_tuning == get_task(task).reward_tuning
    assert (cfg.policy.collect.reward_tuning == "antmaze") == task.startswith("antmaze")
    assert cfg.policy.type == "ebm_qgpo_command"
    stem = f"{task}_{data_set}_{algorithm}" if len(get_task(task).data_sets) > 1 else f"{task}_{algorithm}"
    assert cfg.exp_name == f"{stem}_seed0"
    learn, evaluation = cfg.policy.learn, cfg.policy.eval
    total = learn.train_epoch * learn.iterations_per_epoch
    assert learn.behavior_policy_stop_training_iter < learn.q_value_stop_training_iter < total
    assert evaluation.evaluator.eval_freq <= total  # at least one evaluation
    for freq in (learn.learner.hook.save_ckpt_after_iter, evaluation.evaluator.eval_freq):
        assert freq % learn.iterations_per_epoch == 0  # checkpoints from which a run can resume


@pytest.mark.parametrize("path", [path for path in QGPO if "_small" not in path.stem and "gym" in path.parts], ids=str)
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


@pytest.mark.parametrize("path", QGPO, ids=lambda path: path.stem)
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
    low, high = task.action_bounds
    for one in output.values():
        assert one["action"].shape == (task.action_dim,)
        assert (one["action"].numpy() >= low - 1e-6).all() and (one["action"].numpy() <= high + 1e-6).all()
