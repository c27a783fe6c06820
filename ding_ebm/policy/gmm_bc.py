"""Behavior cloning by a mixture of Gaussians over action chunks, a baseline with several modes.

The mixture policy of Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv:2409.00588): C Gaussians of the
whole chunk around tanh of an MLP of the observations, weights by a second MLP, and a standard deviation fixed at 0.1 in
normalized units. The published loss is the mean over the batch of the negative log-density of a chunk, a sum over its
numbers, without an entropy term.

Letters: B batch, E environments, To observation history, Tp predicted actions, Do observation, Da action, C components.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from ding.policy.command_mode_policy_instance import DummyCommandModePolicy
from ding.utils import POLICY_REGISTRY
from torch import Tensor

from ding_ebm.config import Rule, choice
from ding_ebm.policy.chunk_model import executed_actions
from ding_ebm.policy.energy_beside import CloningWithEnergy
from ding_ebm.policy.energy_training import Sampler
from ding_ebm.policy.gaussian_model import MIXTURE_MODEL, MIXTURE_RULES


@POLICY_REGISTRY.register("gmm_bc")
class GMMBCPolicy(CloningWithEnergy):
    """Maximum likelihood of a mixture of Gaussians on demonstrations."""

    config = dict(
        # (str) Registered name of this policy.
        type="gmm_bc",
        model=MIXTURE_MODEL,
        learn=dict(learning_rate=1e-4, min_learning_rate=1e-4),
        eval=dict(
            # (str) Component at whose mean an evaluation acts: 'drawn' by its weight for every chunk, as the published
            # evaluation does and as a clone of demonstrations that go several ways should; or the 'heaviest', which
            # is the same chunk for the same observations, but from one state never goes more than one way.
            component="drawn",
        ),
    )
    rules: ClassVar[dict[str, Rule]] = {
        **CloningWithEnergy.rules,
        **MIXTURE_RULES,
        "eval.component": choice("drawn", "heaviest"),
    }

    def default_model(self) -> tuple[str, list[str]]:
        return "ebm_chunk_mixture", ["ding_ebm.policy.gaussian_model"]

    def _loss(self, action: Tensor, obs: Tensor) -> Tensor:
        return -self._model.network.log_prob(action, obs).mean()

    def _sampler(self, generator: torch.Generator) -> Sampler:
        network = self._model.network_ema
        return lambda histories: network.sample(histories, generator, deterministic=False)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions at the mean of one component, by the moving average of the network; see :func:`executed_actions`.

        Candidates that an energy chooses from are drawn from the mixture.
        """
        network, drawn = self._model.network_ema, self._cfg.eval.component == "drawn"
        at_mean = self._cfg.eval.energy_candidates == 1
        return executed_actions(
            self._cfg.model,
            self._model,
            obs,
            lambda histories: network.sample(
                histories, self._eval_generator, deterministic=at_mean, draw_component=drawn
            ),
            self._energy_correction,
        )


@POLICY_REGISTRY.register("gmm_bc_command")
class GMMBCCommandModePolicy(GMMBCPolicy, DummyCommandModePolicy):
    """The same under the host's training pipelines."""
