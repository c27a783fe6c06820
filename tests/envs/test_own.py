"""Environments of users as tasks: what the row says, what is refused, and whose episodes they are."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from ding_ebm.data.checks import check_transitions
from ding_ebm.envs import registry
from ding_ebm.envs.registry import get_task, make_batch_env, make_env, normalized_score, register_gymnasium
from ding_ebm.evaluation.collect import collect


class Point(gymnasium.Env):
    """A point that is moved; the second number half as far."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(np.float32([-0.2, -0.1]), np.float32([0.2, 0.1]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.taken = self.np_random.uniform(-1.0, 1.0, 2), []
        return self.at.astype(np.float32), {}

    def step(self, action):
        self.taken.append(action)
        self.at = self.at + action
        distance = np.linalg.norm(self.at)
        return self.at.astype(np.float32), -distance, bool(distance < 0.01), False, {"success": bool(distance < 0.1)}


class OfSpaces(Point):
    def __init__(self, observation: spaces.Space = Point.observation_space, action: spaces.Space = Point.action_space):
        self.observation_space, self.action_space = observation, action


class Unseeded(Point):
    def reset(self, *, seed=None, options=None):
        self.at = np.random.default_rng().uniform(-1.0, 1.0, 2)
        return self.at.astype(np.float32), {}


class NotFinite(Point):
    def reset(self, *, seed=None, options=None):
        return np.float32([np.nan, 0.0]), {}


class Limited(Point):
    max_episode_steps = 7


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is after each test what it was before."""
    monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))


def test_a_class_becomes_a_task_with_a_range_for_each_number_of_an_action() -> None:
    task = register_gymnasium("point", Point, 20, reference_returns=(-12.0, -2.0))
    assert get_task("point") is task
    assert (task.obs_dim, task.action_dim, task.max_episode_steps) == (2, 2, 20)
    np.testing.assert_array_equal(task.action_bounds, np.float32([[-0.2, -0.1], [0.2, 0.1]]))
    assert task.data_sets == {"demonstrations": ("point.hdf5",)} and task.missing_modules == []
    assert normalized_score("point", -7.0) == 50.0
    env = make_env("point")
    check_env(env, skip_render_check=True)
    assert env.spec is not None and env.spec.max_episode_steps == 20


def test_an_id_becomes_a_task_whose_episodes_are_gymnasiums() -> None:
    task = register_gymnasium("pendulum", "Pendulum-v1", data_sets={"random": ["a.hdf5", "b.hdf5"]})
    assert (task.obs_dim, task.action_range, task.max_episode_steps) == (3, (-2.0, 2.0), 200)
    assert task.data_files("random") == ("a.hdf5", "b.hdf5")
    batch, one = make_batch_env("pendulum", 2), gymnasium.make("Pendulum-v1")
    batch.reset([4, 5])
    np.testing.assert_array_equal(batch.reset([7], [1])[1], one.reset(seed=7)[0])
    rng = np.random.default_rng(0)
    for t in range(200):
        action = rng.uniform(-2.0, 2.0, (2, 1)).astype(np.float32)
        obs, reward, terminated, truncated = batch.step(action)
        expected = one.step(action[1])
        np.testing.assert_array_equal(obs[1], expected[0])
        assert reward[1] == expected[1] and truncated[1] == expected[3] == (t == 199) and not terminated[1]


def test_a_limit_that_is_asked_for_is_kept_by_ids_functions_and_environments_with_their_own() -> None:
    for name, make, asked, limit in (
        ("shorter", "Pendulum-v1", 50, 50),
        ("longer", "Pendulum-v1", 300, 300),
        ("function", partial(gymnasium.make, "Pendulum-v1"), 30, 30),
        ("its_own", Limited, None, 7),
        ("below_its_own", Limited, 5, 5),
    ):
        register_gymnasium(name, make, asked)
        env = make_batch_env(name, 1)
        env.reset([0])
        made = env.step_chunk(np.zeros((1, limit + 3, env.action_dim)))
        if make is not Limited or asked:  # an environment with a limit of its own is trusted to keep it
            assert made.truncated.all() and made.length[0] == limit
        assert env.max_episode_steps == limit == get_task(name).max_episode_steps


def test_actions_are_clipped_to_the_range_before_the_environment_sees_them() -> None:
    register_gymnasium("point", Point, 20)
    env = make_env("point")
    env.reset(seed=0)
    env.step(np.float32([9.0, -9.0]))
    env.step(np.float32([0.05, 0.05]))
    np.testing.assert_array_equal(env.unwrapped.taken, np.float32([[0.2, -0.1], [0.05, 0.05]]))


def test_what_an_environment_calls_success_is_the_tasks() -> None:
    register_gymnasium("point", Point, 20)
    batch = make_batch_env("point", 2)
    obs = batch.reset([0, 1])
    for _ in range(20):
        obs, *_ = batch.step(np.stack([-obs[0], obs[1]]))
    assert batch.success is not None and batch.success.tolist() == [True, False]


def test_data_beyond_the_range_of_one_number_are_refused_and_collected_data_are_not() -> None:
    task = register_gymnasium("point", Point, 20)
    made = collect("point", "random", episodes=9, num_envs=4)
    bounds = task.action_bounds
    check_transitions(made, 2, 2, bounds)
    assert np.abs(made.action).max(axis=0) == pytest.approx([0.2, 0.1], rel=0.05)
    made.action[[3, 8], 1] = 0.15  # well within the range of number 0
    with pytest.raises(ValueError, match=r"number 1 of action leaves \[-0.1, 0.1\] in 2 rows, first in row 3, .*0.15"):
        check_transitions(made, 2, 2, bounds)
    made.action[5, 0] = -0.3
    with pytest.raises(ValueError, match=r"number 0 of action leaves \[-0.2, 0.2\] in 1 rows.*; number 1 of action"):
        check_transitions(made, 2, 2, bounds)


def test_a_config_that_is_read_twice_registers_the_same_task_twice() -> None:
    task = register_gymnasium("point", Point, 20)
    again = register_gymnasium("point", type("Point", (Point,), {"__qualname__": "Point"}), 20)
    assert again is not task and get_task("point") is again
    for other in (
        dict(make=Point, max_episode_steps=21),
        dict(make=partial(OfSpaces), max_episode_steps=20),
        dict(make=Point, max_episode_steps=20, reference_returns=(0.0, 1.0)),
    ):
        with pytest.raises(ValueError, match="there is a task 'point' already, and it is another one"):
            register_gymnasium("point", **other)
    assert get_task("point") is again


def test_a_name_of_the_table_is_refused_even_for_its_own_environment() -> None:
    with pytest.raises(ValueError, match="there is a task 'avoid' already"):
        register_gymnasium("avoid", lambda: make_env("avoid"))


@pytest.mark.parametrize("name", ["my-task", "my task", "7up", "", "a/b", "ä"])
def test_a_name_with_other_characters_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be letters, digits and '_' and begin with a letter, got"):
        register_gymnasium(name, Point, 20)


BOX = Point.observation_space


@pytest.mark.parametrize(
    ("make", "steps", "message"),
    [
        (Point, None, "Point has no time limit: give max_episode_steps"),
        (Point, 0, "max_episode_steps must be at least 1, got 0"),
        (partial(gymnasium.make, "Pendulum-v1"), 300, "ends an episode after 200 steps, before max_episode_steps=300"),
        (partial(OfSpaces, spaces.Dict(a=BOX)), 9, "observation space must be a Box of one dim.*FlattenObservation"),
        (partial(OfSpaces, spaces.Box(0, 1, (2, 2))), 9, "observation space must be a Box of one dimension"),
        (partial(OfSpaces, BOX, spaces.Discrete(3)), 9, r"action space must be a Box of one dim.*got Discrete\(3\)$"),
        (partial(OfSpaces, BOX, BOX), 9, "action space must have finite ends, got Box"),
        (Unseeded, 9, r"two resets with seed 0 began different episodes .*super\(\).reset\(seed=seed\)"),
        (NotFinite, 9, "reset must return 2 finite numbers"),
        (partial(OfSpaces, spaces.Box(0, 1, (3,))), 9, "reset must return 3 finite numbers"),
        ("Pendulun-v1", None, "Gymnasium does not make 'Pendulun-v1': .*Pendulum"),
    ],
)
def test_what_cannot_be_a_task_is_refused_by_name(make, steps, message: str) -> None:
    with pytest.raises(ValueError, match=f"mine: .*{message}"):
        register_gymnasium("mine", make, steps)
    assert "mine" not in registry.TASKS


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="mine: dict must make a gymnasium.Env, got dict"):
        register_gymnasium("mine", dict, 5)
    with pytest.raises(ValueError, match="reference_returns must be a lower and a higher return"):
        register_gymnasium("mine", Point, 5, reference_returns=(1.0, 1.0))


def test_an_unknown_task_says_how_a_task_of_ones_own_becomes_known() -> None:
    with pytest.raises(ValueError, match="unknown task 'point'.*; a task of your own is known once the config that"):
        get_task("point")
