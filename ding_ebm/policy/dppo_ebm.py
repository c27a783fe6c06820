"""DPPO with an energy: rewards shaped by a potential, or replaced by energies, and statistics of energies per step.

What differs from :mod:`ding_ebm.policy.dppo` is the reward that advantages are made of. With potential-based shaping
(PBRS) it is r + lambda (gamma phi(s') - phi(s)), which leaves the best policies as they are; phi is a free energy of
the frozen base policy's actions, or a value function. With an energy reward it is how much less energy than the base
policy's an executed chunk has, which changes them. With neither it is dppo, bit by bit.

Letters: T decisions of a collection, E environments, N = T E, To observation history, Tp predicted actions,
Do observation, Da action, K denoising steps, F fine-tuned steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from ding.policy.command_mode_policy_instance import DummyCommandModePolicy
from ding.utils import POLICY_REGISTRY
from torch import Tensor

from ding_ebm.checkpoint import find_checkpoint, read_checkpoint
from ding_ebm.config import Rule, choice, either, flag, integer, number, optional, sequence, text
from ding_ebm.diffusion.denoising import DenoisingPlan
from ding_ebm.energy.potential import AGGREGATES, KFreePotential, build_k_use_indices, chain_energies
from ding_ebm.energy.scaler import EnergyScalerPerK
from ding_ebm.energy.shaping import REWARD_MODES, EnergyReward, rollout_potentials, shaped_rewards
from ding_ebm.model.chains import DiffusionPrior
from ding_ebm.model.critics import ValueNet
from ding_ebm.model.energy_protocol import check_energy
from ding_ebm.policy.chunk_model import check_facts, make_plan, raise_problems
from ding_ebm.policy.dppo import DPPOPolicy
from ding_ebm.policy.online_energy import OnlineEnergy
from ding_ebm.policy.ppo import RunningReturnScaler
from ding_ebm.policy.trained_energy import TrainedEnergy, check_fits, load_energy

# States of a collection that the energies' statistics are taken of.
_STATISTICS_ROWS = 512


@POLICY_REGISTRY.register("dppo_ebm")
class DPPOEBMPolicy(DPPOPolicy):
    """DPPO with an energy under DI-engine's ``serial_onpolicy``, ``serial`` and ``eval`` pipelines."""

    config = dict(
        # (str) Registered name of this policy.
        type="dppo_ebm",
        energy=dict(
            # (str or None) Checkpoint of energy_model, or the folder of its run; needed by all but a value potential.
            ebm_ckpt_path=None,
            # (bool) Whether energies are normalized per denoising step, by statistics over chains of the base policy;
            # they are logged. By itself it changes no reward.
            use_energy_scaling=False,
            # (float) Share of old statistics that an update leaves, with ``energy_scaling_estimator`` 'ema'.
            energy_scaling_momentum=0.99,
            # (float) Added to the scale.
            energy_scaling_eps=1e-6,
            # (bool) Median and absolute deviation; else mean and standard deviation.
            energy_scaling_use_mad=True,
            # (str) 'ring' of the latest energies, or 'ema' of groups' statistics.
            energy_scaling_estimator="ring",
            # (bool) Whether to shape rewards by a potential.
            use_pbrs=False,
            # (str) 'energy': the free energy of the base policy's actions. 'value': a critic's value.
            pbrs_potential="energy",
            # (str or None) Checkpoint of dppo, or the folder of its run, whose critic is the 'value'.
            pbrs_value_path=None,
            # (float) lambda, weight of the shaping, in units of the reward.
            pbrs_lambda=1.0,
            # (float) Inverse temperature of the free energy.
            pbrs_beta=1.0,
            # (float) Factor of the potential.
            pbrs_alpha=1.0,
            # (int) Chains of the base policy for a state.
            pbrs_M=1,
            # (float) Weights of denoising indices fall as exp(-eta k).
            pbrs_eta=0.3,
            # (bool) One chain of means in place of M random ones.
            pbrs_use_mu_only=True,
            # (str or list of int) Denoising indices: 'all', 'last_half' or 'tail:N' (the clean end), or a list.
            pbrs_k_use_mode="tail:6",
            # (str) 'weighted' or 'path', see :class:`KFreePotential`.
            pbrs_aggregate="weighted",
            # (float or None) Subtracted from the potential; None: its mean over the first collection.
            pbrs_offset=None,
            # (bool) Whether the reward is made of energies.
            use_ebm_reward=False,
            # (str) 'k0': of the executed chunk. 'dense': of all fine-tuned entries of its chain.
            ebm_reward_mode="k0",
            # (float) Weight of the energies in the reward.
            ebm_reward_lambda=1.0,
            # (int) Chains of the base policy that the baseline is the median of.
            ebm_reward_chains=4,
            # (float or None) Bound on an energy over its baseline, in units of the usual spread.
            ebm_reward_clip=5.0,
            # (float) w of w r_env + (1 - w) r_energy.
            ebm_reward_env_weight=0.5,
            # (int) Updates of the energy after each collection, see :class:`OnlineEnergy`; 0: it stays as it is.
            online_updates=0,
            # (int) States of such an update.
            online_batch_size=256,
            # (float) Their learning rate.
            online_learning_rate=1e-4,
            # (float) Temperature of their loss, in units of energy.
            online_temperature=0.5,
            # (int) Collections after which potential and reward get what was learned.
            online_target_every=10,
        ),
    )
    rules: ClassVar[dict[str, Rule]] = {
        **DPPOPolicy.rules,
        "energy.ebm_ckpt_path": optional(text()),
        "energy.use_energy_scaling": flag(),
        "energy.energy_scaling_momentum": number(0.0, 1.0, below=True),
        "energy.energy_scaling_eps": number(0.0),
        "energy.energy_scaling_use_mad": flag(),
        "energy.energy_scaling_estimator": choice("ring", "ema"),
        "energy.use_pbrs": flag(),
        "energy.pbrs_potential": choice("energy", "value"),
        "energy.pbrs_value_path": optional(text()),
        "energy.pbrs_lambda": number(0.0),
        "energy.pbrs_beta": number(0.0, above=True),
        "energy.pbrs_alpha": number(0.0),
        "energy.pbrs_M": integer(1),
        "energy.pbrs_eta": number(0.0),
        "energy.pbrs_use_mu_only": flag(),
        "energy.pbrs_k_use_mode": either(text(), sequence(integer(0))),
        "energy.pbrs_aggregate": choice(*AGGREGATES),
        "energy.pbrs_offset": optional(number(float("-inf"))),
        "energy.use_ebm_reward": flag(),
        "energy.ebm_reward_mode": choice(*REWARD_MODES),
        "energy.ebm_reward_lambda": number(0.0),
        "energy.ebm_reward_chains": integer(1),
        "energy.ebm_reward_clip": optional(number(0.0, above=True)),
        "energy.ebm_reward_env_weight": number(0.0, 1.0),
        "energy.online_updates": integer(0),
        "energy.online_batch_size": integer(1),
        "energy.online_learning_rate": number(0.0, above=True),
        "energy.online_temperature": number(0.0, above=True),
        "energy.online_target_every": integer(1),
    }

    @classmethod
    def check_consistency(cls, cfg: Mapping[str, Any]) -> None:
        """Those of dppo, and what is asked for has what it needs."""
        super().check_consistency(cfg)
        energy, steps = cfg["energy"], cfg["model"]["denoising_steps"]
        problems = []
        by_value = energy["use_pbrs"] and energy["pbrs_potential"] == "value"
        if by_value != (energy["pbrs_value_path"] is not None):
            problems.append(
                "energy.pbrs_value_path must be given if and only if energy.use_pbrs is True with "
                "energy.pbrs_potential 'value'"
            )
        if energy["pbrs_use_mu_only"] and energy["pbrs_M"] != 1:
            problems.append(
                f"energy.pbrs_M must be 1 with energy.pbrs_use_mu_only, which is one chain; got {energy['pbrs_M']}"
            )
        try:
            build_k_use_indices(energy["pbrs_k_use_mode"], steps)
        except ValueError as error:
            problems.append(f"energy.pbrs_k_use_mode: {error}")
        if energy["use_pbrs"] and energy["use_ebm_reward"]:
            problems.append(
                "energy.use_pbrs and energy.use_ebm_reward exclude each other: shape one reward or the other"
            )
        if energy["online_updates"] and not energy["use_ebm_reward"] and (by_value or not energy["use_pbrs"]):
            problems.append(
                f"energy.online_updates ({energy['online_updates']}) must be 0 where neither potential nor reward is "
                "of an energy"
            )
        raise_problems(problems)

    # Learning.

    def _init_learn(self) -> None:
        super()._init_learn()
        self._energy_metrics: dict[str, float] = {}
        self._offset: float | None = self._cfg.energy.pbrs_offset
        self._energy: TrainedEnergy | None = None
        self._potential: Callable[[Tensor], Tensor] | None = None
        self._energy_reward: EnergyReward | None = None
        self._energy_scaler: EnergyScalerPerK | None = None
        self._online: OnlineEnergy | None = None
        energy, model = self._cfg.energy, self._cfg.model
        by_value = energy.use_pbrs and energy.pbrs_potential == "value"
        if by_value:
            self._potential = self._value_potential(energy.pbrs_value_path)
        if not (energy.use_energy_scaling or energy.use_ebm_reward or (energy.use_pbrs and not by_value)):
            return
        if energy.ebm_ckpt_path is None:
            raise ValueError(
                "policy.energy.ebm_ckpt_path must be given: the checkpoint of an energy, or the folder of its run by "
                "ding -m serial_offline with an energy config"
            )
        self._energy = load_energy(energy.ebm_ckpt_path, self._device)
        check_fits(self._energy, model, energy.ebm_ckpt_path, model.denoising_steps)
        self._prior = self._base_chains(make_plan(model, self._cfg.sampler))
        if energy.use_energy_scaling or energy.use_ebm_reward:
            self._energy_scaler = EnergyScalerPerK(
                model.denoising_steps,
                energy.energy_scaling_momentum,
                energy.energy_scaling_eps,
                energy.energy_scaling_use_mad,
                estimator=energy.energy_scaling_estimator,
            ).to(self._device)
        if energy.use_pbrs and not by_value:
            self._potential = self._free_energy()
        if energy.use_ebm_reward:
            self._energy_reward = EnergyReward(
                self._energy,
                # With the exploration that executed chains have.
                self._base_chains(self._plan, self._std),
                scale=energy.ebm_reward_lambda,
                mode=energy.ebm_reward_mode,
                gamma_denoising=self._cfg.learn.gamma_denoising,
                num_chains=energy.ebm_reward_chains,
                clip=energy.ebm_reward_clip,
                env_weight=energy.ebm_reward_env_weight,
                scaler=self._energy_scaler,
            )
        self._check_energy()
        self._online = self._online_energy() if energy.online_updates else None

    def _online_energy(self) -> OnlineEnergy:
        """The energy's further training, against this policy's own chunks."""
        energy, generator = self._cfg.energy, self._seeded_generator()
        return OnlineEnergy(
            self._energy,
            lambda obs: self._sample(obs, self._model.base, generator).x,
            updates=energy.online_updates,
            batch_size=energy.online_batch_size,
            learning_rate=energy.online_learning_rate,
            target_every=energy.online_target_every,
            temperature=energy.online_temperature,
            generator=generator,
        )

    def _base_chains(self, plan: DenoisingPlan, std: Sequence[float] | None = None) -> DiffusionPrior:
        """Whole chains of the frozen base policy."""
        model = self._cfg.model
        shape = (model.horizon_steps, model.action_dim)
        clip = self._cfg.sampler.denoised_clip_value
        return DiffusionPrior(self._model.base, plan, model.denoising_steps, shape, std=std, clip=clip)

    def _value_potential(self, path: str) -> Callable[[Tensor], Tensor]:
        """The critic of a checkpoint of dppo, in units of the reward, times ``pbrs_alpha``."""
        file = find_checkpoint(path)
        state = read_checkpoint(str(file))
        check_facts(state, self._cfg.model, str(file))
        model = self._cfg.model
        critic = ValueNet(model.obs_dim, model.cond_steps, model.critic_widths).to(self._device).requires_grad_(False)
        kept = {k[len("critic.") :]: v for k, v in state["model"].items() if k.startswith("critic.")}
        if not kept:
            raise ValueError(f"{file} has no critic: give a checkpoint of dppo as policy.energy.pbrs_value_path")
        critic.load_state_dict(kept)
        scaling = state["reward_scaling"]  # None: its run has not divided rewards
        unit = 1.0 if scaling is None else RunningReturnScaler.scale_of(scaling)
        factor: float = self._cfg.energy.pbrs_alpha * unit
        return lambda obs: factor * critic(obs)

    def _free_energy(self) -> KFreePotential:
        energy = self._cfg.energy
        return KFreePotential(
            self._energy,
            self._prior,
            beta=energy.pbrs_beta,
            alpha=energy.pbrs_alpha,
            M=energy.pbrs_M,
            eta=energy.pbrs_eta,
            use_mu_only=energy.pbrs_use_mu_only,
            k_use_mode=energy.pbrs_k_use_mode,
            aggregate=energy.pbrs_aggregate,
            scaler=self._energy_scaler,
        )

    def _check_energy(self) -> None:
        """Refuse an energy that cannot be used, before anything is collected."""
        model, energy = self._cfg.model, self._energy
        if self._cfg.base_policy_path is not None:  # else the units come with the checkpoint that is resumed
            self._check_units()
        generator = torch.Generator().manual_seed(0)
        obs = torch.randn(4, model.cond_steps, model.obs_dim, generator=generator).to(self._device)
        action = torch.randn(4, model.horizon_steps, model.action_dim, generator=generator).to(self._device)
        check_energy(energy, obs, action)

    def _check_units(self) -> None:
        model = self._model
        self._energy.check_units(model.obs_normalizer, model.action_normalizer, self._cfg.energy.ebm_ckpt_path)

    def _reward(self, data: Mapping[str, Tensor], obs: Tensor, next_obs: Tensor) -> Tensor:
        reward = super()._reward(data, obs, next_obs)
        self._energy_metrics = {}
        if self._energy_reward is not None:
            reward = self._reward_of_energies(reward, data["chain"], obs)
        elif self._energy_scaler is not None:
            self._take_statistics(obs.flatten(0, 1))
        if self._potential is not None:
            reward = self._shaped(reward, data, obs, next_obs)
        if self._online is not None:  # after this collection's rewards, which are of one energy
            executed = data["chain"][:, :, -1]
            self._energy_metrics |= self._online.update(obs.flatten(0, 1), executed.flatten(0, 1))
        return reward

    def _take_statistics(self, obs: Tensor) -> None:
        """Energies of the base policy's chains into the scaler, once where a potential uses it, and into the log."""
        scaler = self._energy_scaler
        if not scaler.frozen:
            levels = self._prior.levels
            some = obs[:: max(1, len(obs) // _STATISTICS_ROWS)]
            energies = chain_energies(self._energy, self._prior, some, levels, 1)
            scaler.update(torch.tensor(levels, device=obs.device).expand(energies.shape), energies)
            if self._potential is not None:
                scaler.freeze()
        self._log_statistics()

    def _log_statistics(self) -> None:
        for k in self._logged_steps:
            for name, value in self._energy_scaler.get_stats(k).items():
                self._energy_metrics[f"energy_scaling/step_{k}/{name}"] = float(value)

    @property
    def _logged_steps(self) -> tuple[int, ...]:
        steps = self._cfg.model.denoising_steps
        return tuple(sorted({1, max(1, steps // 2), steps}))

    def _shaped(self, reward: Tensor, data: Mapping[str, Tensor], obs: Tensor, next_obs: Tensor) -> Tensor:
        """r + lambda (gamma phi(s') - phi(s)), each visited state's potential evaluated once."""
        phi, next_phi = rollout_potentials(self._potential, obs, next_obs, data["terminated"], data["boundary"])
        if self._offset is None:
            self._offset = float(phi.mean())
        phi = phi - self._offset
        next_phi = torch.where(data["terminated"], torch.zeros_like(phi), next_phi - self._offset)
        gamma, weight = self._cfg.learn.discount_factor, self._cfg.energy.pbrs_lambda
        shaped = shaped_rewards(reward, phi, next_phi, data["terminated"], gamma, weight)
        added = shaped - reward
        self._energy_metrics |= {
            "train/pbrs_reward": float(added.mean()),
            "train/pbrs_reward_std": float(added.std()),
            "pbrs/phi": float(phi.mean()),
            "pbrs/phi_std": float(phi.std()),
            "pbrs/abs_ratio_to_env": float(added.abs().mean() / reward.abs().mean().clamp(min=1e-8)),
        }
        return shaped

    def _reward_of_energies(self, reward: Tensor, chain: Tensor, obs: Tensor) -> Tensor:
        levels = self._plan.levels[-chain.shape[2] :]
        mixed, of_energies = self._energy_reward(reward.flatten(), obs.flatten(0, 1), chain.flatten(0, 1), levels)
        both = torch.stack([reward.flatten(), of_energies]).double()
        spread = both.std(dim=1)
        correlation = torch.corrcoef(both)[0, 1] if bool((spread > 0.0).all()) else torch.zeros(())
        self._energy_metrics |= {
            "ebm_reward/mean": float(of_energies.mean()),
            "ebm_reward/std": float(of_energies.std()),
            "ebm_reward/corr_env_pearson": float(correlation),
        }
        if self._energy_scaler is not None:
            self._log_statistics()
        return mixed.view_as(reward)

    def _forward_learn(self, data: Any) -> dict[str, float]:
        metrics = super()._forward_learn(data)
        return {**metrics, **self._energy_metrics}

    # State.

    def _monitor_vars_learn(self) -> list[str]:
        energy, names = self._cfg.energy, super()._monitor_vars_learn()
        if energy.use_energy_scaling or energy.use_ebm_reward:
            names += [
                f"energy_scaling/step_{k}/{name}" for k in self._logged_steps for name in ("mean", "std", "count")
            ]
        if energy.use_pbrs:
            names += ["train/pbrs_reward", "train/pbrs_reward_std", "pbrs/phi", "pbrs/phi_std", "pbrs/abs_ratio_to_env"]
        if energy.use_ebm_reward:
            names += ["ebm_reward/mean", "ebm_reward/std", "ebm_reward/corr_env_pearson"]
        if energy.online_updates:
            names += [f"energy/{name}" for name in ("energy_loss", "E_pos", "E_neg", "gap", "top1", "mi_bound")]
        return names

    def _state_dict_learn(self) -> dict[str, Any]:
        scaler = None if self._energy_scaler is None else self._energy_scaler.state_dict()
        online = None if self._online is None else self._online.state_dict()
        state = super()._state_dict_learn()
        return {**state, "potential_offset": self._offset, "energy_scaler": scaler, "online_energy": online}

    def _load_state_dict_learn(self, state_dict: dict[str, Any]) -> None:
        super()._load_state_dict_learn(state_dict)
        self._offset = state_dict["potential_offset"]
        if self._energy_scaler is not None:
            self._energy_scaler.load_state_dict(state_dict["energy_scaler"])
        if self._online is not None:
            self._online.load_state_dict(state_dict["online_energy"])
        if self._energy is not None:
            self._check_units()


@POLICY_REGISTRY.register("dppo_ebm_command")
class DPPOEBMCommandModePolicy(DPPOEBMPolicy, DummyCommandModePolicy):
    """The same under the host's training pipelines."""
