"""Check of a whole run's config, made before any data is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ding.config.config import env_config_template
from ding.envs import get_env_manager_cls
from ding.utils import ENV_REGISTRY, POLICY_REGISTRY, deep_merge_dicts
from ding.worker import BaseLearner
from easydict import EasyDict

from ding_ebm.config import ConfigError, Rule, check_config, choice, integer, optional, text
from ding_ebm.host.backends import BACKENDS, task_of

ENV_RULES = {
    "env_id": text(),
    "dynamics": optional(text()),
    "env_backend": choice(*BACKENDS),
    "collector_env_num": integer(1),
    "evaluator_env_num": integer(1),
    "n_evaluator_episode": integer(1),
    "act_steps": integer(1),
    "cond_steps": integer(1),
    "replay_path": Rule(lambda v: v is None, "None: the host does not film; use ding-ebm eval --video"),
    "stop_value": Rule(lambda v: isinstance(v, (int, float)) and v == v, "a number, or inf for a run of full length"),
}
TOP_LEVEL = dict(exp_name="", seed=0, env={}, policy={}, import_names=[])


def check_run(cfg: Mapping[str, Any]) -> None:
    """Refuse a compiled config whose keys, values, task or dimensions are wrong.

    Args:
        cfg: What ``compile_config`` returned: ``env``, ``policy``, ``exp_name``, ``seed``.

    Raises:
        ConfigError: Names every problem of the first part that has one.
    """
    check_config(cfg, TOP_LEVEL, {}, path="config", open_keys=("env", "policy"))
    check_env(cfg["env"])
    policy = POLICY_REGISTRY.get(cfg["policy"]["type"])
    policy.check(cfg["policy"])
    task, model = task_of(cfg["env"]), cfg["policy"]["model"]
    problems = _schedule(cfg["policy"]) + [
        f"policy.model.{key} is {model[key]}, but task {task.name!r} has {getattr(task, key)}"
        for key in ("obs_dim", "action_dim")
        if model[key] != getattr(task, key)
    ]
    problems += [
        f"policy.model.{key} is {model[key]!r}, but env.{name} is {cfg['env'].get(name)!r}"
        for key, name in (("task", "env_id"), ("act_steps", "act_steps"), ("cond_steps", "cond_steps"))
        if key in model and model[key] != cfg["env"].get(name)
    ]
    if problems:
        raise ConfigError("the config cannot be used:\n  " + "\n  ".join(problems))


def _schedule(policy: Mapping[str, Any]) -> list[str]:
    """What is wrong with the lengths of a run and with its learner's hooks."""
    hooks, eval_freq = policy["learn"]["learner"]["hook"], policy["eval"]["evaluator"]["eval_freq"]
    known = {*BaseLearner.default_config().hook, "log_reduce_after_iter"}
    problems = [
        f"policy.learn.learner.hook.{key} is not a known hook; known: {', '.join(sorted(known))}"
        for key, value in hooks.items()
        if key not in known and not isinstance(value, Mapping)
    ]
    every = {f"learn.learner.hook.{key}": hooks[key] for key in ("log_show_after_iter", "save_ckpt_after_iter")}
    every["eval.evaluator.eval_freq"] = eval_freq
    offline = "train_epoch" in policy["learn"]
    if offline:
        every["learn.train_epoch"] = policy["learn"]["train_epoch"]
    rule = integer(1)
    problems += [
        f"policy.{key} must be {rule.text}, got {value!r}" for key, value in every.items() if not rule.holds(value)
    ]
    if offline and not problems:
        total = policy["learn"]["train_epoch"] * policy["learn"]["iterations_per_epoch"]
        if eval_freq > total:
            problems.append(
                f"policy.eval.evaluator.eval_freq ({eval_freq}) must not exceed the run's {total} iterations"
            )
    return problems


def check_env(cfg: Mapping[str, Any]) -> None:
    """Refuse a merged environment config with unknown keys or values out of range."""
    declared = deep_merge_dicts(EasyDict(env_config_template), ENV_REGISTRY.get(cfg["type"]).default_config())
    declared.update(type="", import_names=[])
    manager = get_env_manager_cls(EasyDict(type=cfg["manager"]["type"]))
    declared.manager = EasyDict(manager.default_config(), type="", import_names=[])
    rules = {key: rule for key, rule in ENV_RULES.items() if key in declared}
    check_config(cfg, declared, rules, path="env")
