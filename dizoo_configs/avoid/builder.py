"""The three modes of avoid: two ways in the demonstrations, one of which pays."""

from __future__ import annotations

from typing import Any

from dizoo_configs.builder import Configs, imitation, merge, online, shaped_by

CLONING = dict(
    env=dict(evaluator_env_num=50, n_evaluator_episode=50),
    policy=dict(
        model=dict(mlp=dict(mlp_dims=[256, 256, 256])),
        learn=dict(
            train_epoch=20,
            iterations_per_epoch=1000,
            batch_size=256,
            ema_start_iter=2000,
            learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=20000)),
        ),
        eval=dict(evaluator=dict(eval_freq=20000)),
    ),
)  # fmt: skip

ENERGY = dict(
    env=dict(evaluator_env_num=50, n_evaluator_episode=50),
    policy=dict(
        model=dict(denoising_steps=20),
        learn=dict(
            train_epoch=10,
            iterations_per_epoch=1000,
            learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=10000)),
        ),
        eval=dict(evaluator=dict(eval_freq=10000)),
    ),
)  # fmt: skip

# Networks of the published Gaussian and mixture policies of these tasks.
GAUSSIAN = dict(policy=dict(model=dict(mlp=dict(activation="relu", residual=True)), learn=dict(learning_rate=1e-3)))
MIXTURE = dict(
    policy=dict(model=dict(mlp=dict(mlp_dims=[256, 256], activation="relu")), learn=dict(learning_rate=1e-3))
)

# 50 environments of 25 decisions, a whole episode each, as in arXiv:2409.00588. A run is of 51 iterations
# (--train-iter 51), over which the learning rate falls to 0.
FINE_TUNING = dict(
    env=dict(collector_env_num=50, evaluator_env_num=50, n_evaluator_episode=50),
    policy=dict(
        model=dict(mlp=dict(mlp_dims=[256, 256, 256])),
        collect=dict(n_sample=50 * 25),
        learn=dict(
            epoch_per_collect=10,
            batch_size=6250,
            learning_rate=2e-5,
            min_learning_rate=0.0,
            learning_rate_cycle=51,
            gamma_denoising=0.95,
            clip_ratio=0.1,
            clip_ratio_base=0.1,
            clip_ratio_rate=1.0,
            critic_warmup=1,
            learner=dict(hook=dict(log_show_after_iter=1, save_ckpt_after_iter=10)),
        ),
        eval=dict(evaluator=dict(eval_freq=10)),
    ),
)  # fmt: skip


def diffusion_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """Cloning of the task's demonstrations."""
    return imitation("diffusion_bc", "diffusion_bc", task, "demonstrations", merge(CLONING, main))


def energy(task: str, main: dict[str, Any] | None = None) -> Configs:
    """An energy of the task's demonstrations, and of the chunks of its diffusion policy on the way to them."""
    return imitation("energy", "energy_model", task, "demonstrations", merge(ENERGY, main))


def gaussian_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by a Gaussian."""
    return imitation("gaussian_bc", "gaussian_bc", task, "demonstrations", merge(merge(CLONING, GAUSSIAN), main))


def gmm_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by a mixture of Gaussians."""
    return imitation("gmm_bc", "gmm_bc", task, "demonstrations", merge(merge(CLONING, MIXTURE), main))


def dppo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO from the cloned policy, all steps by DDPM."""
    return online("dppo", "dppo", task, "diffusion_bc", merge(FINE_TUNING, main))


def dppo_ebm(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO with rewards shaped by the free energy of the task's energy."""
    return online("dppo_ebm", "dppo_ebm", task, "diffusion_bc", merge(merge(FINE_TUNING, shaped_by(task)), main))


def dppo_ddim(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by five steps of DDIM, all of them fine-tuned."""
    ddim = dict(policy=dict(sampler=dict(ddim_steps=5, ft_denoising_steps=5)))
    return online("dppo_ddim", "dppo", task, "diffusion_bc", merge(merge(FINE_TUNING, ddim), main))
