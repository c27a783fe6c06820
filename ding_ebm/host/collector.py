"""A collector for policies over action chunks: one call of the policy and one of the environments a decision.

Letters: T decisions of a collection, E environments, To observation history, Do observation.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from ding.utils import SERIAL_COLLECTOR_REGISTRY, build_logger
from ding.worker.collector.base_serial_collector import ISerialCollector
from easydict import EasyDict
from torch import Tensor

from ding_ebm.host.run_state import take_part
from ding_ebm.host.vector_env import Decisions, VectorEnvManager


@SERIAL_COLLECTOR_REGISTRY.register("ebm_chunk")
class ChunkCollector(ISerialCollector):
    """Collects ``policy.collect.n_sample`` decisions, T in each of E environments, and hands all of them over.

    Episodes go on from one collection to the next; the true last observation of each is kept, its return is logged
    once it is whole, and environment steps are counted as such. Where the task has a notion of success, the share of
    episodes that succeeded, of those that ended in a collection, is logged as ``success_rate``.

    Args:
        cfg: The collector's config.
        env: The run's :class:`VectorEnvManager`.
        policy: The policy's collect mode, whose ``forward`` takes observation histories (E, To, Do).
        tb_logger: TensorBoard writer.
        instance_name: Name in logs.
        exp_name: Folder of the run.

    Raises:
        TypeError: If the environments are not a :class:`VectorEnvManager`.
        ValueError: If ``n_sample`` is not a multiple of the number of environments.
    """

    config = dict(
        # (int) Collections between two log lines.
        collect_print_freq=1,
    )

    @classmethod
    def default_config(cls) -> EasyDict:
        """A copy of the declared keys and their defaults."""
        return EasyDict(copy.deepcopy(cls.config), cfg_type=f"{cls.__name__}Dict")

    def __init__(
        self,
        cfg: EasyDict,
        env: VectorEnvManager,
        policy: Any = None,
        tb_logger: Any = None,
        exp_name: str = "default_experiment",
        instance_name: str = "collector",
    ) -> None:
        if not isinstance(env, VectorEnvManager):
            raise TypeError(
                f"the chunk collector needs create_config.env_manager type 'ebm_vector', got {type(env).__name__}"
            )
        self._print_freq: int = cfg.collect_print_freq
        self._logger, _ = build_logger(f"./{exp_name}/log/{instance_name}", instance_name, need_tb=False)
        self._tb_logger, self._name = tb_logger, instance_name
        self._env_steps = self._collections = self._episodes = 0
        self.reset(policy, env)
        take_part(exp_name, "collector", self)

    def reset(self, _policy: Any = None, _env: VectorEnvManager | None = None) -> None:
        """Take another policy, other environments or both, and begin anew."""
        self.reset_env(_env)
        self.reset_policy(_policy)

    def reset_env(self, _env: VectorEnvManager | None = None) -> None:
        """Begin an episode in every environment."""
        if _env is not None:
            self._env = _env
            self._env.launch()
        else:
            self._env.reset()

    def reset_policy(self, _policy: Any = None) -> None:
        """Take another policy, or none."""
        if _policy is not None:
            self._policy = _policy
            count = self._policy.get_attribute("cfg").collect.n_sample
            if count is None or count % self._env.env_num:
                raise ValueError(
                    f"policy.collect.n_sample ({count}) must be a multiple of env.collector_env_num "
                    f"({self._env.env_num}): every environment makes as many decisions"
                )
            self._decisions = count // self._env.env_num

    def collect(self, train_iter: int = 0, policy_kwargs: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Collect.

        Args:
            train_iter: Training iterations made, for the logs.
            policy_kwargs: What the host's commander gives for the policy; unused.

        Returns:
            obs and next_obs (T, E, To, Do) in the environment's units, reward, terminated and boundary (T, E), and
            what the policy gives for each decision beside its action, (T, E, ...).
        """
        observed, made, extra = [], [], []
        for _ in range(self._decisions):
            obs = self._env.batch_obs
            output = self._policy.forward(obs)
            made.append(self._env.batch_step(output.pop("action").cpu().numpy()))
            observed.append(obs)
            extra.append(output)
        self._log(made, train_iter)
        column = lambda name: torch.from_numpy(np.stack([getattr(one, name) for one in made]))  # noqa: E731
        terminated = column("terminated")
        return dict(
            obs=torch.from_numpy(np.stack(observed)),
            next_obs=column("next_obs"),
            reward=column("reward"),
            terminated=terminated,
            boundary=terminated | column("truncated"),
            **{key: torch.stack([one[key] for one in extra]) for key in extra[0]},
        )

    def _log(self, made: list[Decisions], train_iter: int) -> None:
        self._env_steps += int(sum(one.length.sum() for one in made))
        self._collections += 1
        returns = [value for one in made for value in one.returns.values()]
        lengths = [value for one in made for value in one.lengths.values()]
        successes = [value for one in made for value in (one.successes or {}).values()]
        self._episodes += len(returns)
        values = dict(envstep_count=self._env_steps, episode_count=self._episodes)
        if returns:  # a short collection may finish no episode
            values.update(reward_mean=np.mean(returns), reward_std=np.std(returns), length_mean=np.mean(lengths))
        if successes:
            values.update(success_rate=np.mean(successes))
        if self._collections % self._print_freq == 0:
            self._logger.info(self._logger.get_tabulate_vars_hor(values))
        if self._tb_logger is not None:
            for key, value in values.items():
                self._tb_logger.add_scalar(f"{self._name}_iter/{key}", value, train_iter)
                self._tb_logger.add_scalar(f"{self._name}_step/{key}", value, self._env_steps)

    def state_dict(self) -> dict[str, Any]:
        """Counters, and where the episodes are."""
        counters = dict(env_steps=self._env_steps, collections=self._collections, episodes=self._episodes)
        return {**counters, "environments": self._env.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self._env_steps, self._collections, self._episodes = (
            state[key] for key in ("env_steps", "collections", "episodes")
        )
        lost = self._env.load_state_dict(state["environments"])
        if lost:
            self._logger.warning(
                f"the episodes of environments {lost} did not repeat under their seeds and actions, as those of this "
                "backend need not: new ones have begun there"
            )

    def close(self) -> None:
        """Release the environments."""
        self._env.close()

    @property
    def envstep(self) -> int:
        """Environment steps made in all collections."""
        return self._env_steps

    @envstep.setter
    def envstep(self, value: int) -> None:
        self._env_steps = value
