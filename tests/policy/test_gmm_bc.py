"""Cloning by a mixture: it finds both ways of a two-way decision and their shares, and evaluates as it is told."""

from __future__ import annotations

import numpy as np
import pytest

from ding_ebm.config import ConfigError
from ding_ebm.policy.gmm_bc import GMMBCPolicy

LEARN = dict(train_epoch=1, iterations_per_epoch=600, batch_size=128, learning_rate=3e-3, ema_start_iter=400)


def uneven_ways(rng: np.random.Generator, state: np.ndarray) -> np.ndarray:
    """+0.5 for a whole episode with probability 0.8 where s_1 is positive, 0.3 where it is not; else -0.5."""
    share = np.where(state[:, :1, 1:2] > 0, 0.8, 0.3)
    return np.where(rng.random(share.shape) < share, 0.5, -0.5)


@pytest.fixture(scope="module")
def weights() -> dict:
    """Of the first policy that a test of this module trains; both components are read from them."""
    return {}


@pytest.fixture
def make_trained(make_clone, make_chunks, weights):
    def make(component: str) -> GMMBCPolicy:
        dataset = make_chunks(uneven_ways, episodes=4000)
        overrides = dict(learn=LEARN, model=dict(num_modes=3), eval=dict(component=component))
        policy = make_clone("gmm_bc", overrides, dataset)
        if not weights:
            for _ in range(LEARN["iterations_per_epoch"]):
                policy.learn_mode.forward(dataset.__getitems__(range(LEARN["batch_size"])))
            weights.update(policy.learn_mode.state_dict())
        policy.eval_mode.load_state_dict(weights)
        return policy

    return make


def ways(policy: GMMBCPolicy, obs: np.ndarray) -> np.ndarray:
    return policy.act(obs) - obs[:, -1:, :1]


def test_it_takes_both_ways_by_their_shares_and_nothing_between(make_trained, histories):
    policy, obs = make_trained("drawn"), histories(4000)
    way = ways(policy, obs)
    assert float(np.median(np.abs(np.abs(way) - 0.5))) < 0.03
    assert float((np.abs(way) < 0.25).mean()) < 0.02  # where a Gaussian puts all of them: test_gaussian_bc.py
    assert (np.sign(way) == np.sign(way[:, :1, :1])).all((1, 2)).mean() > 0.99  # one way for the whole chunk
    side = obs[:, -1, 1]
    assert (way[side > 0.1, 0, 0] > 0).mean() == pytest.approx(0.8, abs=0.06)
    assert (way[side < -0.1, 0, 0] > 0).mean() == pytest.approx(0.3, abs=0.06)


def test_the_heaviest_component_goes_the_likelier_way_and_draws_nothing(make_trained, histories):
    policy, obs = make_trained("heaviest"), histories(400)
    before = policy._eval_generator.get_state()
    way, side = ways(policy, obs), obs[:, -1, 1]
    assert (policy._eval_generator.get_state() == before).all()
    assert (way[side > 0.1, 0, 0] > 0).mean() > 0.98
    assert (way[side < -0.1, 0, 0] < 0).mean() > 0.98
    drawn = ways(make_trained("drawn"), obs)
    assert 0.1 < (np.sign(drawn[:, 0, 0]) != np.sign(way[:, 0, 0])).mean() < 0.4


def test_what_is_drawn_is_the_component_and_not_its_noise(make_trained, histories):
    one = np.repeat(histories(1), 200, 0)
    assert len(np.unique(make_trained("drawn").act(one), axis=0)) <= 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(model=dict(num_modes=0)), "policy.model.num_modes must be an integer >= 1, got 0"),
        (
            dict(eval=dict(component="best")),
            r"eval.component must be one of \('drawn', 'heaviest'\), got 'best'",
        ),
        (dict(eval=dict(compnent="drawn")), "compnent is not a known key; did you mean 'component'"),
    ],
)
def test_what_makes_no_policy_is_refused_by_name(overrides, message, make_clone):
    with pytest.raises(ConfigError, match=message):
        make_clone("gmm_bc", overrides)
