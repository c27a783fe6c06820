"""Cloning by diffusion: it learns both ways of a two-way decision; what it shares is in test_chunk_cloning.py."""

from __future__ import annotations

import numpy as np
import pytest

from ding_ebm.config import ConfigError


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(dict(model=dict(denoising_steps=10, mlp=dict(mlp_dims=[128, 128, 128]))), id="mlp, ddpm"),
        pytest.param(
            dict(
                model=dict(denoising_steps=10, mlp=dict(mlp_dims=[128, 128, 128])),
                sampler=dict(ddim_steps=5),
            ),
            id="mlp, ddim",
        ),
        pytest.param(
            dict(model=dict(denoising_steps=10, network="unet", unet=dict(dim=16, num_groups=4))),
            id="unet, ddpm",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_samples_both_ways_and_nothing_between(overrides, make_clone, make_two_ways, histories):
    dataset = make_two_ways(seed=1)
    learn = dict(train_epoch=1, iterations_per_epoch=1000, learning_rate=3e-3, ema_start_iter=100)
    policy = make_clone("diffusion_bc", dict(overrides, learn=learn), dataset)
    for _ in range(1000):
        policy.learn_mode.forward(dataset.__getitems__(range(64)))
    obs = histories(400)
    way = policy.act(obs) - obs[:, -1:, :1]  # +-0.5 in every entry
    assert float(np.median(np.abs(np.abs(way) - 0.5))) < 0.08
    assert 0.35 < float((way[:, 0, 0] > 0).mean()) < 0.65
    agree = (np.sign(way) == np.sign(way[:, :1, :1])).all((1, 2))
    assert float(agree.mean()) > 0.95  # one way for the whole chunk
    # Near the mean of both, where a regression would put all of them; a deterministic sampler cannot jump over it.
    assert float((np.abs(way) < 0.25).mean()) < 0.15


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(sampler=dict(ddim_steps=21)), r"ddim_steps \(21\) must not exceed"),
        (dict(model=dict(network="transformer")), r"network must be one of \('mlp', 'unet'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(overrides, message, make_clone):
    with pytest.raises(ConfigError, match=message):
        make_clone("diffusion_bc", overrides)
