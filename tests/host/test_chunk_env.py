"""Chunks in the host's environment against single steps of the same episode."""

from __future__ import annotations

import numpy as np
import pytest
from easydict import EasyDict

from ding_ebm.host.env import ChunkTaskEnv, TaskEnv


def actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.01, 0.01, (count, 2)).astype(np.float32)


def chunked(act_steps: int, cond_steps: int) -> ChunkTaskEnv:
    env = ChunkTaskEnv(EasyDict(env_id="avoid", act_steps=act_steps, cond_steps=cond_steps))
    env.seed(3, dynamic_seed=False)
    return env


def single() -> tuple[TaskEnv, list[np.ndarray]]:
    env = TaskEnv(EasyDict(env_id="avoid"))
    env.seed(3, dynamic_seed=False)
    return env, [env.reset()]


@pytest.mark.parametrize(("act_steps", "cond_steps"), [(1, 1), (4, 1), (3, 2), (2, 5)])
def test_a_chunk_is_its_actions_one_after_another_and_a_history_the_latest_observations(act_steps, cond_steps):
    env, (twin, seen) = chunked(act_steps, cond_steps), single()
    np.testing.assert_array_equal(env.reset(), np.repeat(seen[0][None], cond_steps, 0))
    for number in range(4):
        chunk, reward = actions(act_steps, seed=number), 0.0
        for action in chunk:
            step = twin.step(action)
            seen.append(step.obs)
            reward += float(step.reward)
        timestep = env.step(chunk)
        history = [seen[max(len(seen) - back, 0)] for back in range(cond_steps, 0, -1)]
        np.testing.assert_array_equal(timestep.obs, np.stack(history))
        assert float(timestep.reward) == pytest.approx(reward, rel=1e-5)
        assert timestep.info["steps"] == act_steps and not timestep.done


def test_a_chunk_stops_where_the_episode_ends_and_the_return_is_of_the_steps_made():
    straight = np.tile(np.array([[0.0, 0.01]], dtype=np.float32), (400, 1))  # into the first cylinder
    env, (twin, _) = chunked(7, 2), single()
    env.reset()
    total, steps, done = 0.0, 0, False
    while not done:
        step = twin.step(straight[0])
        total, steps, done = total + float(step.reward), steps + 1, step.done
    assert steps % 7  # within a chunk
    made, reward = 0, 0.0
    while True:
        timestep = env.step(straight[:7])
        made, reward = made + timestep.info["steps"], reward + float(timestep.reward)
        if timestep.done:
            break
    assert made == steps and timestep.info["episode_info"]["length"] == steps
    assert timestep.info["terminated"] and not timestep.info["truncated"]
    assert timestep.info["eval_episode_return"] == pytest.approx(total) == pytest.approx(reward, rel=1e-5)
    np.testing.assert_array_equal(timestep.obs[-1], step.obs)


def test_a_new_episode_has_forgotten_the_last_one():
    env = chunked(2, 3)
    env.reset()
    env.step(actions(2))
    fresh = env.reset()
    assert (fresh == fresh[0]).all()


def test_chunks_of_another_length_are_refused():
    env = chunked(4, 1)
    env.reset()
    for wrong in (actions(3), actions(4)[0]):
        with pytest.raises(ValueError, match=r"a decision is of 4 actions \(Ta, Da\), got"):
            env.step(wrong)
