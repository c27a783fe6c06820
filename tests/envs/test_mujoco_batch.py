"""The batch on mujoco.rollout is Gymnasium's tasks, bit by bit, in chunks or steps, with any number of threads."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from ding_ebm.envs.batch import GymBatch
from ding_ebm.envs.registry import get_task, make_batch_env, make_env

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("MuJoCo is not installed", allow_module_level=True)

import mujoco

from ding_ebm.envs.mujoco_batch import MujocoBatch
from ding_ebm.envs.running import RUNNERS

NAMES = list(RUNNERS)
every = pytest.mark.parametrize("name", NAMES)
under_all_dynamics = pytest.mark.parametrize(
    ("name", "dynamics"),
    [(name, kind) for name in NAMES for kind in ("v4", "v5", "d4rl-v2") if (name, kind) != ("humanoid", "d4rl-v2")],
)
# Half the range of the first positions; where the velocities are normal it is their standard deviation.
NOISE = {"hopper": 0.005, "walker2d": 0.005, "halfcheetah": 0.1, "ant": 0.1, "humanoid": 0.01}
NORMAL = ("halfcheetah", "ant")
FIELDS = ("obs", "reward", "terminated", "truncated", "length")
# Gymnasium's cost of a float32 action is float32 under NumPy 2, and float64 under NumPy 1 and here.
ROUNDING = 1e-6 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 0.0


def gym_states(batch: GymBatch) -> np.ndarray:
    """Positions and velocities in Gymnasium's simulators, (E, P + V), float64."""
    datas = [env.unwrapped.data for env in batch._envs]
    return np.stack([np.concatenate([data.qpos, data.qvel]) for data in datas])


def physical(env: MujocoBatch) -> np.ndarray:
    """The same of a batch."""
    return env._state[:, 1 : 1 + env._model.nq + env._model.nv]


def episode_actions(name: str, num: int, steps: int, seed: int = 0, scale: float | None = None) -> np.ndarray:
    """Random actions, beyond the range too where a body cannot fall, (num, steps, Da); small: it stands for longer."""
    scale = scale or (1.2 if name == "halfcheetah" else 0.1)
    return scale * np.random.default_rng(seed).uniform(-1, 1, (num, steps, get_task(name).action_dim))


@under_all_dynamics
def test_whole_episodes_equal_gymnasiums_from_the_same_seeds(name: str, dynamics: str) -> None:
    num, limit = 3, 1000
    ours = make_batch_env(name, num, dynamics)
    gym = GymBatch(lambda: make_env(name, dynamics), num)
    assert isinstance(ours, MujocoBatch)
    for attribute in ("obs_dim", "action_dim", "max_episode_steps"):
        assert getattr(ours, attribute) == getattr(gym, attribute)
    np.testing.assert_array_equal([ours.action_low, ours.action_high], [gym.action_low, gym.action_high])
    np.testing.assert_array_equal(ours.reset([5, 0, 2**31]), gym.reset([5, 0, 2**31]))
    actions = episode_actions(name, num, limit)
    for t in range(limit):
        action = actions[:, t].astype(np.float32 if t < 30 else np.float64)
        step, expected = ours.step(action), gym.step(action)
        # Exact here, not only to 1e-10, positions and velocities before they are rounded and clipped included.
        np.testing.assert_array_equal(physical(ours), gym_states(gym), err_msg=f"step {t}")
        for part, other in zip(step, expected):
            assert part.dtype == other.dtype
            rounding = ROUNDING if part is step[1] and action.dtype == np.float32 else 0.0
            np.testing.assert_allclose(part, other, rtol=0.0, atol=rounding, err_msg=f"step {t}")
        if not gym.running.any() or (t == 120 and (name == "ant" or dynamics != "v4")):
            break
    assert t > 15
    if dynamics == "v4" and name != "ant":
        assert not ours.running.any() and (t == limit - 1) == (name == "halfcheetah")
    ours.close()


@under_all_dynamics
def test_chunks_equal_gymnasiums_steps(name: str, dynamics: str) -> None:
    num, size = 3, 5
    ours, gym = make_batch_env(name, num, dynamics), GymBatch(lambda: make_env(name, dynamics), num)
    np.testing.assert_array_equal(ours.reset([3, 1, 4]), gym.reset([3, 1, 4]))
    actions = episode_actions(name, num, 60, seed=7, scale=1.0)
    for start in range(0, 60, size):
        chunk, expected = (env.step_chunk(actions[:, start : start + size]) for env in (ours, gym))
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(chunk, field), getattr(expected, field), err_msg=f"{field}, {start}")
    assert ours.running.all() == (name == "halfcheetah")
    ours.close()


@every
def test_starts_have_the_noise_of_the_task(name: str) -> None:
    env = MujocoBatch(name, 400)
    env.reset(range(400))
    positions, velocities = np.split(physical(env) - physical(env).mean(axis=0), [env._model.nq], axis=1)
    half = NOISE[name]
    assert np.abs(positions).max() < 1.1 * half and positions.std() == pytest.approx(half / np.sqrt(3), rel=0.05)
    spread = half if name in NORMAL else half / np.sqrt(3)
    assert velocities.std() == pytest.approx(spread, rel=0.05)
    assert (np.abs(velocities).max() > 2.5 * half) == (name in NORMAL), "normal there, uniform elsewhere"


@every
def test_time_limit_truncates_and_a_fall_in_the_last_step_is_both(name: str) -> None:
    num = 12
    actions = episode_actions(name, num, 40, seed=3, scale=1.0)
    free = MujocoBatch(name, num)
    free.reset(range(num))
    lengths = free.step_chunk(actions).length
    limit = int(np.sort(lengths)[1 if name == "ant" else num // 2]) if name != "halfcheetah" else 11
    gym = GymBatch(lambda: gymnasium.make(get_task(name).gym_id, max_episode_steps=limit), num)
    ours = MujocoBatch(name, num, max_episode_steps=limit)
    gym.reset(range(num))
    ours.reset(range(num))
    chunk = ours.step_chunk(actions)
    expected = gym.step_chunk(actions)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(chunk, field), getattr(expected, field), err_msg=field)
    assert chunk.length.max() == limit and chunk.truncated.any()
    if name != "halfcheetah":
        assert (chunk.terminated & ~chunk.truncated).any() and (chunk.terminated & chunk.truncated).any()


@every
@pytest.mark.parametrize("size", [4, 7])
def test_chunks_equal_single_steps(name: str, size: int) -> None:
    num, steps = 8, 140 // size * size
    actions = episode_actions(name, num, steps, seed=1, scale=1.0 if name == "ant" else 0.5)
    env, twin = MujocoBatch(name, num), MujocoBatch(name, num)
    obs = env.reset(range(num))
    twin.reset(range(num))
    inside = 0
    for start in range(0, steps, size):
        chunk = env.step_chunk(actions[:, start : start + size])
        seen, rewards, lengths = np.zeros_like(chunk.obs), np.zeros((num, size)), np.zeros(num, dtype=np.int64)
        for t in range(size):
            going = twin.running
            obs, reward, terminated, truncated = twin.step(actions[:, start + t])
            seen[:, t], rewards[:, t], lengths = obs, reward, lengths + going
        wanted = (seen, rewards, terminated, truncated, lengths)
        for field, value in zip(FIELDS, wanted):
            assert getattr(chunk, field).dtype == value.dtype
            np.testing.assert_array_equal(getattr(chunk, field), value, err_msg=f"{field} at {start}")
        np.testing.assert_array_equal(env._state, twin._state)
        inside += int(((chunk.length > 0) & (chunk.length < size)).sum())
    assert inside > 2 or name == "halfcheetah"


@pytest.mark.parametrize("name", ["hopper", "walker2d"])
def test_what_is_simulated_behind_the_end_of_an_episode_leaves_no_trace(name: str) -> None:
    num, size = 6, 60
    actions = episode_actions(name, num, size, seed=2, scale=1.0)
    env = MujocoBatch(name, num)
    env.reset(range(num))
    chunk = env.step_chunk(actions)
    assert chunk.terminated.all() and (chunk.length < size).all() and len(set(chunk.length)) > 2
    other = MujocoBatch(name, num)
    other.reset(range(num))
    behind = np.arange(size) >= chunk.length[:, None]
    again = other.step_chunk(np.where(behind[:, :, None], -np.sign(actions), actions))
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(chunk, field), getattr(again, field), err_msg=field)
    np.testing.assert_array_equal(env._state, other._state)
    rows = np.arange(num)
    assert (chunk.reward[rows, chunk.length - 1] != 0).all() and (chunk.reward[behind] == 0).all()
    np.testing.assert_array_equal(chunk.obs[:, -1], chunk.obs[rows, chunk.length - 1])
    # Ended ones stay as they are; one that begins anew is as if it had never fallen.
    frozen = env.step_chunk(actions[:, :4])
    assert not frozen.length.any() and not frozen.reward.any() and frozen.terminated.all()
    np.testing.assert_array_equal(frozen.obs, np.repeat(chunk.obs[:, -1:], 4, axis=1))
    fresh = MujocoBatch(name, 2)
    first = fresh.reset([21, 22])
    obs = env.reset([21, 22], [4, 1])
    np.testing.assert_array_equal(obs[[4, 1]], first)
    after, alone = env.step_chunk(actions[:, :9]), fresh.step_chunk(actions[[4, 1], :9])
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(after, field)[[4, 1]], getattr(alone, field), err_msg=field)
    assert not after.length[[0, 2, 3, 5]].any()


def test_without_the_warm_start_a_cheetah_is_another_one() -> None:
    actions = episode_actions("halfcheetah", 2, 300)
    env, cold = MujocoBatch("halfcheetah", 2), MujocoBatch("halfcheetah", 2)
    for start in range(0, 300, 4):
        env.step_chunk(actions[:, start : start + 4])
        cold._warmstart[:] = 0
        cold.step_chunk(actions[:, start : start + 4])
    assert np.abs(env._state - cold._state).max() > 1e-3


@every
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    num = 7
    actions = episode_actions(name, num, 80, seed=4, scale=0.6)
    envs = [MujocoBatch(name, num, num_threads=threads) for threads in (1, 2, 5)]
    for start in range(0, 80, 8):
        chunks = [env.step_chunk(actions[:, start : start + 8]) for env in envs]
        for chunk in chunks[1:]:
            for field in FIELDS:
                np.testing.assert_array_equal(getattr(chunk, field), getattr(chunks[0], field), err_msg=field)
    for env in envs:
        env.close()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_of_torch_do_not_wait_beside_those_of_the_simulation(threads: int) -> None:
    env = MujocoBatch("hopper", 4, num_threads=threads)
    if env._pause_openmp() is None:
        pytest.skip("this torch's OpenMP runtime cannot be paused")

    def waiting(fewer_than: int = 0) -> int:
        for _ in range(1000):  # a thread takes a moment to be gone
            if (now := len(os.listdir("/proc/self/task"))) < fewer_than:
                break
            time.sleep(0.001)
        return now

    numbers, own = torch.arange(1e6), torch.get_num_threads()
    env.step_chunk(np.zeros((4, 1, 3)))
    torch.set_num_threads(3)
    try:
        total = (numbers * numbers).sum()
        before = waiting()
        env.step_chunk(np.zeros((4, 1, 3)))
        assert before - waiting(before) == (2 if threads > 1 else 0)
        assert (numbers * numbers).sum() == total  # new threads do the same work
    finally:
        env._pause_openmp()
        torch.set_num_threads(own)
        env.close()


@pytest.mark.parametrize("value", [1e12, np.nan])
def test_a_simulation_that_breaks_down_is_an_error_that_names_it(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    env = MujocoBatch("hopper", 3)
    env.step_chunk(np.zeros((3, 5, 3)))
    env._state[1, 8] = value
    with pytest.raises(ValueError, match="hopper: the simulation of environment 1 broke down at step 5 .*; 1 of 3"):
        env.step_chunk(np.zeros((3, 4, 3)))


@pytest.mark.parametrize("behind", [True, False])
def test_a_breakdown_counts_only_before_the_end_of_the_episode(behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    env = MujocoBatch("walker2d", 2)
    simulate = env._simulate

    def broken(rows: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moments, warmstart = simulate(rows, actions)
        moments[1, 2, 2] = 0.1  # fallen in the second step
        moments[1, 3 if behind else 2 :, 0] = 0.0  # and reset by MuJoCo
        return moments, warmstart

    monkeypatch.setattr(env, "_simulate", broken)
    if not behind:
        with pytest.raises(ValueError, match="environment 1 broke down at step 1 "):
            env.step_chunk(np.zeros((2, 4, 6)))
        return
    chunk = env.step_chunk(np.zeros((2, 4, 6)))
    assert chunk.length.tolist() == [4, 2] and chunk.terminated.tolist() == [False, True]


def test_what_is_returned_does_not_change_later() -> None:
    env = MujocoBatch("hopper", 2)
    first, chunk = env.reset([0, 1]), env.step_chunk(np.zeros((2, 2, 3)))
    copies = [first.copy(), *(getattr(chunk, field).copy() for field in FIELDS)]
    env.step_chunk(np.ones((2, 90, 3)))
    env.reset([5], [0])
    for part, copy in zip([first, *(getattr(chunk, field) for field in FIELDS)], copies):
        np.testing.assert_array_equal(part, copy)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="one of hopper, walker2d, halfcheetah, ant, humanoid.*, got 'swimmer'"):
        MujocoBatch("swimmer", 1)
    with pytest.raises(ValueError, match="dynamics of hopper must be one of v4, v5, d4rl-v2, got 'v2'"):
        MujocoBatch("hopper", 1, dynamics="v2")
    with pytest.raises(ValueError, match="D4RL has no humanoid"):
        MujocoBatch("humanoid", 1, dynamics="d4rl-v2")
    for bad in ({"num_envs": 0}, {"num_envs": 1, "num_threads": 0}, {"num_envs": 1, "max_episode_steps": 0}):
        with pytest.raises(ValueError, match="num_envs, max_episode_steps and num_threads must be positive"):
            MujocoBatch("hopper", **bad)
    env = MujocoBatch("hopper", 2)
    before = env.reset([1, 2])
    actions = np.zeros((2, 3, 3))
    actions[1, 2, 0] = np.inf
    with pytest.raises(ValueError, match="finite, got .* for environment 1"):
        env.step_chunk(actions)
    with pytest.raises(ValueError, match=r"shape \(2, Ta, 3\), Ta >= 1, got \(2, 3\)"):
        env.step_chunk(actions[:, 0])
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(2, 2\)"):
        env.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="one seed for each of the 2 environments, got 1"):
        env.reset([1])
    np.testing.assert_array_equal(env.reset([], []), before)


def test_a_users_clock_stays() -> None:
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    data, env, action = mujoco.MjData(model), MujocoBatch("hopper", 1), np.zeros((1, 3))
    mujoco.mj_step(model, data)
    before = data.timer.duration[0]
    assert before > 0
    env.step(action)
    mujoco.mj_step(model, data)
    assert data.timer.duration[0] == before

    ticks: list[float] = []

    def clock() -> float:
        ticks.append(0.0)
        return float(len(ticks))

    mujoco.set_mjcb_time(clock)
    try:
        env.step(action)
        assert ticks and mujoco.get_mjcb_time() is clock
    finally:
        mujoco.set_mjcb_time(None)
