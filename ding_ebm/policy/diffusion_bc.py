"""Behavior cloning by a diffusion model over action chunks: what DPPO fine-tunes, and Diffusion Policy by itself.

Chi et al. 2023, "Diffusion Policy" (arXiv:2303.04137), with the networks, cosine schedule and training of the code of
Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv:2409.00588).

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action, K denoising steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from ding.policy.command_mode_policy_instance import DummyCommandModePolicy
from ding.utils import POLICY_REGISTRY
from torch import Tensor

from ding_ebm.config import Rule
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.model.chains import chunk_loss
from ding_ebm.model.diffusion import standard_normal
from ding_ebm.policy.chunk_model import (
    DIFFUSION_MODEL,
    DIFFUSION_RULES,
    SAMPLER,
    check_sampler,
    chunk_sampler,
    evaluation_chunks,
)
from ding_ebm.policy.energy_beside import CloningWithEnergy
from ding_ebm.policy.energy_training import Sampler


@POLICY_REGISTRY.register("diffusion_bc")
class DiffusionBCPolicy(CloningWithEnergy):
    """Noise prediction on demonstrations."""

    config = dict(
        # (str) Registered name of this policy.
        type="diffusion_bc",
        model=DIFFUSION_MODEL,
        sampler=SAMPLER,
    )
    rules: ClassVar[dict[str, Rule]] = {**CloningWithEnergy.rules, **DIFFUSION_RULES}

    @classmethod
    def problems(cls, cfg: Mapping[str, Any]) -> list[str]:
        """Those of cloning, and of the number of steps of a sampling run."""
        return super().problems(cfg) + check_sampler(cfg)

    def default_model(self) -> tuple[str, list[str]]:
        return "ebm_chunk_diffusion", ["ding_ebm.policy.chunk_model"]

    def _init_learn(self) -> None:
        super()._init_learn()
        self._schedule = CosineSchedule(self._cfg.model.denoising_steps)

    def _loss(self, action: Tensor, obs: Tensor) -> Tensor:
        k = torch.randint(
            1, self._schedule.num_steps + 1, action.shape[:1], generator=self._generator, device=action.device
        )
        noise = standard_normal(action, self._generator)
        return chunk_loss(self._model.network, self._schedule, action, obs, k, noise)

    def _sampler(self, generator: torch.Generator) -> Sampler:
        return chunk_sampler(self._cfg, generator, self._model.network_ema)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions by the moving average of the network; see :func:`evaluation_chunks`."""
        network, correction = self._model.network_ema, self._energy_correction
        return evaluation_chunks(self._cfg, self._model, obs, self._eval_generator, network, correction=correction)


@POLICY_REGISTRY.register("diffusion_bc_command")
class DiffusionBCCommandModePolicy(DiffusionBCPolicy, DummyCommandModePolicy):
    """The same under the host's training pipelines."""
