"""A batch of single environments behaves as they do one by one, and ended ones stay as they are."""

from __future__ import annotations

import importlib.util

import gymnasium
import numpy as np
import pytest

from ding_ebm.envs.avoid import AvoidBatch, AvoidEnv
from ding_ebm.envs.batch import BatchEnv, ChunkStep, GymBatch, step_chunk_by_steps
from ding_ebm.envs.registry import make_batch_env, make_env

needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed")


@needs_mujoco
@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_mujoco_batch_equals_gymnasium_step_by_step(name: str) -> None:
    rng = np.random.default_rng(0)
    seeds, steps = [5, 6, 5], 60
    batch = GymBatch(lambda: make_env(name), 3)
    first = batch.reset(seeds)
    actions = rng.uniform(-1, 1, (steps, 3, batch.action_dim)).astype(np.float32)
    results = [batch.step(action) for action in actions]
    for i, seed in enumerate(seeds):
        env = make_env(name)
        obs, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(first[i], obs.astype(np.float32))
        ended = False
        for t in range(steps):
            reward, terminated = 0.0, True
            if not ended:
                obs, reward, terminated, truncated, _ = env.step(actions[t, i])
            assert not truncated
            np.testing.assert_array_equal(results[t][0][i], obs.astype(np.float32))
            assert results[t][1][i] == reward and results[t][2][i] == terminated and not results[t][3][i]
            ended = terminated
        assert ended == (name != "halfcheetah"), "random actions fall within 60 steps, and a cheetah cannot fall"
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(batch.reset(seeds), first)
    np.testing.assert_array_equal(batch.step(actions[0])[0], results[0][0])
    batch.close()


@needs_mujoco
def test_time_limit_is_known_and_truncates_and_what_is_truncated_stays() -> None:
    batch = GymBatch(lambda: gymnasium.make("HalfCheetah-v4", max_episode_steps=3), 1)
    batch.reset([0])
    steps = [batch.step(np.full((1, 6), 0.5)) for _ in range(5)]
    assert [(step[2].item(), step[3].item()) for step in steps] == [(False, t >= 2) for t in range(5)]
    assert steps[2][1] != 0 and steps[3][1] == steps[4][1] == 0
    np.testing.assert_array_equal(steps[3][0], steps[2][0])
    assert batch.max_episode_steps == 3


def test_batch_of_single_environments_equals_the_vectorized_one() -> None:
    rng = np.random.default_rng(2)
    single, vectorized = GymBatch(AvoidEnv, 4), AvoidBatch(4)
    for name in ("num_envs", "obs_dim", "action_dim", "max_episode_steps"):
        assert getattr(single, name) == getattr(vectorized, name)
    np.testing.assert_array_equal(single.action_low, vectorized.action_low)
    np.testing.assert_array_equal(single.action_high, vectorized.action_high)
    for seeds in ([1, 2, 3, 4], [9, 1, 1, 0]):
        np.testing.assert_array_equal(single.reset(seeds), vectorized.reset(seeds))
        for _ in range(150):
            action = rng.uniform([-0.01, -0.002], [0.01, 0.01], (4, 2))
            for a, b in zip(single.step(action), vectorized.step(action)):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(single.success, vectorized.success)


class Reports(AvoidEnv):
    """Reports success in steps only, and only after the third, true in every other one."""

    def reset(self, **options):
        self._made = 0
        return super().reset(**options)[0], {}

    def step(self, action):
        self._made += 1
        *others, _ = super().step(action)
        return *others, {"success": np.bool_(self._made % 2 == 0)} if self._made > 3 else {}


def test_success_is_what_was_reported_last_and_is_unknown_until_then() -> None:
    batch = GymBatch(lambda: Reports(max_episode_steps=6), 2)
    batch.reset([0, 1])
    said = []
    for _ in range(8):
        batch.step(np.zeros((2, 2)))
        said.append(None if batch.success is None else batch.success.tolist())
    # the limit comes after the sixth step, and what has ended stays as it is
    assert said == [None] * 3 + [[True] * 2, [False] * 2] + [[True] * 2] * 3
    held = batch.success
    batch.reset([5], [1])
    assert batch.success.tolist() == [True, False] and held.tolist() == [True, True]


@needs_mujoco
def test_running_has_no_notion_of_success() -> None:
    for env in (GymBatch(lambda: make_env("hopper"), 1), make_batch_env("hopper", 1)):
        env.reset([0])
        env.step(np.zeros((1, 3)))
        assert env.success is None


class Odd(AvoidEnv):
    """An environment of which one part is not as it must be."""

    def __init__(self, part: str) -> None:
        super().__init__()
        if part == "observation":
            self.observation_space = gymnasium.spaces.Box(0, 1, (4, 4))
        if part == "action":
            self.action_space = gymnasium.spaces.Discrete(3)
        if part == "limit":
            del self.max_episode_steps


def test_environments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"observation space must be a Box of one dimension, got Box.*4, 4"):
        GymBatch(lambda: Odd("observation"), 1)
    with pytest.raises(ValueError, match="action space must be a Box of one dimension, got Discrete"):
        GymBatch(lambda: Odd("action"), 1)
    with pytest.raises(ValueError, match="has no time limit"):
        GymBatch(lambda: Odd("limit"), 1)
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        GymBatch(AvoidEnv, 0)


def test_bad_seeds_and_actions_are_refused() -> None:
    batch = GymBatch(AvoidEnv, 2)
    with pytest.raises(ValueError, match="one seed for each of the 2 environments, got 3"):
        batch.reset([1, 2, 3])
    batch.reset([1, 2])
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got \(2,\)"):
        batch.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"finite, got .* for environment 0"):
        batch.step(np.array([[np.inf, 0], [0, 0]]))
    with pytest.raises(ValueError, match=r"shape \(2, Ta, 2\), Ta >= 1, got \(2, 0, 2\)"):
        batch.step_chunk(np.zeros((2, 0, 2)))
    with pytest.raises(ValueError, match=r"shape \(2, Ta, 2\), Ta >= 1, got \(2, 2\)"):
        batch.step_chunk(np.zeros((2, 2)))


LIMIT = 30
MAKERS = {
    "gym": lambda num: GymBatch(lambda: AvoidEnv(max_episode_steps=LIMIT), num),
    "avoid": lambda num: AvoidBatch(num, max_episode_steps=LIMIT),
    "avoid, arx": lambda num: AvoidBatch(num, tracking="arx", max_episode_steps=LIMIT),
}
both = pytest.mark.parametrize("kind", MAKERS)


def some_fall(num: int, steps: int) -> np.ndarray:
    """Actions under which a part of the environments hits the first cylinder before the time limit, (num, steps, 2)."""
    sideways = np.linspace(-0.004, 0.004, num)[:, None]
    return np.stack(np.broadcast_arrays(sideways, np.full((1, steps), 0.0099)), axis=2)


@both
def test_resetting_some_leaves_the_others_where_they_are(kind: str) -> None:
    num, actions = 6, some_fall(6, 3 * LIMIT)
    env, twin = MAKERS[kind](num), MAKERS[kind](num)
    env.reset(range(num))
    twin.reset(range(num))
    rows = [4, 1]
    for t in range(8):
        env.step(actions[:, t])
        untouched = twin.step(actions[:, t])
    obs = env.reset([11, 10], rows)
    alone = MAKERS[kind](2)
    np.testing.assert_array_equal(obs[rows], alone.reset([11, 10]))
    others = [0, 2, 3, 5]
    np.testing.assert_array_equal(obs[others], untouched[0][others])
    for t in range(8, 8 + LIMIT):
        step, old, new = env.step(actions[:, t]), twin.step(actions[:, t]), alone.step(actions[rows, t])
        for part, old_part, new_part in zip(step, old, new):
            np.testing.assert_array_equal(part[others], old_part[others])
            np.testing.assert_array_equal(part[rows], new_part)
        if t == LIMIT - 1:  # the limit of those that were not reset
            assert step[3][others].any() and not step[3][rows].any()
    assert not env.running.any() and step[3][rows].any()


@both
def test_resetting_none_or_an_ended_one_works(kind: str) -> None:
    env = MAKERS[kind](3)
    first = env.reset([1, 2, 3])
    np.testing.assert_array_equal(env.reset([], []), first)
    for _ in range(LIMIT):
        last = env.step(np.zeros((3, 2)))
    assert last[3].all() and not env.running.any()
    np.testing.assert_array_equal(env.reset([3], np.array([2])), np.stack([last[0][0], last[0][1], first[2]]))
    assert env.running.tolist() == [False, False, True]
    assert env.step(np.zeros((3, 2)))[3].tolist() == [True, True, False]


def brute_force(env: BatchEnv, actions: np.ndarray, obs: np.ndarray, ended: np.ndarray) -> ChunkStep:
    """A chunk by its definition, one number at a time; ``obs`` and ``ended`` (E, 2) are from before it, and change."""
    num, size, _ = actions.shape
    seen, rewards, lengths = np.zeros((num, size, env.obs_dim), np.float32), np.zeros((num, size)), np.zeros(num, int)
    for t in range(size):
        after = env.step(actions[:, t])
        for i in range(num):
            if not ended[i].any():
                obs[i], rewards[i, t], ended[i], lengths[i] = (
                    after[0][i],
                    after[1][i],
                    (after[2][i], after[3][i]),
                    t + 1,
                )
            seen[i, t] = obs[i]
    return ChunkStep(seen, rewards, ended[:, 0].copy(), ended[:, 1].copy(), lengths)


@both
def test_a_chunk_is_its_steps_and_stops_where_the_episode_ends(kind: str) -> None:
    num, size = 9, 4
    actions = some_fall(num, 36)
    env, twin = MAKERS[kind](num), MAKERS[kind](num)
    obs, ended = env.reset(range(num)), np.zeros((num, 2), dtype=bool)
    twin.reset(range(num))
    lengths = np.zeros(num, dtype=int)
    inside = 0
    for start in range(0, 36, size):
        chunk = env.step_chunk(actions[:, start : start + size])
        expected = brute_force(twin, actions[:, start : start + size], obs, ended)
        for name in ("obs", "reward", "terminated", "truncated", "length"):
            part, wanted = getattr(chunk, name), getattr(expected, name)
            assert part.dtype == wanted.dtype and part.shape == wanted.shape
            np.testing.assert_array_equal(part, wanted, err_msg=name)
        lengths += chunk.length
        inside += int(((chunk.length > 0) & (chunk.length < size)).sum())
    assert chunk.terminated.any() and chunk.truncated.any() and inside > 2
    assert (lengths[chunk.truncated] == LIMIT).all() and (lengths[chunk.terminated] < LIMIT).all()
    assert not chunk.length.any() and not chunk.reward.any(), "nothing is executed after the end"


def test_a_bad_action_late_in_a_chunk_is_refused_before_the_first_step() -> None:
    env = AvoidBatch(2)
    before = env.reset([0, 1])
    actions = np.zeros((2, 3, 2))
    actions[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"finite, got .* for environment 1"):
        step_chunk_by_steps(env, actions)
    np.testing.assert_array_equal(env.reset([], []), before)


BAD_ROWS = {
    "twice": ([1, 2], [0, 0], r"different indices from 0 to 2, got \[0, 0\]"),
    "too high": ([1], [3], r"from 0 to 2, got \[3\]"),
    "negative": ([1], [-1], r"from 0 to 2, got \[-1\]"),
    "mask": ([1, 2, 3], [True, False, True], "must be indices of environments"),
    "seeds": ([1, 2, 3], [0, 1], "one seed for each of the 2 rows, got 3"),
}


@both
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_rows_that_name_no_environments_are_refused(kind: str, bad: str) -> None:
    seeds, rows, message = BAD_ROWS[bad]
    with pytest.raises(ValueError, match=message):
        MAKERS[kind](3).reset(seeds, rows)
