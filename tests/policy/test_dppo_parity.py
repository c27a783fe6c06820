"""With DPPO's weights, chains and rewards our updates are DPPO's: losses, gradients, and weights after AdamW.

``tests/model/reference/dppo_*.npz`` are recorded from ``PPODiffusion.loss`` of irom-princeton/dppo at commit
cc7234ad7ff39a8f32de3af903606723a16f0648 and from the steps of its two optimizers as its agent makes them, in float32
and with torch 2.13 on a CPU: weights before in units of 1/64 with their names and shapes; observations, chains that a
policy a bit apart has drawn, the elementwise log-densities under it, and rewards; of each update policy loss, value
loss, estimated KL divergence, clipped fraction and mean ratio; and every fourth entry of the last gradients and of the
weights after all updates. No code of theirs is needed to run this.

What differs by intention is kept out (see Deviations in docs/algorithms/dppo.md). Advantages are r - V(s) and returns
are r: our discount is set to 0, since time limits are treated differently. Ours keeps a row's log-probability of
collecting, which is the mean of what theirs keeps elementwise, cut and restricted to the executed actions. A minibatch
is the whole collection, so the order of its rows does not matter. Their clipping of advantages at quantiles is off by
default and in all published configs, and is not in ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from torch import Tensor, nn

from ding_ebm.data.dppo_layout import reference_names
from ding_ebm.policy.dppo import DPPOPolicy
from dizoo_configs.builder import online

FOLDER = Path(__file__).parents[1] / "model" / "reference"
DO, DA, TO, TP, TA, K = 5, 3, 2, 4, 3, 10
KEPT = 4  # of gradients and of weights after the updates every fourth entry is recorded
METRICS = ("policy_loss", "value_loss", "approximate_kl", "clip_fraction", "ratio_mean")
CASES: dict[str, dict[str, Any]] = {
    "ddpm": dict(
        sampler=dict(ft_denoising_steps=4),
        learn=dict(epoch_per_collect=1, batch_size=48, clip_ratio=0.1, clip_ratio_base=0.02, gamma_denoising=0.99),
    ),
    "ddpm_two_updates": dict(
        sampler=dict(ft_denoising_steps=4),
        learn=dict(
            epoch_per_collect=2,
            batch_size=48,
            clip_ratio=0.01,
            clip_ratio_base=0.001,
            gamma_denoising=0.9,
            value_clip=0.05,
            grad_clip=0.2,
            weight_decay=0.01,
        ),
    ),
    "ddim": dict(
        sampler=dict(ft_denoising_steps=3, ddim_steps=5),
        learn=dict(
            epoch_per_collect=2,
            batch_size=36,
            clip_ratio=0.1,
            clip_ratio_base=0.1,
            clip_ratio_rate=1.0,
            gamma_denoising=0.9,
        ),
    ),
}
MODEL = dict(
    obs_dim=DO, action_dim=DA, horizon_steps=TP, act_steps=TA, cond_steps=TO, denoising_steps=K, time_dim=8,
    mlp=dict(mlp_dims=[16, 16, 16]), critic_widths=[16, 16, 16],
)  # fmt: skip
LEARN = dict(learning_rate=1e-3, critic_learning_rate=1e-2, discount_factor=0.0, reward_scaling=False)


def read(case: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"dppo_{case}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file}


def load(network: nn.Module, recorded: dict[str, np.ndarray], part: str) -> None:
    """Give a network the recorded weights, all of them; ``load_state_dict`` compares names and shapes."""
    shapes = [tuple(int(n) for n in str(shape).split("x")) for shape in recorded[f"{part}/shapes"]]
    values = np.split(recorded[f"{part}/weights"].astype(np.float32) / 64, np.cumsum([np.prod(s) for s in shapes])[:-1])
    ours = {theirs: name for name, theirs in reference_names(network).items()}
    named = zip((ours[str(name)] for name in recorded[f"{part}/names"]), values, shapes)
    network.load_state_dict({name: torch.from_numpy(value.reshape(shape)) for name, value, shape in named})


def policy_of(case: str, recorded: dict[str, np.ndarray], overrides: dict[str, Any]) -> DPPOPolicy:
    small = dict(env=dict(evaluator_env_num=2, n_evaluator_episode=2), policy=dict(model=MODEL, learn=LEARN))
    main, create = online("dppo", "dppo_command", "avoid", "diffusion_bc", small)
    main = deep_merge_dicts(deep_merge_dicts(main, EasyDict(policy=CASES[case])), EasyDict(policy=overrides))
    main.policy.base_policy_path = None
    cfg = compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False)
    policy = create_policy(cfg.policy, enable_field=["learn"])
    for network in (policy._model.base, policy._model.fine_tuned):
        load(network, recorded, "actor")
    load(policy._model.critic, recorded, "critic")
    return policy


def collection(recorded: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The recorded decisions, each an episode of its own."""
    given = {name: torch.from_numpy(recorded[f"input/{name}"]) for name in ("obs", "chain", "old_log_prob", "reward")}
    ends = torch.ones(1, len(given["reward"]), dtype=torch.bool)
    old = given["old_log_prob"].clamp(-5.0, 2.0)[:, :, :TA].mean((-2, -1))
    obs = given["obs"].unsqueeze(0)
    return dict(
        obs=obs, next_obs=obs, chain=given["chain"].unsqueeze(0), log_prob=old.unsqueeze(0),
        reward=given["reward"].unsqueeze(0), terminated=ends, boundary=ends,
    )  # fmt: skip


def by_reference(network: nn.Module, recorded: dict[str, np.ndarray], part: str, gradient: bool) -> Tensor:
    """Parameters or gradients in the reference's order, of each every fourth entry."""
    ours = {there: name for name, there in reference_names(network).items()}
    parameters = dict(network.named_parameters())
    chosen = [parameters[ours[str(name)]] for name in recorded[f"{part}/names"]]
    return torch.cat([(p.grad if gradient else p.detach()).flatten()[::KEPT] for p in chosen])


def errors(case: str, overrides: dict[str, Any] | None = None) -> dict[str, float]:
    """Largest differences: of each metric's average over the updates, of gradients, and of weights after them."""
    recorded = read(case)
    policy = policy_of(case, recorded, overrides or {})
    metrics = policy.learn_mode.forward(collection(recorded))
    expected = dict(zip(METRICS, recorded["output/metrics"].mean(0)))
    found = {name: abs(metrics[name] - expected[name]) for name in METRICS}
    for part, network in (("actor", policy._model.fine_tuned), ("critic", policy._model.critic)):
        for what in ("gradient", "weights"):
            ours = by_reference(network, recorded, part, what == "gradient")
            found[f"{part}_{what}"] = float((ours - torch.from_numpy(recorded[f"output/{part}_{what}"])).abs().max())
    return found


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_weights_after_the_updates_are_the_references(case):
    assert {name: error for name, error in errors(case).items() if error > 1e-5} == {}


# One setting after another that is not the recorded one, and where that must show.
CONTROLS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("ddpm", dict(learn=dict(gamma_denoising=0.5)), {"policy_loss", "actor_gradient", "actor_weights"}),
    ("ddpm", dict(learn=dict(clip_ratio_base=0.05)), {"policy_loss", "clip_fraction", "actor_gradient"}),
    ("ddpm", dict(learn=dict(clip_ratio_rate=0.5)), {"policy_loss", "clip_fraction", "actor_gradient"}),
    ("ddpm", dict(learn=dict(value_weight=1.0)), {"critic_gradient"}),
    ("ddpm", dict(sampler=dict(denoised_clip_value=None)), {"policy_loss", "approximate_kl", "ratio_mean"}),
    ("ddpm", dict(sampler=dict(min_logprob_denoising_std=0.2)), {"policy_loss", "approximate_kl", "ratio_mean"}),
    ("ddpm", dict(model=dict(act_steps=TP)), {"policy_loss", "approximate_kl", "ratio_mean", "actor_gradient"}),
    ("ddpm", dict(learn=dict(log_prob_reduction="sum")), {"policy_loss", "approximate_kl", "ratio_mean"}),
    ("ddpm_two_updates", dict(learn=dict(value_clip=0.01)), {"value_loss"}),
    ("ddpm_two_updates", dict(learn=dict(value_clip=None)), {"value_loss", "critic_gradient", "critic_weights"}),
    ("ddpm_two_updates", dict(learn=dict(grad_clip=None)), {"actor_gradient", "actor_weights"}),
    ("ddpm_two_updates", dict(learn=dict(weight_decay=0.0)), {"actor_weights", "critic_weights"}),
    ("ddim", dict(sampler=dict(eta=0.5)), {"policy_loss", "approximate_kl", "ratio_mean", "actor_gradient"}),
]


@pytest.mark.parametrize(("case", "overrides", "seen"), CONTROLS)
def test_a_setting_that_is_not_the_recorded_one_is_seen(case, overrides, seen):
    assert seen <= {name for name, error in errors(case, overrides).items() if error > 2e-5}
