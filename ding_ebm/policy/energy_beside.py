"""An energy that is trained, or watched, beside a policy which clones action chunks, on the same batches.

The two share data, normalizers and the length of the run, and no weights: the policy is bit by bit what it is without
the energy, except by ``energy_only``, which leaves it as it was loaded. What the policy offers the energy is its own
actions as negatives. See :mod:`ding_ebm.energy.joint` for policies whose features the energy builds on.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from torch import Tensor

from ding_ebm.checkpoint import find_checkpoint, read_checkpoint
from ding_ebm.config import Rule, choice, number, optional, text
from ding_ebm.energy.joint import MODES, combined_loss
from ding_ebm.policy.chunk_cloning import ChunkCloningPolicy
from ding_ebm.policy.chunk_model import CHUNK_MODEL, AveragedChunkModel, check_facts
from ding_ebm.policy.energy_model import EnergyModelPolicy
from ding_ebm.policy.energy_training import (
    ENERGY_LOSS,
    ENERGY_MODEL,
    ENERGY_RULES,
    EnergyLoss,
    Sampler,
    check_energy_training,
)
from ding_ebm.policy.trained_energy import check_same_units

ENERGY_BESIDE = dict(
    # (str or None) 'monitor': a trained energy's loss on the policy's batches is logged. 'joint': it is trained with
    # the policy. 'energy_only': it is trained, the policy stays as it is. None: there is no energy.
    mode=None,
    # (float) Weight of its loss in 'joint'.
    weight=0.1,
    # (str or None) Checkpoint of an energy to begin with, or the folder of its run; 'monitor' needs it.
    ebm_ckpt_path=None,
    # (str or None) Checkpoint of this policy, or the folder of its run; 'energy_only' needs it.
    policy_ckpt_path=None,
    # Its network and loss, as those of energy_model; batch, learning rates and averaging are the policy's.
    model={key: value for key, value in ENERGY_MODEL.items() if key not in CHUNK_MODEL},
    learn=ENERGY_LOSS,
)


class EnergyBeside(EnergyModelPolicy):
    """The energy: ``energy_model`` with negatives of a policy, and with weights to begin from."""

    @classmethod
    def problems(cls, cfg: Mapping[str, Any]) -> list[str]:
        """None: they are those of the policy's config."""
        return []

    def begin(self, path: str | None, sampler: Sampler) -> None:
        """Take the weights of a checkpoint, if one is given, and what draws a policy's actions.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            ValueError: If it is of another model.
        """
        self._generator.manual_seed(self._generator.initial_seed() + 1)  # noise of its own, not the policy's
        self._energy_loss = EnergyLoss(self._cfg.learn, self._cfg.model.denoising_steps, self._generator, sampler)
        self._taken = None
        if path is not None:
            self._taken = _Taken(path, self._cfg.model, self._model, within="energy")
            self._model.network.load_state_dict(self._model.network_ema.state_dict())

    def set_statistic(self, statistics: dict[str, Any]) -> None:
        """See :meth:`ChunkCloningPolicy.set_statistic`; refuses data whose units are not the checkpoint's."""
        if self._taken is not None:
            self._taken.check_units(statistics)
        super().set_statistic(statistics)


class CloningWithEnergy(ChunkCloningPolicy):
    """Cloning of action chunks, with an energy beside it where ``energy.mode`` is given.

    A subclass gives :meth:`_sampler`, too.
    """

    config = dict(energy=ENERGY_BESIDE)
    rules: ClassVar[dict[str, Rule]] = {
        **ChunkCloningPolicy.rules,
        "energy.mode": optional(choice(*MODES)),
        "energy.weight": number(0.0),
        "energy.ebm_ckpt_path": optional(text()),
        "energy.policy_ckpt_path": optional(text()),
        **{f"energy.{key}": rule for key, rule in ENERGY_RULES.items() if key.split(".")[1] not in CHUNK_MODEL},
    }

    @classmethod
    def problems(cls, cfg: Mapping[str, Any]) -> list[str]:
        """Those of cloning, of the energy, and of what its mode needs."""
        energy, mode = cfg["energy"], cfg["energy"]["mode"]
        found = super().problems(cfg)
        if mode is not None:
            model = {**energy["model"], "horizon_steps": cfg["model"]["horizon_steps"]}
            both = dict(model=model, learn=energy["learn"])
            found += [f"energy: {problem}" for problem in check_energy_training(both)]
        if mode == "monitor" and energy["ebm_ckpt_path"] is None:
            found.append("energy.ebm_ckpt_path must be given in energy.mode 'monitor': it watches a trained energy")
        if mode is None and energy["ebm_ckpt_path"] is not None:
            found.append(f"energy.ebm_ckpt_path needs an energy.mode, one of {', '.join(MODES)}")
        if (mode == "energy_only") != (energy["policy_ckpt_path"] is not None):
            found.append(
                "energy.policy_ckpt_path must be given if and only if energy.mode is 'energy_only', which trains no "
                "policy"
            )
        return found

    def _sampler(self, generator: torch.Generator) -> Sampler:
        """Draws from the policy: normalized histories (B, To, Do) to normalized chunks (B, Tp, Da)."""
        raise NotImplementedError

    def _init_learn(self) -> None:
        super()._init_learn()
        energy = self._cfg.energy
        self._beside = self._taken = None
        if energy.mode is None:
            return
        if energy.mode == "energy_only":
            self._taken = _Taken(energy.policy_ckpt_path, self._cfg.model, self._model)
        with torch.random.fork_rng([self._device] if self._device.startswith("cuda") else []):
            self._beside = EnergyBeside(self._energy_config(), enable_field=["learn"])
        self._beside.begin(energy.ebm_ckpt_path, self._sampler(self._beside._generator))

    def _energy_config(self) -> EasyDict:
        own, learn = self._cfg.energy, self._cfg.learn
        shared = {key: learn[key] for key in (*ChunkCloningPolicy.config["learn"], "train_epoch")}
        override = dict(
            cuda=self._cfg.cuda,
            model={**own.model, **{key: self._cfg.model[key] for key in CHUNK_MODEL}},
            learn={**own.learn, **shared, "iterations_per_epoch": learn.iterations_per_epoch},
        )
        return deep_merge_dicts(EnergyBeside.default_config(), EasyDict(override))

    def set_statistic(self, statistics: dict[str, Any]) -> None:
        """Take the normalizers of the data set.

        Raises:
            ValueError: If its dimensions are not the model's, or its units not those of a checkpoint that was taken.
        """
        if self._taken is not None:
            self._taken.check_units(statistics)
        super().set_statistic(statistics)
        if self._beside is not None:
            self._beside.set_statistic(statistics)

    def _objective(self, data: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super()._objective(data)
        if self._beside is None:
            return loss, metrics
        total, of_energy = combined_loss(
            self._cfg.energy.mode,
            loss,
            self._beside._model.network,
            lambda obs: self._beside._objective({**data, "obs": obs}),
            data["obs"],
            weight=self._cfg.energy.weight,
        )
        return total, {**metrics, **{f"energy/{name}": value for name, value in of_energy.items()}}

    def _gradient_metrics(self) -> dict[str, Tensor]:
        if self._cfg.energy.mode not in ("joint", "energy_only"):
            return {}
        return {f"energy/{name}": value for name, value in self._beside._gradient_metrics().items()}

    def _step(self) -> float:
        mode = self._cfg.energy.mode
        if mode in ("joint", "energy_only"):
            rate = self._beside._step()
        if mode == "energy_only":
            self._train_iter += 1
            return rate
        return super()._step()

    def _monitor_vars_learn(self) -> list[str]:
        names = super()._monitor_vars_learn()
        if self._beside is None:
            return names
        left_out = {"learning_rate"} | ({"grad_norm"} if self._cfg.energy.mode == "monitor" else set())
        return names + [f"energy/{name}" for name in self._beside._monitor_vars_learn() if name not in left_out]

    def _state_dict_learn(self) -> dict[str, Any]:
        state = super()._state_dict_learn()
        return state if self._beside is None else {**state, "energy": self._beside._state_dict_learn()}

    def _load_state_dict_learn(self, state_dict: dict[str, Any]) -> None:
        if (self._beside is None) != ("energy" not in state_dict):
            there = "none" if "energy" not in state_dict else "one"
            raise ValueError(
                f"energy.mode is {self._cfg.energy.mode!r}, but the run to resume has {there} beside its policy; begin "
                "with a trained policy by energy.policy_ckpt_path, with a trained energy by energy.ebm_ckpt_path"
            )
        super()._load_state_dict_learn(state_dict)
        if self._beside is not None:
            self._beside._load_state_dict_learn(state_dict["energy"])


class _Taken:
    """A checkpoint of a cloning run whose weights and normalizers have been put into a model.

    Args:
        path: A checkpoint, or the folder of a run.
        facts: The config of the model.
        model: Changed in place.
        within: Entry of the checkpoint that is the model's, if it has it.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another model; names both values.
    """

    def __init__(
        self, path: str, facts: Mapping[str, Any], model: AveragedChunkModel, within: str | None = None
    ) -> None:
        self._file = str(find_checkpoint(path))
        state = read_checkpoint(self._file)
        state = state.get(within, state)
        check_facts(state, facts, self._file)
        model.load_state_dict(state["model"])
        self._units = {
            name: {part: value.clone() for part, value in getattr(model, name).state_dict().items()}
            for name in ("obs_normalizer", "action_normalizer")
        }

    def check_units(self, statistics: Mapping[str, Any]) -> None:
        """Refuse data with other normalizers. Raises ValueError."""
        check_same_units(self._units, {name: statistics[name] for name in self._units}, self._file)
