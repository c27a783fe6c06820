"""QGPO: a diffusion behavior policy, guided by a learnt energy, samples pi(a|s) ~ mu(a|s) exp(alpha Q(s, a)).

Lu et al. 2023, "Contrastive Energy Prediction for Exact Energy-Guided Diffusion Sampling in Offline Reinforcement
Learning" (arXiv:2304.12824). One offline run has three stages, told apart by the number of iterations done:

1. behavior: a diffusion model learns mu(a|s) by noise prediction;
2. support: M actions of mu are drawn once for every state of the data set;
3. energy: twin Q learns by the softmax over the support of the next state, and, at once or later, the guidance
   f(a_t, t, s), whose gradient is added to the score of mu, by contrastive energy prediction (CEP). Once Q is frozen,
   its values of all support actions are tabulated.

Letters: B batch, M support actions a state, Ns states, N critics, E environments, Do observation, Da action.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ding.policy.command_mode_policy_instance import DummyCommandModePolicy
from ding.utils import MODEL_REGISTRY, POLICY_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.checkpoint import find_checkpoint, read_checkpoint
from ding_ebm.config import Rule, choice, either, flag, integer, number, optional, sequence, text
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import METHODS, SPACINGS, SolverPlan, make_plan
from ding_ebm.model.critics import AGGREGATIONS, EnsembleQ, LogPartition, aggregate, in_support_value
from ding_ebm.model.diffusion import denoising_loss, random_times, sample_actions, standard_normal
from ding_ebm.model.energy import LABELS, GuidanceNet, cep_labels, cep_loss, log_mean_exp, mse_guidance_loss
from ding_ebm.model.networks import NoiseNet
from ding_ebm.policy.base import PRECISIONS, OfflinePolicy, autocast, autocast_dtype, compiles, load_optimizer
from ding_ebm.policy.chunk_model import checked_obs, raise_problems
from ding_ebm.policy.energy_correction import CRITIC
from ding_ebm.policy.guards import check_losses
from ding_ebm.policy.support import checksum, default_cache_dir, support_actions

WIDTHS = sequence(integer(1))


@MODEL_REGISTRY.register("ebm_qgpo")
class QGPOModel(nn.Module):
    """Behavior model, critic with its target, guidance, and the normalizers of the data that they were trained on."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        behavior_widths: tuple[int, ...],
        ema_decay: float | None,
        time_scale: float,
        qgpo_critic: Mapping[str, Any],
    ) -> None:
        super().__init__()
        conditioned = qgpo_critic["condition_on_temperature"]
        self.obs_normalizer = Normalizer(obs_dim)
        self.action_normalizer = Normalizer(action_dim)
        self.behavior = NoiseNet(obs_dim, action_dim, behavior_widths, time_scale)
        self.behavior_ema = None if ema_decay is None else copy.deepcopy(self.behavior).requires_grad_(False)
        self.critic = EnsembleQ(
            obs_dim,
            action_dim,
            qgpo_critic["critic_widths"],
            qgpo_critic["num_critics"],
            qgpo_critic["critic_layer_norm"],
        )
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.guidance = GuidanceNet(obs_dim, action_dim, qgpo_critic["guidance_widths"], conditioned, time_scale)
        self.log_partition = LogPartition(obs_dim, action_dim, condition_on_temperature=conditioned)

    @property
    def sampled_behavior(self) -> NoiseNet:
        """The noise network that actions are sampled from: the moving average where there is one."""
        return self.behavior if self.behavior_ema is None else self.behavior_ema


@POLICY_REGISTRY.register("ebm_qgpo")
class QGPOPolicy(OfflinePolicy):
    """QGPO under DI-engine's ``serial_offline`` and ``eval`` pipelines."""

    _schedule = VPLinearSchedule()
    config = dict(
        # (str) Registered name of this policy.
        type="ebm_qgpo",
        model=dict(
            # (int) Do, number of observation dimensions; the task must say it.
            obs_dim=None,
            # (int) Da, number of action dimensions; the task must say it.
            action_dim=None,
            # (tuple of int) Widths of the noise network on its way down, each half of the one before.
            behavior_widths=(512, 256, 128),
            # (float) Decay of the moving average of the behavior model that is sampled from; None: the model itself.
            ema_decay=None,
            # (float) Scale of the Fourier features of time, in periods; the paper's 30 wants long training, 1 short.
            time_scale=30.0,
            qgpo_critic=dict(
                # (float) Inverse temperature of the guided policy: pi ~ mu exp(alpha Q) (beta in the paper).
                alpha=3.0,
                # (float) Inverse temperature of the softmax over the support in the target of Q (beta_Q).
                q_alpha=1.0,
                # (int) Number of critics; 2 is the twin critic.
                num_critics=2,
                # (str) How critics become one value: 'min', 'mean' or 'lcb' (mean minus standard deviations).
                aggregation="min",
                # (float) Standard deviations that 'lcb' subtracts.
                lcb_coefficient=1.0,
                # (tuple of int) Hidden widths of each critic.
                critic_widths=(256, 256, 256),
                # (bool) Whether the critics normalize their hidden layers: less trust in actions unlike the data's.
                critic_layer_norm=False,
                # (tuple of int) Hidden widths of the guidance network.
                guidance_widths=(256, 256, 256, 256),
                # (bool) Whether the guidance takes alpha as an input, so that one model is exact over a range of it.
                condition_on_temperature=False,
                # (tuple of 2 floats) Range of alpha that a conditioned guidance is trained on, uniformly.
                temperature_range=(0.0, 10.0),
            ),
        ),
        sampler=dict(
            # (str) ODE solver: 'singlestep' or 'multistep' DPM-Solver++, or 'ddim'. The paper's call is 'singlestep'.
            method="singlestep",
            # (int) Order of the solver, 1 to 3; the paper's is 2.
            order=3,
            # (str) Grid of times: 'quadratic', 'log_snr' or 'time' (the paper's).
            spacing="quadratic",
            # (str) Clip of actions to the data's range: 'none' (the paper's), 'final' or 'every_step'.
            clip="final",
        ),
        learn=dict(
            # (int) Batch size of the behavior stage.
            batch_size=4096,
            # (int) Batch size of the energy stage: the first rows of each batch are used.
            batch_size_q=256,
            # (float) Learning rate of the behavior model.
            learning_rate=1e-4,
            # (float) Learning rate of the critic.
            critic_learning_rate=3e-4,
            # (float) Learning rate of the guidance.
            guidance_learning_rate=3e-4,
            # (float) Discount per environment step.
            discount_factor=0.99,
            # (float) Rate of the target critic's moving average, per iteration.
            target_theta=0.005,
            # (int) M, number of support actions a state (K in the paper).
            M=16,
            # (int) Network evaluations (NFE) for a support action.
            diffusion_steps=15,
            # (int) Iterations of the behavior stage; 0 with ``behavior_checkpoint``.
            behavior_policy_stop_training_iter=600000,
            # (int) Iteration at which the guidance begins to train; None: with the critic, after the behavior stage.
            energy_guided_policy_begin_training_iter=None,
            # (int) Iteration at which the critic is frozen; None: never.
            q_value_stop_training_iter=1100000,
            # (str) Labels of CEP: 'unnormalized' (exact), 'softmax' (the paper's) or 'mse' (a biased baseline).
            energy_labels="unnormalized",
            # (float) Greatest log-weight of one state over an average one, in nats ('unnormalized').
            label_log_max=2.0,
            # (float) Times that the guidance learns at are uniform numbers to this power; above 1: more low noise.
            guidance_time_exponent=1.0,
            # (str) Checkpoint of this policy to take the behavior model from; '': train it.
            behavior_checkpoint="",
            # (str) Folder for support actions; '': $DING_EBM_CACHE or ~/.cache/ding_ebm; None: keep nothing.
            support_cache="",
            # (str) Arithmetic of the networks: 'float32', 'bfloat16' (autocast) or 'auto' (bfloat16 where it is fast).
            precision="float32",
            # (bool or 'auto') Whether to compile the losses by torch.compile, which pays off in long runs; 'auto': on
            # CUDA, and on a CPU where the arithmetic is bfloat16 and there is a C++ compiler.
            compile=False,
        ),
        collect=dict(
            # (str) Scaling of rewards: 'none', 'locomotion' (by the range of returns) or 'antmaze' (minus 1).
            reward_tuning="none",
        ),
        eval=dict(
            # (float or list of float) Factor of the energy's gradient. The host's evaluator uses the first of a list;
            # `ding-ebm eval` evaluates each of them.
            guidance_scale=1.0,
            # (float) alpha at evaluation where the guidance is conditioned on it; None: ``model.qgpo_critic.alpha``.
            inverse_temperature=None,
            # (int) Network evaluations (NFE) for an action.
            diffusion_steps=15,
        ),
    )
    rules: ClassVar[dict[str, Rule]] = {
        **OfflinePolicy.rules,
        "model.obs_dim": integer(1),
        "model.action_dim": integer(1),
        "model.behavior_widths": WIDTHS,
        "model.ema_decay": optional(number(0.0, 1.0, below=True)),
        "model.time_scale": number(0.0, above=True),
        "model.qgpo_critic.alpha": number(0.0),
        "model.qgpo_critic.q_alpha": number(0.0),
        "model.qgpo_critic.num_critics": integer(1),
        "model.qgpo_critic.aggregation": choice(*AGGREGATIONS),
        "model.qgpo_critic.lcb_coefficient": number(0.0),
        "model.qgpo_critic.critic_widths": WIDTHS,
        "model.qgpo_critic.critic_layer_norm": flag(),
        "model.qgpo_critic.guidance_widths": WIDTHS,
        "model.qgpo_critic.condition_on_temperature": flag(),
        "model.qgpo_critic.temperature_range": sequence(number(0.0), length=2),
        "sampler.method": choice(*METHODS),
        "sampler.order": integer(1, 3),
        "sampler.spacing": choice(*SPACINGS),
        "sampler.clip": choice("none", "final", "every_step"),
        "learn.batch_size": integer(1),
        "learn.batch_size_q": integer(1),
        "learn.learning_rate": number(0.0, above=True),
        "learn.critic_learning_rate": number(0.0, above=True),
        "learn.guidance_learning_rate": number(0.0, above=True),
        "learn.discount_factor": number(0.0, 1.0),
        "learn.target_theta": number(0.0, 1.0, above=True),
        "learn.M": integer(1),
        "learn.diffusion_steps": integer(1),
        "learn.behavior_policy_stop_training_iter": integer(0),
        "learn.energy_guided_policy_begin_training_iter": optional(integer(0)),
        "learn.q_value_stop_training_iter": optional(integer(0)),
        "learn.energy_labels": choice(*LABELS),
        "learn.label_log_max": number(0.0, above=True),
        "learn.guidance_time_exponent": number(1.0),
        "learn.behavior_checkpoint": text(empty=True),
        "learn.support_cache": optional(text(empty=True)),
        "learn.precision": choice(*PRECISIONS),
        "learn.compile": either(flag(), choice("auto")),
        "collect.reward_tuning": choice("none", "locomotion", "antmaze"),
        "eval.guidance_scale": either(number(0.0), sequence(number(0.0))),
        "eval.inverse_temperature": optional(number(0.0)),
        "eval.diffusion_steps": integer(1),
    }

    @classmethod
    def check_consistency(cls, cfg: Mapping[str, Any]) -> None:
        """Rules across keys: stages follow each other, and what is asked for is trained."""
        learn, critic = cfg["learn"], cfg["model"]["qgpo_critic"]
        stop, begin = learn["behavior_policy_stop_training_iter"], learn["energy_guided_policy_begin_training_iter"]
        freeze = learn["q_value_stop_training_iter"]
        low, high = critic["temperature_range"]
        rules = [
            (
                begin is None or begin >= stop,
                f"learn.energy_guided_policy_begin_training_iter must be None or at least {stop}, the end of the "
                f"behavior stage, whose model gives the support actions; got {begin}",
            ),
            (
                freeze is None or freeze > stop,
                f"learn.q_value_stop_training_iter must exceed {stop}, where the critic begins to train; got {freeze}",
            ),
            (
                learn["M"] > 1 or learn["energy_labels"] == "mse",
                "learn.M must be at least 2, or learn.energy_labels 'mse': one action has no contrast",
            ),
            (
                begin is None or freeze is None or begin <= freeze,
                f"learn.energy_guided_policy_begin_training_iter ({begin}) must not exceed "
                f"learn.q_value_stop_training_iter ({freeze}): between them nothing would be trained",
            ),
            (
                (stop == 0) == bool(learn["behavior_checkpoint"]),
                "learn.behavior_policy_stop_training_iter must be 0 if and only if learn.behavior_checkpoint gives the "
                "behavior model",
            ),
            (
                learn["batch_size_q"] <= learn["batch_size"],
                f"learn.batch_size_q ({learn['batch_size_q']}) must not exceed learn.batch_size "
                f"({learn['batch_size']}): it is a part of the batch",
            ),
            (low < high, f"model.qgpo_critic.temperature_range must grow, got {low} and {high}"),
            (
                cfg["eval"]["inverse_temperature"] is None or critic["condition_on_temperature"],
                "eval.inverse_temperature needs model.qgpo_critic.condition_on_temperature=True; else the guidance "
                "knows alpha only as trained",
            ),
        ]
        raise_problems([message for holds, message in rules if not holds])

    def default_model(self) -> tuple[str, list[str]]:
        return "ebm_qgpo", ["ding_ebm.policy.qgpo"]

    # Learning.

    def _init_learn(self) -> None:
        learn, model = self._cfg.learn, self._model
        self._learn_model = model
        self._optimizers = {
            "behavior": torch.optim.Adam(model.behavior.parameters(), lr=learn.learning_rate, fused=True),
            "critic": torch.optim.Adam(model.critic.parameters(), lr=learn.critic_learning_rate, fused=True),
            "guidance": torch.optim.Adam(
                [*model.guidance.parameters(), *model.log_partition.parameters()],
                lr=learn.guidance_learning_rate,
                fused=True,
            ),
        }
        self._generator = self._seeded_generator()
        self._support: Tensor | None = None
        self._support_q: Tensor | None = None
        self._losses_logged: list[str] = []
        self._behavior_normalizers: dict[str, Tensor] = {}
        compiled = torch.compile if compiles(learn.compile, learn.precision, self._device) else lambda f: f
        self._behavior_loss_fn = compiled(self._behavior_loss)
        self._critic_loss_fn = compiled(self._critic_loss)
        self._target_q_fn = compiled(self._target_q)
        self._guidance_loss_fn = compiled(self._guidance_loss)
        self._support_folder = None if learn.support_cache is None else Path(learn.support_cache or default_cache_dir())
        if self._support_folder is not None:  # an unusable folder ends the run now, not when the actions are drawn
            self._support_folder.mkdir(parents=True, exist_ok=True)
        if learn.behavior_checkpoint:
            self._take_behavior(read_checkpoint(find_checkpoint(learn.behavior_checkpoint)))

    def set_statistic(self, statistics: dict[str, Any]) -> None:
        """Take what the run needs of its data set: normalizers, and the states to draw support actions for.

        Raises:
            ValueError: If its dimensions are not the model's, or its normalizers not those of ``behavior_checkpoint``.
        """
        self._check_dimensions(statistics)
        self._statistics = statistics
        for part in ("obs_normalizer", "action_normalizer"):
            for key, value in statistics[part].items():
                expected = self._behavior_normalizers.get(f"{part}.{key}", value.cpu())
                if not torch.equal(expected, value.cpu()):
                    raise ValueError(
                        f"{self._cfg.learn.behavior_checkpoint} was trained with another {part} "
                        f"({key} {expected.tolist()}) than this data set's ({value.tolist()}): use the same files"
                    )
            getattr(self._model, part).load_state_dict(statistics[part])

    def _forward_learn(self, data: dict[str, Tensor]) -> dict[str, float]:
        if self._in_behavior_stage:
            losses = self._update_behavior(data["obs"], data["action"])
        else:
            rows = self._cfg.learn.batch_size_q
            losses = self._update_energy({key: value[:rows] for key, value in data.items()})
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        check_losses(dict(zip(losses, values)), self._train_iter, data, self._model)
        self._train_iter += 1
        self._losses_logged = list(losses)
        return dict(zip(losses, values))

    @property
    def _in_behavior_stage(self) -> bool:
        return self._train_iter < self._cfg.learn.behavior_policy_stop_training_iter

    def _get_stage(self) -> str:
        if self._in_behavior_stage:
            return "behavior"
        critic = [] if self._critic_is_frozen else ["critic"]
        return " and ".join(critic + ["guidance"] * (self._train_iter >= self._guidance_begins))

    @property
    def _guidance_begins(self) -> int:
        learn = self._cfg.learn
        begin = learn.energy_guided_policy_begin_training_iter
        return learn.behavior_policy_stop_training_iter if begin is None else begin

    @property
    def _critic_is_frozen(self) -> bool:
        stop = self._cfg.learn.q_value_stop_training_iter
        return stop is not None and self._train_iter >= stop

    def _update_behavior(self, obs: Tensor, action: Tensor) -> dict[str, Tensor]:
        t = random_times(action.shape[:1], self._schedule, self._generator)
        noise = standard_normal(action, self._generator)
        loss = self._behavior_loss_fn(obs, action, t, noise)
        self._step("behavior", loss)
        if self._model.behavior_ema is not None:
            self._average("behavior_ema", "behavior", 1.0 - self._cfg.model.ema_decay)
        return {"behavior_loss": loss}

    def _update_energy(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._support is None:
            self._support = self._draw_support()
        losses = {}
        if not self._critic_is_frozen:
            losses["critic_loss"], losses["q_mean"] = self._critic_loss_fn(data, self._support[data["next_index"]])
            self._step("critic", losses["critic_loss"])
            self._average("target_critic", "critic", self._cfg.learn.target_theta)
        if self._train_iter >= self._guidance_begins:
            losses.update(self._update_guidance(data["obs"], data["action"], data["index"]))
        return losses

    def _update_guidance(self, obs: Tensor, action: Tensor, index: Tensor) -> dict[str, Tensor]:
        support = self._support[index]
        if not self._critic_is_frozen:
            q = self._target_q_fn(obs, support)
        else:
            if self._support_q is None:
                self._support_q = self._tabulate_q()
            q = self._support_q[index]
        t = random_times(support.shape[:1], self._schedule, self._generator, self._cfg.learn.guidance_time_exponent)
        noise = standard_normal(support, self._generator)
        alpha = self._alphas(t)
        loss, log_partition_loss = self._guidance_loss_fn(obs, action, support, q, alpha, t, noise)
        self._step("guidance", loss + log_partition_loss)
        return {"guidance_loss": loss, "log_partition_loss": log_partition_loss}

    def _behavior_loss(self, obs: Tensor, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise prediction, a scalar."""
        x_t = self._schedule.diffuse(action, t, noise)
        with autocast(self._cfg.learn.precision, self._device):
            return denoising_loss(self._model.behavior, x_t, t, obs, noise)

    def _critic_loss(self, data: dict[str, Tensor], next_support: Tensor) -> tuple[Tensor, Tensor]:
        """Temporal-difference loss of all critics, and the mean of Q."""
        value = in_support_value(self._target_q(data["next_obs"], next_support), self._cfg.model.qgpo_critic.q_alpha)
        target = data["reward"] + self._cfg.learn.discount_factor * (1.0 - data["done"]) * value
        with autocast(self._cfg.learn.precision, self._device):
            predicted = self._model.critic(data["obs"], data["action"])
        return F.mse_loss(predicted, target.expand_as(predicted)), predicted.mean()

    def _guidance_loss(
        self, obs: Tensor, action: Tensor, support: Tensor, q: Tensor, alpha: Tensor, t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of the guidance, and of the normalizer of its labels, which the data's own action centers."""
        x_t = self._schedule.diffuse(support, t.unsqueeze(1), noise)
        with autocast(self._cfg.learn.precision, self._device):
            f = self._model.guidance(x_t, t, obs, alpha)
            kind = self._cfg.learn.energy_labels
            if kind == "mse":
                return mse_guidance_loss(f, q, alpha), torch.zeros_like(alpha[0])
            if kind == "softmax":
                return cep_loss(f, cep_labels(q, alpha, kind)), torch.zeros_like(alpha[0])
            log_z = self._model.log_partition(obs, action, self._target_q(obs, action), alpha)
        labels = cep_labels(q, alpha, kind, log_z, self._cfg.learn.label_log_max)
        return cep_loss(f, labels), F.mse_loss(log_z, log_mean_exp(alpha.unsqueeze(-1) * q))

    @torch.no_grad()
    def _target_q(self, obs: Tensor, action: Tensor) -> Tensor:
        """The target critics' value of actions, (B, M)."""
        critic = self._cfg.model.qgpo_critic
        with autocast(self._cfg.learn.precision, self._device):
            return aggregate(self._model.target_critic(obs, action), critic.aggregation, critic.lcb_coefficient)

    def _alphas(self, like: Tensor) -> Tensor:
        """Inverse temperature of every row: the config's, or drawn from its range where the guidance is conditioned."""
        critic = self._cfg.model.qgpo_critic
        if not critic.condition_on_temperature:
            return torch.full_like(like, critic.alpha)
        low, high = critic.temperature_range
        uniform = torch.rand(like.shape, generator=self._generator, device=like.device)
        return low + (high - low) * uniform

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def _average(self, target: str, source: str, rate: float) -> None:
        with torch.no_grad():
            parameters = [list(getattr(self._model, name).parameters()) for name in (target, source)]
            torch._foreach_lerp_(*parameters, rate)

    # Support actions.

    def _draw_support(self) -> Tensor:
        if not self._statistics:
            raise RuntimeError("the energy stage needs the data set's states: call set_statistic(dataset.statistics)")
        learn, sampler = self._cfg.learn, self._cfg.sampler
        behavior, states = self._model.sampled_behavior, self._statistics["states"].to(self._device)
        plan = self._plan(learn.diffusion_steps)

        def sample(obs: Tensor, noise: Tensor) -> Tensor:
            with autocast(learn.precision, self._device):
                return sample_actions(behavior, plan, obs, noise, clip=sampler.clip)

        dtype = str(autocast_dtype(learn.precision, self._device))
        settings = dict(sampler, M=learn.M, nfe=learn.diffusion_steps, dtype=dtype, device=str(self._device))
        key = checksum({**behavior.state_dict(), "states": states}, settings)
        return support_actions(
            sample, states, learn.M, self._cfg.model.action_dim, key=key, cache_dir=self._support_folder
        )

    def _tabulate_q(self) -> Tensor:
        """The frozen target's values of all support actions, (Ns, M)."""
        states = self._statistics["states"].to(self._device)
        return torch.cat(
            [self._target_q(obs, actions) for obs, actions in zip(states.split(512), self._support.split(512))]
        )

    def _plan(self, nfe: int) -> SolverPlan:
        sampler = self._cfg.sampler
        return make_plan(self._schedule, nfe, method=sampler.method, order=sampler.order, spacing=sampler.spacing)

    # State.

    def _monitor_vars_learn(self) -> list[str]:
        everything = ["behavior_loss", "critic_loss", "q_mean", "guidance_loss", "log_partition_loss"]
        return self._losses_logged or everything  # the host asks once at the start for all, then for each table

    def _state_dict_learn(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "train_iter": self._train_iter,
            "generator": self._generator.get_state(),
            "data_fingerprint": self._data_fingerprint,
        }

    def _load_state_dict_learn(self, state_dict: dict[str, Any]) -> None:
        self._check_same_data(
            state_dict,
            "resume on the same files with the same collect.reward_tuning, or take only its behavior model by "
            "learn.behavior_checkpoint",
        )
        self._model.load_state_dict(state_dict["model"])
        for name, optimizer in self._optimizers.items():
            load_optimizer(optimizer, state_dict["optimizers"][name])
        self._train_iter = int(state_dict["train_iter"])
        self._generator.set_state(state_dict["generator"].cpu())
        self._support = self._support_q = None  # drawn again, or read from the cache, when they are next needed

    def _take_behavior(self, state_dict: dict[str, Any]) -> None:
        """Copy the behavior model, and no more, from a checkpoint of this policy."""
        kept = {k: v for k, v in state_dict["model"].items() if k.startswith(("behavior.", "behavior_ema."))}
        if self._model.behavior_ema is None and any(key.startswith("behavior_ema.") for key in kept):
            raise ValueError(
                f"{self._cfg.learn.behavior_checkpoint} holds a moving average of the behavior: set model.ema_decay"
            )
        missing = self._model.load_state_dict(kept, strict=False).missing_keys
        if any(key.startswith("behavior") for key in missing):
            raise ValueError(f"{self._cfg.learn.behavior_checkpoint} lacks parts of the behavior model: {missing}")
        self._behavior_normalizers = {k: v for k, v in state_dict["model"].items() if "normalizer." in k}

    # Evaluation.

    def _init_eval(self) -> None:
        super()._init_eval()
        self._eval_plan = self._plan(self._cfg.eval.diffusion_steps)

    @property
    def _guidance_is_trained(self) -> bool:
        return self._train_iter > self._guidance_begins

    def _default_scale(self) -> float:
        """The config's guidance scale, first of a list; 0 while the guidance is not trained."""
        scale = self._cfg.eval.guidance_scale
        first = scale[0] if isinstance(scale, (list, tuple)) else scale
        return float(first) if self._guidance_is_trained else 0.0

    @torch.no_grad()
    def act(
        self, obs: np.ndarray, guidance_scale: float | None = None, inverse_temperature: float | None = None
    ) -> np.ndarray:
        """Actions in the environment's units, one batched sampling run for all environments.

        Args:
            obs: Observations in the environment's units, (E, Do).
            guidance_scale: Factor of the energy's gradient; None: the config's. 0 is the behavior policy.
            inverse_temperature: alpha where the guidance is conditioned on it; None: the config's.

        Returns:
            (E, Da), float32.

        Raises:
            ValueError: If ``obs`` has other dimensions than the model, holds NaN or infinity, guidance is asked for
                before it is trained, or a temperature where the guidance knows but one.
        """
        obs = checked_obs(obs, (self._cfg.model.obs_dim,))
        scale = self._default_scale() if guidance_scale is None else guidance_scale
        if scale and not self._guidance_is_trained:
            raise ValueError(f"the guidance is not trained (iteration {self._train_iter}); use guidance_scale=0")
        critic, configured = self._cfg.model.qgpo_critic, self._cfg.eval.inverse_temperature
        if inverse_temperature is not None and not critic.condition_on_temperature:
            raise ValueError("inverse_temperature needs model.qgpo_critic.condition_on_temperature=True")
        alpha = next(a for a in (inverse_temperature, configured, critic.alpha) if a is not None)
        model, clip = self._model, self._cfg.sampler.clip
        options = dict(guidance=model.guidance, guidance_scale=scale, inverse_temperature=alpha, clip=clip)

        def sample(states: Tensor) -> Tensor:  # chunks of one, (E, 1, Da)
            noise = standard_normal(states.new_empty(len(states), self._cfg.model.action_dim), self._eval_generator)
            return sample_actions(model.sampled_behavior, self._eval_plan, states, noise, **options).unsqueeze(1)

        raw, correction = torch.from_numpy(obs).to(self._device), self._energy_correction
        if self._in_behavior_stage and self._cfg.eval.energy_checkpoint == CRITIC:
            correction = None  # as there is no guidance yet
        normalized = model.obs_normalizer(raw)
        actions = sample(normalized) if correction is None else correction(raw.unsqueeze(1), normalized, sample)
        return model.action_normalizer.inverse(actions.squeeze(1)).float().cpu().numpy()

    def _critic_energy(self, obs: Tensor, action: Tensor) -> Tensor:
        """Minus the target critics' values, (E,), of normalized chunks of one, (E, 1, Da), differentiable in these."""
        q, critic = self._model.target_critic(obs, action.squeeze(1)), self._cfg.model.qgpo_critic
        return -aggregate(q, critic.aggregation, critic.lcb_coefficient)


@POLICY_REGISTRY.register("ebm_qgpo_command")
@POLICY_REGISTRY.register("qgpo_command")
class QGPOCommandModePolicy(QGPOPolicy, DummyCommandModePolicy):
    """QGPO for the serial training pipelines; fills DI-engine's free slot for ``type='qgpo'`` too."""
