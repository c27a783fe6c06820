"""QGPO on Gymnasium's locomotion tasks: the paper's numbers, and a small run for a machine with two cores."""

from __future__ import annotations

from typing import Any

from dizoo_configs.builder import Configs, merge, offline

PAPER = dict(
    env=dict(evaluator_env_num=10, n_evaluator_episode=10),
    policy=dict(
        learn=dict(
            train_epoch=6400,
            iterations_per_epoch=250,
            precision="auto",
            compile="auto",
            learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=100000)),
        ),
        eval=dict(
            guidance_scale=[3.0, 0.0, 1.0, 2.0, 5.0, 8.0, 10.0],
            evaluator=dict(eval_freq=50000),
        ),
    ),
)  # fmt: skip

# Less data, time and noise than the paper's: quicker time features, a moving average of the behavior model, faster
# propagation of values, a greedier policy, and the guidance after the critic.
SMALL = dict(
    env=dict(evaluator_env_num=10, n_evaluator_episode=10),
    policy=dict(
        model=dict(ema_decay=0.999, time_scale=1.0, qgpo_critic=dict(alpha=5.0)),
        learn=dict(
            train_epoch=70,
            iterations_per_epoch=1000,
            batch_size=512,
            learning_rate=3e-4,
            critic_learning_rate=3e-4,
            target_theta=0.01,
            M=8,
            diffusion_steps=8,
            behavior_policy_stop_training_iter=15000,
            energy_guided_policy_begin_training_iter=60000,
            q_value_stop_training_iter=60000,
            precision="auto",
            learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=10000)),
        ),
        collect=dict(obs_normalization="mean_std"),
        eval=dict(
            guidance_scale=[1.0, 0.0, 0.5, 2.0, 3.0],
            diffusion_steps=8,
            evaluator=dict(eval_freq=35000),
        ),
    ),
)  # fmt: skip


def qgpo(task: str, data_set: str, main: dict[str, Any] | None = None) -> Configs:
    """QGPO with the paper's networks, batches and 1.6 million iterations."""
    return offline("qgpo", "ebm_qgpo", task, data_set, merge(PAPER, main))


def qgpo_small(task: str, data_set: str, main: dict[str, Any] | None = None) -> Configs:
    """QGPO in under 45 minutes on two cores."""
    return offline("qgpo_small", "ebm_qgpo", task, data_set, merge(SMALL, main))
