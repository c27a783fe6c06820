"""Rollouts against a plain loop over one environment, and what they promise about seeds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ding_ebm.envs.avoid import AvoidBatch, AvoidEnv
from ding_ebm.envs.avoid_modes import AvoidModesBatch, AvoidModesEnv
from ding_ebm.envs.batch import GymBatch
from ding_ebm.evaluation.rollout import rollout

SEEDS = [3, 7, 7, 11, 2]


def to_the_right(obs: np.ndarray) -> np.ndarray:
    """Steer around the first cylinder; some starts hit a later one, so that episodes differ in length."""
    x, y = obs[:, 2], obs[:, 3]
    aim = np.where(y < -0.05, 0.565, 0.5)
    return np.stack([np.clip(aim - x, -0.004, 0.004), np.full(len(obs), 0.009)], axis=1).astype(np.float32)


def one_by_one(seed: int) -> tuple[float, int, bool, bool, np.ndarray]:
    env = AvoidEnv()
    obs, _ = env.reset(seed=seed)
    seen, total, terminated, truncated = [obs], 0.0, False, False
    while not (terminated or truncated):
        obs, reward, terminated, truncated, info = env.step(to_the_right(obs[None])[0])
        seen.append(obs)
        total += reward
    return total, len(seen) - 1, terminated, info["success"], np.stack(seen)


@pytest.mark.parametrize("num_envs", [1, 2, 5, 8])
@pytest.mark.parametrize("native", [True, False])
def test_episodes_are_those_of_a_loop_over_one_environment(num_envs, native):
    env = AvoidBatch(num_envs) if native else GymBatch(AvoidEnv, num_envs)
    episodes = rollout(to_the_right, env, SEEDS, keep_trajectories=True)
    for i, seed in enumerate(SEEDS):
        total, length, terminated, success, seen = one_by_one(seed)
        assert episodes.returns[i] == pytest.approx(total, abs=1e-12)
        assert (episodes.lengths[i], episodes.terminated[i], episodes.success[i]) == (length, terminated, success)
        np.testing.assert_array_equal(episodes.trajectories[i], seen)


def test_a_time_limit_is_no_termination():
    episodes = rollout(lambda obs: np.zeros((len(obs), 2), np.float32), AvoidBatch(3, max_episode_steps=9), [0, 1, 2])
    assert episodes.lengths.tolist() == [9, 9, 9]
    assert not episodes.terminated.any() and not episodes.success.any()


@pytest.mark.parametrize("count", [6, 7])
def test_the_same_seeds_and_policy_state_give_the_same_bits(count):
    def run(seeds):
        rng = np.random.default_rng(0)
        act = lambda obs: rng.uniform(-0.01, 0.01, (len(obs), 2)).astype(np.float32)  # noqa: E731
        return rollout(act, AvoidBatch(3), seeds, keep_trajectories=True)

    first, again, other = run(range(count)), run(range(count)), run(range(1, count + 1))
    assert first.returns.tobytes() == again.returns.tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first.trajectories, again.trajectories))
    assert first.trajectories[0].tobytes() != other.trajectories[0].tobytes()


def test_the_policy_sees_running_environments_only_and_once_a_step():
    sizes = []

    def act(obs: np.ndarray) -> np.ndarray:
        sizes.append(len(obs))
        return to_the_right(obs)

    episodes = rollout(act, AvoidBatch(4), SEEDS)
    first, second = episodes.lengths[:4], episodes.lengths[4:]
    expected = [int((lengths > step).sum()) for lengths in (first, second) for step in range(lengths.max())]
    assert sizes == expected


def test_actions_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"act must return \(3, 2\) actions, got \(3, 3\)"):
        rollout(lambda obs: np.zeros((len(obs), 3), np.float32), AvoidBatch(3), [0, 1, 2])


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        rollout(to_the_right, AvoidBatch(3), [])


# Policies over chunks.

# Up to which y which x is aimed at, and how fast y grows: the way that avoid_m1 rewards.
GATES = ((-0.05, 0.56, 0.0095), (0.04, 0.36, 0.004), (0.12, 0.36, 0.0095), (1.0, 0.27, 0.0095))


def by_the_left(act_steps: int, error: float = 0.0):
    """A policy over chunks that takes the rewarded way, or passes its gates ``error`` to the right, onto cylinders.

    It looks at the first and at the last observation of its history, so that a wrong one leads elsewhere.
    """

    def act(seen: np.ndarray) -> np.ndarray:
        x, y = seen[:, -1, 2], seen[:, -1, 3]
        aim, rise = (np.select([y < gate[0] for gate in GATES], [gate[i] for gate in GATES]) for i in (1, 2))
        left = (aim + error + 0.05 * (x - seen[:, 0, 2]) - x)[:, None] / act_steps
        sideways = np.repeat(np.clip(left, -0.0095, 0.0095), act_steps, axis=1)
        return np.stack([sideways, np.repeat(rise[:, None], act_steps, axis=1)], axis=2).astype(np.float32)

    return act


def chunk_by_chunk(make, act, seed: int, cond_steps: int) -> tuple[float, int, bool, bool, np.ndarray]:
    env = make()
    obs, _ = env.reset(seed=seed)
    seen, total, ended = [obs], 0.0, False
    while not ended:
        history = np.stack([seen[max(len(seen) - back, 0)] for back in range(cond_steps, 0, -1)])
        for action in act(history[None])[0]:
            obs, reward, terminated, truncated, info = env.step(action)
            seen.append(obs)
            total += reward
            ended = terminated or truncated
            if ended:
                break
    return total, len(seen) - 1, terminated, info["success"], np.stack(seen)


@pytest.mark.parametrize(("act_steps", "cond_steps"), [(1, 1), (3, 2), (7, 4)])
@pytest.mark.parametrize(("num_envs", "native"), [(1, True), (4, True), (8, True), (3, False)])
def test_episodes_by_chunks_are_those_of_a_loop_over_one_environment(act_steps, cond_steps, num_envs, native):
    outcomes = set()
    for (single, batch), error in product(((AvoidEnv, AvoidBatch), (AvoidModesEnv, AvoidModesBatch)), (0.0, 0.05)):
        env, act = batch(num_envs) if native else GymBatch(single, num_envs), by_the_left(act_steps, error)
        options = dict(act_steps=act_steps, cond_steps=cond_steps, keep_trajectories=True)
        episodes = rollout(act, env, SEEDS, **options)
        for i, seed in enumerate(SEEDS):
            total, length, terminated, success, seen = chunk_by_chunk(single, act, seed, cond_steps)
            assert episodes.returns[i] == pytest.approx(total, abs=1e-12)
            assert (episodes.lengths[i], episodes.terminated[i], episodes.success[i]) == (length, terminated, success)
            np.testing.assert_array_equal(episodes.trajectories[i], seen)
            outcomes.add((single, success, terminated))
    # both tasks are done and failed; only the first ends an episode that is done
    assert outcomes == {(AvoidEnv, True, True), (AvoidEnv, False, True)} | {
        (AvoidModesEnv, done, not done) for done in (False, True)
    }


def test_chunks_of_one_action_are_the_same_episodes_as_single_actions():
    def run(chunked: bool):
        rng = np.random.default_rng(0)

        def act(obs: np.ndarray) -> np.ndarray:
            obs = obs[:, 0] if chunked else obs
            action = to_the_right(obs) + rng.normal(0.0, 0.002, (len(obs), 2)).astype(np.float32)
            return action[:, None] if chunked else action

        options = dict(act_steps=1) if chunked else {}
        return rollout(act, AvoidBatch(3), range(7), keep_trajectories=True, **options)

    single, chunked = run(False), run(True)
    for name in ("returns", "lengths", "terminated", "success"):
        assert getattr(single, name).tobytes() == getattr(chunked, name).tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(single.trajectories, chunked.trajectories))
    assert len(set(single.lengths.tolist())) > 2


def test_a_chunk_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"act must return \(3, 4, 2\) actions, got \(3, 5, 2\)"):
        rollout(lambda seen: np.zeros((len(seen), 5, 2), np.float32), AvoidBatch(3), [0, 1, 2], act_steps=4)


def test_success_is_unknown_where_the_task_has_none():
    class Silent(AvoidEnv):
        def _info(self):
            return {}

    env = GymBatch(lambda: Silent(max_episode_steps=4), 2)
    assert rollout(to_the_right, env, [0, 1, 2]).success is None
