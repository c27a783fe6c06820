"""The cloned policy that fine-tuning starts from: its checkpoint found, compared with the config, and taken.

Two kinds of files are known: checkpoints of a run that cloned action chunks, and policies of the reference
implementation as ``ding-ebm convert`` writes them, pre-trained or fine-tuned.

Letters: K denoising steps, F fine-tuned steps, S steps of a sampling run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ding_ebm.checkpoint import find_checkpoint, read_checkpoint
from ding_ebm.model.critics import ValueNet
from ding_ebm.policy.chunk_model import NETWORKS, check_facts, check_same, network_arguments

# State dicts by the name of the model's part that they are of.
Parts = dict[str, Mapping[str, Tensor]]


def take_base(model: nn.Module, cfg: Mapping[str, Any], path: str) -> None:
    """Put a checkpoint's normalizers and networks into a model of ``base``, ``fine_tuned`` and ``critic``.

    Both networks are the cloned one, its moving average; of a policy that the reference has fine-tuned, ``base`` is its
    frozen network and ``fine_tuned`` and ``critic`` are its own.

    Args:
        model: Changed in place.
        cfg: The policy's config.
        path: A checkpoint, or the folder of a run.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another kind, or of a model or sampler that is not the config's; names both values.
    """
    file = find_checkpoint(path)
    state = read_checkpoint(str(file))
    parts = _converted_parts(state, cfg, file) if "meta" in state else _cloned_parts(state, cfg, file)
    for name, part in parts.items():
        getattr(model, name).load_state_dict(part)


def _cloned_parts(state: Mapping[str, Any], cfg: Mapping[str, Any], path: Path) -> Parts:
    """Of a checkpoint that a cloning run wrote."""
    network = _part(state["model"], "network_ema") if "facts" in state else {}
    if not network:
        raise ValueError(
            f"{path} is no cloned policy: it holds {', '.join(sorted(map(str, state)))} where a checkpoint of "
            "diffusion_bc holds facts and model, with network_ema in it"
        )
    check_facts(state, cfg["model"], str(path))
    normalizers = {name: _part(state["model"], name) for name in ("obs_normalizer", "action_normalizer")}
    return {**normalizers, "base": network, "fine_tuned": network}


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The entries of one module of a model's state."""
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}


def _converted_parts(state: Mapping[str, Any], cfg: Mapping[str, Any], path: Path) -> Parts:
    """Of a converted policy."""
    _check_converted(state["meta"], "fine_tuned" in state, cfg, path)
    parts: Parts = dict(
        obs_normalizer=state["normalizer"]["obs"],
        action_normalizer=state["normalizer"]["action"],
        base=state["model"],
        fine_tuned=state.get("fine_tuned", state["model"]),
    )
    return {**parts, "critic": state["critic"]} if "critic" in state else parts


def _check_converted(meta: Mapping[str, Any], fine_tuned: bool, cfg: Mapping[str, Any], path: Path) -> None:
    """Compare networks, K and, of a fine-tuned policy, critic, F and S with the config's."""
    model, sampler = cfg["model"], cfg["sampler"]
    there = {"network": meta["kind"], **_completed(NETWORKS[meta["kind"]], meta["arguments"])}
    here = {"network": model["network"], **_completed(NETWORKS[model["network"]], network_arguments(model))}
    _require(meta, "denoising_steps", path)
    there["denoising_steps"], here["denoising_steps"] = meta["denoising_steps"], model["denoising_steps"]
    if fine_tuned:
        _require(meta, "ft_denoising_steps", path)
        for name in ("ft_denoising_steps", "ddim_steps"):
            there[name], here[name] = meta[name], sampler[name]
        sizes = dict(obs_dim=model["obs_dim"], cond_steps=model["cond_steps"], hidden=model["critic_widths"])
        for side, arguments in ((there, meta["critic_arguments"]), (here, sizes)):
            side.update({f"critic's {name}": value for name, value in _completed(ValueNet, arguments).items()})
    common = [name for name in there if name in here]  # an MLP and a U-Net differ in more than values
    check_same({name: there[name] for name in common}, {name: here[name] for name in common}, str(path))


def _require(meta: Mapping[str, Any], name: str, path: Path) -> None:
    if meta[name] is None:
        raise ValueError(
            f"{path} does not say the policy's {name}, which no weight tells: convert it again with "
            f"--{name.replace('_', '-')}"
        )


def _completed(kind: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network with the defaults of those that are not given, lists as tuples."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    return {**defaults, **given}
