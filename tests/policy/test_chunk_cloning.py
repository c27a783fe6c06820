"""What all clones of action chunks share: exact resumption, the learning rate, the average, and evaluation."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch

from ding_ebm.config import ConfigError
from ding_ebm.policy.chunk_cloning import ChunkCloningPolicy

ALGORITHMS = ("diffusion_bc", "gaussian_bc", "gmm_bc", "energy_model")
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def updates(policy: ChunkCloningPolicy, dataset: Any, iterations: int) -> list[dict[str, float]]:
    return [policy.learn_mode.forward(dataset.__getitems__(range(64))) for _ in range(iterations)]


@each_algorithm
def test_a_restored_run_makes_the_identical_next_updates(algorithm, make_clone, make_two_ways):
    dataset, batches = make_two_ways(), [make_two_ways(seed=9).__getitems__(range(64)) for _ in range(6)]
    policy = make_clone(algorithm, dataset=dataset)
    updates(policy, dataset, 7)
    other = make_clone(algorithm, dataset=dataset, seed=3)
    file = io.BytesIO()
    torch.save(policy.learn_mode.state_dict(), file)
    file.seek(0)
    other.learn_mode.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches:
        assert policy.learn_mode.forward(batch) == other.learn_mode.forward(batch)
    states = [p.learn_mode.state_dict()["model"] for p in (policy, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@each_algorithm
def test_the_same_seed_gives_the_same_run_bit_by_bit_and_another_seed_another(algorithm, make_clone, make_two_ways):
    runs = [
        updates(make_clone(algorithm, dataset=make_two_ways(), seed=seed), make_two_ways(), 8) for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] and runs[0] != runs[2]


def test_the_learning_rate_follows_a_cosine_over_the_whole_run(make_clone, make_two_ways):
    dataset = make_two_ways()
    policy = make_clone("diffusion_bc", dataset=dataset)
    rates = [losses["learning_rate"] for losses in updates(policy, dataset, 100)]
    assert rates[0] == pytest.approx(1e-3) and rates[50] == pytest.approx(0.5 * (1e-3 + 1e-4))
    assert rates[-1] == pytest.approx(1e-4, rel=0.01) and rates == sorted(rates, reverse=True)
    assert policy._optimizer.param_groups[0]["lr"] == rates[-1]


@each_algorithm
def test_the_average_is_a_copy_at_first_and_moves_slowly_then(algorithm, make_clone, make_two_ways):
    dataset = make_two_ways()
    policy = make_clone(algorithm, dict(learn=dict(ema_decay=0.9)), dataset)
    model = policy._model
    updates(policy, dataset, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.network.parameters(), model.network_ema.parameters()))
    updates(policy, dataset, 1)
    before = [p.clone() for p in model.network_ema.parameters()]
    updates(policy, dataset, 1)  # iteration 4 begins to average
    for old, new, weight in zip(before, model.network_ema.parameters(), model.network.parameters()):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * weight)


@each_algorithm
def test_actions_come_from_the_average_in_raw_units_and_repeat_under_a_seed(
    algorithm, make_clone, make_two_ways, histories
):
    dataset = make_two_ways()
    policy = make_clone(algorithm, dataset=dataset)
    updates(policy, dataset, 6)
    obs = histories(20)
    first = policy.act(obs)
    assert first.shape == (20, 2, 2)
    low, high = (dataset.action_normalizer.inverse(torch.tensor([bound] * 2)).numpy() for bound in (-1.0, 1.0))
    assert (first >= low - 1e-5).all() and (first <= high + 1e-5).all()
    assert np.array_equal(policy.act(obs), first) is (algorithm == "gaussian_bc")  # the others draw
    policy.eval_mode.reset()
    with torch.no_grad():
        for parameter in policy._model.network.parameters():
            parameter.zero_()
    assert np.array_equal(policy.act(obs), first)


@each_algorithm
def test_the_hosts_evaluation_acts_as_one_batch_does(algorithm, make_clone, make_two_ways, histories):
    policy = make_clone(algorithm, dataset=make_two_ways())
    obs = histories(3)
    together = policy.act(obs)
    policy.eval_mode.reset()
    output = policy.eval_mode.forward({i: torch.from_numpy(row) for i, row in enumerate(obs)})
    for i in range(3):
        np.testing.assert_array_equal(output[i]["action"].numpy(), together[i])


@each_algorithm
def test_a_loss_that_is_no_number_ends_the_run_before_the_weights_are_lost(algorithm, make_clone, make_two_ways):
    dataset = make_two_ways()
    policy = make_clone(algorithm, dataset=dataset)
    batch = dataset.__getitems__(range(64))
    batch["action"][0, 0, 0] = math.nan
    before = [p.clone() for p in policy._model.network.parameters()]
    with pytest.raises(FloatingPointError, match="_loss is nan at iteration 0"):
        policy.learn_mode.forward(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, policy._model.network.parameters()))


@each_algorithm
def test_what_cannot_work_is_refused_by_name(algorithm, make_clone, make_two_ways, histories):
    for overrides, error, message in (
        (dict(model=dict(act_steps=5)), ConfigError, r"act_steps \(Ta = 5\) must not exceed model.horiz"),
        (dict(learn=dict(min_learning_rate=1.0)), ConfigError, "min_learning_rate .* must not exceed"),
        (dict(model=dict(obs_dim=3)), ValueError, "policy.model.obs_dim is 3, but the data set has 4"),
        (dict(model=dict(mlp=dict(activation="tanh"))), ConfigError, r"activation must be one of \(.*'mish'"),
    ):
        with pytest.raises(error, match=message):
            make_clone(algorithm, overrides, make_two_ways())
    policy = make_clone(algorithm)
    for obs, message in (
        (histories(2)[:, :1], r"obs must be \(E, 2, 4\), got \(2, 1, 4\)"),
        (histories(2) * np.nan, "obs of environment 0 is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.act(obs)


OTHER_MODELS: list[tuple[str, dict[str, Any], str]] = [
    *((algorithm, dict(horizon_steps=5), "horizon_steps is 4 there and 5 here") for algorithm in ALGORITHMS),
    ("diffusion_bc", dict(denoising_steps=10), "denoising_steps is 20 there and 10 here"),
    ("diffusion_bc", dict(mlp=dict(activation="mish")), "mlp.activation is 'relu' there and 'mish' here"),
    ("diffusion_bc", dict(task="hopper"), "task is 'avoid' there and 'hopper' here"),
    ("gaussian_bc", dict(std=0.2), "std is 0.1 there and 0.2 here"),
    ("gaussian_bc", dict(learn_std=True), "learn_std is False there and True here"),
    ("gmm_bc", dict(num_modes=2), "num_modes is 5 there and 2 here"),
]


@pytest.mark.parametrize(("algorithm", "overrides", "message"), OTHER_MODELS)
def test_a_checkpoint_of_another_model_is_refused_with_both_values(
    algorithm, overrides, message, make_clone, make_two_ways
):
    state = make_clone(algorithm, dataset=make_two_ways()).learn_mode.state_dict()
    other = make_clone(algorithm, dict(model=overrides))
    for mode in (other.learn_mode, other.eval_mode):
        with pytest.raises(ValueError, match=message):
            mode.load_state_dict(state)


@each_algorithm
def test_a_checkpoint_of_another_algorithm_or_of_other_data_is_refused(algorithm, make_clone, make_two_ways):
    state = make_clone(algorithm, dataset=make_two_ways()).learn_mode.state_dict()
    other = make_clone(ALGORITHMS[ALGORITHMS.index(algorithm) - 1])
    with pytest.raises(ValueError, match="is of another model: .* there and .* here"):
        other.eval_mode.load_state_dict(state)
    with pytest.raises(ValueError, match="holds meta, model, and no facts. .* as policy.base_policy_path"):
        other.eval_mode.load_state_dict(dict(model={}, meta={}))
    other = make_clone(algorithm, dataset=make_two_ways(obs_normalization="mean_std"))
    with pytest.raises(ValueError, match="trained on other data"):
        other.learn_mode.load_state_dict(state)
