"""robomimic's tasks step as robosuite does, begin as their seeds say, and pay as DPPO's do."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ding_ebm.envs import task as task_module
from ding_ebm.envs.registry import get_task, make_batch_env, make_env
from ding_ebm.envs.seeding import global_seed

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("MuJoCo is not installed", allow_module_level=True)

from ding_ebm.envs.robomimic import SETUPS, RobomimicEnv, env_args

needs_robosuite = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs the extra robomimic")
every = pytest.mark.parametrize(
    "name", ["lift", *(pytest.param(name, marks=pytest.mark.slow) for name in ("can", "square", "transport"))]
)


def make(name: str, limit: int = 300) -> RobomimicEnv:
    return RobomimicEnv(name, max_episode_steps=limit)


def actions_of(env: RobomimicEnv, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, env.action_space.shape[0])).astype(np.float32)


def run(env: RobomimicEnv, seed: int, actions: np.ndarray) -> list[np.ndarray]:
    """Observations and rewards of an episode."""
    return [env.reset(seed=seed)[0], *(np.append(*env.step(action)[:2]) for action in actions)]


def test_the_table_says_what_the_setups_do() -> None:
    for name, setup in SETUPS.items():
        task = get_task(name)
        assert (task.obs_dim, task.action_dim) == (setup.obs_dim, setup.action_dim)
    assert [setup.obs_dim for setup in SETUPS.values()] == [19, 23, 23, 59]
    assert [get_task(name).max_episode_steps for name in SETUPS] == [300, 300, 400, 800]


def test_what_files_say_of_the_environment_is_what_robomimics_do() -> None:
    said = json.loads(json.dumps(env_args("transport")))
    assert (said["env_name"], said["env_version"], said["type"]) == ("TwoArmTransport", "1.4.1", 1)
    options = said["env_kwargs"]
    assert options["robots"] == ["Panda", "Panda"] and options["env_configuration"] == "single-arm-opposed"
    assert options["control_freq"] == 20 and not options["reward_shaping"] and options["ignore_done"]
    controller = options["controller_configs"]
    assert (controller["type"], controller["kp"], controller["output_max"][3]) == ("OSC_POSE", 150, 0.5)
    assert "env_configuration" not in env_args("lift")["env_kwargs"]


def test_without_the_extra_the_task_is_known_and_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(task_module.NEEDED, "robomimic", ("no_such_simulator",))
    for make_it in (make_env, lambda name: make_batch_env(name, 2)):
        with pytest.raises(ModuleNotFoundError, match=r"the task can needs no_such_simulator: .*ding_ebm\[robomimic\]"):
            make_it("can")


@needs_robosuite
@every
def test_it_moves_as_robosuite_bit_by_bit(name: str) -> None:
    import robosuite

    ours = make(name)
    with global_seed(0):
        theirs = robosuite.make(env_args(name)["env_name"], **env_args(name)["env_kwargs"], hard_reset=False)
    ours.reset(seed=5)
    with global_seed(5):
        theirs.reset()
    for action in actions_of(ours, 12):
        seen, reward, *_ = ours.step(action)
        late, their_reward, done, _ = theirs.step(action.astype(np.float64))
        np.testing.assert_array_equal(ours._robosuite.sim.data.qpos, theirs.sim.data.qpos)
        np.testing.assert_array_equal(ours._robosuite.sim.data.qvel, theirs.sim.data.qvel)
        assert reward == their_reward == 0.0 and not done
        theirs.sim.forward()
        fresh = theirs._get_observations(force_update=True)
        hands = [f"robot{i}_{part}" for i in range(SETUPS[name].robots) for part in PARTS]
        expected = np.concatenate([fresh[key] for key in [*hands, "object-state"]]).astype(np.float32)
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(ours.hands(seen), expected[: 9 * SETUPS[name].robots])
        # what robosuite returns is a simulated step or two (4 ms) older: at most 2 cm at 5 m/s
        old = np.concatenate([late[key] for key in hands])
        assert not np.array_equal(old, expected[: len(old)]) and np.abs(old - expected[: len(old)]).max() < 0.02


PARTS = ("eef_pos", "eef_quat", "gripper_qpos")


@needs_robosuite
@every
def test_a_seed_begins_the_same_episode_whatever_happened_before(name: str) -> None:
    used, fresh = make(name), make(name)
    actions = actions_of(fresh, 6)
    first = run(used, 1, actions_of(used, 9, seed=7))
    expected = run(fresh, 2, actions)
    for ours, theirs in zip(run(used, 2, actions), expected):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first[0], expected[0])
    with global_seed(3):  # its own sequence, not that of the global generator
        second, third = used.reset()[0], used.reset()[0]
    with global_seed(3):
        assert not np.array_equal(used.reset()[0], second) and not np.array_equal(second, third)


@needs_robosuite
def test_workers_and_chunks_give_the_same_episodes_and_numpys_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (it is the generator that robosuite draws from)
    batch, alone = make_batch_env("lift", 3), make("lift")
    actions = np.stack([actions_of(alone, 5, seed=i) for i in range(3)])
    first = batch.reset([4, 9, 4])
    chunk = batch.step_chunk(actions)
    for i, seed in enumerate([4, 9, 4]):
        obs, *rest = run(alone, seed, actions[i])
        np.testing.assert_array_equal(first[i], obs)
        np.testing.assert_array_equal(np.column_stack([chunk.obs[i], chunk.reward[i]]), rest)
    assert not np.array_equal(first[0], first[1]) and not batch.success.any()
    batch.close()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@needs_robosuite
def test_a_lifted_cube_pays_one_a_step_and_success_stays_when_it_falls() -> None:
    env = make("lift", limit=12)
    env.reset(seed=0)
    said = [env.step(np.zeros(7))[1:] for _ in range(2)]
    data = env._robosuite.sim.data
    height = data.get_joint_qpos("cube_joint0")[2]
    data.set_joint_qpos("cube_joint0", [0.2, 0.2, height + 0.1, 1, 0, 0, 0])
    data.set_joint_qvel("cube_joint0", np.zeros(6))
    said += [env.step(np.zeros(7))[1:] for _ in range(10)]
    rewards = [reward for reward, *_ in said]
    # 4 cm above the table is lifted; from 10 cm it falls 6 cm in 0.11 s, two steps
    assert rewards == [0.0] * 2 + [1.0] * 2 + [0.0] * 8
    assert [info["success"] for *_, info in said] == [False] * 2 + [True] * 10
    assert [(terminated, truncated) for _, terminated, truncated, _ in said] == [(False, t == 11) for t in range(12)]
    assert env.reset(seed=1)[1] == {"success": False}


@needs_robosuite
def test_gymnasiums_checks_pass() -> None:
    check_env(make("lift"), skip_render_check=True)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of lift, can, square, transport, got 'stack'"):
        make("stack")
