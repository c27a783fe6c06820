"""What the demo's pictures show is what the data, the networks and the oracle say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tensorboardX import SummaryWriter

from ding_ebm.envs.avoid_demos import make_demonstrations, make_mode_demonstrations
from ding_ebm.evaluation.checkpoint import load_policy
from ding_ebm.evaluation.demo_pictures import (
    BETAS,
    DECISIONS,
    data_outcomes,
    data_ways,
    decision,
    exact_clouds,
    learning_curve,
    policy_ways,
    value_map,
)
from ding_ebm.evaluation.distances import sliced_wasserstein
from ding_ebm.evaluation.plots import Cloud, plot_clouds, plot_energy, plot_outcomes, plot_scales, plot_ways
from ding_ebm.evaluation.rollout import Episodes
from ding_ebm.evaluation.statistics import Interval


@pytest.fixture
def policy(run):
    return load_policy(*run)


def is_png(path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5_000


def test_the_ways_of_the_data_are_its_episodes():
    data = make_demonstrations(7, seed=2)
    ways = data_ways(data)
    assert [len(path) - 1 for path in ways.paths] == data.episode_lengths().tolist()
    ends = data.episode_ends
    np.testing.assert_array_equal([path[-1] for path in ways.paths], data.next_obs[ends, 2:])
    np.testing.assert_array_equal(ways.paths[1][0], data.obs[ends[0] + 1, 2:])


def test_the_outcomes_of_demonstrations_are_those_of_the_way_they_take():
    data = make_mode_demonstrations("avoid_m1", 8, seed=2)
    outcomes = data_outcomes(data)
    assert outcomes.success.tolist() == [True, False] * 4  # every other one passes the rewarded gate
    assert outcomes.title == "demonstrations\nsuccess 0.50"
    last = np.array([path[-1, 0] for path in outcomes.paths])
    assert (last[::2] < 0.35).all() and (last[1::2] > 0.35).all()
    data.reward[data.reward >= 2.0] = 1.5
    assert not data_outcomes(data).success.any()


def test_a_learning_curve_is_what_was_logged_by_environment_steps(tmp_path):
    with SummaryWriter(str(tmp_path / "log" / "serial")) as writer:
        for i, share in enumerate([0.25, 0.75]):
            writer.add_scalar("collector_step/success_rate", share, 5000 * (i + 1))
            writer.add_scalar("evaluator_step/success_mean", 1.0 - share, 5000 * i)
            writer.add_scalar("evaluator_iter/success_mean", 9.0, i)
    curves = learning_curve(tmp_path)
    assert (curves["collected"].steps.tolist(), curves["collected"].success.tolist()) == ([5000, 10000], [0.25, 0.75])
    assert (curves["evaluated"].steps.tolist(), curves["evaluated"].success.tolist()) == ([0, 5000], [0.75, 0.25])
    outcomes = data_outcomes(make_mode_demonstrations("avoid_m1", 3, seed=0))
    plot_outcomes(tmp_path / "dppo.png", [outcomes, outcomes], **curves)
    assert is_png(tmp_path / "dppo.png")


def test_the_value_map_is_the_value_of_the_tilted_behavior_where_the_data_are(policy):
    data = make_demonstrations(30, seed=0)
    values = value_map(policy, data)
    model = policy.eval_mode.get_attribute("model")
    row = len(data) // 2
    column = int(np.abs(values.x - data.obs[row, 2]).argmin())
    line = int(np.abs(values.y - data.obs[row, 3]).argmin())
    center = np.tile([[values.x[column], values.y[line]]], (500, 2)).astype(np.float32)
    drawn = model.action_normalizer(torch.from_numpy(policy.act(center, guidance_scale=0.0)))
    with torch.no_grad():
        q = model.target_critic(model.obs_normalizer(torch.from_numpy(center)), drawn).min(0).values
    assert float(q.min()) <= values.value[line, column] <= float(q.max())
    assert values.value[line, column] == pytest.approx(float(q.exp().mean().log()), abs=float(q.std()))  # alpha is 1
    # the corners of the table are out of reach from the start
    assert np.isnan(values.value[0, 0])
    assert np.isnan(values.value[0, -1])


def test_a_decision_holds_q_and_the_energy_of_each_action(policy):
    shown = decision(policy, "B", scale=1.0, cells=5, draws=20)
    model = policy.eval_mode.get_attribute("model")
    obs = model.obs_normalizer(torch.tensor([DECISIONS["B"] * 2], dtype=torch.float32))
    action = model.action_normalizer(torch.tensor([[shown.axis[3], shown.axis[1]]], dtype=torch.float32))
    with torch.no_grad():
        q = model.target_critic(obs, action).min()
        energy = -model.guidance(action, torch.tensor([0.5]), obs, 1.0)
    assert shown.value[1, 3] == pytest.approx(float(q), abs=1e-5)  # rows are y
    assert shown.energies[0.5][1, 3] == pytest.approx(float(energy), abs=1e-5)
    assert shown.behavior.shape == shown.guided.shape == (20, 2)
    assert not np.array_equal(shown.behavior, shown.guided)


def test_exact_guidance_is_near_the_floor_and_no_guidance_is_not():
    rows = exact_clouds(600)
    assert [len(row) for row in rows] == [2 * len(BETAS)] * 2
    for row in rows:
        for target, guided in zip(row[::2], row[1::2]):
            distance, floor = map(float, re.findall(r"\d+\.\d+", guided.title))
            assert distance < 3.0 * floor, (target.title, guided.title)
        unguided, tilted = (torch.from_numpy(row[i].points) for i in (1, 4))
        assert sliced_wasserstein(unguided, tilted) > 8.0 * floor


def test_every_picture_is_drawn(policy, tmp_path):
    data = make_demonstrations(10, seed=0)
    ways = data_ways(data)
    paths = [np.tile(path, 2) for path in ways.paths]
    episodes = Episodes(ways.returns, data.episode_lengths(), np.ones(10, bool), None, paths)
    plot_ways(tmp_path / "ways.png", [ways, policy_ways("policy", episodes)])
    plot_energy(tmp_path / "energy.png", value_map(policy, data), [decision(policy, name, 1.0, 9, 5) for name in "AB"])
    plot_scales(
        tmp_path / "scales.png", {0.0: Interval(0.1, 0.0, 0.2), 1.0: Interval(2.0, 1.5, 2.5)}, {"best": 2.8}, 1.0
    )
    plot_clouds(tmp_path / "clouds.png", [[Cloud("target", np.zeros((5, 2))), Cloud("guided", np.ones((5, 2)))]])
    assert all(is_png(tmp_path / f"{name}.png") for name in ("ways", "energy", "scales", "clouds"))
