"""The environment as DI-engine's managers and evaluator use it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from ding.envs import BaseEnv, BaseEnvManager, get_vec_env_setting
from ding.torch_utils import to_tensor
from ding.utils import ENV_REGISTRY
from easydict import EasyDict

from ding_ebm.envs.avoid import AvoidEnv
from ding_ebm.host import env as module
from ding_ebm.host.env import TaskEnv

UP = np.array([0.0, 0.01], dtype=np.float32)
STILL = np.zeros(2, dtype=np.float32)


def make(env_id: str = "avoid") -> TaskEnv:
    return TaskEnv(EasyDict(env_id=env_id))


def episode(env: TaskEnv, action: np.ndarray) -> list:
    steps = [env.step(action)]
    while not steps[-1].done:
        steps.append(env.step(action))
    return steps


class Scripted(gymnasium.Env):
    """Rewards 1, 2, 3, ... and ends after four steps by both, one or the other flag."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, terminated: bool, truncated: bool) -> None:
        self._flags = (terminated, truncated)
        self._step = 0

    def reset(self, *, seed=None, options=None):
        self._step = 0
        return np.zeros(4), {"junk": object()}  # the host's to_tensor could not take this info

    def step(self, action):
        self._step += 1
        end = self._step == 4
        return np.ones(4), float(self._step), end and self._flags[0], end and self._flags[1], {"junk": object()}


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
def test_the_two_ends_of_an_episode_are_told_apart_and_the_return_is_the_plain_sum(flags, monkeypatch):
    monkeypatch.setattr(module, "single_env", lambda cfg: Scripted(*flags))
    env = make()
    for _ in range(2):  # the sum begins anew with each episode
        env.reset()
        steps = episode(env, STILL)
        assert [step.done for step in steps] == [False, False, False, True]
        assert (steps[-1].info["terminated"], steps[-1].info["truncated"]) == flags
        assert steps[0].info == dict(terminated=False, truncated=False)
        assert steps[-1].info["eval_episode_return"] == 10.0
        assert steps[-1].info["episode_info"] == dict(length=4.0)
        assert all("eval_episode_return" not in step.info for step in steps[:-1])
        assert type(steps[-1].done) is bool and steps[-1].obs.dtype == np.float32
        to_tensor(steps[-1]._asdict())  # what the evaluator does with it


def test_the_time_limit_of_avoid_is_a_truncation_and_a_collision_a_termination():
    env = make()
    env.seed(0)
    env.reset()
    end = episode(env, STILL)[-1]
    assert (end.info["terminated"], end.info["truncated"], end.info["episode_info"]["length"]) == (False, True, 150.0)
    env.reset()
    end = episode(env, UP)[-1]
    assert (end.info["terminated"], end.info["truncated"]) == (True, False)


def test_the_return_is_the_sum_of_the_tasks_own_rewards():
    env, raw = make(), AvoidEnv()
    env.seed(3)
    env.reset()
    raw.reset(seed=3)
    total, done = 0.0, False
    while not done:
        _, reward, terminated, truncated, _ = raw.step(UP)
        total, done = total + reward, terminated or truncated
    assert episode(env, UP)[-1].info["eval_episode_return"] == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("dynamic", [True, False])
def test_episodes_differ_from_each_other_and_repeat_from_run_to_run(dynamic):
    runs = []
    for _ in range(2):
        env = make()
        env.seed(7, dynamic_seed=dynamic)
        runs.append([env.reset().tolist() for _ in range(4)])
    assert runs[0] == runs[1]
    assert len({tuple(obs) for obs in runs[0]}) == 4
    other = make()
    other.seed(8)
    assert other.reset().tolist() != runs[0][0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_by_task_and_step(value):
    env = make()
    env.seed(0)
    env.reset()
    env.step(UP)
    with pytest.raises(ValueError, match=r"avoid: action .* at step 1 is not finite"):
        env.step(np.array([0.0, value]))


def test_a_task_that_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'avoi'.*did you mean 'avoid'"):
        make("avoi")


def test_it_is_registered_and_has_the_hosts_interface():
    assert ENV_REGISTRY.get("ebm_env") is TaskEnv and issubclass(TaskEnv, BaseEnv)
    env = make()
    assert env.observation_space.shape == (4,) and env.action_space.shape == (2,)
    assert "avoid" in repr(env)
    env.close()


def test_a_copy_of_the_default_config_is_given_out():
    TaskEnv.default_config()["evaluator_env_num"] = 99
    assert TaskEnv.default_config()["evaluator_env_num"] == 8


def test_the_hosts_manager_seeds_each_environment_once(make_cfg):
    cfg = make_cfg()
    env_fn, collector, evaluator = get_vec_env_setting(cfg.env)
    assert env_fn is TaskEnv and len(collector) == 1 and len(evaluator) == 2
    runs = []
    for _ in range(2):
        manager = BaseEnvManager([lambda c=c: env_fn(cfg=c) for c in evaluator], BaseEnvManager.default_config())
        manager.seed(0, dynamic_seed=False)
        manager.launch()
        starts = []
        for _ in range(3):
            manager.reset()
            starts += [tuple(obs.tolist()) for obs in manager.ready_obs.values()]
        runs.append(starts)
        manager.close()
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 6


@pytest.mark.parametrize(("task", "dims"), [("hopper", (11, 3)), ("walker2d", (17, 6)), ("halfcheetah", (17, 6))])
def test_locomotion_tasks_run_where_mujoco_is_installed(task, dims):
    pytest.importorskip("mujoco")
    env = make(task)
    env.seed(0)
    assert env.reset().shape == dims[:1]
    step = env.step(np.zeros(dims[1], dtype=np.float32))
    assert step.obs.shape == dims[:1] and step.obs.dtype == np.float32 and np.isfinite(step.reward)
    env.close()
