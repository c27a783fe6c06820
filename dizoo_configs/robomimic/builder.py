"""robomimic's tasks: the numbers of DPPO (arXiv:2409.00588) on states, and a small run for a machine with two cores."""

from __future__ import annotations

from typing import Any

from dizoo_configs.builder import Configs, imitation, merge, online, shaped_by
from dizoo_configs.gym.builder import ENERGY

EVALUATION = dict(env=dict(evaluator_env_num=50, n_evaluator_episode=50))

# The paper's epochs are passes over its data; here one is 100 minibatches.
CLONING = dict(
    policy=dict(
        learn=dict(
            train_epoch=3000,
            iterations_per_epoch=100,
            batch_size=256,
            learning_rate=1e-4,
            min_learning_rate=1e-5,
            ema_start_iter=20 * 100,
            learner=dict(hook=dict(log_show_after_iter=5000, save_ckpt_after_iter=50000)),
        ),
        eval=dict(evaluator=dict(eval_freq=50000)),
    ),
)  # fmt: skip

FINE_TUNING = dict(
    env=dict(collector_env_num=50),
    policy=dict(
        learn=dict(
            epoch_per_collect=10,
            discount_factor=0.999,
            clip_ratio=0.01,
            clip_ratio_base=0.001,
            critic_warmup=2,
            learner=dict(hook=dict(log_show_after_iter=1, save_ckpt_after_iter=10)),
        ),
        eval=dict(evaluator=dict(eval_freq=10)),
    ),
)  # fmt: skip

# Networks by task; those of Gaussian policies are the same without what only a diffusion model has.
MLP = dict(activation="mish", residual=True)
SMALL_NETWORK = dict(mlp=dict(MLP, mlp_dims=[512, 512, 512]))
LARGE_NETWORK = dict(mlp=dict(MLP, mlp_dims=[1024, 1024, 1024]))
NETWORKS = dict(lift=SMALL_NETWORK, can=SMALL_NETWORK, square=LARGE_NETWORK, transport=LARGE_NETWORK)
DIFFUSION = dict(
    lift=dict(time_dim=16),
    can=dict(time_dim=16),
    square=dict(time_dim=32, cond_mlp_dims=[512, 64]),
    transport=dict(time_dim=32),
)
# Actions that are predicted and executed together, where they are not 4.
CHUNKS = dict(transport=dict(horizon_steps=8, act_steps=8))
# Decisions of an environment in a collection, rows of a minibatch, and passes where they are not 10.
COLLECTIONS = dict(
    lift=(300, dict(batch_size=7500)),
    can=(300, dict(batch_size=7500)),
    square=(400, dict(batch_size=10000)),
    transport=(400, dict(batch_size=10000, epoch_per_collect=5)),
)

# Some minutes on one core.
CLONING_SMALL = dict(
    policy=dict(
        model=dict(mlp=dict(mlp_dims=[256, 256, 256])),
        learn=dict(
            train_epoch=20,
            iterations_per_epoch=1000,
            learning_rate=1e-3,
            min_learning_rate=1e-5,
            ema_start_iter=2000,
            learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=20000)),
        ),
        eval=dict(evaluator=dict(eval_freq=20000)),
    ),
)  # fmt: skip


def diffusion_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """Cloning of the task's demonstrations."""
    ours = merge(merge(CLONING, EVALUATION), _model(task, NETWORKS[task], DIFFUSION[task]))
    return imitation("diffusion_bc", "diffusion_bc", task, "demonstrations", merge(ours, main))


def diffusion_bc_small(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same in minutes."""
    full = merge(merge(CLONING, EVALUATION), _model(task, NETWORKS[task], DIFFUSION[task]))
    small = merge(merge(full, CLONING_SMALL), main)
    return imitation("diffusion_bc_small", "diffusion_bc", task, "demonstrations", small)


def gaussian_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by a Gaussian."""
    ours = merge(merge(CLONING, EVALUATION), _model(task, NETWORKS[task]))
    return imitation("gaussian_bc", "gaussian_bc", task, "demonstrations", merge(ours, main))


def gmm_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by a mixture of Gaussians."""
    ours = merge(merge(CLONING, EVALUATION), _model(task, NETWORKS[task]))
    return imitation("gmm_bc", "gmm_bc", task, "demonstrations", merge(ours, main))


def energy(task: str, main: dict[str, Any] | None = None) -> Configs:
    """An energy of the task's demonstrations, and of the chunks of its diffusion policy on the way to them."""
    ours = merge(merge(ENERGY, EVALUATION), _model(task))
    return imitation("energy", "energy_model", task, "demonstrations", merge(ours, main))


def dppo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO from the cloned policy."""
    return online("dppo", "dppo", task, "diffusion_bc", merge(_fine_tuning(task), main))


def dppo_ebm(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same with rewards shaped by the free energy of the task's energy."""
    return online("dppo_ebm", "dppo_ebm", task, "diffusion_bc", merge(merge(_fine_tuning(task), shaped_by(task)), main))


def _fine_tuning(task: str) -> dict[str, Any]:
    decisions, learn = COLLECTIONS[task]
    collected = dict(
        policy=dict(collect=dict(n_sample=FINE_TUNING["env"]["collector_env_num"] * decisions), learn=learn)
    )
    return merge(merge(merge(FINE_TUNING, EVALUATION), collected), _model(task, NETWORKS[task], DIFFUSION[task]))


def _model(task: str, *parts: dict[str, Any]) -> dict[str, Any]:
    """What a policy's model is made of: the lengths of the task's chunks, and further parts."""
    model: dict[str, Any] = dict(CHUNKS.get(task, {}))
    for part in parts:
        model.update(part)
    return dict(policy=dict(model=model))
