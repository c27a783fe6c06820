"""DPPO: fine-tunes a diffusion policy by PPO over environment steps and denoising steps.

Ren et al. 2024, "Diffusion Policy Policy Optimization" (arXiv:2409.00588). A decision samples a chunk of actions in S
denoising steps; the first S - F of them belong to the frozen policy that was cloned from demonstrations, the last F to
a copy that is trained. Each of these F steps is an action of a Markov decision process whose density is Gaussian, and
all of a decision's steps share its advantage, discounted towards the noisier ones.

Letters: T decisions of a collection, E environments, N = T E, B rows of a minibatch (a row is a decision and one of
its fine-tuned steps), To observation history, Tp predicted and Ta executed actions, Do observation, Da action,
K denoising steps, S steps of a sampling run, F fine-tuned steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from ding.policy.command_mode_policy_instance import DummyCommandModePolicy
from ding.utils import MODEL_REGISTRY, POLICY_REGISTRY
from numpy.typing import NDArray
from torch import Tensor, nn

from ding_ebm.config import Rule, choice, flag, integer, number, optional, text
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.model.chains import REDUCTIONS, chain_means, chunk_log_prob, sample_chunks
from ding_ebm.model.critics import ValueNet
from ding_ebm.model.diffusion import standard_normal
from ding_ebm.policy.base import PRECISIONS, BasePolicy, autocast, load_optimizer
from ding_ebm.policy.base_checkpoint import take_base
from ding_ebm.policy.chunk_model import (
    DIFFUSION_MODEL,
    DIFFUSION_RULES,
    SAMPLER,
    WIDTHS,
    check_chunks,
    check_facts,
    check_sampler,
    evaluation_chunks,
    make_network,
    make_plan,
    model_facts,
    raise_problems,
)
from ding_ebm.policy.guards import check_losses
from ding_ebm.policy.ppo import (
    RunningReturnScaler,
    approximate_kl,
    clip_ratios,
    clipped_policy_loss,
    generalized_advantages,
    value_loss,
)

# Rows that a thread of a CPU takes at once: of 512 numbers each in float32, they and what follows stay in its cache.
_ROWS_A_THREAD = 2048
_METRICS = ("loss", "policy_loss", "value_loss", "approximate_kl", "clip_fraction", "ratio_mean")


@MODEL_REGISTRY.register("ebm_dppo")
class DPPOModel(nn.Module):
    """The frozen base network, its fine-tuned copy, the critic, and the normalizers of the base policy's data."""

    def __init__(self, critic_widths: list[int], **model: Any) -> None:
        super().__init__()
        self.obs_normalizer = Normalizer(model["obs_dim"])
        self.action_normalizer = Normalizer(model["action_dim"])
        self.base = make_network(model).requires_grad_(False)
        self.fine_tuned = copy.deepcopy(self.base).requires_grad_(True)
        self.critic = ValueNet(model["obs_dim"], model["cond_steps"], critic_widths)


@POLICY_REGISTRY.register("dppo")
class DPPOPolicy(BasePolicy):
    """DPPO under DI-engine's ``serial_onpolicy``, ``serial`` and ``eval`` pipelines."""

    _collect_generator: torch.Generator | None = None  # of a policy that collects

    config = dict(
        # (str) Registered name of this policy.
        type="dppo",
        # (bool) It learns from what it has just collected.
        on_policy=True,
        # (str) Checkpoint of a cloned policy to fine-tune, or the folder of its run, or a policy of the reference
        # implementation that ding-ebm convert has written; the task must say it.
        base_policy_path=None,
        model=dict(
            DIFFUSION_MODEL,
            # (list of int) Hidden widths of the critic.
            critic_widths=[256, 256, 256],
        ),
        sampler=dict(
            SAMPLER,
            # (int) F, number of denoising steps at the end that are fine-tuned; 0 is the base policy, for evaluation.
            ft_denoising_steps=10,
            # (float) Noise of DDIM in collecting, 0 to 1; unused by DDPM.
            eta=1.0,
            # (float or None) Bound on the standard normal noise of a denoising step in collecting.
            randn_clip_value=3.0,
            # (float) Least standard deviation of a denoising step in collecting.
            min_sampling_denoising_std=0.1,
            # (float) Least standard deviation of a denoising step in its log-probability.
            min_logprob_denoising_std=0.1,
        ),
        learn=dict(
            # (int) Updates of the host's serial pipeline a collection; all passes over it are one.
            update_per_collect=1,
            # (int) Passes over the rows of a collection.
            epoch_per_collect=5,
            # (int) B, rows of a minibatch.
            batch_size=50000,
            # (float) Learning rate of the fine-tuned network.
            learning_rate=1e-4,
            # (float) Learning rate of the critic.
            critic_learning_rate=1e-3,
            # (float or None) Learning rate of the network at the end of a cosine; None: constant.
            min_learning_rate=None,
            # (int) Collections that the cosine takes; then it begins anew.
            learning_rate_cycle=1000,
            # (float) Weight decay of AdamW, both networks.
            weight_decay=0.0,
            # (float or None) Bound on the norm of the network's gradient.
            grad_clip=None,
            # (float) Discount per decision, that is per chunk.
            discount_factor=0.99,
            # (float) Lambda of the advantages.
            gae_lambda=0.95,
            # (float) Discount of the advantage per denoising step towards the noise.
            gamma_denoising=0.99,
            # (float) Clip range of the ratio at the last denoising step.
            clip_ratio=0.01,
            # (float) Clip range at the first fine-tuned step.
            clip_ratio_base=0.01,
            # (float) How steeply the range grows between the two.
            clip_ratio_rate=3.0,
            # (str) How the log-densities of a chunk's numbers become one: 'mean' (the published) or 'sum'.
            log_prob_reduction="mean",
            # (float) Weight of the value loss.
            value_weight=0.5,
            # (float or None) Clip range of the change of a value.
            value_clip=None,
            # (float) Weight of staying likely to draw what the base policy draws.
            bc_weight=0.0,
            # (float) Estimated KL divergence that ends the passes over a collection.
            target_kl=1.0,
            # (int) Collections at the start in which only the critic learns.
            critic_warmup=0,
            # (bool) Whether to divide rewards by the running standard deviation of returns.
            reward_scaling=True,
            # (str) Arithmetic of the network in updates: 'float32', 'bfloat16' (autocast) or 'auto'. In bfloat16 the
            # ratio before an update is 1 to some 1e-3 only, as collecting computes in float32.
            precision="float32",
        ),
    )
    rules: ClassVar[dict[str, Rule]] = {
        **BasePolicy.rules,
        **DIFFUSION_RULES,
        "on_policy": choice(True),
        "base_policy_path": optional(text()),
        "model.critic_widths": WIDTHS,
        "sampler.ft_denoising_steps": integer(0),
        "sampler.eta": number(0.0, 1.0),
        "sampler.randn_clip_value": optional(number(0.0, above=True)),
        "sampler.min_sampling_denoising_std": number(0.0, above=True),
        "sampler.min_logprob_denoising_std": number(0.0, above=True),
        "learn.update_per_collect": choice(1),
        "learn.epoch_per_collect": integer(1),
        "learn.batch_size": integer(1),
        "learn.learning_rate": number(0.0, above=True),
        "learn.critic_learning_rate": number(0.0, above=True),
        "learn.min_learning_rate": optional(number(0.0)),
        "learn.learning_rate_cycle": integer(1),
        "learn.weight_decay": number(0.0),
        "learn.grad_clip": optional(number(0.0, above=True)),
        "learn.discount_factor": number(0.0, 1.0),
        "learn.gae_lambda": number(0.0, 1.0),
        "learn.gamma_denoising": number(0.0, 1.0),
        "learn.clip_ratio": number(0.0, above=True),
        "learn.clip_ratio_base": number(0.0, above=True),
        "learn.clip_ratio_rate": number(0.0),
        "learn.log_prob_reduction": choice(*REDUCTIONS),
        "learn.value_weight": number(0.0),
        "learn.value_clip": optional(number(0.0, above=True)),
        "learn.bc_weight": number(0.0),
        "learn.target_kl": number(0.0, above=True),
        "learn.critic_warmup": integer(0),
        "learn.reward_scaling": flag(),
        "learn.precision": choice(*PRECISIONS),
    }

    @classmethod
    def check_consistency(cls, cfg: Mapping[str, Any]) -> None:
        """Rules across keys: chunk lengths, and no more fine-tuned steps than there are."""
        problems = check_chunks(cfg["model"]) + check_sampler(cfg)
        sampler, total = cfg["sampler"], cfg["model"]["denoising_steps"]
        steps = total if sampler["ddim_steps"] is None else sampler["ddim_steps"]
        if sampler["ft_denoising_steps"] > steps:
            what = "model.denoising_steps" if sampler["ddim_steps"] is None else "sampler.ddim_steps"
            problems.append(
                f"sampler.ft_denoising_steps ({sampler['ft_denoising_steps']}) must not exceed {what} ({steps})"
            )
        raise_problems(problems)

    def default_model(self) -> tuple[str, list[str]]:
        return "ebm_dppo", ["ding_ebm.policy.dppo"]

    # Learning.

    def _init_learn(self) -> None:
        learn, sampler, model = self._cfg.learn, self._cfg.sampler, self._model
        if sampler.ft_denoising_steps == 0:
            raise ValueError(
                "policy.sampler.ft_denoising_steps is 0: nothing would be trained; give the number of denoising steps "
                "to fine-tune, or evaluate the base policy by ding -m eval"
            )
        self._learn_model = model
        self._optimizers = {
            "actor": torch.optim.AdamW(
                model.fine_tuned.parameters(), lr=learn.learning_rate, weight_decay=learn.weight_decay, fused=True
            ),
            "critic": torch.optim.AdamW(
                model.critic.parameters(), lr=learn.critic_learning_rate, weight_decay=learn.weight_decay, fused=True
            ),
        }
        self._generator = self._seeded_generator()
        self._scaler: RunningReturnScaler | None = None
        self._scaler_state: dict[str, Any] | None = None
        self._last_boundary: Tensor | None = None
        self._set_plan()
        count = sampler.ft_denoising_steps
        ranges = clip_ratios(count, learn.clip_ratio_base, learn.clip_ratio, learn.clip_ratio_rate)
        self._clip = torch.tensor(ranges, device=self._device)
        self._discount = torch.tensor([learn.gamma_denoising ** (count - 1 - i) for i in range(count)]).to(self._device)
        if self._cfg.base_policy_path is not None:
            take_base(model, self._cfg, self._cfg.base_policy_path)

    def _set_plan(self) -> None:
        sampler = self._cfg.sampler
        self._plan = make_plan(self._cfg.model, sampler, sampler.eta)
        self._std = self._plan.exploring_std(sampler.min_sampling_denoising_std)
        std = self._plan.exploring_std(sampler.min_logprob_denoising_std)[
            len(self._plan) - sampler.ft_denoising_steps :
        ]
        self._log_prob_std = torch.tensor(std, device=self._device).view(-1, 1, 1)

    def _forward_learn(self, data: Mapping[str, Tensor] | list[dict[str, Any]]) -> dict[str, float]:
        batch = self._prepared(stacked(data) if isinstance(data, list) else data)
        rows, learn = len(batch["advantage"]) * self._cfg.sampler.ft_denoising_steps, self._cfg.learn
        if rows < learn.batch_size:
            raise ValueError(
                f"policy.learn.batch_size ({learn.batch_size}) exceeds the {rows} rows of a collection "
                f"({len(batch['advantage'])} decisions of {self._cfg.sampler.ft_denoising_steps} denoising steps)"
            )
        self._optimizers["actor"].param_groups[0]["lr"] = rate = self._learning_rate()
        sums: dict[str, float] = {}
        updates, kl = 0, 0.0
        for _ in range(learn.epoch_per_collect):
            for chosen in self._shuffled(rows):
                metrics = self._update(batch, chosen)
                updates, kl = updates + 1, metrics["approximate_kl"]
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value
                if kl > learn.target_kl:
                    break
            if kl > learn.target_kl:
                break
        self._train_iter += 1
        averages = {name: value / updates for name, value in sums.items()}
        spread = batch["target"].var()
        explained = 1.0 - float((batch["target"] - batch["value"]).var() / spread) if float(spread) > 0.0 else 0.0
        return {
            **averages,
            "explained_variance": explained,
            "reward_mean": float(batch["reward"].mean()),
            "advantage_std": float(batch["advantage"].std()),
            "updates": float(updates),
            "learning_rate": rate,
        }

    def _shuffled(self, rows: int) -> list[Tensor]:
        """Row numbers of the minibatches of one pass, no row twice; a rest smaller than a minibatch is left out."""
        order = torch.randperm(rows, generator=self._generator, device=self._device)
        size = self._cfg.learn.batch_size
        return list(order[: rows // size * size].split(size))

    @torch.no_grad()
    def _prepared(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Advantages and targets of a collection, and all of it with decisions in one dimension."""
        learn = self._cfg.learn
        data = {key: value.to(self._device) for key, value in data.items()}
        normalize = self._model.obs_normalizer
        obs, next_obs = normalize(data["obs"]), normalize(data["next_obs"])
        critic = self._model.critic
        value, next_value = (critic(x.flatten(0, 1)).view(x.shape[:2]) for x in (obs, next_obs))
        reward = self._reward(data, obs, next_obs)
        if learn.reward_scaling:
            reward = self._scaled(reward, data["boundary"])
        elif not bool(torch.isfinite(reward).all()):
            t, env = torch.nonzero(~torch.isfinite(reward))[0].tolist()
            raise ValueError(f"the reward of environment {env} at decision {t} is {float(reward[t, env])}")
        advantage = generalized_advantages(
            reward, value, next_value, data["terminated"], data["boundary"], learn.discount_factor, learn.gae_lambda
        )
        return dict(
            obs=obs.flatten(0, 1),
            chain=data["chain"].flatten(0, 1),
            log_prob=data["log_prob"].flatten(0, 1),
            value=value.flatten(),
            reward=data["reward"].flatten(),
            advantage=advantage.flatten(),
            target=(advantage + value).flatten(),
        )

    def _reward(self, data: Mapping[str, Tensor], obs: Tensor, next_obs: Tensor) -> Tensor:
        """What is learned from, (T, E), before it is scaled: the environment's reward.

        Args:
            data: The collection.
            obs: Normalized histories before each decision, (T, E, To, Do).
            next_obs: Those after it.
        """
        return data["reward"]

    def _scaled(self, reward: Tensor, boundary: Tensor) -> Tensor:
        if self._scaler is None:
            self._scaler = RunningReturnScaler(reward.shape[1])
            if self._scaler_state is not None:
                self._scaler.load_state_dict(self._scaler_state)
        # What a collection begins with goes on from the one before, unless there was none of this shape.
        last, self._last_boundary = self._last_boundary, boundary[-1:].clone()
        before = last if last is not None and last.shape == boundary[:1].shape else torch.ones_like(boundary[:1])
        return self._scaler(reward, torch.cat([before, boundary[:-1]]))

    def _update(self, batch: dict[str, Tensor], chosen: Tensor) -> dict[str, float]:
        """One step of both optimizers on the rows ``chosen``, (B,), the gradient added up over pieces of them.

        On a CPU the activations of a whole minibatch would be written to memory and read back, which takes longer than
        to compute them; the pieces' stay in the cache.
        """
        chosen = chosen.sort().values  # rows of a decision become neighbors
        advantage = batch["advantage"].index_select(0, chosen // self._cfg.sampler.ft_denoising_steps)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        size = len(chosen) if chosen.is_cuda else _ROWS_A_THREAD * torch.get_num_threads()
        loss, sums = torch.zeros(()), torch.zeros(len(_METRICS), device=chosen.device)
        for rows, part in zip(chosen.split(size), advantage.split(size)):
            if loss.requires_grad:  # the piece before
                loss.backward()
            mean, metrics = self._losses(batch, rows, part)
            share = len(rows) / len(chosen)
            loss = mean * share
            sums += metrics * share
        values = dict(zip(_METRICS, sums.tolist()))
        check_losses({"loss": values["loss"]}, self._train_iter, batch, self._model)
        self._step(loss)
        del values["loss"]
        return values

    def _losses(self, batch: dict[str, Tensor], chosen: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of some rows, sorted, with their normalized advantages, and ``_METRICS`` of them."""
        learn, count = self._cfg.learn, self._cfg.sampler.ft_denoising_steps
        row_decision, i = chosen // count, chosen % count
        obs = batch["obs"].index_select(0, row_decision)
        chain = batch["chain"].flatten(0, 1)
        entry = row_decision * (count + 1) + i
        log_prob = self._log_prob(i, chain.index_select(0, entry), chain.index_select(0, entry + 1), obs)
        log_ratio = log_prob - batch["log_prob"].flatten().index_select(0, chosen)
        ratio, clip = log_ratio.exp(), self._clip[i]
        policy_loss = clipped_policy_loss(ratio, advantage * self._discount[i], clip)
        # A value belongs to a decision: one evaluation for all rows of it.
        decision, repeats = row_decision.unique_consecutive(return_counts=True)
        old_value, target = (batch[key].index_select(0, row_decision) for key in ("value", "target"))
        value = self._model.critic(batch["obs"].index_select(0, decision)).repeat_interleave(repeats)
        critic_loss = value_loss(value, old_value, target, learn.value_clip)
        loss = policy_loss + learn.value_weight * critic_loss
        if learn.bc_weight:
            loss = loss + learn.bc_weight * self._bc_loss(obs)
        with torch.no_grad():
            clipped = ((ratio - 1.0).abs() > clip).float().mean()
            kl = approximate_kl(log_ratio)
            return loss, torch.stack([loss, policy_loss, critic_loss, kl, clipped, ratio.mean()])

    def _step(self, loss: Tensor) -> None:
        """Add the gradient of the last piece, and step."""
        loss.backward()
        self._optimizers["critic"].step()
        if self._train_iter >= self._cfg.learn.critic_warmup:
            if self._cfg.learn.grad_clip is not None:
                nn.utils.clip_grad_norm_(self._model.fine_tuned.parameters(), self._cfg.learn.grad_clip)
            self._optimizers["actor"].step()

    def _log_prob(self, i: Tensor, x: Tensor, x_next: Tensor, obs: Tensor) -> Tensor:
        """Log-probability of fine-tuned steps i (B,) from x to x_next under the fine-tuned network, (B,)."""
        sampler = self._cfg.sampler
        j = i + (len(self._plan) - sampler.ft_denoising_steps)
        with autocast(self._cfg.learn.precision, self._device):
            mean = chain_means(self._model.fine_tuned, self._plan, j, x, obs, sampler.denoised_clip_value)
        reduction = self._cfg.learn.log_prob_reduction
        return chunk_log_prob(x_next, mean, self._log_prob_std[i], self._cfg.model.act_steps, reduction)

    def _bc_loss(self, obs: Tensor) -> Tensor:
        """Minus the log-probability, under the fine-tuned network, of chains that the base policy draws."""
        count = self._cfg.sampler.ft_denoising_steps
        with torch.no_grad():
            chain = self._sample(obs, self._model.base, self._generator).chain
        i = torch.arange(count, device=obs.device).repeat(len(obs))
        log_prob = self._log_prob(
            i, chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1), obs.repeat_interleave(count, 0)
        )
        return -log_prob.mean()

    def _learning_rate(self) -> float:
        """The actor's, constant or along a cosine that begins anew after each cycle."""
        learn = self._cfg.learn
        greatest: float = learn.learning_rate
        if learn.min_learning_rate is None:
            return greatest
        share = self._train_iter % learn.learning_rate_cycle / learn.learning_rate_cycle
        least: float = learn.min_learning_rate
        return least + 0.5 * (greatest - least) * (1.0 + math.cos(math.pi * share))

    # Collecting.

    def _init_collect(self) -> None:
        self._collect_model = self._model
        self._collect_generator = self._seeded_generator()
        self._set_plan()

    def _sample(self, obs: Tensor, fine_tuned: nn.Module, generator: torch.Generator) -> Any:
        """A sampling run with exploration for normalized histories (B, To, Do)."""
        model, sampler = self._cfg.model, self._cfg.sampler
        noise = standard_normal(obs.new_empty(len(obs), model.horizon_steps, model.action_dim), generator)
        return sample_chunks(
            self._model.base,
            fine_tuned,
            self._plan,
            obs,
            noise,
            std=self._std,
            generator=generator,
            fine_tuned_steps=sampler.ft_denoising_steps,
            clip=sampler.denoised_clip_value,
            noise_clip=sampler.randn_clip_value,
        )

    @torch.no_grad()
    def collect_chunks(self, obs: NDArray[np.float32]) -> dict[str, Tensor]:
        """Decisions for a batch of environments, with what learning needs of them.

        Args:
            obs: Observation histories in the environment's units, (E, To, Do).

        Returns:
            action (E, Ta, Da) in the environment's units, chain (E, F + 1, Tp, Da), log_prob (E, F).
        """
        model = self._cfg.model
        if not np.isfinite(obs).all():
            raise ValueError(f"obs of environment {int(np.argwhere(~np.isfinite(obs))[0, 0])} is not finite")
        normalized = self._model.obs_normalizer(torch.as_tensor(obs, dtype=torch.float32, device=self._device))
        assert self._collect_generator is not None
        run = self._sample(normalized, self._model.fine_tuned, self._collect_generator)
        reduction = self._cfg.learn.log_prob_reduction
        log_prob = chunk_log_prob(run.chain[:, 1:], run.mean, self._log_prob_std, model.act_steps, reduction)
        action = self._model.action_normalizer.inverse(run.x[:, : model.act_steps])
        return dict(action=action, chain=run.chain, log_prob=log_prob)

    def _forward_collect(self, data: dict[int, Tensor] | NDArray[np.float32], **kwargs: Any) -> dict[Any, Any]:
        """Decisions for all environments at once, or by environment number for the host's own collectors."""
        if isinstance(data, np.ndarray):
            return self.collect_chunks(data)
        obs = torch.stack([torch.as_tensor(row) for row in data.values()]).cpu().numpy()
        output = {key: value.cpu() for key, value in self.collect_chunks(obs).items()}
        return {env_id: {key: value[row] for key, value in output.items()} for row, env_id in enumerate(data)}

    def _process_transition(self, obs: Any, policy_output: dict[str, Tensor], timestep: Any) -> dict[str, Any]:
        return dict(
            obs=obs,
            next_obs=timestep.obs,
            chain=policy_output["chain"],
            log_prob=policy_output["log_prob"],
            action=policy_output["action"],
            reward=timestep.reward,
            done=timestep.done,
            terminated=timestep.info["terminated"],
        )

    def _get_train_sample(self, transitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A piece of one episode as it is, its last decision marked as the end of what belongs together."""
        last = len(transitions) - 1
        return [dict(row, boundary=bool(row["done"]) or number == last) for number, row in enumerate(transitions)]

    # Evaluation.

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Action chunks of the fine-tuned policy without exploration; see :func:`evaluation_chunks`."""
        model = self._model
        networks = model.base, model.fine_tuned, self._cfg.sampler.ft_denoising_steps
        return evaluation_chunks(self._cfg, model, obs, self._eval_generator, *networks, self._energy_correction)

    # State.

    def _monitor_vars_learn(self) -> list[str]:
        return [
            "policy_loss", "value_loss", "approximate_kl", "clip_fraction", "ratio_mean", "explained_variance",
            "reward_mean", "advantage_std", "updates", "learning_rate",
        ]  # fmt: skip

    def _state_dict_learn(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "facts": model_facts(self._cfg.model),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "train_iter": self._train_iter,
            "generator": self._generator.get_state(),
            "reward_scaling": self._scaler_state if self._scaler is None else self._scaler.state_dict(),
            "last_boundary": self._last_boundary,
            "collect_generator": None if self._collect_generator is None else self._collect_generator.get_state(),
        }

    def _load_state_dict_learn(self, state_dict: dict[str, Any]) -> None:
        check_facts(state_dict, self._cfg.model, "the checkpoint")
        self._model.load_state_dict(state_dict["model"])
        for name, optimizer in self._optimizers.items():
            load_optimizer(optimizer, state_dict["optimizers"][name])
        self._train_iter = int(state_dict["train_iter"])
        self._generator.set_state(state_dict["generator"].cpu())
        self._scaler, self._scaler_state = None, state_dict["reward_scaling"]
        boundary = state_dict["last_boundary"]
        self._last_boundary = None if boundary is None else boundary.to(self._device)
        if self._collect_generator is not None and state_dict["collect_generator"] is not None:
            self._collect_generator.set_state(state_dict["collect_generator"].cpu())

    def _load_state_dict_eval(self, state_dict: dict[str, Any]) -> None:
        check_facts(state_dict, self._cfg.model, "the checkpoint")
        super()._load_state_dict_eval(state_dict)


def stacked(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The host's list of decisions, piece after piece, as one stream of one environment: (T, 1, ...) each."""
    keys = ("obs", "next_obs", "chain", "log_prob", "reward", "terminated", "boundary")
    columns = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in keys}
    columns["reward"] = columns["reward"].reshape(len(rows)).float()
    for key in ("terminated", "boundary"):
        columns[key] = columns[key].reshape(len(rows)).bool()
    return {key: column.unsqueeze(1) for key, column in columns.items()}


@POLICY_REGISTRY.register("dppo_command")
class DPPOCommandModePolicy(DPPOPolicy, DummyCommandModePolicy):
    """The same under the host's training pipelines."""
