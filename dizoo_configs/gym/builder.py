"""Gymnasium's locomotion tasks: the papers' numbers, and small runs for a machine with two cores."""

from __future__ import annotations

from typing import Any

from dizoo_configs.builder import Configs, imitation, merge, offline, online, shaped_by

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
# propagation of values, a greedier policy, the guidance after the critic, and its labels of less variance.
SMALL = dict(
    env=dict(evaluator_env_num=10, n_evaluator_episode=10),
    policy=dict(
        model=dict(ema_decay=0.999, time_scale=1.0, qgpo_critic=dict(alpha=8.0)),
        learn=dict(
            iterations_per_epoch=1000,
            batch_size=512,
            learning_rate=3e-4,
            critic_learning_rate=3e-4,
            guidance_learning_rate=1e-3,
            target_theta=0.01,
            M=8,
            diffusion_steps=8,
            energy_labels="softmax",
            precision="auto",
            learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=10000)),
        ),
        collect=dict(obs_normalization="mean_std"),
        eval=dict(
            guidance_scale=[1.0, 0.0, 0.5, 2.0, 3.0],
            diffusion_steps=8,
        ),
    ),
)  # fmt: skip


def qgpo(task: str, data_set: str, main: dict[str, Any] | None = None) -> Configs:
    """QGPO with the paper's networks, batches and 1.6 million iterations."""
    return offline("qgpo", "ebm_qgpo", task, data_set, merge(PAPER, main))


# Updates of the small critic, in thousands: 45 for each 100 000 rows of the project's data sets.
CRITIC_EPOCHS = dict(medium=90, medium_replay=45, medium_expert=135, expert=45)

# Where the actions of a state hardly differ: a gentler policy, and a guidance that learns longer and more of the times
# of little noise; see docs/algorithms/qgpo.md, "Where it is hard".
GENTLE = dict(
    policy=dict(model=dict(qgpo_critic=dict(alpha=1.0, critic_layer_norm=True)), learn=dict(guidance_time_exponent=3.0))
)


def qgpo_small(task: str, data_set: str) -> Configs:
    """QGPO in under 45 minutes on two cores, in an hour where it is gentle on a large set."""
    narrow = data_set == "expert" or (task == "walker2d" and data_set != "medium_replay")
    behavior, guidance = 15, 40 if narrow else 20
    frozen = behavior + CRITIC_EPOCHS[data_set]
    stages = dict(
        train_epoch=frozen + guidance,
        behavior_policy_stop_training_iter=1000 * behavior,
        energy_guided_policy_begin_training_iter=1000 * frozen,
        q_value_stop_training_iter=1000 * frozen,
    )
    sized = dict(policy=dict(learn=stages, eval=dict(evaluator=dict(eval_freq=1000 * (frozen + guidance)))))
    main = merge(SMALL, GENTLE) if narrow else SMALL
    return offline("qgpo_small", "ebm_qgpo", task, data_set, merge(main, sized))


# Pre-training of arXiv:2409.00588: 200 epochs of a million windows.
CLONING = dict(
    env=dict(evaluator_env_num=10, n_evaluator_episode=10),
    policy=dict(
        learn=dict(
            train_epoch=200,
            iterations_per_epoch=7812,
            ema_start_iter=20 * 7812,
            learner=dict(hook=dict(log_show_after_iter=7812, save_ckpt_after_iter=10 * 7812)),
        ),
        eval=dict(evaluator=dict(eval_freq=10 * 7812)),
    ),
)  # fmt: skip

ENERGY = dict(
    env=dict(evaluator_env_num=10, n_evaluator_episode=10),
    policy=dict(
        model=dict(denoising_steps=20),
        learn=dict(
            train_epoch=20,
            iterations_per_epoch=1000,
            learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=20000)),
        ),
        eval=dict(evaluator=dict(eval_freq=20000)),
    ),
)  # fmt: skip

# Its Gaussian policies predict one action at a time.
SINGLE_ACTION = dict(policy=dict(model=dict(horizon_steps=1, act_steps=1)))

# Fine-tuning of arXiv:2409.00588: 80 000 environment steps an iteration, 1000 iterations.
FINE_TUNING = dict(
    env=dict(collector_env_num=40, evaluator_env_num=40, n_evaluator_episode=40),
    policy=dict(
        collect=dict(n_sample=40 * 500),
        learn=dict(learner=dict(hook=dict(log_show_after_iter=1, save_ckpt_after_iter=50))),
        eval=dict(evaluator=dict(eval_freq=10)),
    ),
)  # fmt: skip

# Both for a machine with two cores: narrower networks, a fifth of a million windows' epochs, smaller collections and
# minibatches.
NARROW = dict(policy=dict(model=dict(mlp=dict(mlp_dims=[256, 256, 256]))))
CLONING_SMALL = dict(
    policy=dict(
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
FINE_TUNING_SMALL = dict(
    policy=dict(
        collect=dict(n_sample=40 * 250),
        learn=dict(batch_size=10000, learner=dict(hook=dict(save_ckpt_after_iter=25))),
        eval=dict(evaluator=dict(eval_freq=5)),
    ),
)  # fmt: skip


def diffusion_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """Cloning of the task's medium data, which DPPO fine-tunes."""
    return imitation("diffusion_bc", "diffusion_bc", task, "medium", merge(CLONING, main))


def energy(task: str, main: dict[str, Any] | None = None) -> Configs:
    """An energy of that data, and of the chunks of its diffusion policy on the way to them."""
    return imitation("energy", "energy_model", task, "medium", merge(ENERGY, main))


def gaussian_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by a Gaussian of one action."""
    return imitation("gaussian_bc", "gaussian_bc", task, "medium", merge(merge(CLONING, SINGLE_ACTION), main))


def gmm_bc(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by a mixture of Gaussians, of which the paper has none on these tasks."""
    return imitation("gmm_bc", "gmm_bc", task, "medium", merge(merge(CLONING, SINGLE_ACTION), main))


def dppo(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO from the cloned policy, all steps by DDPM."""
    return online("dppo", "dppo", task, "diffusion_bc", merge(FINE_TUNING, main))


def dppo_ebm(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same with rewards shaped by the free energy of the task's energy."""
    return online("dppo_ebm", "dppo_ebm", task, "diffusion_bc", merge(merge(FINE_TUNING, shaped_by(task)), main))


def dppo_ebm_small(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same from the small policy."""
    small = merge(merge(merge(FINE_TUNING, FINE_TUNING_SMALL), NARROW), shaped_by(task))
    return online("dppo_ebm_small", "dppo_ebm", task, "diffusion_bc_small", merge(small, main))


def diffusion_bc_small(task: str, main: dict[str, Any] | None = None) -> Configs:
    """Cloning in some minutes on two cores."""
    small = merge(merge(CLONING, CLONING_SMALL), NARROW)
    return imitation("diffusion_bc_small", "diffusion_bc", task, "medium", merge(small, main))


def dppo_small(task: str, main: dict[str, Any] | None = None) -> Configs:
    """DPPO from that policy, 40 000 environment steps an iteration."""
    small = merge(merge(FINE_TUNING, FINE_TUNING_SMALL), NARROW)
    return online("dppo_small", "dppo", task, "diffusion_bc_small", merge(small, main))


def dppo_ddim(task: str, main: dict[str, Any] | None = None) -> Configs:
    """The same by five steps of DDIM, all of them fine-tuned."""
    ddim = dict(policy=dict(sampler=dict(ddim_steps=5, ft_denoising_steps=5)))
    return online("dppo_ddim", "dppo", task, "diffusion_bc", merge(merge(FINE_TUNING, ddim), main))
