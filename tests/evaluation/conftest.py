"""Run folders as the host leaves them, with tiny policies that have learned nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ding.policy import create_policy

from ding_ebm.checkpoint import write_checkpoint
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
CHUNKS = """
from dizoo_configs.builder import imitation, online

algo = "{algo}"
tiny = dict(model=dict(horizon_steps=4, act_steps=3, cond_steps=2, mlp=dict(mlp_dims=[8, 8, 8])))
if algo in ("diffusion_bc", "dppo"):
    tiny["model"].update(denoising_steps=3, time_dim=4)
"""
CLONING = f"""{CHUNKS}
tiny.update(learn=dict(train_epoch=3, iterations_per_epoch=10), eval=dict(evaluator=dict(eval_freq=30)))
main_config, create_config = imitation(algo, algo, "avoid_m1", "demonstrations", dict(policy=tiny))
"""
FINE_TUNING = f"""{CHUNKS}
tiny.update(sampler=dict(ft_denoising_steps=2), collect=dict(n_sample=8))
main_config, create_config = online("dppo", "dppo", "avoid_m1", "diffusion_bc", dict(policy=tiny))
main_config.policy.base_policy_path = None
"""


class Run(NamedTuple):
    """Files of a run."""

    config: Path
    checkpoint: Path


def make_run(folder: Path, text: str) -> Run:
    """A run of seed 7, at iteration 30; its actions span the environment's."""
    config = folder / "tiny_config.py"
    config.write_text(text, "utf-8")
    torch.manual_seed(0)
    policy = create_policy(read_run_config(config).policy, enable_field=["learn"])
    state = {**policy.learn_mode.state_dict(), "train_iter": 30, "last_iter": 30, "last_step": 0}
    state["model"]["action_normalizer.scale"].fill_(0.01)
    checkpoint = folder / "run" / "ckpt" / "iteration_30.pth.tar"
    checkpoint.parent.mkdir(parents=True)
    write_checkpoint(state, checkpoint)
    note = "exp_config = {\n    'env': {'seed': 3},\n    'seed': 7\n}\n"
    (folder / "run" / "total_config.py").write_text(note, "utf-8")
    return Run(config, checkpoint)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of a guided policy over single actions."""
    return make_run(tmp_path, CONFIG)


@pytest.fixture(params=["diffusion_bc", "gaussian_bc", "gmm_bc", "dppo"])
def chunk_run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Of a policy over chunks of 3 actions that sees 2 observations."""
    text = FINE_TUNING if request.param == "dppo" else CLONING
    return make_run(tmp_path, text.format(algo=request.param))


@pytest.fixture
def fine_tuning(tmp_path: Path) -> tuple[Run, Path]:
    """A cloned policy over chunks, and the config of its fine-tuning."""
    cloned = make_run(tmp_path, CLONING.format(algo="diffusion_bc"))
    config = tmp_path / "fine_tuning_config.py"
    config.write_text(FINE_TUNING.format(algo="dppo"), "utf-8")
    return cloned, config
