"""Cloning of action chunks from demonstrations: all of its training but the model and its loss.

The procedure is that of the code of Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv:2409.00588): AdamW,
a cosine of the learning rate over the run, and a moving average of the weights, which evaluation acts by.

Letters: B batch, To observation history, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ding_ebm.config import Rule, choice, integer, number
from ding_ebm.policy.base import PRECISIONS, OfflinePolicy, autocast, load_optimizer
from ding_ebm.policy.chunk_model import check_chunks, check_facts, model_facts, raise_problems
from ding_ebm.policy.guards import check_losses


class ChunkCloningPolicy(OfflinePolicy):
    """Cloning under DI-engine's ``serial_offline`` and ``eval`` pipelines.

    A subclass declares the config of its model, an :class:`~ding_ebm.policy.chunk_model.AveragedChunkModel`, and gives
    :meth:`_loss`, or :meth:`_objective` where more is logged, and :meth:`act`.
    """

    config = dict(
        learn=dict(
            # (int) Batch size.
            batch_size=128,
            # (float) Learning rate at the start, from where a cosine takes it to the least at the end of the run.
            learning_rate=1e-3,
            # (float) Learning rate at the end of the run.
            min_learning_rate=1e-4,
            # (float) Weight decay of AdamW.
            weight_decay=1e-6,
            # (float) Decay of the moving average of the weights, per update of it.
            ema_decay=0.995,
            # (int) Iterations between two updates of the moving average.
            ema_update_every=10,
            # (int) Iteration from which on it averages; before, it is a copy.
            ema_start_iter=2000,
            # (str) Arithmetic of the network: 'float32', 'bfloat16' (autocast) or 'auto' (bfloat16 where it is fast).
            precision="float32",
        ),
        collect=dict(
            data_type="ebm_chunks",
            obs_normalization="min_max",
            action_normalization="min_max",
            # (str) Windows of an episode: 'dppo', those whose actions all lie in it, or 'diffusion_policy', where the
            # last up to Ta - 1 actions may lie behind its end and repeat the last one.
            padding="dppo",
        ),
    )
    rules: ClassVar[dict[str, Rule]] = {
        **OfflinePolicy.rules,
        "learn.batch_size": integer(1),
        "learn.learning_rate": number(0.0, above=True),
        "learn.min_learning_rate": number(0.0),
        "learn.weight_decay": number(0.0),
        "learn.ema_decay": number(0.0, 1.0, below=True),
        "learn.ema_update_every": integer(1),
        "learn.ema_start_iter": integer(0),
        "learn.precision": choice(*PRECISIONS),
        "collect.padding": choice("dppo", "diffusion_policy"),
    }

    @classmethod
    def check_consistency(cls, cfg: Mapping[str, Any]) -> None:
        """Rules across keys; raises ConfigError with all of :meth:`problems`."""
        raise_problems(cls.problems(cfg))

    @classmethod
    def problems(cls, cfg: Mapping[str, Any]) -> list[str]:
        """What does not go together: chunks are executed as far as they were predicted, and rates fall."""
        learn = cfg["learn"]
        found = check_chunks(cfg["model"])
        if learn["min_learning_rate"] > learn["learning_rate"]:
            found.append(
                f"learn.min_learning_rate ({learn['min_learning_rate']}) must not exceed learn.learning_rate "
                f"({learn['learning_rate']})"
            )
        return found

    def _loss(self, action: Tensor, obs: Tensor) -> Tensor:
        """Loss of the network on normalized chunks (B, Tp, Da) and histories (B, To, Do), a scalar."""
        raise NotImplementedError

    def _objective(self, data: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a scalar, and what is logged of it, by name."""
        loss = self._loss(data["action"], data["obs"])
        return loss, {"behavior_loss": loss}

    # Learning.

    def _init_learn(self) -> None:
        learn = self._cfg.learn
        self._learn_model = self._model
        self._optimizer = torch.optim.AdamW(
            self._model.network.parameters(), lr=learn.learning_rate, weight_decay=learn.weight_decay, fused=True
        )
        self._generator = self._seeded_generator()
        self._run_length = self._get_total_iterations()

    def set_statistic(self, statistics: dict[str, Any]) -> None:
        """Take the normalizers of the data set.

        Raises:
            ValueError: If its dimensions are not the model's.
        """
        self._check_dimensions(statistics)
        self._statistics = statistics
        for part in ("obs_normalizer", "action_normalizer"):
            getattr(self._model, part).load_state_dict(statistics[part])

    def _forward_learn(self, data: dict[str, Tensor]) -> dict[str, float]:
        with autocast(self._cfg.learn.precision, self._device):
            loss, metrics = self._objective(data)
        loss.backward()
        metrics.update(self._gradient_metrics())
        values = dict(zip(metrics, torch.stack([metric.detach() for metric in metrics.values()]).tolist()))
        check_losses(values, self._train_iter, data, self._model)
        return {**values, "learning_rate": self._step()}

    def _gradient_metrics(self) -> dict[str, Tensor]:
        """What is logged of the gradients of a batch, by name."""
        return {}

    def _step(self) -> float:
        """Take a step by the gradients at hand, and the averages after it; returns its learning rate."""
        rate, group = self._learning_rate(), self._optimizer.param_groups[0]
        group["lr"] = rate
        self._optimizer.step()
        for parameter in group["params"]:  # as zero_grad does it, which takes 1 % of a small update for being profiled
            parameter.grad = None
        self._train_iter += 1
        self._average()
        return rate

    def _learning_rate(self) -> float:
        """A cosine over the whole run, from the greatest to the least."""
        learn, total = self._cfg.learn, self._run_length
        share = 0.0 if total is None else min(self._train_iter / total, 1.0)
        least: float = learn.min_learning_rate
        return least + 0.5 * (learn.learning_rate - least) * (1.0 + math.cos(math.pi * share))

    @torch.no_grad()
    def _average(self) -> None:
        learn = self._cfg.learn
        if self._train_iter % learn.ema_update_every and self._train_iter != self._run_length:
            return
        rate = 1.0 if self._train_iter < learn.ema_start_iter else 1.0 - learn.ema_decay
        torch._foreach_lerp_(list(self._model.network_ema.parameters()), list(self._model.network.parameters()), rate)

    # State.

    def _load_state_dict_eval(self, state_dict: dict[str, Any]) -> None:
        check_facts(state_dict, self._cfg.model, "the checkpoint")
        super()._load_state_dict_eval(state_dict)

    def _monitor_vars_learn(self) -> list[str]:
        return ["behavior_loss", "learning_rate"]

    def _state_dict_learn(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "facts": model_facts(self._cfg.model),
            "optimizer": self._optimizer.state_dict(),
            "train_iter": self._train_iter,
            "generator": self._generator.get_state(),
            "data_fingerprint": self._data_fingerprint,
        }

    def _load_state_dict_learn(self, state_dict: dict[str, Any]) -> None:
        self._check_same_data(state_dict, "resume on the same files with the same normalization and horizon_steps")
        check_facts(state_dict, self._cfg.model, "the checkpoint")
        self._model.load_state_dict(state_dict["model"])
        load_optimizer(self._optimizer, state_dict["optimizer"])
        self._train_iter = int(state_dict["train_iter"])
        self._generator.set_state(state_dict["generator"].cpu())
