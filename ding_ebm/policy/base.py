"""What no algorithm is about: checked configs, device, normalizers, counters, and batched evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from ding.config.config import policy_config_template
from ding.policy import Policy
from ding.utils import deep_merge_dicts
from ding.worker import BaseLearner, InteractionSerialEvaluator
from easydict import EasyDict
from torch import Tensor, nn

from ding_ebm.config import Rule, check_config, choice, either, flag, integer, optional, sequence, text
from ding_ebm.policy.energy_correction import (
    ENERGY_CORRECTION,
    ENERGY_CORRECTION_RULES,
    CriticEnergy,
    check_energy_correction,
    make_energy_correction,
)

# Parts of a policy's config that belong to the host's collector, buffer and commander.
HOST_OWNED = ("collect.collector", "other", "learn.learner.hook", "eval.evaluator.render")
# Keys that the host writes into a policy's config, beside those of its template.
HOST_KEYS = dict(
    cfg_type="", import_names=[], priority=False, nstep=1, multi_agent=False, transition_with_policy_data=False,
    collect=dict(cfg_type="", unroll_len=1, n_sample=None, n_episode=None),
    learn=dict(cfg_type="", multi_gpu=False, ignore_done=False),
    eval=dict(cfg_type="", evaluator=dict(stop_value=None, n_episode=None)),
    model=dict(type="", import_names=[]),
)  # fmt: skip
PRECISIONS = ("float32", "bfloat16", "auto")


def autocast_dtype(precision: str, device: str) -> torch.dtype:
    """Arithmetic of matrix products: ``auto`` takes bfloat16 where the device has instructions for it."""
    if precision == "auto":
        if device.startswith("cuda"):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = _cpu_has_bfloat16()
        precision = "bfloat16" if fast else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _cpu_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False))
    # Older torch, such as 2.8, the newest for Python 3.9.
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def autocast(precision: str, device: str) -> torch.autocast:
    """Context in which matrix products run in ``precision``, parameters and sums stay float32."""
    dtype = autocast_dtype(precision, device)
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def compiles(wanted: bool | str, precision: str, device: str) -> bool:
    """Whether to compile a loss: ``auto`` where that pays, as it does for all but float32 on a CPU."""
    if wanted == "auto":
        has_compiler = any(shutil.which(name) for name in ("g++", "clang++"))
        return device.startswith("cuda") or (has_compiler and autocast_dtype(precision, device) is torch.bfloat16)
    return bool(wanted)


def keep_freed_memory() -> None:
    """Have the C library keep what an update frees for the next one, instead of handing it back to the system.

    glibc hands back what is more than twice the largest block freed so far, of blocks below 32 MB. An update frees more
    than twice its largest tensor: the next would take a page fault for every 4 KB of it, a tenth of its time at 512 to
    4096 rows of 512 features. Nothing is written to the block here, so it costs no memory.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def load_optimizer(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Take an optimizer's moments from a checkpoint; learning rate and the like stay the config's."""
    configured = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state_dict)
    for group, options in zip(optimizer.param_groups, configured):
        group.update(options)


class BasePolicy(Policy):
    """A DI-engine policy whose config is checked before anything is built from it.

    A subclass declares ``config`` (every key that it reads) and ``rules`` (dotted key to rule), and may override
    :meth:`check_consistency` for rules across keys.
    """

    config = dict(
        # (bool) Whether to train and sample on CUDA.
        cuda=False,
        # (bool) Data-parallel training over several GPUs; not supported yet.
        multi_gpu=False,
        # (bool) Prioritized replay; no policy of this package uses it.
        priority=False,
        learn=dict(
            # (bool or str) Whether to go on from the latest checkpoint in <exp_name>/ckpt, if there is one.
            # 'newest_good': from the latest that is not damaged.
            resume_training=False,
        ),
        eval=ENERGY_CORRECTION,
    )
    rules: ClassVar[dict[str, Rule]] = {
        **ENERGY_CORRECTION_RULES,
        "cuda": flag(),
        "multi_gpu": Rule(lambda v: v is False, "False: training on several GPUs is not supported yet"),
        "priority": Rule(lambda v: v is False, "False: prioritized replay is not supported"),
        "learn.resume_training": either(flag(), choice("newest_good")),
    }
    # Minus the critic, of a policy that has one of actions.
    _critic_energy: CriticEnergy | None = None

    def __init__(self, cfg: EasyDict, model: nn.Module | None = None, enable_field: list[str] | None = None) -> None:
        self.check(cfg)
        keep_freed_memory()
        self._train_iter = 0
        self._unroll_len = 1
        self._priority = False
        super().__init__(cfg, model, enable_field)

    @classmethod
    def check(cls, cfg: Mapping[str, Any]) -> None:
        """Refuse a merged policy config that has unknown keys, values out of range, or asks for an absent device.

        Raises:
            ConfigError: See :func:`ding_ebm.config.check_config`.
            RuntimeError: If CUDA is asked for and torch sees none.
        """
        host = deep_merge_dicts(EasyDict(policy_config_template), EasyDict(HOST_KEYS))
        host.learn.learner = BaseLearner.default_config()
        host.eval.evaluator = deep_merge_dicts(InteractionSerialEvaluator.default_config(), host.eval.evaluator)
        declared = deep_merge_dicts(host, cls.default_config())
        check_config(cfg, declared, cls.rules, path="policy", open_keys=HOST_OWNED)
        check_energy_correction(cfg, cls._critic_energy is not None)
        cls.check_consistency(cfg)
        if cfg["cuda"] and not torch.cuda.is_available():
            raise RuntimeError(
                "policy.cuda is True, but torch sees no CUDA device; set policy.cuda=False, or install a CUDA build of "
                f"torch and check the driver (torch {torch.__version__}, built for CUDA {torch.version.cuda})"
            )

    @classmethod
    def check_consistency(cls, cfg: Mapping[str, Any]) -> None:
        """Refuse values that do not go together. Raises ConfigError."""

    def _seeded_generator(self) -> torch.Generator:
        """A generator on the policy's device that follows the seed of the run."""
        return torch.Generator(self._device).manual_seed(torch.initial_seed() % 2**63)

    def _get_total_iterations(self) -> int | None:
        return None

    def _get_train_iter(self) -> int:
        return self._train_iter

    def _get_stage(self) -> str:
        """What is trained now, for the progress line; empty where that is always the same."""
        return ""

    def act(self, obs: np.ndarray, **options: Any) -> np.ndarray:
        """Actions for a batch of observations, both in the environment's units: (E, Do) to (E, Da).

        A policy over chunks, whose model's config has ``act_steps`` and ``cond_steps``: (E, To, Do) to (E, Ta, Da).
        """
        raise NotImplementedError

    def _init_eval(self) -> None:
        self._eval_model = self._model
        self._eval_generator = self._seeded_generator()
        self._eval_seed_state = self._eval_generator.get_state()
        self._energy_correction = make_energy_correction(
            self._cfg, self._model, self._critic_energy, self._eval_generator
        )

    def _reset_eval(self, data_id: list[int] | None = None) -> None:
        if data_id is None:  # a new evaluation: the same noise for every checkpoint
            self._eval_generator.set_state(self._eval_seed_state)
            if self._energy_correction is not None:
                self._energy_correction.reset()

    def _forward_eval(self, data: dict[int, Tensor]) -> dict[int, dict[str, Tensor]]:
        obs = torch.stack([torch.as_tensor(row) for row in data.values()]).cpu().numpy()
        actions = torch.from_numpy(self.act(obs))
        return {env_id: {"action": action} for env_id, action in zip(data, actions)}

    def _state_dict_eval(self) -> dict[str, Any]:
        return {"model": self._model.state_dict(), "train_iter": self._train_iter}

    def _load_state_dict_eval(self, state_dict: dict[str, Any]) -> None:
        self._model.load_state_dict(state_dict["model"])
        self._train_iter = int(state_dict["train_iter"])


class OfflinePolicy(BasePolicy):
    """A policy that learns from a data set and collects nothing."""

    config = dict(
        # (bool) It learns from a data set.
        on_policy=False,
        learn=dict(
            # (int) Number of epochs of the run; the task must say it.
            train_epoch=None,
            # (int) Training iterations in an epoch, after which the host may evaluate.
            iterations_per_epoch=1000,
        ),
        collect=dict(
            # (str) Registered data set.
            data_type="ebm_offline",
            # (str or list of str) Data files or folders of any format, read as one set; the task must say it.
            data_path=None,
            # (str) Normalization of observations: 'none', 'mean_std' or 'min_max'.
            obs_normalization="none",
            # (str) Normalization of actions: 'none' where they lie in [-1, 1] already, or 'min_max'.
            action_normalization="none",
        ),
    )
    rules: ClassVar[dict[str, Rule]] = {
        **BasePolicy.rules,
        "on_policy": choice(False),
        "learn.train_epoch": optional(integer(1)),
        "learn.iterations_per_epoch": integer(1),
        "collect.data_type": text(),
        "collect.data_path": optional(either(text(), sequence(text()))),
        "collect.obs_normalization": choice("none", "mean_std", "min_max"),
        "collect.action_normalization": choice("none", "min_max"),
    }

    def __init__(self, cfg: EasyDict, model: nn.Module | None = None, enable_field: list[str] | None = None) -> None:
        self._statistics: dict[str, Any] = {}  # of the data set, once set_statistic has taken them
        super().__init__(cfg, model, enable_field)

    @property
    def _data_fingerprint(self) -> str:
        """What names the data set, empty where there is none."""
        return str(self._statistics.get("fingerprint", ""))

    def _get_total_iterations(self) -> int | None:
        epochs = self._cfg.learn.train_epoch
        return None if epochs is None else epochs * self._cfg.learn.iterations_per_epoch

    def _check_dimensions(self, statistics: Mapping[str, Any]) -> None:
        """Refuse a data set whose dimensions are not the model's. Raises ValueError."""
        for key in ("obs_dim", "action_dim"):
            if statistics[key] != self._cfg.model[key]:
                raise ValueError(
                    f"policy.model.{key} is {self._cfg.model[key]}, but the data set has {statistics[key]}"
                )

    def _check_same_data(self, state_dict: Mapping[str, Any], remedy: str) -> None:
        """Refuse to resume a checkpoint on other data than it was trained on. Raises ValueError."""
        trained_on, here = state_dict["data_fingerprint"], self._data_fingerprint
        if trained_on and here and trained_on != here:
            raise ValueError(
                f"the checkpoint was trained on other data (fingerprint {trained_on[:12]}) than this run's "
                f"({here[:12]}): {remedy}"
            )

    def _init_collect(self) -> None:
        self._collect_model = self._model

    def _forward_collect(self, data: dict[int, Tensor], **kwargs: Any) -> dict[int, Any]:
        raise self._collects_nothing()

    def _process_transition(self, obs: Any, policy_output: Any, timestep: Any) -> dict[str, Any]:
        raise self._collects_nothing()

    def _get_train_sample(self, transitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise self._collects_nothing()

    def _collects_nothing(self) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} learns from a data set: run it by ding -m serial_offline")
