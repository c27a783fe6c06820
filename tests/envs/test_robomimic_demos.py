"""Scripted demonstrators solve a toy of their task and the task itself, and keep what they claim."""

from __future__ import annotations

import importlib.util
import json

import gymnasium
import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.formats import read_data, write_data
from ding_ebm.envs import robomimic_demos
from ding_ebm.envs.batch import GymBatch
from ding_ebm.envs.robomimic_demos import BIN, make_demonstrations

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("MuJoCo is not installed", allow_module_level=True)
needs_robosuite = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="needs the extra robomimic")


class Toy(gymnasium.Env):
    """A hand that goes where it is told, and a thing that follows when the fingers hold it, but slips sometimes."""

    width, max_episode_steps = 0.042, 80

    def __init__(self, is_done, obs_dim: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (7,), np.float32)
        self._is_done = is_done

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._hand, self._fingers, self._steps = np.array([-0.1, 0.0, 1.0]), 0.08, 0
        self._thing = np.array([*self.np_random.uniform(-0.03, 0.03, 2), 0.82])
        self._angles = np.array([0.0, self.np_random.uniform(0, 6)])
        self._slips = self.np_random.random() < 0.25
        return self._obs(), {}

    def step(self, action):
        assert np.abs(action).max() <= 1
        move = 0.05 * action[:3]
        inside = np.abs(self._thing - self._hand).max() < 0.03
        held = inside and self._fingers <= self.width and not self._slips
        self._hand = self._hand + move
        self._angles[0] += 0.5 * action[5]
        self._thing = self._thing + move if held else np.array([*self._thing[:2], max(self._thing[2] - 0.05, 0.82)])
        aligned = abs((self._angles[1] - self._angles[0] + np.pi / 4) % (np.pi / 2) - np.pi / 4) < 0.3
        least = 0.0 if not inside else self.width if aligned else 0.06
        self._fingers = np.clip(self._fingers - 0.015 * np.sign(action[6]), least, 0.08)
        self._steps += 1
        return self._obs(), float(self._is_done(self._thing)), False, self._steps >= self.max_episode_steps, {}

    def _obs(self):
        quaternions = [[0, 0, np.sin(angle / 2), np.cos(angle / 2)] for angle in self._angles]
        fingers = [self._fingers / 2, -self._fingers / 2]
        seen = np.concatenate([self._hand, quaternions[0], fingers, self._thing, quaternions[1]])
        return np.pad(seen, (0, self.observation_space.shape[0] - len(seen))).astype(np.float32)


TOYS = {
    "lift": lambda: Toy(lambda thing: thing[2] > 0.86, 19),
    "can": lambda: Toy(lambda thing: np.abs(thing[:2] - BIN).max() < 0.09 and thing[2] < 0.9, 23),
}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    class Batch(GymBatch):
        """Without a second way of stepping."""

    monkeypatch.setattr(Toy, "max_episode_steps", 200)
    monkeypatch.setattr(robomimic_demos, "make_batch_env", lambda task, num: Batch(TOYS[task], num))


@pytest.mark.parametrize("task", TOYS)
def test_what_is_kept_are_successes_and_the_same_in_any_number_of_environments(toys, task, monkeypatch) -> None:
    made = make_demonstrations(task, 8, seed=3)
    monkeypatch.setattr(robomimic_demos, "_ENVS", 1)
    again = make_demonstrations(task, 8, seed=3)
    assert made.checksum() == again.checksum() and made.metadata == again.metadata
    check_transitions(made, made.obs.shape[1], 7, (-1.0, 1.0))
    assert made.truncated.sum() == 8 and not made.terminated.any() and made.truncated[-1]
    for start, stop in zip(*made.pieces):
        assert made.reward[start:stop].max() == 1.0
        assert np.flatnonzero(made.reward[start:stop])[0] == stop - start - 11, "ten steps follow the first success"
    failed, attempts = (int(word) for word in made.metadata["left_out"].split() if word.isdigit())
    assert attempts - failed == 8 and failed > 0, "a quarter slips"
    other = make_demonstrations(task, 3, seed=4)
    assert not np.array_equal(other.obs[0], made.obs[0])
    fewer = make_demonstrations(task, 5, seed=3)
    np.testing.assert_array_equal(fewer.action, made.action[: len(fewer)])


def test_demonstrations_vary(toys) -> None:
    made = make_demonstrations("lift", 12, seed=0)
    assert len(set(made.episode_lengths().tolist())) > 3
    still = np.abs(made.action[:, 3]) > 0
    assert still.all(), "a hand trembles in every step"
    assert set(np.sign(made.action[:, 6])) == {-1.0, 1.0}


def test_hopeless_noise_and_bad_arguments_are_refused(toys, monkeypatch) -> None:
    monkeypatch.setitem(TOYS, "lift", lambda: Toy(lambda thing: False, 19))
    monkeypatch.setattr(Toy, "max_episode_steps", 3)
    with pytest.raises(ValueError, match=r"0 of 20 scripted attempts at lift succeeded with noise 0\.5; give less"):
        make_demonstrations("lift", 5, noise=0.5)
    with pytest.raises(ValueError, match=r"a task with a script \(lift, can\) .* got 'square' and 3"):
        make_demonstrations("square", 3)
    with pytest.raises(ValueError, match="got 'lift' and 0"):
        make_demonstrations("lift", 0)


def test_they_become_robomimics_layout_and_come_back_the_same(toys, tmp_path) -> None:
    made = make_demonstrations("lift", 4, seed=1)
    write_data(tmp_path / "lift.hdf5", made, "robomimic")
    again = read_data(tmp_path / "lift.hdf5")
    assert again.checksum() == made.checksum() and again.metadata["left_out"] == made.metadata["left_out"]
    assert again.metadata["obs_keys"] == "robot0_eef_pos 3, robot0_eef_quat 4, robot0_gripper_qpos 2, object 10"
    assert json.loads(again.metadata["env_args"])["env_name"] == "Lift"


@needs_robosuite
@pytest.mark.slow
@pytest.mark.parametrize(("task", "most"), [("lift", 9), ("can", 10)])
def test_they_solve_the_task(task: str, most: int) -> None:
    made = make_demonstrations(task, 8, seed=11)
    attempts = int(made.metadata["left_out"].split()[2])
    assert attempts <= most and made.metadata["left_out"].split()[3] == "attempts,"


@needs_robosuite
@pytest.mark.slow
def test_the_can_s_bin_is_where_robosuite_has_it() -> None:
    from ding_ebm.envs.robomimic import RobomimicEnv

    env = RobomimicEnv("can", max_episode_steps=10)
    np.testing.assert_allclose(env._robosuite.target_bin_placements[env._robosuite.object_id][:2], BIN, atol=1e-3)
