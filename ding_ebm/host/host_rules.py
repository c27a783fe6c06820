"""Rules for the keys of a config that are DI-engine's own: its parts merge any value and fail, or not, when it is used.

What is not checked is in ``UNCHECKED``, with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ding.utils import BUFFER_REGISTRY, SERIAL_COLLECTOR_REGISTRY
from ding.worker import BaseLearner, BaseSerialCommander, InteractionSerialEvaluator

from ding_ebm.config import ConfigError, Rule, check_config, choice, flag, integer, number, optional, sequence, text

_COUNT = Rule(lambda v: integer(1).holds(v) or v == float("inf"), "an integer >= 1, or inf")
_SECONDS = optional(number(0.0, above=True))
IMPORTS = Rule(lambda v: v == [] or sequence(text()).holds(v), "a list of names of modules")

# By their places in a config; a key is checked where it is there.
RULES: Mapping[str, Rule] = {
    "policy.import_names": IMPORTS,
    "policy.cfg_type": text(),
    "policy.bp_update_sync": flag(),
    "policy.traj_len_inf": flag(),
    "policy.learn.resume_training": flag(),
    "policy.learn.learner.cfg_type": text(),
    "policy.learn.learner.train_iterations": integer(1),
    "policy.learn.learner.dataloader.num_workers": choice(0),
    "policy.learn.learner.log_policy": flag(),
    "policy.learn.learner.hook.load_ckpt_before_run": text(empty=True),
    "policy.learn.learner.hook.save_ckpt_after_run": flag(),
    "policy.learn.learner.hook.log_show_after_iter": integer(1),
    "policy.learn.learner.hook.save_ckpt_after_iter": integer(1),
    "policy.learn.learner.hook.log_reduce_after_iter": integer(1),
    "policy.eval.evaluator.cfg_type": text(),
    "policy.eval.evaluator.eval_freq": integer(1),
    "policy.eval.evaluator.figure_path": optional(text()),
    "policy.eval.evaluator.n_episode": integer(1),
    "policy.eval.evaluator.stop_value": Rule(
        lambda v: isinstance(v, (int, float)) and v == v and not isinstance(v, bool),
        "a number, or inf for a run of full length",
    ),
    "policy.eval.evaluator.render.render_freq": integer(-1),
    "policy.eval.evaluator.render.mode": choice("train_iter", "envstep"),
    "policy.collect.collector.cfg_type": text(),
    "policy.collect.collector.import_names": IMPORTS,
    "policy.collect.collector.deepcopy_obs": flag(),
    "policy.collect.collector.transform_obs": flag(),
    "policy.collect.collector.collect_print_freq": integer(1),
    "policy.other.commander.cfg_type": text(),
    "policy.other.replay_buffer.cfg_type": text(),
    "policy.other.replay_buffer.import_names": IMPORTS,
    "policy.other.replay_buffer.replay_buffer_size": integer(1),
    "policy.other.replay_buffer.max_use": _COUNT,
    "policy.other.replay_buffer.max_staleness": _COUNT,
    "policy.other.replay_buffer.alpha": number(0.0),
    "policy.other.replay_buffer.beta": number(0.0),
    "policy.other.replay_buffer.anneal_step": integer(1),
    "policy.other.replay_buffer.enable_track_used_data": flag(),
    "policy.other.replay_buffer.deepcopy": flag(),
    "policy.other.replay_buffer.thruput_controller.push_sample_rate_limit.max": Rule(
        lambda v: v == float("inf") or number(0.0, above=True).holds(v), "a number > 0, or inf"
    ),
    "policy.other.replay_buffer.thruput_controller.push_sample_rate_limit.min": number(0.0),
    "policy.other.replay_buffer.thruput_controller.window_seconds": number(0.0, above=True),
    "policy.other.replay_buffer.thruput_controller.sample_min_limit_ratio": number(0.0),
    "policy.other.replay_buffer.monitor.sampled_data_attr.average_range": integer(1),
    "policy.other.replay_buffer.monitor.sampled_data_attr.print_freq": integer(1),
    "policy.other.replay_buffer.monitor.periodic_thruput.seconds": number(0.0, above=True),
    "env.cfg_type": text(),
    "env.import_names": IMPORTS,
    "env.manager.cfg_type": text(),
    "env.manager.import_names": IMPORTS,
    "env.manager.episode_num": _COUNT,
    "env.manager.max_retry": integer(1),
    "env.manager.retry_type": choice("reset", "renew"),
    "env.manager.auto_reset": flag(),
    "env.manager.step_timeout": _SECONDS,
    "env.manager.reset_timeout": _SECONDS,
    "env.manager.retry_waiting_time": number(0.0),
    "env.manager.shared_memory": flag(),
    "env.manager.reset_inplace": flag(),
    "env.manager.copy_on_get": flag(),
}
# What no rule looks at, and why.
UNCHECKED: Mapping[str, str] = {
    "policy.learn.learner.hook.<name> = dict(...)": "a hook of the user's own: its keys are those of its class",
    "main_config.policy, main_config.env, and parts of create_config, of a config that no builder of dizoo_configs "
    "made": "DI-engine reads them before it loads any part of this package, and says KeyError or AttributeError itself",
}


def registered(registry: Any, name: Any, where: str) -> Any:
    """The class that is registered under a name.

    Raises:
        ConfigError: If there is none; tells the nearest.
    """
    known = list(registry)
    if not isinstance(name, str) or name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"the config cannot be used:\n  {where} is {name!r}, which is not registered; {hint}")
    return registry.get(name)


def check_host_values(cfg: Mapping[str, Any], part: str) -> list[str]:
    """What is wrong with the host's own values in ``policy`` or ``env``, the ``part`` that ``cfg`` is."""
    problems = []
    for place, rule in RULES.items():
        first, *keys = place.split(".")
        value: Any = cfg
        for key in keys:
            value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if first == part and value is not _ABSENT and not rule.holds(value):
            problems.append(f"{place} must be {rule.text}, got {value!r}")
    return problems


def check_host_parts(policy: Mapping[str, Any]) -> None:
    """Refuse unknown keys of the collector, the buffer, the commander, the evaluator's pictures and the hooks.

    Raises:
        ConfigError: Names each with the nearest known one.
    """
    collector = policy["collect"].get("collector", {})
    other = policy.get("other", {})
    sections = {"collect.collector": collector, "other": other, "other.replay_buffer": other, "learn.learner.hook": {}}
    sections["learn.learner.hook"] = policy["learn"]["learner"]["hook"]
    for place, section in sections.items():
        if not isinstance(section, Mapping):
            raise ConfigError(f"the config cannot be used:\n  policy.{place} must be a dict, got {section!r}")
    buffer = other.get("replay_buffer", {})
    declared: dict[str, Any] = {"commander": BaseSerialCommander.default_config(), "replay_buffer": {}}
    check_config(other, declared, {}, path="policy.other", open_keys=["replay_buffer"])
    if not isinstance(buffer, Mapping):
        raise ConfigError(f"the config cannot be used:\n  policy.other.replay_buffer must be a dict, got {buffer!r}")
    for path, section, registry in (
        ("policy.collect.collector", collector, SERIAL_COLLECTOR_REGISTRY),
        ("policy.other.replay_buffer", buffer, BUFFER_REGISTRY),
    ):
        if section:
            known = registered(registry, section.get("type"), f"{path}.type").default_config()
            check_config(section, {**known, "type": "", "import_names": [], "cfg_type": ""}, {}, path=path)
    render = InteractionSerialEvaluator.default_config().render
    check_config({"render": policy["eval"]["evaluator"].get("render", {})}, {"render": render}, {}, path="evaluator")
    hooks = {**BaseLearner.default_config().hook, "log_reduce_after_iter": 1}
    own = {key: value for key, value in sections["learn.learner.hook"].items() if key in hooks or not _is_hook(value)}
    check_config(own, hooks, {}, path="policy.learn.learner.hook")


def _is_hook(value: Any) -> bool:
    """Whether it is a hook of the user's own, as the host asks for one."""
    return isinstance(value, Mapping) and "type" in value


_ABSENT = object()
