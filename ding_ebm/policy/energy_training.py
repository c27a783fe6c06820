"""Training of an energy of action chunks: the config of its network and of its loss, and the loss of a batch.

Which negatives an energy is trained against decides what it is good for, see :mod:`ding_ebm.energy.losses`.

Letters: B batch, M negatives of a row, To observation history, Tp predicted actions, Do observation, Da action,
K denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ding_ebm.config import Rule, choice, either, flag, integer, number, optional, sequence
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.energy import negatives
from ding_ebm.energy.losses import (
    KINDS,
    dsm_loss,
    energy_metrics,
    gradient_penalty,
    info_nce,
    info_nce_negatives,
    off_diagonal,
)
from ding_ebm.model.diffusion import standard_normal
from ding_ebm.model.energy_model import EnergyMLP, EnergyModel, candidate_energy, pair_energy
from ding_ebm.policy.chunk_model import CHUNK_MODEL, CHUNK_RULES, WIDTHS

# From normalized histories (B, To, Do) to a policy's normalized chunks (B, Tp, Da).
Sampler = Callable[[Tensor], Tensor]
# What a checkpoint of an energy says it is.
KIND = "energy of action chunks"
NEGATIVES = ("uniform", "gaussian", "time_shifted", "policy")
ENERGY_MODEL = dict(
    CHUNK_MODEL,
    # (int or None) K of the diffusion policy whose noised actions the energy is of too, or None: of clean actions.
    denoising_steps=None,
    # (str) 'mlp', or 'attention' of the actions to the context.
    network="mlp",
    mlp=dict(
        # (list of int) Hidden widths.
        mlp_dims=[256, 256, 256],
        # (str) 'silu', 'mish' or 'relu'; 'dsm' and the gradient penalty need one of the first two.
        activation="silu",
    ),
    attention=dict(
        # (int) Width, a multiple of ``heads``.
        hidden=128,
        # (int) Attention heads.
        heads=4,
        # (int) Residual blocks of the head.
        head_blocks=2,
        # (int) Of the encoder of observations.
        context_blocks=1,
        # (int) Of the encoder of actions.
        action_blocks=1,
        # (float) Dropout while training.
        dropout=0.0,
        # (bool) Whether the actions of a chunk attend to each other; else their energies add up.
        self_attention=True,
    ),
)
ENERGY_LOSS = dict(
    # (str) 'info_nce' against the other actions of the batch, 'negatives' against drawn ones, or 'dsm'.
    objective="info_nce",
    # (str) Of 'info_nce': 'row' (actions compete), 'column' (observations do) or 'symmetric', which potentials need.
    direction="symmetric",
    # (float) Temperature of the contrastive losses, in units of energy.
    temperature=0.5,
    # (int) Of 'info_nce': actions of the same episode that are at most so many steps away are no negatives; 0: all are.
    false_negative_steps=0,
    # (list of str) Of 'negatives': which kinds, of 'uniform', 'gaussian', 'time_shifted' and, beside a policy,
    # 'policy', its own actions.
    negatives=["uniform"],
    # (int) M, of each kind.
    num_negatives=64,
    # (float) Bound of uniform negatives, in normalized units.
    negative_bound=1.0,
    # (float) Standard deviation of Gaussian negatives, in normalized units.
    negative_std=0.3,
    # (float) Of 'dsm': standard deviation of the noise, in normalized units.
    noise_std=0.25,
    # (float) Weight of the gradient penalty of arXiv:2109.00137, at the negatives.
    gradient_penalty=0.0,
)
ENERGY_RULES: dict[str, Rule] = {
    **CHUNK_RULES,
    "model.denoising_steps": optional(integer(1)),
    "model.network": choice("mlp", "attention"),
    "model.mlp.mlp_dims": WIDTHS,
    "model.mlp.activation": choice("silu", "mish", "relu"),
    "model.attention.hidden": integer(2),
    "model.attention.heads": integer(1),
    "model.attention.head_blocks": integer(1),
    "model.attention.context_blocks": integer(1),
    "model.attention.action_blocks": integer(1),
    "model.attention.dropout": number(0.0, 1.0, below=True),
    "model.attention.self_attention": flag(),
    "learn.objective": choice("info_nce", "negatives", "dsm"),
    "learn.direction": choice(*KINDS),
    "learn.temperature": number(0.0, above=True),
    "learn.false_negative_steps": integer(0),
    "learn.negatives": either(choice(*NEGATIVES), sequence(choice(*NEGATIVES))),
    "learn.num_negatives": integer(1),
    "learn.negative_bound": number(0.0, above=True),
    "learn.negative_std": number(0.0, above=True),
    "learn.noise_std": number(0.0, above=True),
    "learn.gradient_penalty": number(0.0),
}


def check_energy_training(cfg: Mapping[str, Any]) -> list[str]:
    """What of the config of an energy and its loss does not go together."""
    model, learn = cfg["model"], cfg["learn"]
    smooth = model["network"] != "mlp" or model["mlp"]["activation"] != "relu"
    kinds = [learn["negatives"]] if isinstance(learn["negatives"], str) else learn["negatives"]
    attention = model["attention"]
    rules = [
        (
            smooth or (learn["objective"] != "dsm" and not learn["gradient_penalty"]),
            "model.mlp.activation must not be 'relu' with learn.objective 'dsm' or a learn.gradient_penalty, which "
            "differentiate the energy's gradient; 'silu' and 'mish' can be",
        ),
        (
            learn["objective"] != "dsm" or model["denoising_steps"] is None,
            f"learn.objective 'dsm' trains an energy of clean actions: model.denoising_steps must be None, got "
            f"{model['denoising_steps']}",
        ),
        (
            not learn["gradient_penalty"] or learn["objective"] == "negatives",
            "learn.gradient_penalty needs learn.objective 'negatives': it is taken at them",
        ),
        (
            learn["objective"] != "negatives" or "time_shifted" not in kinds or model["horizon_steps"] > 1,
            "learn.negatives 'time_shifted' needs model.horizon_steps of at least 2",
        ),
        (
            attention["hidden"] % (2 * attention["heads"]) == 0,
            f"model.attention.hidden must be an even multiple of model.attention.heads, got {attention['hidden']} and "
            f"{attention['heads']}",
        ),
    ]
    return [message for holds, message in rules if not holds]


def uses_policy_negatives(learn: Mapping[str, Any]) -> bool:
    """Whether a loss is against actions of a policy."""
    kinds = learn["negatives"]
    return learn["objective"] == "negatives" and "policy" in ([kinds] if isinstance(kinds, str) else kinds)


def make_energy(model: Mapping[str, Any]) -> EnergyMLP | EnergyModel:
    """The energy network that a model's config asks for."""
    sizes, num_steps = (model["obs_dim"], model["action_dim"]), model["denoising_steps"]
    if model["network"] == "attention":
        return EnergyModel(*sizes, num_steps=num_steps, **model["attention"])
    widths, activation = model["mlp"]["mlp_dims"], model["mlp"]["activation"]
    return EnergyMLP(*sizes, model["cond_steps"], model["horizon_steps"], widths, num_steps, activation)


def same_stretch(index: Tensor, episode: Tensor, steps: int) -> Tensor:
    """Pairs of rows that lie in one episode at most so many steps apart, (B, B) bool, the diagonal included.

    Args:
        index: Row of the data set of each, (B,).
        episode: What tells their episodes apart, (B,).
        steps: Greatest distance.
    """
    near = (index.unsqueeze(0) - index.unsqueeze(1)).abs() <= steps
    return near & (episode.unsqueeze(0) == episode.unsqueeze(1))


class EnergyLoss:
    """The loss that a config asks for, of batches of normalized histories and chunks.

    Args:
        learn: The config, ``ENERGY_LOSS`` in it.
        denoising_steps: K, or None. With K each row is noised to a denoising index of its own, uniform in 0 .. K.
        generator: Of noise, indices and negatives.
        sampler: Draws the negatives of the kind 'policy', if that is asked for.
    """

    def __init__(
        self, learn: Any, denoising_steps: int | None, generator: torch.Generator, sampler: Sampler | None = None
    ) -> None:
        self._learn, self._generator, self._sampler = learn, generator, sampler
        self._schedule = None if denoising_steps is None else CosineSchedule(denoising_steps)
        self._kinds = [learn.negatives] if isinstance(learn.negatives, str) else list(learn.negatives)

    def __call__(self, energy: nn.Module, data: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and what a log shows of it.

        Args:
            energy: The network.
            data: obs (B, To, Do), action (B, Tp, Da), and, where pairs are left out, index and episode (B,).
        """
        learn, obs, action = self._learn, data["obs"], data["action"]
        if learn.objective == "dsm":
            loss = dsm_loss(energy, obs, action, learn.noise_std, self._generator, learn.temperature)
            return loss, {"energy_loss": loss}
        if learn.objective == "info_nce":
            chunk, k = self._noised(action)
            energies = pair_energy(energy, obs, chunk, k)
            steps = learn.false_negative_steps
            left_out = same_stretch(data["index"], data["episode"], steps) if steps else None
            loss = info_nce(energies, learn.temperature, learn.direction, left_out)
            positive, negative = energies.diagonal(), off_diagonal(energies)
            return loss, {"energy_loss": loss, **energy_metrics(positive, negative, loss)}
        return self.against(energy, obs, action, self._negatives(obs, action))

    def against(
        self, energy: nn.Module, obs: Tensor, action: Tensor, others: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss against given negatives (B, M, Tp, Da), and what a log shows of it; see :meth:`__call__`."""
        learn = self._learn
        # The positive and its negatives are noised to the same index, by noise of their own.
        chunks, k = self._noised(torch.cat([action.unsqueeze(1), others], dim=1))
        energies = candidate_energy(energy, obs, chunks, k)
        positive, negative = energies[:, 0], energies[:, 1:]
        loss = info_nce_negatives(positive, negative, learn.temperature)
        metrics = {"energy_loss": loss, **energy_metrics(positive, negative, loss)}
        if learn.gradient_penalty:
            penalty = gradient_penalty(energy, obs, chunks[:, 1], k_idx=k)
            return loss + learn.gradient_penalty * penalty, {**metrics, "gradient_penalty": penalty}
        return loss, metrics

    def _negatives(self, obs: Tensor, action: Tensor) -> Tensor:
        learn, generator = self._learn, self._generator
        drawn = {
            "uniform": lambda: negatives.uniform(
                action, learn.num_negatives, -learn.negative_bound, learn.negative_bound, generator
            ),
            "gaussian": lambda: negatives.gaussian(action, learn.num_negatives, learn.negative_std, generator),
            "time_shifted": lambda: negatives.time_shifted(action, learn.num_negatives, generator),
            "policy": lambda: self._of_policy(obs),
        }
        return negatives.mix(*(drawn[kind]() for kind in self._kinds))

    @torch.no_grad()
    def _of_policy(self, obs: Tensor) -> Tensor:
        assert self._sampler is not None, "negatives of the kind 'policy' need one"
        drawn = self._sampler(obs.repeat_interleave(self._learn.num_negatives, dim=0))
        return drawn.unflatten(0, (len(obs), -1))

    def _noised(self, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """Chunks (B, ...) as the diffusion would have them at an index of each row, and that, (B,); or as they are."""
        if self._schedule is None:
            return action, None
        k = torch.randint(
            0, self._schedule.num_steps + 1, action.shape[:1], generator=self._generator, device=action.device
        )
        return self._schedule.diffuse(action, k, standard_normal(action, self._generator)), k
