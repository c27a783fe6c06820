"""Where episodes went, of data, of policies and of what fine-tuning collects first."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from ding.policy import create_policy

from ding_ebm.data.transitions import Transitions
from ding_ebm.envs.avoid_demos import make_demonstrations, make_mode_demonstrations
from ding_ebm.envs.registry import get_task, make_batch_env
from ding_ebm.evaluation.checkpoint import load_policy, read_run_config, rollout_policy
from ding_ebm.evaluation.trajectories import Trajectories, of_collecting, of_data, of_policy, summary
from ding_ebm.evaluation.trajectory_plots import plot_trajectories

M1 = get_task("avoid_m1")
needs_mujoco = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed")


def is_png(path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5_000


def test_the_episodes_of_data_are_its_positions_and_outcomes():
    data = make_mode_demonstrations("avoid_m1", 8, seed=2)
    shown = of_data(M1, data)
    assert shown.success.tolist() == [True, False] * 4 and shown.ways.tolist() == [12, 13] * 4
    assert shown.outcomes == ["success", "through"] * 4
    np.testing.assert_array_equal(shown.paths[3], np.r_[data.obs[300:400, 2:], data.next_obs[399:400, 2:]])
    header, lines = summary([shown])
    assert dict(zip(header, lines[0])) == {
        "trajectories": "data", "episodes": "8", "success": "0.500", "got through": "1.000", "ways": "2",
        "entropy / log 24": "0.218",
    }  # fmt: skip


def test_a_sample_of_data_holds_each_episode_once_at_most():
    shown = of_data(get_task("avoid"), make_demonstrations(40, seed=1), most=30)
    assert len({path.tobytes() for path in shown.paths}) == 30
    everything = of_data(get_task("avoid"), make_demonstrations(40, seed=1))
    assert {path.tobytes() for path in shown.paths} < {path.tobytes() for path in everything.paths}
    ended_above = np.array([path[-1, 1] > 0.4 for path in everything.paths])
    np.testing.assert_array_equal(everything.success, ended_above)
    assert 0 < ended_above.sum() < 40
    assert set(everything.outcomes) <= {"success", "through", "failure"} and "failure" in everything.outcomes


def test_a_policy_is_shown_as_it_is_evaluated(chunk_run):
    shown = of_policy(M1, *chunk_run, seeds=[3, 4, 5])
    policy = load_policy(*chunk_run)
    expected = rollout_policy(policy, make_batch_env("avoid_m1", 3), [3, 4, 5], keep_trajectories=True)
    for path, whole in zip(shown.paths, expected.trajectories):
        np.testing.assert_array_equal(path, whole[:, 2:])
    assert shown.title == policy.eval_mode.get_attribute("cfg").type
    np.testing.assert_array_equal(shown.success, expected.success)


def test_collecting_is_the_cloned_policy_with_the_noise_of_fine_tuning(fine_tuning):
    cloned, config = fine_tuning
    shown = of_collecting(M1, config, cloned.checkpoint, range(40))
    again = of_collecting(M1, config, cloned.checkpoint.parents[1], range(40))
    for a, b in zip(shown.paths, again.paths):
        np.testing.assert_array_equal(a, b)  # by its checkpoint or its folder, the same numbers
    # The first chunk as the collector of a run draws it.
    settings = read_run_config(config).policy
    settings.base_policy_path = str(cloned.checkpoint)
    torch.manual_seed(0)
    policy = create_policy(settings, enable_field=["learn", "collect", "eval"])
    first = make_batch_env("avoid_m1", 40).reset(range(40))
    drawn = policy.collect_mode.forward(np.repeat(first[:, None], 2, axis=1))["action"].numpy()
    positions = first[:, None, 2:] + np.clip(drawn, -0.01, 0.01).cumsum(axis=1)
    np.testing.assert_allclose([path[1:4] for path in shown.paths], positions, atol=1e-6)
    evaluated = of_policy(M1, *cloned, seeds=range(40))
    np.testing.assert_array_equal([p[0] for p in shown.paths], [p[0] for p in evaluated.paths])
    assert shown.title == "dppo, first iteration" and not np.array_equal(shown.paths[0][1], evaluated.paths[0][1])


def test_what_cannot_be_shown_is_refused(fine_tuning):
    cloned, config = fine_tuning
    with pytest.raises(ValueError, match="is of the task avoid_m1, and trajectories of avoid_m2 are asked for"):
        of_policy(get_task("avoid_m2"), *cloned, seeds=[1])
    with pytest.raises(ValueError, match="diffusion_bc does not fine-tune a cloned policy"):
        of_collecting(M1, cloned.config, None, [1])
    with pytest.raises(FileNotFoundError, match="nothing"):
        of_collecting(M1, config, "nothing", [1])
    with pytest.raises(ValueError, match="hopper is not about a place"):
        of_data(get_task("hopper"), make_demonstrations(2))
    with pytest.raises(ValueError, match="4 numbers an observation, antmaze_umaze has 29"):
        of_data(get_task("antmaze_umaze"), make_demonstrations(2))


@needs_mujoco
def test_a_maze_succeeds_where_a_reward_was_paid_and_has_no_ways(tmp_path):
    obs = np.zeros((6, 4), np.float32)
    ends = np.array([False, False, True] * 2)
    data = Transitions(obs, obs[:, :2], np.float32([0, 1, 0, 0, 0, 0]), obs, ~ends & ends, ends, "two episodes")
    shown = of_data(get_task("maze2d_umaze"), data)
    assert shown.success.tolist() == [True, False] and shown.ways is None
    assert shown.outcomes == ["success", "failure"]
    assert summary([shown]) == (["trajectories", "episodes", "success"], [["data", "2", "0.500"]])
    plot_trajectories(tmp_path / "maze.png", [[shown]])
    assert is_png(tmp_path / "maze.png")


def test_a_picture_has_a_panel_for_each_set_and_a_color_for_each_outcome(tmp_path):
    paths = [np.array([[0.5, -0.28], [x, 0.3]], np.float32) for x in (0.3, 0.4, 0.7)]
    success, ways = np.array([True, False, False]), np.array([12, 13, -1])
    known = Trajectories(M1, "known", paths, success, ways)
    unknown = Trajectories(M1, "unknown", paths, None, None)
    assert known.outcomes == ["success", "through", "failure"] and unknown.outcomes == ["unknown"] * 3
    plot_trajectories(tmp_path / "a.png", [[known, unknown], [known]])
    assert is_png(tmp_path / "a.png")
