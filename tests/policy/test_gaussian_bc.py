"""Cloning by a Gaussian: its mean, deviation and loss reach those of the data; of two ways it takes neither."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ding_ebm.config import ConfigError
from ding_ebm.policy.gaussian_bc import GaussianBCPolicy

LEARN = dict(train_epoch=1, iterations_per_epoch=800, batch_size=256, learning_rate=1e-2, ema_start_iter=700)
STD = np.array([0.05, 0.15])


def trained(policy: GaussianBCPolicy, dataset) -> list[float]:
    """The losses of a whole run."""
    batch = policy._cfg.learn.batch_size
    forward = policy.learn_mode.forward
    return [
        forward(dataset.__getitems__(range(batch)))["behavior_loss"]
        for _ in range(policy._cfg.learn.iterations_per_epoch)
    ]


def test_mean_deviation_and_loss_reach_those_of_a_gaussian(make_clone, make_chunks, histories):
    """Actions are s_0 (1 + s_1) + N(0, STD^2), independent in every number."""
    dataset = make_chunks(
        lambda rng, s: s[..., :1] * s[..., 1:2] + STD * rng.standard_normal((*s.shape[:2], 2)), episodes=4000
    )
    policy = make_clone("gaussian_bc", dict(model=dict(learn_std=True), learn=LEARN), dataset)
    losses = trained(policy, dataset)
    obs = histories(500)
    expected = obs[:, -1:, :1] * (1.0 + obs[:, -1:, 1:2])
    error = policy.act(obs) - expected
    assert float(np.sqrt((error**2).mean())) < 0.01
    assert float(expected.std()) > 0.2
    model, scale = policy._model, dataset.action_normalizer.scale
    std = (model.network_ema.std.log(scale).exp() * scale).detach()
    assert std.tolist() == pytest.approx(STD.tolist(), rel=0.05)
    # The least that the loss can be is the entropy of one number in normalized units, on the average of both.
    entropy = float((torch.from_numpy(STD) / scale).log().mean()) + 0.5 * math.log(2.0 * math.pi * math.e)
    assert np.mean(losses[-200:]) == pytest.approx(entropy, abs=0.01)


def test_with_a_fixed_deviation_the_loss_is_a_scaled_squared_error(make_clone, make_two_ways):
    dataset = make_two_ways()
    policy = make_clone("gaussian_bc", dict(model=dict(std=0.3)), dataset)
    batch = dataset.__getitems__(range(64))
    with torch.no_grad():
        error = (policy._model.network(batch["obs"])[0] - batch["action"]).square().mean()
    expected = float(error) / (2 * 0.3**2) + math.log(0.3) + 0.5 * math.log(2 * math.pi)
    assert policy.learn_mode.forward(batch)["behavior_loss"] == pytest.approx(expected, rel=1e-5)


def test_of_two_ways_it_takes_the_mean_between(make_clone, make_two_ways, histories):
    dataset = make_two_ways(episodes=2000)
    policy = make_clone("gaussian_bc", dict(learn=LEARN), dataset)
    trained(policy, dataset)
    obs = histories(400)
    way = policy.act(obs) - obs[:, -1:, :1]  # +-0.5 in the data
    assert float(np.abs(way).mean()) < 0.1


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (dict(std=0.0), ConfigError, "policy.model.std must be a number > 0.0, got 0.0"),
        (dict(std_bounds=[0.1]), ConfigError, "policy.model.std_bounds must be a list of 2"),
        (dict(std=0.3, learn_std=True, std_bounds=[0.01, 0.2]), ValueError, "begins within its std_bounds"),
        (dict(mlp=dict(residual=True, mlp_dims=[32, 32])), ValueError, "odd number of equal widths"),
        (dict(num_modes=2), ConfigError, "policy.model.num_modes is not a known key"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(model, error, message, make_clone):
    with pytest.raises(error, match=message):
        make_clone("gaussian_bc", dict(model=model))
