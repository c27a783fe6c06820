"""Furniture-Bench by the numbers of arXiv:2409.00588. It needs IsaacGym: checked here, and not run."""

from __future__ import annotations

from typing import Any

from ding_ebm.envs.registry import get_task
from dizoo_configs.builder import Configs, imitation, merge, online, shaped_by
from dizoo_configs.gym.builder import ENERGY as LOCOMOTION_ENERGY

EVALUATION = dict(env=dict(evaluator_env_num=1000, n_evaluator_episode=1000))
CHUNKS = dict(policy=dict(model=dict(horizon_steps=8, act_steps=8)))
MODEL = dict(
    policy=dict(
        model=dict(
            denoising_steps=100,
            time_dim=32,
            cond_mlp_dims=[512, 64],
            mlp=dict(mlp_dims=[1024] * 7, activation="mish", layer_norm=True),
        ),
    ),
)  # fmt: skip

# 8000 epochs; an epoch is of 20 000 windows, a guess at some 50 demonstrations, whose rows the paper does not count.
EPOCH = 20_000 // 256
CLONING = dict(
    policy=dict(
        learn=dict(
            train_epoch=8000,
            iterations_per_epoch=EPOCH,
            batch_size=256,
            learning_rate=1e-4,
            min_learning_rate=1e-5,
            ema_start_iter=20 * EPOCH,
            learner=dict(hook=dict(log_show_after_iter=100 * EPOCH, save_ckpt_after_iter=500 * EPOCH)),
        ),
        eval=dict(evaluator=dict(eval_freq=500 * EPOCH)),
    ),
)  # fmt: skip

ENERGY = dict(policy=dict(model=dict(denoising_steps=100)))

# All five steps of DDIM are fine-tuned. A run is of 1000 iterations (--train-iter 1000).
FINE_TUNING = dict(
    env=dict(collector_env_num=1000),
    policy=dict(
        model=dict(critic_widths=[512, 512, 512]),
        sampler=dict(ddim_steps=5, ft_denoising_steps=5, min_sampling_denoising_std=0.04),
        learn=dict(
            batch_size=8800,
            learning_rate=1e-5,
            min_learning_rate=1e-6,
            discount_factor=0.999,
            gamma_denoising=0.9,
            clip_ratio=0.001,
            clip_ratio_base=0.001,
            critic_warmup=1,
            learner=dict(hook=dict(log_show_after_iter=1, save_ckpt_after_iter=50)),
        ),
        eval=dict(evaluator=dict(eval_freq=10)),
    ),
)  # fmt: skip

# The denoising indices that a chain of these five steps holds.
ON_THE_CHAIN = dict(policy=dict(energy=dict(pbrs_k_use_mode=[0, 1, 21, 41, 61, 81])))


def diffusion_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """Cloning of the task's demonstrations."""
    return imitation(
        "diffusion_bc", "diffusion_bc", task, "demonstrations", _all(CHUNKS, EVALUATION, MODEL, CLONING, main)
    )


def energy(task: str, main: dict[str, Any] | None = None) -> Configs:
    """An energy of the task's demonstrations, and of the chunks of its diffusion policy on the way to them."""
    ours = _all(LOCOMOTION_ENERGY, CHUNKS, EVALUATION, ENERGY, main)
    return imitation("energy", "energy_model", task, "demonstrations", ours)


def dppo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO from the cloned policy, by DDIM."""
    return online("dppo", "dppo", task, "diffusion_bc", _all(_fine_tuning(task), main))


def dppo_ebm(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same with rewards shaped by the free energy of the task's energy."""
    ours = _all(_fine_tuning(task), shaped_by(task), ON_THE_CHAIN, main)
    return online("dppo_ebm", "dppo_ebm", task, "diffusion_bc", ours)


def _fine_tuning(task: str) -> dict[str, Any]:
    """An iteration collects one episode of full length in each environment, in chunks of 8 actions."""
    decisions = 1000 * -(-get_task(task).max_episode_steps // 8)
    batch = dict(batch_size=17600) if task == "one_leg_low" else {}
    collected = dict(policy=dict(collect=dict(n_sample=decisions), learn=batch))
    return _all(CHUNKS, EVALUATION, MODEL, FINE_TUNING, collected)


def _all(*parts: dict[str, Any] | None) -> dict[str, Any]:
    main: dict[str, Any] = {}
    for part in parts:
        main = merge(main, part)
    return main
