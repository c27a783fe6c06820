"""D4RL's mazes: the numbers of the locomotion configs, but for what rewards at the goal only ask for."""

from __future__ import annotations

from typing import Any

from ding_ebm.envs.registry import get_task
from dizoo_configs.builder import Configs, imitation, merge, offline, online, shaped_by
from dizoo_configs.gym.builder import CLONING, ENERGY, PAPER

# D4RL asks for 100 episodes and more: an AntMaze's goal moves, and a return is 0 or 1.
EVALUATION = dict(env=dict(evaluator_env_num=20, n_evaluator_episode=100))

# AntMaze of arXiv:2304.12824.
ANT_MAZE = dict(policy=dict(learn=dict(M=32), eval=dict(guidance_scale=[1.0, 1.5, 2.0, 2.5, 3.0, 4.0])))

FINE_TUNING = dict(
    env=dict(collector_env_num=40),
    policy=dict(
        learn=dict(batch_size=10000, learner=dict(hook=dict(log_show_after_iter=1, save_ckpt_after_iter=50))),
        eval=dict(evaluator=dict(eval_freq=10)),
    ),
)


def qgpo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """QGPO with the paper's networks, batches and iterations; on AntMaze with its numbers for it."""
    ours = merge(merge(PAPER, EVALUATION), ANT_MAZE if task.startswith("antmaze") else None)
    return offline("qgpo", "ebm_qgpo", task, "demonstrations", merge(merge(ours, _named(task, "qgpo")), main))


def diffusion_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """Cloning of the task's demonstrations."""
    return imitation("diffusion_bc", "diffusion_bc", task, "demonstrations", merge(merge(CLONING, EVALUATION), main))


def energy(task: str, main: dict[str, Any] | None = None) -> Configs:
    """An energy of the task's demonstrations, and of the chunks of its diffusion policy on the way to them."""
    return imitation("energy", "energy_model", task, "demonstrations", merge(merge(ENERGY, EVALUATION), main))


def dppo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO from the cloned policy."""
    return online("dppo", "dppo", task, "diffusion_bc", merge(_fine_tuning(task), main))


def dppo_ebm(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same with rewards shaped by the free energy of the task's energy."""
    return online("dppo_ebm", "dppo_ebm", task, "diffusion_bc", merge(merge(_fine_tuning(task), shaped_by(task)), main))


def _fine_tuning(task: str) -> dict[str, Any]:
    """An iteration collects one episode of full length in each environment, in chunks of 4 actions."""
    decisions = FINE_TUNING["env"]["collector_env_num"] * get_task(task).max_episode_steps // 4
    collected = dict(policy=dict(collect=dict(n_sample=decisions)))
    return merge(merge(FINE_TUNING, EVALUATION), collected)


def _named(task: str, algo: str) -> dict[str, Any]:
    """A name without the data set: a task has but one."""
    return dict(exp_name=f"{task}_{algo}_seed0")
