"""Other simulators of the same tasks, through stand-ins that have their interfaces."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import gymnasium
import numpy as np
import pytest
from easydict import EasyDict
from gymnasium.utils.env_checker import check_env

from ding_ebm.envs.avoid import AvoidBatch, AvoidEnv
from ding_ebm.envs.batch import GymBatch
from ding_ebm.envs.registry import get_task
from ding_ebm.envs.single import SingleEnv
from ding_ebm.host.backends import D4rlEnv, batch_env, single_env
from ding_ebm.host.env import TaskEnv

needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed")
FIELDS = ("obs", "reward", "terminated", "truncated", "length")
LIMIT = 5


class OldGymEnv:
    """As gym 0.23 makes D4RL's: four results, ``seed``, and a time limit that only ``info`` tells from other ends.

    Falls in the step whose number is the first action; draws its goal from NumPy's global generator.
    """

    def seed(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def reset(self) -> np.ndarray:
        self._steps = 0
        self._obs = np.zeros(111)
        self._obs[:27] = self._rng.random(27)
        self._obs[0] = np.random.uniform()  # noqa: NPY002
        return self._obs.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict]:
        self._steps += 1
        self._obs[1] += 1
        done, info = self._steps == round(10 * action[0]), {}
        if self._steps >= LIMIT:
            info["TimeLimit.truncated"] = not done
            done = True
        return self._obs.copy(), 2.0, done, info

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def old_gym(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules gym and d4rl, and the names that were made."""
    made: list[str] = []
    gym, d4rl = ModuleType("gym"), ModuleType("d4rl")
    gym.make = lambda name: (made.append(name), OldGymEnv())[1]
    monkeypatch.setitem(sys.modules, "gym", gym)
    monkeypatch.setitem(sys.modules, "d4rl", d4rl)
    return made


def ant_of_d4rl() -> D4rlEnv:
    env = single_env(dict(env_id="ant", env_backend="d4rl"))
    env.max_episode_steps = LIMIT
    return env


def test_d4rls_environments_have_the_interface_of_today(old_gym: list[str]) -> None:
    env = ant_of_d4rl()
    assert old_gym == ["ant-medium-v2"]
    check_env(env, skip_render_check=True)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, _ = env.reset(seed=3)
    assert first.shape == (27,) and first.dtype == np.float32, "without the contact forces, which are 0"
    again, other = env.reset(seed=3)[0], env.reset(seed=4)[0]
    np.testing.assert_array_equal(first, again)
    assert first[0] != other[0] and first[5] != other[5]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    following = env.reset()[0]
    env.reset(seed=4)
    np.testing.assert_array_equal(env.reset()[0], following)


@pytest.mark.parametrize(
    ("falls", "ends"), [(3, (True, False)), (5, (True, True)), (9, (False, True))], ids=["falls", "both", "limit"]
)
def test_d4rls_two_ends_are_told_apart(falls: int, ends: tuple[bool, bool], old_gym: list[str]) -> None:
    env = ant_of_d4rl()
    env.reset(seed=0)
    action = np.full(8, falls / 10, dtype=np.float32)
    steps = [env.step(action) for _ in range(min(falls, LIMIT))]
    assert [step[2:4] for step in steps] == [(False, False)] * (len(steps) - 1) + [ends]
    assert all(step[1] == 2.0 for step in steps)


def test_d4rls_environments_are_batched_and_are_what_the_host_gets(old_gym: list[str]) -> None:
    cfg = EasyDict(env_id="hopper", env_backend="d4rl", dynamics=None)
    batch = batch_env(cfg, 3)
    assert isinstance(batch, GymBatch) and old_gym == ["hopper-medium-v2"] * 3 and batch.obs_dim == 11
    assert batch.max_episode_steps == 1000
    host = TaskEnv(cfg)
    host.seed(0)
    assert host.reset().shape == (11,)


def test_what_d4rl_does_not_have_is_refused(old_gym: list[str]) -> None:
    for name in ("humanoid", "avoid", "hopper-v5"):
        with pytest.raises(ValueError, match=f"env_backend='d4rl': D4RL has no task {name}"):
            single_env(dict(env_id=name, env_backend="d4rl"))


class Pool:
    """As EnvPool: seeded when it is made, stepped and reset by row, an ended row begins anew by its next step."""

    def __init__(self, num_envs: int, seed: list[int], max_episode_steps: int) -> None:
        self._envs = [AvoidEnv(max_episode_steps=max_episode_steps) for _ in range(num_envs)]
        self._seeds, self._ended = list(seed), [True] * num_envs

    def _begin(self, row: int) -> np.ndarray:
        obs, _ = self._envs[row].reset(seed=self._seeds[row])
        self._seeds[row] += 1000
        self._ended[row] = False
        return obs.astype(np.float64)

    def reset(self, rows: np.ndarray) -> tuple[np.ndarray, dict]:
        assert rows.dtype == np.int32
        rows = rows[::-1]  # in whatever order they are ready
        return np.stack([self._begin(row) for row in rows]), {"env_id": rows}

    def step(self, action: np.ndarray, rows: np.ndarray) -> tuple:
        assert not any(self._ended[row] for row in rows), "would begin an episode instead of acting"
        order = np.argsort(-rows)
        results = [self._envs[rows[i]].step(action[i]) for i in order]
        obs, reward, terminated, truncated, _ = (np.array(column) for column in zip(*results))
        for i, ended in zip(rows[order], terminated | truncated):
            self._ended[i] = ended
        return obs.astype(np.float64), reward.astype(np.float32), terminated, truncated, {"env_id": rows[order]}


@pytest.fixture
def envpool(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The module envpool, whose every environment is avoid in the sizes of a task, and what was made."""
    made: list[dict] = []

    def make(name: str, *, env_type: str, num_envs: int, seed: list[int], max_episode_steps: int) -> Pool:
        made.append(dict(name=name, env_type=env_type, seed=seed))
        return Pool(num_envs, seed, max_episode_steps)

    monkeypatch.setitem(sys.modules, "envpool", SimpleNamespace(make=make))
    sizes = dict(obs_dim=4, action_dim=2, action_range=(-0.01, 0.01), max_episode_steps=30)
    task = replace(get_task("hopper"), **sizes)
    monkeypatch.setattr("ding_ebm.host.backends.get_task", lambda name, dynamics=None: task)
    return made


def test_envpool_is_a_batch_whose_rows_end_and_begin_apart(envpool: list[dict]) -> None:
    batch, twin = batch_env(dict(env_id="hopper", env_backend="envpool"), 4), AvoidBatch(4, max_episode_steps=30)
    np.testing.assert_array_equal(batch.reset([5, 6, 2**31 + 7, 8]), twin.reset([5, 6, 7, 8]))
    assert envpool[-1] == dict(name="Hopper-v4", env_type="gymnasium", seed=[5, 6, 7, 8])
    actions = np.stack([np.full((40, 2), [x, 0.0099]) for x in np.linspace(-0.004, 0.004, 4)])
    for start in range(0, 40, 8):
        chunk, expected = (env.step_chunk(actions[:, start : start + 8]) for env in (batch, twin))
        for field in FIELDS:
            np.testing.assert_allclose(getattr(chunk, field), getattr(expected, field), atol=1e-7, err_msg=field)
        np.testing.assert_array_equal(batch.running, twin.running)
    assert not batch.running.any()
    obs = batch.reset([1, 1], [3, 0])  # the next episodes of the rows' own seeds
    np.testing.assert_array_equal(obs[[0, 3]], twin.reset([1005, 1008], [0, 3])[[0, 3]])
    np.testing.assert_array_equal(obs, twin.reset([], []))
    assert batch.running.tolist() == [True, False, False, True] and batch.success is None
    np.testing.assert_array_equal(batch.reset([8, 7, 6, 5], [3, 2, 1, 0]), twin.reset([5, 6, 7, 8]))


def test_envpool_serves_single_environments_too(envpool: list[dict]) -> None:
    env = single_env(dict(env_id="hopper", env_backend="envpool"))
    assert isinstance(env, SingleEnv)
    check_env(env, skip_render_check=True)


def test_a_batch_of_several_is_no_single_environment() -> None:
    with pytest.raises(ValueError, match="must be of one environment, got 2"):
        SingleEnv(AvoidBatch(2))


def test_what_envpool_does_not_have_is_refused() -> None:
    for name in ("avoid", "hopper-d4rl-v2"):
        with pytest.raises(ValueError, match=f"env_backend='envpool': EnvPool has no task {name}"):
            batch_env(dict(env_id=name, env_backend="envpool"), 1)


@pytest.mark.parametrize(("backend", "missing"), [("envpool", "envpool"), ("d4rl", "d4rl"), ("d4rl", "gym")])
def test_a_package_that_is_not_installed_is_named(backend: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d4rl", ModuleType("d4rl"))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ModuleNotFoundError, match=f"env_backend='{backend}' takes {missing}, .* pip install .*{missing}"
    ):
        batch_env(dict(env_id="hopper", env_backend=backend), 1)


@needs_mujoco
def test_gymnasiums_own_environments_run_the_same_episodes() -> None:
    ours, gym = (
        batch_env(dict(env_id="hopper", dynamics="v5", env_backend=name), 2) for name in ("batch", "gymnasium")
    )
    assert isinstance(gym, GymBatch) and isinstance(gym._envs[0], gymnasium.Env)
    np.testing.assert_array_equal(ours.reset([1, 2]), gym.reset([1, 2]))
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 30, 3))
    one, other = ours.step_chunk(actions), gym.step_chunk(actions)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
