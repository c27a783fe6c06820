"""An energy of action chunks in a context, trained on a data set, and the policy that minimizes it.

Its uses are elsewhere: it corrects the actions of any policy at test time and ranks candidates
(:mod:`ding_ebm.energy.correction`), and gives ``dppo_ebm`` potentials and rewards. Evaluated by itself it acts by a
derivative-free search for the chunk of least energy, as the implicit policies of Florence et al. 2021
(arXiv:2109.00137) do.

Letters: E environments, N candidates, To observation history, Tp predicted and Ta executed actions, Do observation,
Da action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from ding.policy.command_mode_policy_instance import DummyCommandModePolicy
from ding.utils import MODEL_REGISTRY, POLICY_REGISTRY
from torch import Tensor

from ding_ebm.config import Rule, integer, number
from ding_ebm.energy.search import derivative_free_minimum
from ding_ebm.model.energy_model import candidate_energy
from ding_ebm.policy.chunk_cloning import ChunkCloningPolicy
from ding_ebm.policy.chunk_model import AveragedChunkModel, executed_actions
from ding_ebm.policy.energy_training import (
    ENERGY_LOSS,
    ENERGY_MODEL,
    ENERGY_RULES,
    KIND,
    EnergyLoss,
    check_energy_training,
    make_energy,
    uses_policy_negatives,
)


@MODEL_REGISTRY.register("ebm_chunk_energy")
class ChunkEnergyModel(AveragedChunkModel):
    """The energy network that a config asks for."""

    def __init__(self, **model: Any) -> None:
        super().__init__(make_energy(model), model)


@POLICY_REGISTRY.register("energy_model")
class EnergyModelPolicy(ChunkCloningPolicy):
    """Contrastive training of an energy on demonstrations."""

    config = dict(
        # (str) Registered name of this policy.
        type="energy_model",
        model=ENERGY_MODEL,
        # Of B rows, 'info_nce' evaluates B^2 pairs.
        learn=dict(ENERGY_LOSS, batch_size=64, ema_start_iter=1000),
        eval=dict(
            # (int) N, candidates of the search for the least energy.
            search_candidates=256,
            # (int) Rounds of it.
            search_rounds=3,
            # (float) Standard deviation of the noise of the first round, in normalized units; halved by each.
            search_std=0.33,
        ),
    )
    rules: ClassVar[dict[str, Rule]] = {
        **ChunkCloningPolicy.rules,
        **ENERGY_RULES,
        "eval.search_candidates": integer(2),
        "eval.search_rounds": integer(1),
        "eval.search_std": number(0.0, above=True),
    }

    @classmethod
    def problems(cls, cfg: Mapping[str, Any]) -> list[str]:
        """Those of cloning, and of the energy's loss."""
        found = super().problems(cfg) + check_energy_training(cfg)
        if uses_policy_negatives(cfg["learn"]):
            found.append(
                "learn.negatives 'policy' needs a policy whose actions they are: train the energy beside one, by "
                "diffusion_bc, gaussian_bc or gmm_bc with energy.mode"
            )
        return found

    def default_model(self) -> tuple[str, list[str]]:
        return "ebm_chunk_energy", ["ding_ebm.policy.energy_model"]

    def _init_learn(self) -> None:
        super()._init_learn()
        self._energy_loss = EnergyLoss(self._cfg.learn, self._cfg.model.denoising_steps, self._generator)

    def _gradient_metrics(self) -> dict[str, Tensor]:
        # The gradient of an energy leaves its last bias out.
        gradients = [p.grad for p in self._model.network.parameters() if p.grad is not None]
        return {"grad_norm": torch.stack(torch._foreach_norm(gradients)).norm()}

    def _objective(self, data: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._energy_loss(self._model.network, data)

    def _monitor_vars_learn(self) -> list[str]:
        shown = ["energy_loss", "grad_norm", "learning_rate"]
        if self._cfg.learn.objective != "dsm":
            shown += ["E_pos", "E_neg", "gap", "top1", "mi_bound"]
        return shown + (["gradient_penalty"] if self._cfg.learn.gradient_penalty else [])

    def _state_dict_learn(self) -> dict[str, Any]:
        return {**super()._state_dict_learn(), "kind": KIND}

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The chunks of least energy that a search finds; see :func:`executed_actions`."""
        cfg = self._cfg

        def search(histories: Tensor) -> Tensor:
            return derivative_free_minimum(
                lambda chunks: candidate_energy(self._model.network_ema, histories, chunks),
                (len(histories), cfg.eval.search_candidates, cfg.model.horizon_steps, cfg.model.action_dim),
                self._eval_generator,
                temperature=cfg.learn.temperature,
                bound=cfg.learn.negative_bound,
                rounds=cfg.eval.search_rounds,
                std=cfg.eval.search_std,
            )

        return executed_actions(cfg.model, self._model, obs, search, self._energy_correction)


@POLICY_REGISTRY.register("energy_model_command")
class EnergyModelCommandModePolicy(EnergyModelPolicy, DummyCommandModePolicy):
    """The same under the host's training pipelines."""
