"""The mazes are D4RL's: numbers of its models and layouts, its order of operations, its goals; and batches agree.

The numbers below were read off D4RL 1.1's own models and layouts.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ding_ebm.envs.registry import make_batch_env, make_env

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("MuJoCo is not installed", allow_module_level=True)

import mujoco

from ding_ebm.envs.mazes import ANT_LAYOUTS, MAZES, POINT_LAYOUTS, AntMaze, Maze2d, cells, floor_plan, make_maze
from ding_ebm.envs.mujoco_batch import MujocoBatch

SIZES = ["umaze", "medium", "large"]
KINDS = ["antmaze_medium_play", "maze2d_large"]
FIELDS = ("obs", "reward", "terminated", "truncated", "length")
BOX = int(mujoco.mjtGeom.mjGEOM_BOX)


def physical(env: MujocoBatch) -> np.ndarray:
    return env._state[:, 1 : 1 + env._model.nq + env._model.nv]


def walls(model: mujoco.MjModel) -> np.ndarray:
    return np.flatnonzero(model.geom_type == BOX)


@pytest.mark.parametrize(
    ("size", "count", "first", "last", "goal"),
    [
        ("umaze", 18, (-4, -4), (12, 12), (0, 8)),
        ("medium", 38, (-4, -4), (24, 24), (20, 20)),
        ("large", 62, (-4, -4), (40, 28), (32, 24)),
    ],
)
def test_antmazes_walls_and_goals_are_where_d4rl_has_them(
    size: str, count: int, first: tuple, last: tuple, goal: tuple
) -> None:
    body = AntMaze(size, "v4")
    boxes = walls(body.model)
    assert len(boxes) == count
    np.testing.assert_array_equal(body.model.geom_pos[boxes[0]], [*first, 1])
    np.testing.assert_array_equal(body.model.geom_pos[boxes[-1]], [*last, 1])
    np.testing.assert_array_equal(body.model.geom_size[boxes], np.broadcast_to([2, 2, 1], (count, 3)))
    goals = np.array([body.start(np.random.default_rng(seed), mujoco.MjData(body.model)) for seed in range(300)])
    noise = goals - goal
    assert (noise >= 0).all() and (noise <= 1.5).all() and noise.max() > 1.35
    np.testing.assert_allclose(noise.mean(axis=0), 0.75, atol=0.06)
    np.testing.assert_allclose(noise.var(axis=0), (1 + 0.25) / 12, rtol=0.25)  # of two uniform numbers


@pytest.mark.parametrize(
    ("size", "count", "goal", "free"), [("umaze", 18, (1, 1), 7), ("medium", 38, (6, 6), 26), ("large", 62, (7, 9), 46)]
)
def test_walls_and_goals_of_maze2d_are_where_d4rl_has_them(size: str, count: int, goal: tuple, free: int) -> None:
    body = Maze2d(size)
    boxes = walls(body.model)
    assert len(boxes) == count
    np.testing.assert_array_equal(body.model.geom_pos[boxes[0]], [1, 1, 0])
    np.testing.assert_array_equal(body.model.geom_size[boxes], np.broadcast_to([0.5, 0.5, 0.2], (count, 3)))
    np.testing.assert_array_equal(body.model.body("particle").pos, [1.2, 1.2, 0])
    np.testing.assert_array_equal(body._target, goal)
    env = MujocoBatch(f"maze2d_{size}", 1000)
    env.reset(range(1000))
    starts = physical(env)[:, :2]
    assert np.abs(starts - starts.round()).max() <= 0.1
    assert len({tuple(cell) for cell in starts.round()}) == free, "the goal's cell is one of them"
    assert physical(env)[:, 2:].std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", MAZES)
def test_a_floor_plan_is_the_models_in_the_coordinates_of_observations(name: str) -> None:
    plan, body = floor_plan(name), make_maze(name, "v4")
    boxes, data = walls(body.model), mujoco.MjData(body.model)
    # Of Maze2d positions count from where the point's body stands, and a wall has half a cell to each side.
    mujoco.mj_forward(body.model, data)
    origin = data.xpos[1, :2] - data.qpos[:2]
    np.testing.assert_allclose(plan.walls, body.model.geom_pos[boxes, :2] - origin, atol=1e-12)
    np.testing.assert_array_equal(body.model.geom_size[boxes, :2], plan.half)
    (low, high), rng = plan.goals, np.random.default_rng(0)
    goals = body._goal(
        np.concatenate([np.zeros((200, body._notes.start)), [body.start(rng, data) for _ in range(200)]], 1)
    )
    assert (goals >= low).all() and (goals <= high).all() and (np.ptp(np.atleast_2d(goals), axis=0) <= high - low).all()


def test_antmaze_is_d4rls_ant() -> None:
    model = AntMaze("umaze", "v4").model
    assert (model.opt.timestep, model.opt.integrator) == (0.02, mujoco.mjtIntegrator.mjINT_RK4)
    joints = [model.joint(model.actuator_trnid[i, 0]).name for i in range(8)]
    assert joints == ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"]
    np.testing.assert_array_equal(model.actuator_ctrlrange, np.broadcast_to([-30.0, 30.0], (8, 2)))
    np.testing.assert_array_equal(model.actuator_gear[:, 0], 1)
    np.testing.assert_array_equal(model.geom_solimp[:, :3], np.broadcast_to([0.8, 0.8, 0.01], (model.ngeom, 3)))
    np.testing.assert_array_equal(model.geom_friction, np.broadcast_to([1, 0.5, 0.5], (model.ngeom, 3)))
    assert (model.geom_margin == 0.01).all() and (model.geom_condim == 3).all()
    touched = model.geom_conaffinity == 1
    assert touched[walls(model)].all() and touched.sum() == 1 + len(walls(model)), "walls and the floor"
    capsule = 5.0 * np.pi * 0.08**2 * (np.hypot(0.2, 0.2) + 4 / 3 * 0.08)
    long = 5.0 * np.pi * 0.08**2 * (np.hypot(0.4, 0.4) + 4 / 3 * 0.08)
    mass = [0, 5.0 * 4 / 3 * np.pi * 0.25**3, *[capsule, capsule, long] * 4]
    np.testing.assert_allclose(model.body_mass, mass, rtol=1e-12)
    legacy = AntMaze("umaze", "d4rl-v2").model
    np.testing.assert_allclose(
        legacy.body_mass[2:5] - model.body_mass[2:5], -5.0 * np.pi * 0.08**3 / 3, rtol=1e-9
    )  # 2 h + r for 2 h + 4 r / 3
    assert legacy.body_mass[1] == model.body_mass[1]


def test_antmaze_steps_as_d4rl_does() -> None:
    """Against D4RL's own order of operations, one environment at a time."""
    env = MujocoBatch("antmaze_large_play", 2)
    env.reset([0, 1])
    model = AntMaze("large", "v4").model
    datas = [mujoco.MjData(model) for _ in range(2)]
    for row, data in zip(env._state, datas):
        data.qpos[:], data.qvel[:] = row[1:16], row[16:30]
        mujoco.mj_forward(model, data)
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 60, 8)).astype(np.float32)
    for t in range(60):
        obs, reward, terminated, truncated = env.step(actions[:, t])
        for i, data in enumerate(datas):
            data.ctrl[:] = np.clip(np.float32(-30) + (actions[i, t] + 1.0) * 0.5 * np.float32(60), -30, 30)
            for _ in range(5):
                mujoco.mj_step(model, data)
            np.testing.assert_array_equal(physical(env)[i], np.concatenate([data.qpos, data.qvel]))
    np.testing.assert_array_equal(obs, physical(env).astype(np.float32))
    assert not reward.any() and not terminated.any() and not truncated.any()


@pytest.mark.parametrize("size", SIZES)
def test_maze2d_cuts_the_velocity_before_the_step_and_shows_what_comes_after_it(size: str) -> None:
    num = 4
    env = MujocoBatch(f"maze2d_{size}", num)
    env.reset(range(num))
    model = Maze2d(size).model
    orders = {cut: [mujoco.MjData(model) for _ in range(num)] for cut in ("before", "after")}
    for datas in orders.values():
        for row, data in zip(env._state, datas):
            data.qpos[:], data.qvel[:] = row[1:3], row[3:5]
            mujoco.mj_forward(model, data)
    actions = np.repeat(np.random.default_rng(1).choice([-1.5, 0.3, 1.5], (num, 5, 2)), 40, axis=1)
    for t in range(actions.shape[1]):
        env.step(actions[:, t])
        for cut, datas in orders.items():
            for i, data in enumerate(datas):
                if cut == "before":
                    np.clip(data.qvel, -5, 5, out=data.qvel)
                    mujoco.mj_forward(model, data)  # as D4RL does when it sets a state
                data.ctrl[:] = actions[i, t].clip(-1, 1)
                mujoco.mj_step(model, data)
                if cut == "after":
                    np.clip(data.qvel, -5, 5, out=data.qvel)
        twin = np.stack([np.concatenate([data.qpos, data.qvel]) for data in orders["before"]])
        np.testing.assert_array_equal(physical(env), twin, err_msg=f"step {t}")
    other = np.stack([np.concatenate([data.qpos, data.qvel]) for data in orders["after"]])
    assert np.abs(other - twin).max() > 1e-2, "the other order is another task"


def test_observed_velocities_can_be_above_the_limit() -> None:
    env = MujocoBatch("maze2d_large", 1)
    env._state[0, 1:5] = [5.0, 1.0, 0.0, 0.0]
    speeds = env.step_chunk(np.full((1, 40, 2), [0.0, 1.0])).obs[0, :, 3]
    assert 5.0 < speeds.max() < 5.3


@pytest.mark.parametrize(("distance", "reached"), [(0.45, True), (0.55, False)])
def test_reaching_the_goal_pays_1_and_ends_an_antmaze(distance: float, reached: bool) -> None:
    env = make_batch_env("antmaze_umaze", 2)
    env.reset([0, 1])
    env._body.model.opt.gravity[:] = 0  # to stay where it is put
    env._state[0, 16:30] = 0
    env._state[0, 1:4] = [*env._state[0, 30:] - [distance, 0], 0.75]
    chunk = env.step_chunk(np.zeros((2, 1 + 2 * reached, 8)))
    assert chunk.reward[0].sum() == float(reached) and chunk.length.tolist() == [1, 1 + 2 * reached]
    assert chunk.terminated.tolist() == [reached, False] and env.success.tolist() == [reached, False]
    env.reset([0], [0])
    assert env.success.tolist() == [False, False]


def test_falling_over_does_not_end_an_antmaze() -> None:
    env = make_batch_env("antmaze_umaze", 1)
    env.reset([0])
    env._state[0, 4:8] = [0, 1, 0, 0]  # on its back
    chunk = env.step_chunk(np.zeros((1, 30, 8)))
    assert not chunk.terminated.any() and chunk.length.tolist() == [30] and chunk.obs[0, -1, 2] < 0.9


def test_staying_at_the_goal_of_maze2d_pays_in_every_step_and_the_limit_ends_it() -> None:
    env = make_batch_env("maze2d_umaze", 2)
    env.reset([0, 1])
    env._state[:, 1:5] = [[1.0, 1.0, 0, 0], [1.0, 3.0, 0, 0]]
    chunk = env.step_chunk(np.zeros((2, 400, 2)))
    assert chunk.reward.sum(axis=1).tolist() == [300, 0] and chunk.length.tolist() == [300, 300]
    assert not chunk.terminated.any() and chunk.truncated.all() and env.success.tolist() == [True, False]


def test_walls_hold_the_point() -> None:
    """Pushed in all directions from all cells it stays in free cells, and in the one it is pushed in it moves."""
    env = MujocoBatch("maze2d_medium", 64)
    env.reset(range(64))
    directions = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])[np.arange(64) % 4]
    before = physical(env)[:, :2].copy()
    chunk = env.step_chunk(np.repeat(directions[:, None], 150, axis=1).astype(np.float64))
    free = {tuple(cell) for cell in cells(POINT_LAYOUTS["medium"], " G")}
    # A position counts from 1.2 and a wall from 1: cells are from n - 0.7 to n + 0.3 in positions.
    visited = {tuple(cell) for cell in (chunk.obs[..., :2] + 0.2).round().astype(int).reshape(-1, 2)}
    assert visited <= free and len(visited) > 20
    assert (np.linalg.norm(chunk.obs[:, -1, :2] - before, axis=1) > 0.1).any()
    assert np.abs((chunk.obs[:, -1, 2:] * directions).sum(axis=1)).max() < 0.05, "a wall has stopped each"


def test_every_goal_can_be_reached_from_every_start() -> None:
    for layout, start in ((ANT_LAYOUTS, "S"), (POINT_LAYOUTS, " ")):
        for size in SIZES:
            free = {tuple(cell) for cell in cells(layout[size], " SG")}
            reached, frontier = set(), [tuple(cells(layout[size], "G")[0])]
            while frontier:
                i, j = frontier.pop()
                if (i, j) in free - reached:
                    reached.add((i, j))
                    frontier += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            assert {tuple(cell) for cell in cells(layout[size], start)} <= reached


@pytest.mark.parametrize("name", KINDS)
def test_chunks_equal_single_steps_with_any_number_of_threads(name: str) -> None:
    num, size, steps = 5, 7, 70
    shape = (num, steps, 8 if name.startswith("ant") else 2)
    actions = np.random.default_rng(2).uniform(-1.1, 1.1, shape)
    envs = [MujocoBatch(name, num, num_threads=threads, max_episode_steps=60) for threads in (1, 3)]
    twin = MujocoBatch(name, num, max_episode_steps=60)
    for env in (*envs, twin):
        env.reset(range(num))
    for start in range(0, steps, size):
        chunks = [env.step_chunk(actions[:, start : start + size]) for env in envs]
        steps_made = [twin.step(actions[:, start + t]) for t in range(size)]
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(chunks[0], field), getattr(chunks[1], field), err_msg=field)
        np.testing.assert_array_equal(chunks[0].obs, np.stack([step[0] for step in steps_made], axis=1))
        np.testing.assert_array_equal(chunks[0].reward, np.stack([step[1] for step in steps_made], axis=1))
        np.testing.assert_array_equal(envs[0]._state, twin._state)
        np.testing.assert_array_equal(envs[0].success, twin.success)
    assert chunks[0].truncated.all()
    for env in (*envs, twin):
        env.close()


def test_seeds_repeat_episodes_and_goals_differ() -> None:
    env = make_batch_env("antmaze_medium_diverse", 3)
    first = env.reset([1, 2, 1])
    goals = env._state[:, 30:].copy()
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(goals[0], goals[2])
    assert np.abs(goals[0] - goals[1]).max() > 0.01 and np.abs(first[0] - first[1]).max() > 0.01
    np.testing.assert_array_equal(env.reset([2], [0])[0], first[1])
    np.testing.assert_array_equal(env._state[0, 30:], goals[1])


@pytest.mark.parametrize("name", ["antmaze_umaze", "maze2d_umaze"])
def test_single_environments_pass_gymnasiums_check_and_are_rows_of_the_batch(name: str) -> None:
    env, batch = make_env(name), make_batch_env(name, 2)
    check_env(env, skip_render_check=True)
    first = batch.reset([4, 7])
    np.testing.assert_array_equal(env.reset(seed=7)[0], first[1])
    action = np.full((2, batch.action_dim), 0.3, dtype=np.float32)
    obs, reward, *ends = batch.step(action)
    single = env.step(action[1])
    np.testing.assert_array_equal(single[0], obs[1])
    assert single[1:] == (reward[1], ends[0][1], ends[1][1], {"success": batch.success[1]})


def test_dynamics_that_a_maze_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="dynamics of antmaze must be v4 or d4rl-v2, got 'v5'"):
        MujocoBatch("antmaze_umaze", 1, dynamics="v5")
    with pytest.raises(ValueError, match="unknown dynamics 'd4rl-v2' of the task maze2d_umaze"):
        make_batch_env("maze2d_umaze", 1, "d4rl-v2")
    assert len(MAZES) == 9 and make_batch_env("antmaze_umaze", 1, "d4rl-v2").obs_dim == 29
