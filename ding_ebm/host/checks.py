"""Check of a whole run's config, made before any data is read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ding.config.config import env_config_template
from ding.utils import (
    BUFFER_REGISTRY,
    DATASET_REGISTRY,
    ENV_MANAGER_REGISTRY,
    ENV_REGISTRY,
    POLICY_REGISTRY,
    SERIAL_COLLECTOR_REGISTRY,
    deep_merge_dicts,
)
from easydict import EasyDict

from ding_ebm.config import ConfigError, Rule, check_config, choice, integer, mapping, optional, text
from ding_ebm.host.backends import BACKENDS, task_of
from ding_ebm.host.host_rules import IMPORTS, check_host_parts, check_host_values, registered

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
# Parts of a create config, and where their types are registered.
CREATED = dict(
    env=ENV_REGISTRY,
    env_manager=ENV_MANAGER_REGISTRY,
    policy=POLICY_REGISTRY,
    collector=SERIAL_COLLECTOR_REGISTRY,
    replay_buffer=BUFFER_REGISTRY,
)
TOP_LEVEL = dict(exp_name="", seed=0, env={}, policy={}, import_names=[])


def check_run(cfg: Mapping[str, Any]) -> None:
    """Refuse a compiled config whose keys, values, task or dimensions are wrong.

    Args:
        cfg: What ``compile_config`` returned: ``env``, ``policy``, ``exp_name``, ``seed``.

    Raises:
        ConfigError: Names every problem of the first part that has one.
    """
    rules = dict(exp_name=text(), seed=integer(0), env=mapping(), policy=mapping())
    check_config(cfg, TOP_LEVEL, rules, path="config", open_keys=("env", "policy"))
    check_env(cfg["env"])
    policy = registered(POLICY_REGISTRY, cfg["policy"].get("type"), "policy.type")
    policy.check(cfg["policy"])
    check_host_parts(cfg["policy"])
    task, model = task_of(cfg["env"]), cfg["policy"]["model"]
    problems = check_host_values(cfg["policy"], "policy") + _schedule(cfg["policy"]) + _collecting(cfg)
    problems += [
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
    """What is wrong with the lengths of an offline run, and with the name of its data set."""
    learn, eval_freq = policy["learn"], policy["eval"]["evaluator"]["eval_freq"]
    if "train_epoch" not in learn:
        return []
    registered(DATASET_REGISTRY, policy["collect"]["data_type"], "policy.collect.data_type")
    rule = integer(1)
    if not rule.holds(learn["train_epoch"]):
        return [f"policy.learn.train_epoch must be {rule.text}, got {learn['train_epoch']!r}"]
    total = learn["train_epoch"] * learn["iterations_per_epoch"]
    if rule.holds(eval_freq) and eval_freq > total:
        return [f"policy.eval.evaluator.eval_freq ({eval_freq}) must not exceed the run's {total} iterations"]
    return []


def _collecting(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with how a policy over chunks collects what it learns from at once."""
    policy, envs = cfg["policy"], cfg["env"].get("collector_env_num", 1)  # the host may have taken that key out
    if not policy.get("on_policy") or "act_steps" not in policy["model"]:
        return []
    parts = {
        "policy.collect.collector.type": (policy["collect"]["collector"].get("type"), "ebm_chunk"),
        "policy.other.replay_buffer.type": (policy["other"]["replay_buffer"].get("type"), "ebm_on_policy"),
        "env.manager.type": (cfg["env"]["manager"]["type"], "ebm_vector"),
    }
    problems = [
        f"{place} must be {wanted!r} for a policy that learns from whole collections of chunks, got {found!r}"
        for place, (found, wanted) in parts.items()
        if found != wanted
    ]
    count = policy["collect"].get("n_sample")
    if not integer(1).holds(count) or count % envs:
        problems.append(
            f"policy.collect.n_sample must be an integer >= 1 and a multiple of env.collector_env_num ({envs}), got "
            f"{count!r}"
        )
    return problems


def check_files(main: Mapping[str, Any], create: Mapping[str, Any]) -> None:
    """Refuse a ``main_config`` or ``create_config`` that DI-engine could not even compile.

    Raises:
        ConfigError: Names each unknown key with the nearest known one, and each bad value with its rule.
    """
    places = {f"policy.{key}" for key in ("learn", "learn.learner", "collect", "eval", "eval.evaluator", "other")}
    rules = dict(exp_name=text(), env=mapping(), policy=mapping())
    check_config(main, {key: TOP_LEVEL[key] for key in rules}, rules, path="main_config", open_keys=("env", "policy"))
    for place in sorted(places):
        value: Any = main
        for key in place.split("."):
            value = value.get(key, {}) if isinstance(value, Mapping) else {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"the config cannot be used:\n  main_config.{place} must be a dict, got {value!r}")
    part = dict(type="", import_names=[])
    required = {key: mapping() for key in ("env", "env_manager", "policy")}
    check_config(create, dict.fromkeys(CREATED, part), required, path="create_config")
    for key, value in create.items():
        names = {"import_names": [], **value}
        check_config(names, part, {"type": text(), "import_names": IMPORTS}, path=f"create_config.{key}")
        for name in names["import_names"]:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                raise ConfigError(f"the config cannot be used:\n  create_config.{key}.import_names: {error}") from error
        registered(CREATED[key], value["type"], f"create_config.{key}.type")


def check_env(cfg: Mapping[str, Any]) -> None:
    """Refuse a merged environment config with unknown keys or values out of range."""
    if not isinstance(cfg.get("manager"), Mapping):
        raise ConfigError(f"the config cannot be used:\n  env.manager must be a dict, got {cfg.get('manager')!r}")
    kind = registered(ENV_REGISTRY, cfg.get("type"), "env.type")
    declared = deep_merge_dicts(EasyDict(env_config_template), kind.default_config())
    declared.update(type="", import_names=[])
    manager = registered(ENV_MANAGER_REGISTRY, cfg["manager"].get("type"), "env.manager.type")
    declared.manager = EasyDict(manager.default_config(), type="", import_names=[])
    rules = {key: rule for key, rule in ENV_RULES.items() if key in declared}
    check_config(cfg, declared, rules, path="env")
    problems = check_host_values(cfg, "env")
    if problems:
        raise ConfigError("the config cannot be used:\n  " + "\n  ".join(problems))
