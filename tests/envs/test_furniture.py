"""The adapter to Furniture-Bench, with a stand-in of its published interface instead of the simulator."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ding_ebm.envs.furniture import FurnitureBatch, rotation_6d
from ding_ebm.envs.registry import get_task, make_batch_env, make_env

PUBLISHED = {
    "furniture", "num_envs", "obs_keys", "concat_robot_state", "headless", "gpu_id", "randomness", "record",
    "max_env_steps", "act_rot_repr", "action_type", "ctrl_mode", "april_tags", "observation_space", "pos_scalar",
    "rot_scalar", "stiffness", "damping",
}  # fmt: skip
PARTS = {"one_leg": 6, "lamp": 4, "round_table": 4}  # with the obstacle
KEYS = ["robot_state/ee_pos", "parts_poses"]


class StandIn:
    """The interface of ``FurnitureRLSimEnv``: tensors of all environments, rewards and ends (E, 1), resets of some."""

    def __init__(self, **options: Any) -> None:
        assert set(options) == PUBLISHED
        self.options, self.device = options, torch.device("cpu")
        self.num_envs = options["num_envs"]
        self.env_steps = torch.zeros(self.num_envs, dtype=torch.int)
        self.start = torch.zeros(self.num_envs)
        self.actions: list[torch.Tensor] = []
        self.pays: dict[int, list[int]] = {}  # at which call of step which environments assemble a part

    def reset(self, env_idxs: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        index = torch.arange(self.num_envs) if env_idxs is None else env_idxs
        self.start[index] = torch.rand(len(index))
        self.env_steps[index] = 0
        return self.observation()

    def step(self, action: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, dict[str, Any]]:
        assert action.shape == (self.num_envs, 10) and action.dtype == torch.float32
        reward = torch.zeros(self.num_envs, 1)
        reward[self.pays.get(len(self.actions), [])] = 1.0
        self.actions.append(action.clone())
        self.env_steps += 1
        return self.observation(), reward, torch.ones(self.num_envs, 1, dtype=torch.bool), {"obs_success": True}

    def observation(self) -> dict[str, torch.Tensor]:
        robot = torch.zeros(self.num_envs, 14)
        robot[:, 0], robot[:, 13] = self.start, self.env_steps
        robot[:, 3:7] = torch.tensor([0.0, 0.0, 1.0, 1.0]) / 2**0.5  # a quarter turn about z
        parts = torch.arange(7.0 * PARTS[self.options["furniture"]]).repeat(self.num_envs, 1)
        return {"robot_state": robot, "parts_poses": parts}


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, facts in (
        ("furniture_bench", {}),
        ("furniture_bench.envs", {}),
        ("furniture_bench.envs.furniture_rl_sim_env", dict(FurnitureRLSimEnv=StandIn)),
        ("furniture_bench.envs.observation", dict(DEFAULT_STATE_OBS=KEYS)),
    ):
        module = ModuleType(name)
        module.__dict__.update(facts)
        monkeypatch.setitem(sys.modules, name, module)


def batch_of(furniture: str = "one_leg", num_envs: int = 3, limit: int = 4, parts: int = 1) -> FurnitureBatch:
    sizes = dict(obs_dim=16 + 7 * PARTS[furniture], parts_to_assemble=parts, max_episode_steps=limit)
    return FurnitureBatch(furniture, "low", num_envs, **sizes)


def rotated(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A vector turned by a unit quaternion, q v q*, real part last."""

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.append(a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3]), a[3] * b[3] - a[:3] @ b[:3])

    return product(product(quaternion, np.append(vector, 0.0)), quaternion * [-1, -1, -1, 1])[:3]


def test_six_numbers_are_the_first_two_rows_of_the_rotation_matrix() -> None:
    rng = np.random.default_rng(0)
    for quaternion in rng.standard_normal((20, 4)):
        unit = quaternion / np.linalg.norm(quaternion)
        matrix = np.stack([rotated(unit, axis) for axis in np.eye(3)], axis=1)
        np.testing.assert_allclose(rotation_6d(quaternion), matrix[:2].ravel(), atol=1e-12)
        np.testing.assert_allclose(rotation_6d(-quaternion), rotation_6d(quaternion), atol=1e-12)
    assert rotation_6d(rng.standard_normal((5, 2, 4))).shape == (5, 2, 6)
    quarter = rotation_6d(np.array([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(quarter, [0, -1, 0, 1, 0, 0], atol=1e-12)  # columns would be 0 1 0 -1 0 0


@pytest.mark.parametrize(("furniture", "obs_dim"), [("one_leg", 58), ("lamp", 44), ("round_table", 44)])
def test_an_observation_is_the_robots_state_with_six_numbers_of_rotation_and_the_parts(furniture, obs_dim) -> None:
    batch = batch_of(furniture)
    obs = batch.reset([1, 2, 3])
    assert obs.shape == (3, obs_dim) and obs.dtype == np.float32
    np.testing.assert_allclose(obs[:, 3:9], [[0, -1, 0, 1, 0, 0]] * 3, atol=1e-6)
    np.testing.assert_array_equal(obs[:, 9:16], np.zeros((3, 7)))
    np.testing.assert_array_equal(obs[:, 16:], [np.arange(7.0 * PARTS[furniture])] * 3)


def test_each_part_pays_1_and_enough_of_them_are_success_but_no_end() -> None:
    batch = batch_of("lamp", parts=2)
    batch.reset([0, 0, 0])
    batch._env.pays = {0: [0], 2: [0, 1]}
    made = batch.step_chunk(np.zeros((3, 3, 10)))
    np.testing.assert_array_equal(made.reward, [[1, 0, 1], [0, 0, 1], [0, 0, 0]])
    assert batch.success.tolist() == [True, False, False] and batch.running.all() and not made.terminated.any()


def test_only_the_limit_ends_an_episode_and_it_is_no_end_of_the_task() -> None:
    batch = batch_of()
    batch.reset([0, 0, 0])
    batch._env.pays = {5: [0, 1, 2]}
    made = batch.step_chunk(np.zeros((3, 8, 10)))
    assert made.length.tolist() == [4, 4, 4] and not made.terminated.any() and made.truncated.all()
    assert not made.reward.any(), "what happens after the end does not count"
    np.testing.assert_array_equal(made.obs[:, :, 15], [[1, 2, 3, 4, 4, 4, 4, 4]] * 3)


def test_some_are_reset_while_the_others_go_on_and_the_ended_hold_their_last_action() -> None:
    batch = batch_of()
    batch.reset([0, 0, 0])
    first = np.full((3, 4, 10), 0.5)
    batch.step_chunk(first)
    obs = batch.reset([7], [1])
    assert batch.running.tolist() == [False, True, False] and obs[:, 15].tolist() == [4, 0, 4]
    obs, *_ = batch.step(np.full((3, 10), -0.5))
    assert obs[:, 15].tolist() == [4, 1, 4]
    assert batch._env.actions[-1][:, 0].tolist() == [0.5, -0.5, 0.5]
    before = torch.get_rng_state()
    one, other = batch.reset([1, 2, 3]), batch.reset([1, 2, 3])
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, batch.reset([1, 2, 4])) and torch.equal(before, torch.get_rng_state())


def test_tasks_make_the_published_environments_and_refuse_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ding_ebm.envs.task.importlib.util.find_spec", lambda name: object())
    for furniture in PARTS:
        for randomness in ("low", "med"):
            task = get_task(f"{furniture}_{randomness}")
            batch = make_batch_env(task.name, 2)
            options = batch._env.options
            assert (options["furniture"], options["randomness"]) == (furniture, randomness)
            assert options["max_env_steps"] == task.max_episode_steps == (700 if furniture == "one_leg" else 1000)
            assert (options["act_rot_repr"], options["action_type"], options["obs_keys"]) == ("rot_6d", "pos", KEYS)
            assert (
                batch.reset([0, 1]).shape == (2, task.obs_dim) and task.reference_returns[1] == batch._parts_to_assemble
            )
    with pytest.raises(ValueError, match="Furniture-Bench observes 58 numbers, 44 are expected"):
        FurnitureBatch("one_leg", "low", 1, obs_dim=44, parts_to_assemble=1, max_episode_steps=9).reset([0])


def test_without_the_simulator_the_error_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ding_ebm.envs.task.importlib.util.find_spec", lambda name: None)
    for make in (lambda: make_env("lamp_low"), lambda: make_batch_env("lamp_low", 2)):
        with pytest.raises(
            ModuleNotFoundError, match=r"lamp_low needs isaacgym, furniture_bench: .*IsaacGym Preview 4"
        ):
            make()
