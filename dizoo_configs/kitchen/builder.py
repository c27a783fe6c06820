"""D4RL's kitchen: arXiv:2409.00588's numbers of cloning and fine-tuning, the locomotion tasks' of the rest."""

from __future__ import annotations

from typing import Any

from dizoo_configs.builder import Configs, imitation, merge, offline, online, shaped_by
from dizoo_configs.gym.builder import ENERGY, PAPER

EVALUATION = dict(env=dict(evaluator_env_num=40, n_evaluator_episode=40))

MODEL = dict(
    policy=dict(
        model=dict(
            mlp=dict(mlp_dims=[256, 256, 256], activation="mish"),
            cond_mlp_dims=[128, 32],
        ),
    ),
)  # fmt: skip

# Rows of D4RL's sets; an epoch is as many windows.
ROWS = dict(kitchen_complete=3680, kitchen_partial=136950, kitchen_mixed=136950)

# 40 environments of 70 decisions, a whole episode each. A run is of 301 iterations (--train-iter 301).
FINE_TUNING = dict(
    env=dict(collector_env_num=40),
    policy=dict(
        collect=dict(n_sample=40 * 70),
        learn=dict(
            epoch_per_collect=10,
            batch_size=5600,
            learner=dict(hook=dict(log_show_after_iter=1, save_ckpt_after_iter=50)),
        ),
        eval=dict(evaluator=dict(eval_freq=10)),
    ),
)  # fmt: skip


def qgpo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """QGPO with the locomotion tasks' numbers: its paper has none of these tasks."""
    named = dict(exp_name=f"{task}_qgpo_seed0")
    return offline("qgpo", "ebm_qgpo", task, "demonstrations", merge(merge(merge(PAPER, EVALUATION), named), main))


def diffusion_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """Cloning of the task's demonstrations."""
    ours = merge(merge(MODEL, EVALUATION), _cloning(task))
    return imitation("diffusion_bc", "diffusion_bc", task, "demonstrations", merge(ours, main))


def energy(task: str, main: dict[str, Any] | None = None) -> Configs:
    """An energy of the task's demonstrations, and of the chunks of its diffusion policy on the way to them."""
    return imitation("energy", "energy_model", task, "demonstrations", merge(merge(ENERGY, EVALUATION), main))


def dppo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO from the cloned policy."""
    return online("dppo", "dppo", task, "diffusion_bc", merge(_fine_tuning(), main))


def dppo_ebm(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same with rewards shaped by the free energy of the task's energy."""
    return online("dppo_ebm", "dppo_ebm", task, "diffusion_bc", merge(merge(_fine_tuning(), shaped_by(task)), main))


def _fine_tuning() -> dict[str, Any]:
    return merge(merge(MODEL, EVALUATION), FINE_TUNING)


def _cloning(task: str) -> dict[str, Any]:
    """3000 epochs of the task's set, evaluated and saved thirty times; the moving average begins after 20."""
    batch_size = 256 if task == "kitchen_mixed" else 128
    epoch = ROWS[task] // batch_size
    learn = dict(
        train_epoch=3000,
        iterations_per_epoch=epoch,
        batch_size=batch_size,
        ema_start_iter=20 * epoch,
        learner=dict(hook=dict(log_show_after_iter=10 * epoch, save_ckpt_after_iter=100 * epoch)),
    )
    return dict(policy=dict(learn=learn, eval=dict(evaluator=dict(eval_freq=100 * epoch))))
