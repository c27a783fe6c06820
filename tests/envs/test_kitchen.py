"""The kitchen is D4RL's: what is observed, what pays and when, how the arm is steered, and what does not collide."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from ding_ebm.envs.kitchen import SUBTASKS, KitchenEnv, goal_of
from ding_ebm.envs.registry import make_batch_env
from ding_ebm.envs.tasks.kitchen import SUBTASKS_OF

needs_kitchen = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="Gymnasium-Robotics is not installed (extra kitchen)"
)
NOTHING = np.zeros(9, dtype=np.float32)
COMPLETE, MIXED = SUBTASKS_OF["kitchen_complete"], SUBTASKS_OF["kitchen_mixed"]
# D4RL's amplitudes of noise on each position, times its ratio.
NOISE = 0.1 * np.array(
    [0.1] * 9 + [0.005] * 2 + [0.0005] * 6 + [0.005] * 3 + [0.1] * 3 + [0.005] * 3 + [0.1] * 3 + [0.005]
)


@pytest.fixture(scope="module")
def complete() -> KitchenEnv:
    return KitchenEnv(COMPLETE)


@pytest.fixture(scope="module")
def mixed() -> KitchenEnv:
    return KitchenEnv(MIXED)


def plant(env: KitchenEnv, name: str, share: float = 1.0) -> None:
    """Put a subtask's things at their goal, or a share of the way there from where they begin."""
    where, goal = SUBTASKS[name]
    env.robot.data.qpos[where] += share * (np.array(goal) - env.robot.data.qpos[where])
    env.robot.data.qvel[:] = 0.0


def test_goals_are_d4rls_and_zero_in_what_no_subtask_is_about() -> None:
    goal = goal_of(MIXED)
    assert goal[[11, 12, 17, 18, 22]].tolist() == [-0.88, -0.01, -0.69, -0.05, -0.75]
    assert goal[23:].tolist() == [-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06]
    assert not goal[:11].any() and not goal[13:17].any() and not goal[19:22].any()
    assert goal_of(COMPLETE)[19] == 0.37 and not goal_of(COMPLETE)[11:13].any()
    assert SUBTASKS_OF["kitchen_partial"] == COMPLETE == ("microwave", "kettle", "light switch", "slide cabinet")


@needs_kitchen
def test_an_observation_is_the_simulators_positions_with_d4rls_noise_and_the_goal(mixed: KitchenEnv) -> None:
    rng, difference = np.random.default_rng(0), []
    for seed in range(30):
        obs, _ = mixed.reset(seed=seed)
        obs, *_ = mixed.step(rng.uniform(-1, 1, 9))
        difference.append(obs[:30] - mixed.robot.data.qpos)
        np.testing.assert_array_equal(obs[30:], goal_of(MIXED).astype(np.float32))
    most = np.abs(difference).max(axis=0)
    assert (most <= NOISE + 1e-6).all() and (most > 0.8 * NOISE).all(), "as wide as D4RL's, in every number"


@needs_kitchen
def test_the_view_of_gymnasium_robotics_without_velocities_is_ours_without_noise(complete: KitchenEnv) -> None:
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv as Original

    original = Original(list(COMPLETE), robot_noise_ratio=0.0, object_noise_ratio=0.0)
    theirs = original.reset(seed=0)[0]["observation"]
    ours, _ = complete.reset(seed=0)
    assert (np.abs(ours[:30] - np.concatenate([theirs[0:9], theirs[18:39]])) <= NOISE + 1e-6).all()
    np.testing.assert_array_equal(complete.robot.data.qpos, original.robot_env.data.qpos)


@needs_kitchen
def test_a_subtask_pays_once_when_it_is_solved_and_all_of_them_end_the_episode(complete: KitchenEnv) -> None:
    _, info = complete.reset(seed=0)
    assert info == dict(success=False, solved=())
    assert complete.step(NOTHING)[1:4] == (0.0, False, False)
    plant(complete, "microwave")
    _, reward, terminated, _, info = complete.step(NOTHING)
    assert (reward, terminated, info["solved"]) == (1.0, False, ("microwave",))
    assert complete.step(NOTHING)[1] == 0.0, "it is still open, and paid already"
    plant(complete, "slide cabinet")
    plant(complete, "light switch")
    assert complete.step(NOTHING)[1] == 2.0
    plant(complete, "microwave", share=-1.0)
    plant(complete, "kettle")
    _, reward, terminated, truncated, info = complete.step(NOTHING)
    assert (reward, terminated, truncated) == (1.0, True, False) and info["success"]
    assert not complete.reset(seed=0)[1]["success"]
    plant(complete, "microwave")
    assert complete.step(NOTHING)[1] == 1.0, "a new episode pays anew"


@needs_kitchen
def test_what_is_not_asked_for_does_not_pay(complete: KitchenEnv, mixed: KitchenEnv) -> None:
    for env, pays in ((complete, {"slide cabinet"}), (mixed, {"bottom burner"})):
        for name in ("slide cabinet", "bottom burner", "top burner", "hinge cabinet"):
            env.reset(seed=1)
            plant(env, name)
            assert env.step(NOTHING)[1] == float(name in pays), name


@needs_kitchen
def test_a_subtask_is_solved_within_0_3_of_its_goal(complete: KitchenEnv) -> None:
    for position, pays in ((-0.75 + 0.32, 0.0), (-0.75 + 0.28, 1.0)):  # noise of the microwave is 0.01
        complete.reset(seed=2)
        complete.robot.data.qpos[22] = position
        assert complete.step(NOTHING)[1] == pays


@needs_kitchen
def test_an_action_steers_from_the_observed_positions_and_is_clipped(complete: KitchenEnv) -> None:
    obs, _ = complete.reset(seed=3)
    action = np.linspace(-1.5, 1.5, 9)
    complete.step(action)
    low = [-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0]
    high = [2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04]
    expected = np.clip(obs[:9] + 0.08 * 2.0 * np.clip(action, -1, 1), low, high)
    np.testing.assert_allclose(complete.robot.data.ctrl, expected, atol=1e-6)
    assert complete.robot.data.time == pytest.approx(0.08)


@needs_kitchen
def test_only_the_pedestal_of_the_simulator_is_changed_which_is_no_obstacle_in_d4rl(complete: KitchenEnv) -> None:
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv as Original

    ours, theirs = complete.robot.model, Original(list(COMPLETE)).robot_env.model
    changed = np.flatnonzero(ours.geom_contype != theirs.geom_contype)
    assert changed.tolist() == np.flatnonzero(ours.geom_conaffinity != theirs.geom_conaffinity).tolist()
    assert len(changed) == 1 and ours.geom_size[changed[0], :2].tolist() == [0.12, 0.9]
    assert not ours.geom_contype[changed[0]] and theirs.geom_contype[changed[0]]


@needs_kitchen
def test_episodes_repeat_by_their_seeds_in_chunks_and_in_batches_and_end_at_the_limit() -> None:
    env = KitchenEnv(MIXED, max_episode_steps=6)
    actions = np.random.default_rng(4).uniform(-1, 1, (8, 9)).astype(np.float32)
    runs = []
    for seed in (5, 6, 5):
        obs = [env.reset(seed=seed)[0]]
        for t in range(6):
            step = env.step(actions[t])
            obs.append(step[0])
            assert step[2:4] == (False, t == 5)
        runs.append(np.stack(obs))
    np.testing.assert_array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0], runs[1])
    batch = make_batch_env("kitchen_mixed", 2)
    np.testing.assert_array_equal(batch.reset([6, 5]), [runs[1][0], runs[0][0]])
    made = batch.step_chunk(np.stack([actions[:6], actions[:6]]))
    np.testing.assert_array_equal(made.obs, [runs[1][1:], runs[0][1:]])
    assert batch.success is not None and not batch.success.any() and batch.running.all()
