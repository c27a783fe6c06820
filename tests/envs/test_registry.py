"""The task table agrees with the environments, the data files and D4RL's reference returns."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from ding_ebm.data.rewards import KINDS
from ding_ebm.envs import task as task_module
from ding_ebm.envs.avoid import AvoidBatch
from ding_ebm.envs.avoid_modes import AvoidModesBatch, AvoidModesEnv
from ding_ebm.envs.registry import TASKS, get_task, make_batch_env, make_env, normalized_score

LOCOMOTION = ["hopper", "walker2d", "halfcheetah", "ant"]
RUNNING = [*LOCOMOTION, "humanoid"]
ANT_MAZES = [f"antmaze_{kind}" for kind in ("umaze", "umaze_diverse")] + [
    f"antmaze_{size}_{kind}" for size in ("medium", "large") for kind in ("play", "diverse")
]
POINT_MAZES = ["maze2d_umaze", "maze2d_medium", "maze2d_large"]
MODES = ["avoid_m1", "avoid_m2", "avoid_m3"]
ROBOMIMIC = ["lift", "can", "square", "transport"]
FURNITURE = [f"{name}_{randomness}" for name in ("one_leg", "lamp", "round_table") for randomness in ("low", "med")]
KITCHENS = ["kitchen_complete", "kitchen_partial", "kitchen_mixed"]
needs_kitchen = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="Gymnasium-Robotics is not installed"
)
needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed")
needs_robosuite = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs the extra robomimic")
TASK_NAMES = [
    "avoid",
    *MODES,
    *(pytest.param(name, marks=needs_mujoco) for name in [*RUNNING, *ANT_MAZES, *POINT_MAZES]),
    pytest.param("lift", marks=needs_robosuite),
    *(pytest.param(name, marks=[needs_robosuite, pytest.mark.slow]) for name in ROBOMIMIC[1:]),
    *(pytest.param(name, marks=needs_kitchen) for name in KITCHENS),
]


@pytest.mark.parametrize("name", TASK_NAMES)
def test_table_agrees_with_the_environments(name: str) -> None:
    task, env, batch = get_task(name), make_env(name), make_batch_env(name, 2)
    assert env.observation_space.shape == (task.obs_dim,) == (batch.obs_dim,)
    assert env.action_space.shape == (task.action_dim,) == (batch.action_dim,)
    low, high = task.action_bounds
    assert (batch.action_low == low).all() and (batch.action_high == high).all()
    assert batch.num_envs == 2 and batch.max_episode_steps == task.max_episode_steps
    assert batch.reset([0, 1]).shape == (2, task.obs_dim)


@needs_mujoco
@pytest.mark.parametrize("name", RUNNING)
def test_locomotion_is_version_4_and_made_without_a_warning(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = make_env(name)
    assert not caught
    assert env.spec is not None and env.spec.id.endswith("-v4")


def test_importing_the_table_loads_no_simulator() -> None:
    modules = "('mujoco', 'robosuite', 'torch', 'ding')"
    code = f"import sys, ding_ebm.envs.registry; print([m for m in {modules} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_scores_are_d4rls() -> None:
    assert set(TASKS) == {"avoid", *MODES, *RUNNING, *ANT_MAZES, *POINT_MAZES, *ROBOMIMIC, *KITCHENS, *FURNITURE}
    for name, low, high in (
        ("hopper", -20.272305, 3234.3),
        ("walker2d", 1.629008, 4592.3),
        ("halfcheetah", -280.178953, 12135.0),
        ("ant", -325.6, 3879.7),
        *((name, 0.0, 1.0) for name in ANT_MAZES),
        *((name, 0.0, 4.0) for name in KITCHENS),
        ("maze2d_umaze", 23.85, 161.86),
        ("maze2d_medium", 13.13, 277.39),
        ("maze2d_large", 6.7, 273.99),
    ):
        np.testing.assert_allclose(normalized_score(name, np.array([low, high, (low + high) / 2])), [0, 100, 50])
    assert normalized_score("hopper", 1600.0) == pytest.approx(49.784, abs=1e-3)
    assert normalized_score("hopper-d4rl-v2", 3234.3) == 100
    assert normalized_score("humanoid", 5000.0) is None and normalized_score("lift", 1.0) is None


def test_reference_returns_of_avoid_are_standing_still_and_the_fastest_way_of_the_best_lane() -> None:
    low, high = get_task("avoid").reference_returns
    env = AvoidBatch(2)
    env.reset([0, 1])
    env._target = env._actual = env._previous = np.array([[0.525, -0.28], [0.525, -0.28]])
    returns = np.zeros(2)
    for t in range(150):
        # Right of the first cylinder, left of the next, right of the last: sideways as needed, up at full speed.
        goal = 0.55 if t < 23 else 0.53 if t < 42 else 0.56
        sideways = np.clip(goal - env._target[1, 0], -0.01, 0.01)
        _, reward, _, truncated = env.step(np.array([[0.0, 0.0], [sideways, 0.01]]))
        returns += reward
    assert truncated.tolist() == [True, False] and env.success.tolist() == [False, True]
    assert returns[0] == pytest.approx(low, abs=1e-9)
    assert returns[1] == pytest.approx(high, abs=0.0021), "to a step"


def test_reference_returns_of_the_modes_are_standing_still_and_the_straightest_rewarded_way() -> None:
    corners = np.array([(0.548, -0.09), (0.3905, 0.0644), (0.30, 0.212), (0.30, 1.0)])
    env, goal, returns = AvoidModesBatch(2), 0, np.zeros(2)
    env._target = env._actual = env._previous = np.array([[0.525, -0.28], [0.525, -0.28]])
    for _ in range(100):
        way = corners[goal] - env._target[1]
        action = way / max(np.abs(way).max() / 0.01, 1.0)
        goal += int(np.abs(way).max() <= 0.01)
        _, reward, _, truncated = env.step(np.stack([np.zeros(2), action]))
        returns += reward
    assert truncated.all() and env.success.tolist() == [False, True]
    for name in MODES:
        assert returns.tolist() == list(get_task(name).reference_returns)
    # No way pays more than 79: from y = -0.28 at 0.01 a step, 47 steps are at or above 0.26 and 32 above 0.40.
    assert 77 <= returns[1] <= 79


def test_the_page_of_tasks_has_the_tables_facts() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
    lines = [line.strip("| ").split(" | ") for line in page.split("## Locomotion")[0].splitlines() if line[:3] == "| `"]
    assert [line[0].strip("`") for line in lines] == list(TASKS)
    for line, task in zip(lines, TASKS.values()):
        sizes = [task.obs_dim, task.action_dim, task.max_episode_steps]
        low_to_high = "{} to {}".format(*task.reference_returns) if task.reference_returns else "none published"
        assert line[1:] == [f"`{task.extra}`", *map(str, sizes), low_to_high, ", ".join(task.data_sets)]


def test_limits_and_names_of_the_mazes_are_d4rls() -> None:
    limits = {"antmaze_umaze": 700, "antmaze_umaze_diverse": 700, "maze2d_umaze": 300, "maze2d_medium": 600}
    limits["maze2d_large"] = 800
    for name in (*ANT_MAZES, *POINT_MAZES):
        assert get_task(name).max_episode_steps == limits.get(name, 1000)
    assert get_task("antmaze_large_diverse").d4rl_id == "antmaze-large-diverse-v2"
    assert get_task("maze2d_medium").d4rl_id == "maze2d-medium-v1" and get_task("humanoid").d4rl_id is None


def test_data_sets_name_their_files() -> None:
    assert get_task("hopper").data_files("medium_expert") == ("hopper_medium.hdf5", "hopper_expert.hdf5")
    assert get_task("avoid").data_files("demonstrations") == ("avoid_demonstrations.hdf5",)
    for name in MODES:
        assert get_task(name).data_files("demonstrations") == (f"{name}_demonstrations.hdf5",)
    for name in (*ANT_MAZES, *POINT_MAZES, *KITCHENS):
        assert get_task(name).data_files("demonstrations") == (f"{name}.hdf5",)
        assert get_task(name).reward_tuning == ("antmaze" if name in ANT_MAZES else "none")
    for name in LOCOMOTION:
        assert set(get_task(name).data_sets) == {"medium", "medium_replay", "medium_expert", "expert"}
    assert all(task.reward_tuning in KINDS for task in TASKS.values())


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown task 'hoper', did you mean 'hopper'"):
        get_task("hoper")
    with pytest.raises(
        ValueError, match=r"unknown task 'xyz'\. Known: hopper, walker2d, halfcheetah, ant, humanoid, antmaze_umaze"
    ):
        make_batch_env("xyz", 3)
    with pytest.raises(ValueError, match=r"unknown data set of hopper 'medium-expert', did you mean 'medium_expert'"):
        get_task("hopper").data_files("medium-expert")
    with pytest.raises(ValueError, match="unknown dynamics 'v6' of the task hopper. Known: v4, v5, d4rl-v2"):
        get_task("hopper", "v6")
    with pytest.raises(ValueError, match="unknown dynamics 'd4rl-v2' of the task humanoid. Known: v4, v5"):
        make_batch_env("humanoid", 1, "d4rl-v2")
    with pytest.raises(ValueError, match="unknown dynamics 'v4' of the task avoid. Known: ideal, arx, arx-stale"):
        make_env("avoid", "v4")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs mujoco, imageio, packaging: .*'ding_ebm\[mujoco\]'"):
        make_env("hopper")
    with pytest.raises(ModuleNotFoundError, match=r"the task walker2d needs mujoco"):
        make_batch_env("walker2d", 2)
    with pytest.raises(ModuleNotFoundError, match=r"needs gymnasium_robotics, mujoco: .*'ding_ebm\[kitchen\]'"):
        make_batch_env("kitchen_mixed", 2)
    make_env("avoid")


@pytest.mark.parametrize("name", MODES)
def test_the_modes_are_environments_of_their_own_reward(name: str) -> None:
    assert isinstance(make_batch_env(name, 3), AvoidModesBatch) and isinstance(make_env(name), AvoidModesEnv)
    assert type(make_batch_env("avoid", 3)) is AvoidBatch and type(make_env("avoid")) is not AvoidModesEnv


@pytest.mark.parametrize("name", ["avoid", *MODES])
def test_avoid_has_dynamics_of_a_lagging_arm_and_its_stale_observations(name: str) -> None:
    for dynamics, tracking, stale in (("ideal", "ideal", False), ("arx", "arx", False), ("arx-stale", "arx", True)):
        batch, single = make_batch_env(name, 2, dynamics), make_env(name, dynamics)
        assert (batch._tracking, batch._stale) == (single._avoid._tracking, single._avoid._stale) == (tracking, stale)
        assert batch.max_episode_steps == single.max_episode_steps == get_task(name).max_episode_steps
    assert get_task(f"{name}-arx-stale").name == f"{name}-arx-stale" == get_task(name, "arx-stale").name
    assert get_task(name, "ideal").name == name


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_project_files_have_the_dimensions_of_the_table(name: str, data_dir: Path) -> None:
    task = get_task(name)
    for data_set in task.data_sets:
        for file_name in task.data_files(data_set):
            with h5py.File(data_dir / file_name) as file:
                assert file["observations"].shape[1] == task.obs_dim
                assert file["actions"].shape[1] == task.action_dim
