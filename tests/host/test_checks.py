"""What a run refuses before it reads data: every mistyped key of every shipped config, and every value out of range."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ding.config import compile_config
from ding.envs import get_vec_env_setting
from ding.utils import POLICY_REGISTRY
from easydict import EasyDict

from ding_ebm.config import ConfigError
from ding_ebm.host.checks import check_env, check_run
from ding_ebm.policy.base import HOST_OWNED

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "dizoo_configs").rglob("*_config.py"))
OPEN = {f"policy.{key}" for key in HOST_OWNED}


@pytest.fixture(scope="module")
def shipped() -> dict[str, EasyDict]:
    """Every shipped config, compiled."""
    configs = {}
    for path in CONFIGS:
        module = importlib.import_module(path[:-3].replace("/", "."))
        create = copy.deepcopy(module.create_config)
        create.policy.type += "_command"
        configs[path] = compile_config(module.main_config, seed=0, auto=True, create_cfg=create, save_cfg=False)
    return configs


def levels(cfg: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dictionary inside a config that is ours to check."""
    if path not in OPEN:
        yield path, cfg
        for key, value in cfg.items():
            if isinstance(value, Mapping):
                yield from levels(value, f"{path}.{key}")


def mistyped(key: str) -> str:
    """The key without a letter of its middle; a letter too much where it has only one."""
    return key[: len(key) // 2] + key[len(key) // 2 + 1 :] if len(key) > 2 else key + key[-1]


def refused(cfg: EasyDict) -> str:
    with pytest.raises((ConfigError, RuntimeError, ValueError)) as error:
        check_run(cfg)
    return str(error.value)


def changed(cfg: EasyDict, dotted: str, value: Any) -> EasyDict:
    cfg = copy.deepcopy(cfg)
    *path, last = dotted.split(".")
    inner = cfg
    for key in path:
        inner = inner[key]
    inner[last] = value
    return cfg


def test_there_are_configs_to_test():
    assert len(CONFIGS) >= 25


def test_every_shipped_config_passes(shipped):
    for cfg in shipped.values():
        check_run(cfg)


@pytest.mark.parametrize("part", ["policy", "env"])
def test_every_mistyped_key_of_every_shipped_config_is_refused_with_the_key_that_was_meant(part, shipped):
    count = 0
    for cfg in shipped.values():
        wrong = copy.deepcopy(cfg)
        expected = []
        for path, level in list(levels(wrong[part], part)):
            for key in list(level):
                if mistyped(key) not in level:
                    level[mistyped(key)] = level[key]
                    expected.append(f"{path}.{mistyped(key)} is not a known key; did you mean {key!r}?")
        message = refused(wrong)
        assert [line for line in expected if line not in message] == []
        count += len(expected)
    assert count > {"policy": 60, "env": 10}[part] * len(CONFIGS)


def test_a_mistyped_key_of_the_top_level_is_refused(shipped):
    cfg = copy.deepcopy(shipped[CONFIGS[0]])
    for key in ("polcy", "exp_nam", "sed", "evn"):
        assert f"config.{key} is not a known key" in refused(EasyDict(cfg, **{key: {}}))


def test_a_key_at_the_wrong_level_is_refused(make_cfg):
    message = refused(make_cfg(dict(policy=dict(learn=dict(alpha=3.0), M=3, gamma=0.9, guidance_scale=1.0))))
    for key in ("policy.learn.alpha", "policy.M", "policy.gamma", "policy.guidance_scale"):
        assert f"{key} is not a known key" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("policy.learn.batch_size", "256", "policy.learn.batch_size must be an integer >= 1, got '256'"),
        ("policy.learn.batch_size", 0, "must be an integer >= 1, got 0"),
        ("policy.learn.M", 2.0, "policy.learn.M must be an integer"),
        ("policy.learn.learning_rate", -1e-4, "policy.learn.learning_rate must be a number > 0"),
        ("policy.learn.learning_rate", float("nan"), "policy.learn.learning_rate must be a number > 0"),
        ("policy.learn.discount_factor", 1.01, "policy.learn.discount_factor must be a number >= 0.0 and <= 1.0"),
        ("policy.learn.target_theta", 0.0, "policy.learn.target_theta must be a number > 0.0 and <= 1.0"),
        ("policy.learn.energy_labels", "hard", "one of ('softmax', 'unnormalized', 'mse'), got 'hard'"),
        ("policy.learn.precision", "float16", "policy.learn.precision must be one of"),
        ("policy.learn.compile", "yes", "policy.learn.compile must be True or False, or one of ('auto',), got 'yes'"),
        ("policy.learn.support_cache", 3, "policy.learn.support_cache must be None or a string"),
        ("policy.learn.q_value_stop_training_iter", -1, "policy.learn.q_value_stop_training_iter"),
        ("policy.learn.iterations_per_epoch", 0, "policy.learn.iterations_per_epoch must be an integer >= 1"),
        ("policy.model.obs_dim", None, "policy.model.obs_dim must be an integer >= 1, got None"),
        ("policy.model.behavior_widths", [], "policy.model.behavior_widths must be a list"),
        ("policy.model.behavior_widths", 512, "policy.model.behavior_widths must be a list"),
        ("policy.model.qgpo_critic", 3.0, "policy.model.qgpo_critic must be a dict"),
        ("policy.model.qgpo_critic.alpha", -3.0, "policy.model.qgpo_critic.alpha must be a number >= 0.0"),
        ("policy.model.qgpo_critic.num_critics", 0, "policy.model.qgpo_critic.num_critics"),
        ("policy.model.qgpo_critic.aggregation", "max", "('min', 'mean', 'lcb'), got 'max'"),
        ("policy.model.qgpo_critic.temperature_range", (0.0,), "temperature_range must be a list of 2"),
        ("policy.sampler.method", "ddpm", "policy.sampler.method must be one of"),
        ("policy.sampler.order", 4, "policy.sampler.order must be an integer in [1, 3], got 4"),
        ("policy.sampler.spacing", "linear", "policy.sampler.spacing must be one of"),
        ("policy.sampler.clip", True, "policy.sampler.clip must be one of"),
        ("policy.eval.guidance_scale", "1.0", "policy.eval.guidance_scale must be a number"),
        ("policy.eval.guidance_scale", [], "policy.eval.guidance_scale must be a number"),
        ("policy.eval.diffusion_steps", 0, "policy.eval.diffusion_steps must be an integer >= 1"),
        (
            "policy.collect.data_path",
            3,
            "policy.collect.data_path must be None or a string that is not empty, or a list",
        ),
        ("policy.collect.reward_tuning", "mujoco", "policy.collect.reward_tuning must be one of"),
        ("policy.collect.obs_normalization", True, "policy.collect.obs_normalization must be one of"),
        ("policy.collect.action_normalization", "mean_std", "policy.collect.action_normalization must be one of"),
        ("policy.cuda", 1, "policy.cuda must be True or False, got 1"),
        ("env.evaluator_env_num", 0, "env.evaluator_env_num must be an integer >= 1, got 0"),
        ("env.n_evaluator_episode", "8", "env.n_evaluator_episode must be an integer"),
        ("env.stop_value", None, "env.stop_value must be a number"),
        ("env.env_id", None, "env.env_id must be a string"),
        ("env.env_id", "hoper", "unknown task 'hoper', did you mean 'hopper'?"),
        ("env.env_id", "hopper", "policy.model.obs_dim is 4, but task 'hopper' has 11"),
        ("env.dynamics", 4, "env.dynamics must be None or a string that is not empty, got 4"),
        ("env.dynamics", "v5", "unknown dynamics 'v5' of the task avoid. Known: ideal, arx, arx-stale"),
        (
            "env.env_backend",
            "gym",
            "env.env_backend must be one of ('batch', 'gymnasium', 'envpool', 'd4rl'), got 'gym'",
        ),
        ("policy.model.action_dim", 3, "policy.model.action_dim is 3, but task 'avoid' has 2"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused_by_name_and_rule(key, value, words, make_cfg):
    assert words in refused(changed(make_cfg(), key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy.learn.train_epoch", None),  # TypeError in the host's loop, after the data is read
        ("policy.eval.evaluator.eval_freq", "100"),  # TypeError after the first epoch
        ("policy.eval.evaluator.eval_freq", 100),  # no evaluation in 12 iterations: UnboundLocalError at the end
        ("policy.learn.learner.hook.save_ckpt_after_iters", 100),  # AttributeError: 'int' has no attribute 'get'
        ("policy.learn.learner.hook.save_ckpt_after_iter", 0),  # ZeroDivisionError in the first iteration
        ("policy.learn.learner.hook.save_ckpt_after_iter", "4"),  # TypeError in the first iteration
    ],
)
def test_what_would_end_a_run_later_is_refused_at_once(key, value, make_cfg):
    refused(changed(make_cfg(), key, value))


def test_several_problems_are_named_together(make_cfg):
    cfg = make_cfg(dict(policy=dict(learn=dict(batch_size=0, bach_size_q=3), sampler=dict(order=7), modle=3)))
    message = refused(cfg)
    for words in ("learn.batch_size must", "'batch_size_q'", "sampler.order must", "'model'"):
        assert words in message


def test_cuda_that_is_absent_is_refused_with_what_to_do(make_cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(make_cfg(dict(policy=dict(cuda=True))))
    assert "policy.cuda=False" in message and torch.__version__ in message
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_run(make_cfg(dict(policy=dict(cuda=True))))


def test_the_policy_checks_its_config_where_no_run_does(make_cfg):
    # ding -m eval builds no data set: the policy itself refuses.
    cfg = make_cfg(dict(policy=dict(eval=dict(guidance_scal=2.0))))
    with pytest.raises(ConfigError, match="did you mean 'guidance_scale'"):
        POLICY_REGISTRY.get("ebm_qgpo")(cfg.policy, enable_field=["eval"])


def test_an_environments_config_can_be_checked_alone(make_cfg):
    cfg = make_cfg()
    check_env(cfg.env)
    with pytest.raises(ConfigError, match=r"env.manager.max_retry is not a known key"):
        check_env(changed(cfg.env, "manager.max_retry", 3))
    hosts = dict(cfg.env, manager=dict(type="base"))
    check_env(changed(hosts, "manager.max_retry", 3))
    with pytest.raises(ConfigError, match=r"env.manager.max_rety is not a known key; did you mean 'max_retry'"):
        check_env(changed(hosts, "manager.max_rety", 3))


def test_a_mistyped_key_of_the_environment_is_refused_in_evaluation_too(make_cfg):
    with pytest.raises(ConfigError, match="n_evaluator_episode"):
        get_vec_env_setting(make_cfg(dict(env=dict(n_evaluator_episodes=50))).env, collect=False)


def test_videos_are_refused_in_words_while_they_are_not_supported(make_cfg):
    assert "replay_path" in refused(make_cfg(dict(env=dict(replay_path="videos"))))


def test_the_check_changes_nothing(make_cfg):
    cfg = make_cfg()
    before = copy.deepcopy(cfg)
    check_run(cfg)
    assert cfg == before
