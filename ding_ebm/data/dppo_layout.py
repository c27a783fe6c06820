"""How the reference implementation of DPPO names and sizes its networks, and which of ours they are.

Letters: To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Union

import torch
from torch import Tensor

from ding_ebm.model.critics import ValueNet
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.networks import ResidualMLP
from ding_ebm.model.unet import Unet1D

NoiseNetwork = Union[DiffusionMLP, Unet1D]


def reference_names(network: NoiseNetwork | ValueNet) -> dict[str, str]:
    """Name in the reference of each parameter of our network; its values are the same."""
    if isinstance(network, ValueNet):
        modules = mlp_names(network.net, "net", "Q1")
    elif isinstance(network, DiffusionMLP):
        modules = {"time.first": "time_embedding.1", "time.second": "time_embedding.3"}
        modules.update(mlp_names(network.net, "net", "mlp_mean"))
    else:
        modules = {"time.first": "time_mlp.1", "time.second": "time_mlp.3", **_unet_names(network)}
    if not isinstance(network, ValueNet) and isinstance(network.cond, ResidualMLP):
        modules.update(mlp_names(network.cond, "cond", "cond_mlp"))
    named = ((name, name.rpartition(".")) for name in network.state_dict())
    return {name: f"{modules[module]}.{leaf}" for name, (module, _, leaf) in named}


def mlp_names(net: ResidualMLP, ours: str, theirs: str) -> dict[str, str]:
    """Name in the reference's MLP called ``theirs`` of each layer of ``net``, called ``ours``."""
    count = len(net.blocks)
    if net.residual:
        names = {f"{ours}.first": f"{theirs}.layers.0", f"{ours}.last": f"{theirs}.layers.{count + 1}"}
        for i in range(count):
            for half, number in (("first", 1), ("second", 2)):
                names[f"{ours}.blocks.{i}.{half}.linear"] = f"{theirs}.layers.{i + 1}.l{number}"
                names[f"{ours}.blocks.{i}.{half}.norm"] = f"{theirs}.layers.{i + 1}.norm{number}"
        return names
    names = {f"{ours}.first": f"{theirs}.moduleList.0.linear_1"}
    for i, step in enumerate([*(f"blocks.{i}" for i in range(count)), "last"]):  # their norm comes after a layer
        names[f"{ours}.{step}.norm"] = f"{theirs}.moduleList.{i}.norm_1"
        names[f"{ours}.{step}.linear"] = f"{theirs}.moduleList.{i + 1}.linear_1"
    return names


def _unet_names(network: Unet1D) -> dict[str, str]:
    names = {"final.conv": "final_conv.0.block.0", "final.norm": "final_conv.0.block.2", "last": "final_conv.1"}
    blocks = {f"middle.{j}": f"mid_modules.{j}" for j in range(2)}
    for ours, theirs, count in (("down", "down_modules", len(network.down)), ("up", "up_modules", len(network.up))):
        for i in range(count):
            blocks.update({f"{ours}.{i}.{j}": f"{theirs}.{i}.{j}" for j in range(2)})
            names[f"{ours}sample.{i}"] = f"{theirs}.{i}.2.conv"
    films = {"0": "0", "1": "2", "2": "4"} if isinstance(network.cond, torch.nn.Identity) else {"0": "1"}
    for ours, theirs in blocks.items():
        names[f"{ours}.skip"] = f"{theirs}.residual_conv"
        names.update({f"{ours}.film.layers.{n}": f"{theirs}.cond_encoder.{m}" for n, m in films.items()})
        for half, index in (("first", 0), ("second", 1)):
            names[f"{ours}.{half}.conv"] = f"{theirs}.blocks.{index}.block.0"
            names[f"{ours}.{half}.norm"] = f"{theirs}.blocks.{index}.block.2"
    return names


def translate(state: Mapping[str, Tensor], network: NoiseNetwork | ValueNet, part: str) -> dict[str, Tensor]:
    """The state dict of ``network`` from the reference's, of which every tensor must find its place."""
    names, ours = reference_names(network), network.state_dict()
    missing = sorted(set(names.values()) - set(state))
    foreign = sorted(set(state) - set(names.values()))
    if missing or foreign:
        raise ValueError(
            f"{part} is not the reference's {type(network).__name__} of the sizes that its weights tell: it lacks "
            f"{some(missing)} and has {some(foreign)}, which has no place"
        )
    for name, theirs in names.items():
        if state[theirs].shape != ours[name].shape:
            raise ValueError(
                f"{part}.{theirs} has shape {tuple(state[theirs].shape)} where the other weights and the "
                f"normalization make it {tuple(ours[name].shape)}"
            )
    return {name: state[theirs].detach().clone().float().contiguous() for name, theirs in names.items()}


def mlp_arguments(
    state: Mapping[str, Tensor], obs_dim: int, action_dim: int, activation: str | None, horizon: int | None
) -> dict[str, Any]:
    """Arguments of the DiffusionMLP that a state dict of the reference is; see ``read_dppo_checkpoint``."""
    if activation is None:
        raise ValueError(
            "no weight tells the activation of an MLP; say it: 'relu' for the reference's locomotion and avoid "
            "policies, 'mish' for its kitchen, robomimic and furniture policies (activation_type of their config)"
        )
    body = body_arguments(state, "mlp_mean")
    chunk, time_dim = body.pop("dim_out"), _get(state, "time_embedding.1.weight").shape[1]
    cond_dim, cond_mlp_dims = body.pop("dim_in") - chunk - time_dim, None
    if any(name.startswith("cond_mlp.") for name in state):
        encoder = body_arguments(state, "cond_mlp")
        cond_dim, cond_mlp_dims = encoder["dim_in"], (*encoder["hidden"], encoder["dim_out"])
    found = _quotient(chunk, action_dim, "outputs of the network", "action_min")
    if horizon not in (None, found):
        raise ValueError(f"the network predicts {found} actions of {action_dim} dimensions, but horizon says {horizon}")
    return dict(
        obs_dim=obs_dim,
        action_dim=action_dim,
        cond_steps=_quotient(cond_dim, obs_dim, "observation inputs of the network", "obs_min"),
        horizon_steps=found,
        mlp_dims=body.pop("hidden"),
        time_dim=time_dim,
        activation=activation,
        cond_mlp_dims=cond_mlp_dims,
        **body,
    )


def unet_arguments(
    state: Mapping[str, Tensor],
    obs_dim: int,
    action_dim: int,
    activation: str | None,
    horizon: int | None,
    norm_eps: float,
) -> dict[str, Any]:
    """Arguments of the Unet1D that a state dict of the reference is; see ``read_dppo_checkpoint``."""
    if activation not in (None, "mish"):
        raise ValueError(f"the reference's U-Nets have the activation 'mish', got {activation!r}")
    if horizon is None:
        raise ValueError("no weight tells the horizon of a U-Net; say it (horizon_steps of the policy's config)")
    first = [_get(state, "down_modules.0.0.blocks.0.block.0.weight")]
    while (name := f"down_modules.{len(first)}.0.blocks.0.block.0.weight") in state:
        first.append(state[name])
    widths = [len(weight) for weight in first]
    time_dim, cond_mlp_dims = _get(state, "time_mlp.1.weight").shape[1], None
    if any(name.startswith("cond_mlp.") for name in state):
        encoder = body_arguments(state, "cond_mlp")
        cond_dim, cond_mlp_dims = encoder["dim_in"], (*encoder["hidden"], encoder["dim_out"])
    else:
        cond_dim = _get(state, "mid_modules.0.cond_encoder.0.weight").shape[1] - time_dim
    return dict(
        obs_dim=obs_dim,
        action_dim=action_dim,
        cond_steps=_quotient(cond_dim, obs_dim, "observation inputs of the network", "obs_min"),
        horizon_steps=horizon,
        dim=widths[0],
        dim_mults=tuple(width // widths[0] for width in widths),
        time_dim=time_dim,
        cond_mlp_dims=cond_mlp_dims,
        kernel_size=first[0].shape[2],
        norm_eps=norm_eps,
    )


def body_arguments(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Arguments of the ResidualMLP that the reference's MLP called ``name`` is."""
    residual = f"{name}.layers.0.weight" in state
    if residual:
        width, pairs = len(state[f"{name}.layers.0.weight"]), 0
        while f"{name}.layers.{pairs + 1}.l1.weight" in state:
            pairs += 1
        hidden, norm = (width,) * (2 * pairs + 1), f"{name}.layers.1.norm1.weight"
        first, last = f"{name}.layers.0.weight", f"{name}.layers.{pairs + 1}.weight"
    else:
        count = 0
        while f"{name}.moduleList.{count}.linear_1.weight" in state:
            count += 1
        first, last = f"{name}.moduleList.0.linear_1.weight", f"{name}.moduleList.{count - 1}.linear_1.weight"
        hidden = tuple(len(state[f"{name}.moduleList.{i}.linear_1.weight"]) for i in range(count - 1))
        norm = f"{name}.moduleList.0.norm_1.weight"
    return dict(
        dim_in=_get(state, first).shape[1],
        hidden=hidden,
        dim_out=len(_get(state, last)),
        residual=residual,
        layer_norm=norm in state,
    )


def _get(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the network has no {name}, as the reference's would; it has {some(sorted(state))}")
    return state[name]


def _quotient(count: int, divisor: int, what: str, key: str) -> int:
    if count < divisor or count % divisor:
        raise ValueError(
            f"the {what} are {count}, which is no multiple of the {divisor} dimensions of {key} in the normalization: "
            "it is of another task, or an entry of another network took the place of this one"
        )
    return count // divisor


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:3]) or "nothing"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
