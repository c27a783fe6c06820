"""The energy policy: what it learns on a problem with a known answer, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.config import ConfigError
from ding_ebm.energy.search import derivative_free_minimum
from ding_ebm.policy.energy_model import EnergyModelPolicy
from ding_ebm.policy.energy_training import ENERGY_LOSS, EnergyLoss, same_stretch
from ding_ebm.policy.trained_energy import check_fits, load_energy

OBJECTIVES: dict[str, dict[str, Any]] = {
    "info_nce": {},
    "info_nce, attention": dict(model=dict(network="attention", attention=dict(hidden=16, heads=2))),
    "info_nce, noised": dict(model=dict(denoising_steps=5), learn=dict(direction="row")),
    "negatives": dict(learn=dict(objective="negatives", num_negatives=16)),
    "negatives, noised": dict(
        model=dict(denoising_steps=5),
        learn=dict(objective="negatives", negatives=["uniform", "gaussian", "time_shifted"], gradient_penalty=0.1),
    ),
    "dsm": dict(learn=dict(objective="dsm")),
}


def train(policy: EnergyModelPolicy, dataset: Any, iterations: int) -> list[dict[str, float]]:
    return [policy.learn_mode.forward(dataset.__getitems__(range(64))) for _ in range(iterations)]


@pytest.mark.parametrize("how", OBJECTIVES)
def test_it_logs_what_it_says_and_repeats_bit_by_bit(how, make_clone, make_two_ways):
    runs = []
    for _ in range(2):
        dataset = make_two_ways()
        policy = make_clone("energy_model", OBJECTIVES[how], dataset)
        runs.append(train(policy, dataset, 4))
        assert set(runs[-1][0]) == set(policy._monitor_vars_learn())
    assert runs[0] == runs[1]


def one_way(rng: np.random.Generator, state: np.ndarray) -> np.ndarray:
    return 0.1 * rng.standard_normal((len(state), 4, 2))


@pytest.mark.parametrize("objective", ["negatives", "dsm"])
def test_the_search_finds_the_experts_action(objective, make_clone, make_chunks, histories):
    # Experts act at their first coordinate, with some noise: so does the least energy.
    dataset = make_chunks(one_way, episodes=2000)
    learn = dict(objective=objective, num_negatives=64, temperature=1.0, iterations_per_epoch=60)
    search = dict(search_candidates=512, search_rounds=6)
    overrides = dict(learn=learn, eval=search, model=dict(mlp=dict(mlp_dims=[64, 64])))
    policy = make_clone("energy_model", overrides, dataset)
    train(policy, dataset, 600)
    obs = histories(60)
    expert = np.repeat(obs[:, -1:, :1], 2, axis=1)
    error = np.abs(policy.act(obs) - expert).mean()
    scrambled = np.abs(policy.act(obs) - expert[::-1]).mean()
    assert error < 0.12 < 0.2 < scrambled


def test_a_run_is_read_back_as_the_energy_that_its_average_is(make_clone, make_two_ways, tmp_path):
    dataset = make_two_ways()
    policy = make_clone("energy_model", dict(model=dict(denoising_steps=5)), dataset)
    train(policy, dataset, 6)
    write_checkpoint(policy.learn_mode.state_dict(), tmp_path / "iteration_6.pth.tar")
    energy = load_energy(str(tmp_path), "cpu")
    batch = dataset.__getitems__(range(8))
    k = torch.arange(8) % 6
    expected = policy._model.network_ema(batch["obs"], batch["action"], k)
    assert torch.equal(energy(batch["obs"], batch["action"], k), expected)
    raw = [getattr(dataset, f"{part}_normalizer").inverse(batch[part]) for part in ("obs", "action")]
    torch.testing.assert_close(energy.energy(*raw), energy(batch["obs"], batch["action"]), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in energy.parameters())
    check_fits(energy, policy._cfg.model, "here", 5)
    with pytest.raises(ValueError, match="denoising_steps is 5 there and 20 here"):
        check_fits(energy, policy._cfg.model, "here", 20)
    clone = make_clone("gaussian_bc", dataset=dataset)
    write_checkpoint(clone.learn_mode.state_dict(), tmp_path / "iteration_7.pth.tar")
    with pytest.raises(ValueError, match=r"iteration_7.pth.tar is no energy: it holds data_fingerprint, facts"):
        load_energy(str(tmp_path), "cpu")


def test_neighbors_in_an_episode_are_no_negatives():
    index, episode = torch.tensor([0, 3, 4, 9, 10]), torch.tensor([0, 0, 0, 8, 8])
    brute = [[abs(i - j) <= 3 and a == b for j, b in zip(index, episode)] for i, a in zip(index, episode)]
    assert torch.equal(same_stretch(index, episode, 3), torch.tensor(brute))
    generator = torch.Generator().manual_seed(0)
    energies = torch.randn(5, 5, generator=generator)
    network = SimpleNamespace(pair_energy=lambda obs, action: energies)
    data = dict(obs=torch.zeros(5, 1, 4), action=torch.zeros(5, 4, 2), index=index, episode=episode)
    settings = SimpleNamespace(**dict(ENERGY_LOSS, false_negative_steps=3, direction="row", temperature=0.7))
    loss, _ = EnergyLoss(settings, None, generator)(network, data)
    expected = 0.0
    for i in range(5):
        kept = [j for j in range(5) if j == i or not brute[i][j]]
        expected -= float(torch.log_softmax(-energies[i, kept] / 0.7, dim=0)[kept.index(i)]) / 5
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_search_descends_to_the_minimum_in_a_box_and_never_loses_the_best():
    centers = torch.tensor([0.4, -0.7, 2.0])

    def energy(x: torch.Tensor) -> torch.Tensor:
        return (x - centers.view(3, 1, 1, 1)).square().sum(dim=(2, 3))

    found = [
        derivative_free_minimum(
            energy, (3, 512, 2, 1), torch.Generator().manual_seed(0), temperature=0.01, rounds=rounds
        )
        for rounds in (1, 4, 8)
    ]
    torch.testing.assert_close(found[2][:, :, 0], centers.clamp(-1, 1).view(3, 1).expand(3, 2), rtol=0, atol=0.03)
    least = [energy(x.unsqueeze(1)).squeeze(1) for x in found]
    assert (least[0] >= least[1]).all() and (least[1] >= least[2]).all() and (least[0] > least[2]).any()


def test_what_does_not_go_together_is_refused(make_clone, make_two_ways):
    for overrides, message in (
        (dict(learn=dict(objective="dsm"), model=dict(mlp=dict(activation="relu"))), "activation must not be 'relu'"),
        (dict(learn=dict(objective="dsm"), model=dict(denoising_steps=5)), "must be None, got 5"),
        (dict(learn=dict(gradient_penalty=1.0)), "gradient_penalty needs learn.objective 'negatives'"),
        (
            dict(learn=dict(objective="negatives", negatives="time_shifted"), model=dict(horizon_steps=1, act_steps=1)),
            "needs model.horizon_steps of at least 2",
        ),
        (dict(model=dict(attention=dict(hidden=12, heads=4))), "must be an even multiple of model.attention.heads"),
        (dict(learn=dict(temprature=1.0)), "temperature"),
        (dict(learn=dict(negatives=["uniform", "gauss"])), "negatives"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_clone("energy_model", overrides, make_two_ways())
