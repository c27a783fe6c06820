"""A run folder as the host leaves it, with a tiny policy that has learned nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ding.policy import create_policy

from ding_ebm.evaluation.checkpoint import read_run_config

CONFIG = """
from dizoo_configs.builder import offline

main_config, create_config = offline(
    "qgpo", "ebm_qgpo", "avoid", "demonstrations",
    dict(
        policy=dict(
            model=dict(
                behavior_widths=(16, 8), qgpo_critic=dict(critic_widths=(8,), guidance_widths=(8,), alpha=1.0)
            ),
            learn=dict(train_epoch=3, iterations_per_epoch=10, behavior_policy_stop_training_iter=10),
            collect=dict(data_path=["one.hdf5", "folder/two.hdf5"], action_normalization="min_max"),
            eval=dict(guidance_scale=[1.0, 0.0], diffusion_steps=2, evaluator=dict(eval_freq=30)),
        ),
    ),
)
"""


class Run(NamedTuple):
    """Files of a run."""

    config: Path
    checkpoint: Path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of seed 7, at iteration 30 of 30; its actions span the environment's."""
    config = tmp_path / "tiny_config.py"
    config.write_text(CONFIG, "utf-8")
    torch.manual_seed(0)
    policy = create_policy(read_run_config(config).policy, enable_field=["learn"])
    state = {**policy.learn_mode.state_dict(), "train_iter": 30, "last_iter": 30, "last_step": 0}
    state["model"]["action_normalizer.scale"].fill_(0.01)
    checkpoint = tmp_path / "run" / "ckpt" / "iteration_30.pth.tar"
    checkpoint.parent.mkdir(parents=True)
    torch.save(state, checkpoint)
    (tmp_path / "run" / "total_config.py").write_text(
        "exp_config = {\n    'env': {'seed': 3},\n    'seed': 7\n}\n", "utf-8"
    )
    return Run(config, checkpoint)
