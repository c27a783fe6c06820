"""Reader of the checkpoints that the reference implementation of DPPO writes.

A checkpoint is a torch file of ``model`` and, of a pre-trained policy, ``ema``: weights under ``network.`` of a
pre-trained policy; of a fine-tuned one under ``actor.`` (frozen, for the noisier steps), ``actor_ft.`` and ``critic.``.
Sizes are inferred from the weights; what no weight tells (activation, a U-Net's horizon, the number of denoising steps)
the caller must say. Statistics come from the ``normalization.npz`` of the policy's data set.

Letters: To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.data.dppo_layout import (
    NoiseNetwork,
    body_arguments,
    mlp_arguments,
    some,
    translate,
    unet_arguments,
)
from ding_ebm.data.dppo_npz import EPSILON, read_ranges
from ding_ebm.model.critics import ValueNet
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.unet import Unet1D
from ding_ebm.weights import read_weights

WEIGHTS = ("ema", "model")


@dataclass(frozen=True)
class DppoCheckpoint:
    """A policy of the reference in our layout.

    Attributes:
        kind: ``mlp`` or ``unet``.
        arguments: What builds the noise network.
        network: State dict of the noise network; of a fine-tuned policy the frozen one.
        fine_tuned: State dict of the network of the last denoising steps, None of a pre-trained policy.
        critic_arguments: What builds the critic, None of a pre-trained policy.
        critic: State dict of the critic, None of a pre-trained policy.
        obs_normalizer: State dict of a Normalizer of (Do,).
        action_normalizer: State dict of a Normalizer of (Da,).
        weights: ``ema`` or ``model``, which of them was read.
        step: Epoch of pre-training, or iteration of fine-tuning, that it was written after.
    """

    kind: str
    arguments: dict[str, Any]
    network: dict[str, Tensor]
    fine_tuned: dict[str, Tensor] | None
    critic_arguments: dict[str, Any] | None
    critic: dict[str, Tensor] | None
    obs_normalizer: dict[str, Tensor]
    action_normalizer: dict[str, Tensor]
    weights: str
    step: int | None

    def build(self, *, fine_tuned: bool = False) -> NoiseNetwork:
        """The noise network with its weights, or the fine-tuned one."""
        state = self.fine_tuned if fine_tuned else self.network
        if state is None:
            raise ValueError("this checkpoint is of a pre-trained policy: it has no fine-tuned network")
        network = _NETWORKS[self.kind](**self.arguments)
        network.load_state_dict(state)
        return network

    def build_critic(self) -> ValueNet:
        """The critic with its weights."""
        if self.critic is None or self.critic_arguments is None:
            raise ValueError("this checkpoint is of a pre-trained policy: it has no critic")
        critic = ValueNet(**self.critic_arguments)
        critic.load_state_dict(self.critic)
        return critic


_NETWORKS: dict[str, type[DiffusionMLP] | type[Unet1D]] = {"mlp": DiffusionMLP, "unet": Unet1D}


def read_dppo_checkpoint(
    path: str | Path,
    normalization: str | Path,
    weights: str = "ema",
    *,
    activation: str | None = None,
    horizon: int | None = None,
    norm_eps: float = 1e-5,
) -> DppoCheckpoint:
    """Read a policy that DPPO's code has pre-trained or fine-tuned.

    Args:
        path: Its ``state_<n>.pt``.
        normalization: The ``normalization.npz`` of its data set.
        weights: ``ema``, the moving average that the reference fine-tunes from, or ``model``. A fine-tuned policy has
            no moving average.
        activation: Activation of an MLP, ``relu`` or ``mish``: no weight tells. A U-Net has mish.
        horizon: Tp of a U-Net, which no weight tells; of an MLP it is checked where given.
        norm_eps: Of a U-Net's group normalizations; 1e-4 in the reference's configs for furniture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is not what it should be, naming what is wrong and what would be right.
    """
    obs_normalizer, action_normalizer = _read_normalization(Path(normalization))
    content = _load(Path(path))
    parts = _split(_choose(content, weights, path), path)
    network = parts["network"]
    kind = _kind(network, path)
    dims = (len(obs_normalizer["scale"]), len(action_normalizer["scale"]))
    if kind == "mlp":
        arguments = mlp_arguments(network, *dims, activation, horizon)
    else:
        arguments = unet_arguments(network, *dims, activation, horizon, norm_eps)
    ours = _NETWORKS[kind](**arguments)
    critic_arguments = critic = None
    if "critic" in parts:
        body = body_arguments(parts["critic"], "Q1")
        kept = {key: body[key] for key in ("hidden", "residual", "layer_norm")}
        critic_arguments = dict(obs_dim=dims[0], cond_steps=arguments["cond_steps"], **kept)
        critic = translate(parts["critic"], ValueNet(**critic_arguments), "critic")
    step = content.get("epoch", content.get("itr"))
    return DppoCheckpoint(
        kind=kind,
        arguments=arguments,
        network=translate(network, ours, "network"),
        fine_tuned=translate(parts["fine_tuned"], ours, "actor_ft") if "fine_tuned" in parts else None,
        critic_arguments=critic_arguments,
        critic=critic,
        obs_normalizer=obs_normalizer,
        action_normalizer=action_normalizer,
        weights=weights,
        step=step if isinstance(step, int) else None,
    )


def write_policy(
    checkpoint: DppoCheckpoint,
    path: str | Path,
    denoising_steps: int | None = None,
    ft_denoising_steps: int | None = None,
    ddim_steps: int | None = None,
) -> None:
    """Write it as a checkpoint, see :mod:`ding_ebm.checkpoint`.

    The file holds ``model``, of a fine-tuned policy ``fine_tuned`` and ``critic``, ``normalizer`` (``obs`` and
    ``action``) and ``meta``: kind and arguments of the networks and where the weights are from.

    Args:
        checkpoint: The policy.
        path: A file that does not exist; its folder is made.
        denoising_steps: K that the policy was trained with, which the reference writes nowhere; None if unknown.
        ft_denoising_steps: F that it was fine-tuned with, in the same way.
        ddim_steps: Number of steps by DDIM that it was fine-tuned with, None where by DDPM.

    Raises:
        FileExistsError: If there is such a file.
        ValueError: If steps of fine-tuning are given for a pre-trained policy.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it or choose another name")
    if checkpoint.fine_tuned is None and (ft_denoising_steps, ddim_steps) != (None, None):
        raise ValueError("ft_denoising_steps and ddim_steps are of a fine-tuned policy; this one is pre-trained")
    meta = dict(
        kind=checkpoint.kind,
        arguments=checkpoint.arguments,
        critic_arguments=checkpoint.critic_arguments,
        weights=checkpoint.weights,
        step=checkpoint.step,
        denoising_steps=denoising_steps,
        ft_denoising_steps=ft_denoising_steps,
        ddim_steps=ddim_steps,
    )
    parts = dict(model=checkpoint.network, fine_tuned=checkpoint.fine_tuned, critic=checkpoint.critic)
    content: dict[str, Any] = {name: state for name, state in parts.items() if state is not None}
    content["normalizer"] = dict(obs=checkpoint.obs_normalizer, action=checkpoint.action_normalizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint({**content, "meta": meta}, path)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a checkpoint of the reference is called state_<n>.pt")
    return read_weights(path, "checkpoint of the reference")


def _choose(content: Mapping[str, Any], weights: str, path: str | Path) -> dict[str, Tensor]:
    """The weights that were asked for, every one of them a tensor of finite numbers."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, got {weights!r}")
    chosen = content.get(weights)
    if not isinstance(chosen, dict):
        hint = "; fine-tuned policies of the reference have none, ask for weights 'model'" if weights == "ema" else ""
        raise ValueError(f"{path} has no {weights!r} weights, it has {some(sorted(map(str, content)))}{hint}")
    for name, value in chosen.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} of {weights!r} is not a tensor of finite numbers")
    return chosen


def _split(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, dict[str, Tensor]]:
    """State dicts called ``network`` and, of a fine-tuned policy, ``fine_tuned`` and ``critic``."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = value
    is_fine_tuned = "actor_ft" in groups
    needed = {"actor", "actor_ft", "critic"} if is_fine_tuned else {"network"}
    # The reference registers the frozen network twice, and keeps DDIM's eta, a number of its config, as a parameter.
    allowed = needed | {"network", "eta"} if is_fine_tuned else needed
    foreign = [name for name in weights if name.partition(".")[0] not in allowed]
    foreign += [f"eta.{name}" for name in groups.get("eta", {}) if is_fine_tuned and name != "eta_logit"]
    if foreign or not needed <= set(groups):
        raise ValueError(
            f"{path} is not a diffusion policy of the reference: its weights lie under {some(sorted(groups))}; a "
            "pre-trained policy has network.*, one that PPO has fine-tuned actor.*, actor_ft.* and critic.*"
            + (f"; foreign: {some(sorted(foreign))}" if foreign else "")
        )
    if not is_fine_tuned:
        return {"network": groups["network"]}
    return {"network": groups["actor"], "fine_tuned": groups["actor_ft"], "critic": groups["critic"]}


def _kind(network: Mapping[str, Tensor], path: str | Path) -> str:
    tops = {name.partition(".")[0] for name in network}
    if "backbone" in tops:
        raise ValueError(f"{path} is a policy from images, which is not supported; those of states have no backbone.*")
    if "down_modules" in tops:
        return "unet"
    if {"mlp_mean", "time_embedding"} <= tops:
        return "mlp"
    raise ValueError(
        f"{path} holds neither the reference's diffusion MLP (mlp_mean.*, time_embedding.*) nor its U-Net "
        f"(down_modules.*): its network has {some(sorted(tops))}"
    )


def _read_normalization(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of the normalizers of observations and actions that are the reference's maps.

    It maps observations to 2 (o - min) / (max - min + 1e-6) - 1, and actions back to min + (max - min) (a + 1) / 2.
    """
    obs_min, obs_max, action_min, action_max = read_ranges(path).values()
    obs_scale = 0.5 * (obs_max - obs_min + EPSILON)
    # A constant action would have a scale of zero, which has no inverse.
    action_scale = 0.5 * np.maximum(action_max - action_min, EPSILON)
    obs = dict(shift=torch.from_numpy(obs_min + obs_scale).float(), scale=torch.from_numpy(obs_scale).float())
    shift = torch.from_numpy(0.5 * (action_min + action_max)).float()
    return obs, dict(shift=shift, scale=torch.from_numpy(action_scale).float())
