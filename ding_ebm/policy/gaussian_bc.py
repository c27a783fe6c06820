"""Behavior cloning by a Gaussian over action chunks, the plainest of the baselines that are fine-tuned by PPO.

The Gaussian policy of Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv:2409.00588): independent normals
around tanh of an MLP of the observations, with a standard deviation fixed at 0.1 in normalized units. The published
loss is the mean negative log-density over the batch and all numbers of a chunk; the entropy bonus in its code has
weight 0 in every published pre-training, and there is none here. With a fixed deviation the loss is a scaled squared
error.

Letters: B batch, E environments, To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from ding.policy.command_mode_policy_instance import DummyCommandModePolicy
from ding.utils import POLICY_REGISTRY
from torch import Tensor

from ding_ebm.config import Rule
from ding_ebm.policy.chunk_model import executed_actions
from ding_ebm.policy.energy_beside import CloningWithEnergy
from ding_ebm.policy.energy_training import Sampler
from ding_ebm.policy.gaussian_model import GAUSSIAN_MODEL, GAUSSIAN_RULES


@POLICY_REGISTRY.register("gaussian_bc")
class GaussianBCPolicy(CloningWithEnergy):
    """Maximum likelihood of a Gaussian on demonstrations."""

    config = dict(
        # (str) Registered name of this policy.
        type="gaussian_bc",
        model=GAUSSIAN_MODEL,
        learn=dict(learning_rate=1e-4, min_learning_rate=1e-4),
    )
    rules: ClassVar[dict[str, Rule]] = {**CloningWithEnergy.rules, **GAUSSIAN_RULES}

    def default_model(self) -> tuple[str, list[str]]:
        return "ebm_chunk_gaussian", ["ding_ebm.policy.gaussian_model"]

    def _loss(self, action: Tensor, obs: Tensor) -> Tensor:
        return -self._model.network.log_prob(action, obs).mean()

    def _sampler(self, generator: torch.Generator) -> Sampler:
        network = self._model.network_ema
        return lambda histories: network.sample(histories, generator, deterministic=False)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions at the mean, by the moving average of the network; see :func:`executed_actions`.

        Candidates that an energy chooses from are drawn.
        """
        network, at_mean = self._model.network_ema, self._cfg.eval.energy_candidates == 1
        return executed_actions(
            self._cfg.model,
            self._model,
            obs,
            lambda histories: network.sample(histories, self._eval_generator, deterministic=at_mean),
            self._energy_correction,
        )


@POLICY_REGISTRY.register("gaussian_bc_command")
class GaussianBCCommandModePolicy(GaussianBCPolicy, DummyCommandModePolicy):
    """The same under the host's training pipelines."""
