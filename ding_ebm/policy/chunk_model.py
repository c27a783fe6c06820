"""What policies over action chunks share: their model's config, acting, and the diffusion model itself.

Letters: E environments, To observation history, Tp predicted and Ta executed actions, Do observation, Da action,
K denoising steps, F fine-tuned steps, S steps of a sampling run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from ding.utils import MODEL_REGISTRY
from numpy.typing import NDArray
from torch import Tensor, nn

from ding_ebm.config import ConfigError, Rule, choice, flag, integer, number, optional, sequence, text
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.diffusion.denoising import DenoisingPlan, ddim_plan, ddpm_plan
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.model.chains import sample_chunks
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.unet import Unet1D

# From observations (E, To, Do), the same normalized, and what samples chunks for them, to better chunks (E, Tp, Da).
Correction = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]

WIDTHS = sequence(integer(1))
NETWORKS: dict[str, type[DiffusionMLP] | type[Unet1D]] = {"mlp": DiffusionMLP, "unet": Unet1D}

CHUNK_MODEL = dict(
    # (str) Name of the task that the model is of; a checkpoint of another task is refused. The task must say it.
    task=None,
    # (int) Do, number of observation dimensions; the task must say it.
    obs_dim=None,
    # (int) Da, number of action dimensions; the task must say it.
    action_dim=None,
    # (int) Tp, number of actions that are predicted together.
    horizon_steps=4,
    # (int) Ta, number of them that are executed before the next prediction.
    act_steps=4,
    # (int) To, number of latest observations that are seen.
    cond_steps=1,
)
MLP = dict(
    # (list of int) Hidden widths.
    mlp_dims=[512, 512, 512],
    # (str) 'relu' or 'mish'.
    activation="relu",
    # (bool) Whether pairs of layers are residual blocks.
    residual=True,
    # (bool) Whether a layer normalizes its input.
    layer_norm=False,
)
DIFFUSION_MODEL = dict(
    CHUNK_MODEL,
    # (int) K, number of denoising steps.
    denoising_steps=20,
    # (str) Noise network: 'mlp' or 'unet'.
    network="mlp",
    # (int) Features of the embedding of the denoising index.
    time_dim=16,
    # (list of int or None) Widths of an MLP that encodes the observations; None: they enter as they are.
    cond_mlp_dims=None,
    mlp=MLP,
    unet=dict(
        # (int) Channels of the first level.
        dim=64,
        # (list of int) Channels of each level in units of ``dim``.
        dim_mults=[1, 2],
        # (int) Width of the convolutions.
        kernel_size=5,
        # (int) Groups of the group normalizations.
        num_groups=8,
    ),
)
SAMPLER = dict(
    # (int or None) S, number of steps by DDIM; None: all K by DDPM.
    ddim_steps=None,
    # (float or None) Bound on the absolute value of predicted clean actions, in normalized units.
    denoised_clip_value=1.0,
)
CHUNK_RULES: dict[str, Rule] = {
    "model.task": text(),
    "model.obs_dim": integer(1),
    "model.action_dim": integer(1),
    "model.horizon_steps": integer(1),
    "model.act_steps": integer(1),
    "model.cond_steps": integer(1),
}
MLP_RULES: dict[str, Rule] = {
    "model.mlp.mlp_dims": WIDTHS,
    "model.mlp.activation": choice("relu", "mish"),
    "model.mlp.residual": flag(),
    "model.mlp.layer_norm": flag(),
}
DIFFUSION_RULES: dict[str, Rule] = {
    **CHUNK_RULES,
    **MLP_RULES,
    "model.denoising_steps": integer(1),
    "model.network": choice(*NETWORKS),
    "model.time_dim": integer(4),
    "model.cond_mlp_dims": optional(WIDTHS),
    "model.unet.dim": integer(1),
    "model.unet.dim_mults": WIDTHS,
    "model.unet.kernel_size": integer(1),
    "model.unet.num_groups": integer(1),
    "sampler.ddim_steps": optional(integer(1)),
    "sampler.denoised_clip_value": optional(number(0.0, above=True)),
}
# What a checkpoint and a config must agree in for the one to be used under the other.
_FACTS = (
    "task", "obs_dim", "action_dim", "horizon_steps", "cond_steps", "denoising_steps", "num_modes", "std", "learn_std",
)  # fmt: skip


def check_chunks(model: Mapping[str, Any]) -> list[str]:
    """What is wrong with a model's chunk lengths."""
    if model["act_steps"] > model["horizon_steps"]:
        return [
            f"model.act_steps (Ta = {model['act_steps']}) must not exceed model.horizon_steps "
            f"(Tp = {model['horizon_steps']}): what is executed must have been predicted"
        ]
    return []


def check_sampler(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with the number of steps of a sampling run."""
    steps, total = cfg["sampler"]["ddim_steps"], cfg["model"]["denoising_steps"]
    if steps is not None and steps > total:
        return [f"sampler.ddim_steps ({steps}) must not exceed model.denoising_steps ({total})"]
    return []


def raise_problems(problems: list[str]) -> None:
    """Refuse a policy's config that has problems.

    Raises:
        ConfigError: If there is one.
    """
    if problems:
        lines = "\n  ".join(f"policy.{problem}" for problem in problems)
        raise ConfigError(f"the config cannot be used:\n  {lines}")


def model_facts(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint records of the model's config: ``_FACTS``, and the settings of its network."""
    network = model.get("network", "mlp")
    settings = {f"{network}.{key}": value for key, value in model[network].items()}
    facts = {**{key: model[key] for key in _FACTS if key in model}, **settings}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}


def check_facts(state_dict: Mapping[str, Any], model: Mapping[str, Any], path: str) -> None:
    """Refuse a checkpoint that records no facts, or others than the config's; see :func:`check_same`.

    Raises:
        ValueError: Says what it holds, or names both values of everything that differs.
    """
    if "facts" not in state_dict:
        raise ValueError(
            f"{path} is no checkpoint of a run of a policy over action chunks: it holds "
            f"{', '.join(sorted(map(str, state_dict)))}, and no facts. A cloned or converted policy is fine-tuned by "
            "giving it as policy.base_policy_path"
        )
    check_same(state_dict["facts"], model_facts(model), path)


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], path: str) -> None:
    """Refuse a checkpoint whose model is not the config's.

    Raises:
        ValueError: Names both values of everything that differs.
    """
    differing = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in {**here, **there}
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise ValueError(f"{path} is of another model: {'; '.join(differing)}")


def network_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """What builds the noise network that a model's config asks for."""
    names = ("obs_dim", "action_dim", "cond_steps", "horizon_steps", "time_dim", "cond_mlp_dims")
    return {**{name: model[name] for name in names}, **model[model["network"]]}


def make_network(model: Mapping[str, Any]) -> nn.Module:
    """The noise network that a model's config asks for."""
    return NETWORKS[model["network"]](**network_arguments(model))


def make_plan(model: Mapping[str, Any], sampler: Mapping[str, Any], eta: float = 0.0) -> DenoisingPlan:
    """The steps of a sampling run: DDPM, or DDIM where ``ddim_steps`` is given."""
    schedule = CosineSchedule(model["denoising_steps"])
    if sampler["ddim_steps"] is None:
        return ddpm_plan(schedule)
    return ddim_plan(schedule, sampler["ddim_steps"], eta)


class AveragedChunkModel(nn.Module):
    """A network of action chunks with its moving average, and the normalizers of the data that it was trained on."""

    def __init__(self, network: nn.Module, model: Mapping[str, Any]) -> None:
        super().__init__()
        self.obs_normalizer = Normalizer(model["obs_dim"])
        self.action_normalizer = Normalizer(model["action_dim"])
        self.network = network
        self.network_ema = copy.deepcopy(network).requires_grad_(False)


@MODEL_REGISTRY.register("ebm_chunk_diffusion")
class ChunkDiffusionModel(AveragedChunkModel):
    """The noise network that a config asks for."""

    def __init__(self, **model: Any) -> None:
        super().__init__(make_network(model), model)


def checked_obs(obs: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Observations of E environments as float32.

    Raises:
        ValueError: If each is not of ``shape``, or one holds NaN or infinity.
    """
    obs = np.asarray(obs, dtype=np.float32)
    if obs.shape[1:] != shape or obs.ndim != len(shape) + 1:
        raise ValueError(f"obs must be (E, {', '.join(map(str, shape))}), got {obs.shape}")
    if not np.isfinite(obs).all():
        raise ValueError(f"obs of environment {int(np.argwhere(~np.isfinite(obs))[0, 0])} is not finite")
    return obs


@torch.no_grad()
def executed_actions(
    sizes: Any,
    model: nn.Module,
    obs: NDArray[np.float32],
    sample: Callable[[Tensor], Tensor],
    correction: Correction | None = None,
) -> NDArray[np.float32]:
    """The actions to execute, (E, Ta, Da), float32, in the environment's units.

    Args:
        sizes: The config of the policy's model.
        model: Holds ``obs_normalizer`` and ``action_normalizer``.
        obs: Observation histories in the environment's units, the latest last, (E, To, Do).
        sample: From normalized histories (E, To, Do) to normalized chunks (E, Tp, Da).
        correction: The policy's, or None.

    Raises:
        ValueError: If ``obs`` has another shape, or holds NaN or infinity.
    """
    obs = checked_obs(obs, (sizes.cond_steps, sizes.obs_dim))
    histories = torch.from_numpy(obs).to(model.obs_normalizer.shift.device)
    normalized = model.obs_normalizer(histories)
    chunk = sample(normalized) if correction is None else correction(histories, normalized, sample)
    actions: NDArray[np.float32] = model.action_normalizer.inverse(chunk[:, : sizes.act_steps]).cpu().numpy()
    return actions


def chunk_sampler(
    cfg: Any, generator: torch.Generator, base: Any, fine_tuned: Any = None, fine_tuned_steps: int = 0
) -> Callable[[Tensor], Tensor]:
    """From normalized histories (B, To, Do) to normalized chunks (B, Tp, Da) as an evaluation samples them.

    Args:
        cfg: The policy's config.
        generator: Of the noise, on the networks' device.
        base: Network of the first steps.
        fine_tuned: Network of the last F steps, or None.
        fine_tuned_steps: F.
    """
    plan = make_plan(cfg.model, cfg.sampler)

    def sample(histories: Tensor) -> Tensor:
        shape = (len(histories), cfg.model.horizon_steps, cfg.model.action_dim)
        return sample_chunks(
            base,
            fine_tuned,
            plan,
            histories,
            torch.randn(shape, generator=generator, device=generator.device),
            std=plan.evaluation_std(),
            generator=generator,
            fine_tuned_steps=fine_tuned_steps,
            clip=cfg.sampler.denoised_clip_value,
        ).x

    return sample


def evaluation_chunks(
    cfg: Any,
    model: nn.Module,
    obs: NDArray[np.float32],
    generator: torch.Generator,
    base: Any,
    fine_tuned: Any = None,
    fine_tuned_steps: int = 0,
    correction: Correction | None = None,
) -> NDArray[np.float32]:
    """Actions of a diffusion policy, one batched sampling run for all environments; see :func:`executed_actions`.

    Args:
        cfg: The policy's config.
        model: Holds the normalizers.
        obs: Observation histories in the environment's units, (E, To, Do).
        generator: See :func:`chunk_sampler`.
        base: See :func:`chunk_sampler`.
        fine_tuned: See :func:`chunk_sampler`.
        fine_tuned_steps: See :func:`chunk_sampler`.
        correction: The policy's, or None.
    """
    sample = chunk_sampler(cfg, generator, base, fine_tuned, fine_tuned_steps)
    return executed_actions(cfg.model, model, obs, sample, correction)
