"""Correction by an energy in every policy: in the right units, off without a trace, and refused where it cannot fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from torch import Tensor, nn

from ding_ebm.config import ConfigError
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.model.energy_model import EnergyMLP
from ding_ebm.policy import energy_correction
from ding_ebm.policy.base import BasePolicy
from ding_ebm.policy.diffusion_bc import DiffusionBCPolicy
from ding_ebm.policy.dppo import DPPOPolicy
from ding_ebm.policy.gaussian_bc import GaussianBCPolicy
from ding_ebm.policy.gmm_bc import GMMBCPolicy
from ding_ebm.policy.qgpo import QGPOPolicy
from ding_ebm.policy.trained_energy import TrainedEnergy

E, TO, TP, TA, DO, DA = 5, 2, 4, 3, 4, 2
POLICIES: dict[str, type[BasePolicy]] = {
    "diffusion_bc": DiffusionBCPolicy, "gaussian_bc": GaussianBCPolicy, "gmm_bc": GMMBCPolicy, "dppo": DPPOPolicy,
    "qgpo": QGPOPolicy,
}  # fmt: skip
CHUNKS = dict(task="avoid", horizon_steps=TP, act_steps=TA, cond_steps=TO, mlp=dict(mlp_dims=[16, 16, 16]))
SINGLE = dict(
    behavior_widths=(16, 8), qgpo_critic=dict(critic_widths=(16, 16), guidance_widths=(8,), aggregation="mean")
)
# One step of this length, unclipped, ends at the bottom of the bowl below.
ONE_STEP = dict(energy_checkpoint="bowl", energy_correction_steps=1, energy_alpha=2.0, energy_clip=None)
each_policy = pytest.mark.parametrize("name", POLICIES)


def make(name: str, model: dict[str, Any] | None = None, train_iter: int = 10**7, **settings: Any) -> BasePolicy:
    """A policy that has learned nothing, in units of its own."""
    own = dict(SINGLE if name == "qgpo" else CHUNKS, obs_dim=DO, action_dim=DA)
    if name in ("diffusion_bc", "dppo"):
        own.update(denoising_steps=4, time_dim=4)
    override: dict[str, Any] = dict(model=deep_merge_dicts(own, model or {}), eval=settings)
    if name == "dppo":
        override.update(sampler=dict(ft_denoising_steps=2))
    else:
        override.update(learn=dict(train_epoch=1))
    if name == "qgpo":
        override["eval"] = dict(settings, diffusion_steps=4)
    cfg = deep_merge_dicts(POLICIES[name].default_config(), EasyDict(override))
    torch.manual_seed(0)
    policy = POLICIES[name](cfg, enable_field=["eval"])
    policy._train_iter = train_iter
    policy._model.action_normalizer.scale.fill_(0.5)
    policy._model.action_normalizer.shift.fill_(0.1)
    policy._model.obs_normalizer.scale.fill_(3.0)
    return policy


def observations(name: str) -> np.ndarray:
    shape = (E, DO) if name == "qgpo" else (E, TO, DO)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def target(obs: Tensor) -> Tensor:
    """Where the bowl's bottom is, in the environment's units, (E, 1, Da), for histories (E, To, Do)."""
    return 0.2 * obs[:, -1:, :DA] + 0.05


class Bowl(nn.Module):
    """Squared distance from the target in the environment's units, of observations and actions in its own."""

    def __init__(self, energy: tuple[Normalizer, Normalizer]) -> None:
        super().__init__()
        self.obs, self.action = energy
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        error = self.action.inverse(action) - target(self.obs.inverse(obs))
        return self.weight * error.square().sum(dim=(1, 2))


def bowl(**facts: Any) -> TrainedEnergy:
    facts = {**dict(task="avoid", cond_steps=TO, horizon_steps=TP, obs_dim=DO, action_dim=DA), **facts}
    units = Normalizer(facts.pop("obs_dim")), Normalizer(facts.pop("action_dim"))
    for number, normalizer in enumerate(units):
        normalizer.scale.fill_(0.3 + number)
        normalizer.shift.fill_(-0.7)
    return TrainedEnergy(Bowl(units), *units, **facts)


@pytest.fixture
def energies(monkeypatch) -> list[str]:
    """Every energy's checkpoint is the bowl; the paths that were asked for."""
    asked: list[str] = []

    def load(path: str, device: torch.device) -> TrainedEnergy:
        asked.append(path)
        return bowl(**(dict(cond_steps=1, horizon_steps=1) if path == "single" else {}))

    monkeypatch.setattr(energy_correction, "load_energy", load)
    return asked


def settings_of(name: str, **settings: Any) -> dict[str, Any]:
    """Those of one step, with others, and the energy that fits the policy."""
    return {**ONE_STEP, "energy_checkpoint": "single" if name == "qgpo" else "bowl", **settings}


def histories(name: str) -> Tensor:
    obs = torch.from_numpy(observations(name))
    return obs.unsqueeze(1) if name == "qgpo" else obs


def executed(name: str, policy: BasePolicy) -> np.ndarray:
    """Its actions, (E, Ta, Da)."""
    action = policy.act(observations(name))
    return action[:, None] if name == "qgpo" else action


@each_policy
def test_the_descent_ends_at_the_bottom_in_the_environments_units(name, energies):
    policy = make(name, **settings_of(name))
    plain = executed(name, make(name))
    expected = np.broadcast_to(target(histories(name)).numpy(), plain.shape)
    assert np.abs(plain - expected).max() > 0.1
    np.testing.assert_allclose(executed(name, policy), expected, atol=1e-6)
    assert energies == ["single" if name == "qgpo" else "bowl"]
    averages = policy.eval_mode.get_attribute("energy_correction").averages()
    assert averages["energy_after"] < 1e-9 < 0.01 < averages["energy_before"]
    assert all(p.grad is None and not p.requires_grad for p in bowl().network.parameters())


@each_policy
def test_the_hosts_evaluation_is_corrected_too(name, energies):
    policy, obs = make(name, **settings_of(name)), observations(name)
    output = policy.eval_mode.forward({i: torch.from_numpy(row) for i, row in enumerate(obs)})
    actions = np.stack([output[i]["action"].numpy() for i in range(E)])
    np.testing.assert_allclose(actions.reshape(E, -1, DA)[:, 0], target(histories(name))[:, 0].numpy(), atol=1e-6)


@each_policy
def test_off_it_reads_nothing_and_changes_no_bit(name, energies):
    policy = make(name, energy_checkpoint="there", energy_alpha=0.7, energy_dims=[True, False], correct_first_only=True)
    assert policy.eval_mode.get_attribute("energy_correction") is None and energies == []
    np.testing.assert_array_equal(executed(name, policy), executed(name, make(name)))
    steps_of_no_length = make(name, **settings_of(name, energy_alpha=0.0))
    np.testing.assert_array_equal(executed(name, steps_of_no_length), executed(name, make(name)))


@each_policy
def test_what_is_not_to_be_corrected_stays(name, energies):
    plain = executed(name, make(name))
    moved = executed(name, make(name, **settings_of(name, energy_dims=[True, False])))
    np.testing.assert_array_equal(moved[..., 1], plain[..., 1])
    assert (moved[..., 0] != plain[..., 0]).any(axis=1).all()
    if name != "qgpo":
        moved = executed(name, make(name, **settings_of(name, correct_first_only=True)))
        np.testing.assert_array_equal(moved[:, 1:], plain[:, 1:])
        np.testing.assert_allclose(moved[:, 0], target(histories(name))[:, 0].numpy(), atol=1e-6)


@each_policy
def test_the_clip_is_a_share_of_the_range_and_actions_stay_in_it(name, energies):
    plain = executed(name, make(name))
    moved = executed(name, make(name, **settings_of(name, energy_clip="range", energy_clip_frac=0.01)))
    assert np.abs(moved - plain).max() == pytest.approx(0.01 * 2.0 * 0.5, rel=1e-4)  # raw units: scale 0.5
    policy = make(name, **settings_of(name, energy_alpha=1e3))
    policy._model.action_normalizer.scale.fill_(1e-3)
    policy._model.action_normalizer.shift.fill_(5.0)
    far = executed(name, policy)
    np.testing.assert_allclose(far, 5.0 - 1e-3, atol=1e-5)


@each_policy
def test_of_n_samples_the_one_of_least_energy_is_executed(name, energies):
    only, many = settings_of(name, energy_correction_steps=0), 16
    policy = make(name, **dict(only, energy_candidates=many))
    drawn: list[Tensor] = []
    correction = policy.eval_mode.get_attribute("energy_correction")
    inner = correction._bind

    def watched(obs: Tensor, normalized: Tensor):
        energy_fn = inner(obs, normalized)
        return lambda x: (drawn.append(x), energy_fn(x))[1]

    correction._bind = watched
    actions = torch.from_numpy(executed(name, policy))
    # All N candidates, then the chosen ones: what a candidate's own energy says is least.
    candidates = policy._model.action_normalizer.inverse(torch.stack(drawn[:many]))
    assert len(drawn) == many + 1 and len({one.numpy().tobytes() for one in candidates}) == many
    energy = (candidates - target(histories(name))).square().sum(dim=(2, 3))
    chosen = candidates[energy.argmin(dim=0), torch.arange(E)]
    np.testing.assert_allclose(actions.numpy(), chosen[:, : actions.shape[1]].numpy(), atol=1e-6)
    averages = correction.averages()
    assert averages["energy_before"] == pytest.approx(float(energy[0].mean()), rel=1e-5)
    assert averages["energy_after"] == pytest.approx(float(energy.min(dim=0).values.mean()), rel=1e-5)
    assert averages["displacement"] == 0.0
    policy.eval_mode.reset()
    np.testing.assert_array_equal(executed(name, policy), actions.numpy())


def test_candidates_and_descent_together_fall_below_either(energies):
    reached = {}
    for candidates, steps in ((1, 0), (8, 0), (1, 3), (8, 3)):
        settings = settings_of("dppo", energy_candidates=candidates, energy_correction_steps=steps, energy_alpha=0.2)
        policy = make("dppo", **settings)
        action = torch.from_numpy(executed("dppo", policy))
        reached[candidates, steps] = float((action - target(histories("dppo"))).square().sum())
        correction = policy.eval_mode.get_attribute("energy_correction")
        names = {(8, 0): "best of 8", (1, 3): "3 steps", (8, 3): "best of 8 + 3 steps"}
        assert (correction is None) if candidates == 1 and not steps else correction.name == names[candidates, steps]
    assert reached[8, 3] < min(reached[8, 0], reached[1, 3]) < max(reached[8, 0], reached[1, 3]) < reached[1, 0]


def test_langevin_noise_follows_the_evaluations_seed(energies):
    settings = settings_of("gaussian_bc", energy_noise=0.1, energy_line_search=False)
    policy = make("gaussian_bc", **settings)
    first, second = executed("gaussian_bc", policy), executed("gaussian_bc", policy)
    policy.eval_mode.reset()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(executed("gaussian_bc", policy), first)


def test_what_was_observed_is_an_average_over_decisions_since_the_reset(energies):
    policy = make("dppo", **settings_of("dppo", energy_correction_steps=2, energy_alpha=0.5))
    correction = policy.eval_mode.get_attribute("energy_correction")
    assert correction.summary() == "2 steps: nothing was corrected"
    with pytest.raises(ValueError, match="nothing was corrected"):
        correction.averages()
    obs = observations("dppo")
    parts = []
    for rows in (obs[:2], obs):
        correction.reset()
        policy._eval_generator.manual_seed(3)
        policy.act(rows)
        parts.append(correction.averages())
    policy.eval_mode.reset()
    for rows in (obs[:2], obs):
        policy._eval_generator.manual_seed(3)
        policy.act(rows)
    both = correction.averages()
    assert both["decisions"] == 2 + E
    for key in ("energy_before", "energy_after", "displacement"):
        assert both[key] == pytest.approx((2 * parts[0][key] + E * parts[1][key]) / (2 + E), rel=1e-5)
    assert both["sampling_ms"] > 0.0 and both["energy_ms"] > 0.0
    assert correction.summary().startswith(f"2 steps: energy {both['energy_before']:.4g} to ")


def test_the_critics_energy_raises_its_value_and_waits_until_it_is_trained():
    settings = dict(energy_checkpoint="critic", energy_correction_steps=3, energy_alpha=10.0)
    plain, policy = make("qgpo"), make("qgpo", **settings)
    obs = observations("qgpo")

    def value(actions: np.ndarray) -> Tensor:
        model = policy._model
        normalized = model.obs_normalizer(torch.from_numpy(obs)), model.action_normalizer(torch.from_numpy(actions))
        with torch.no_grad():
            return model.target_critic(*normalized).mean(dim=0)

    before, after = plain.act(obs), policy.act(obs)
    assert (value(after) >= value(before) - 1e-6).all() and (value(after) - value(before)).max() > 1e-3
    averages = policy.eval_mode.get_attribute("energy_correction").averages()
    assert averages["energy_before"] == pytest.approx(-float(value(before).mean()), abs=1e-5)
    assert averages["energy_after"] == pytest.approx(-float(value(after).mean()), abs=1e-5)
    assert all(p.grad is None for p in policy._model.parameters())
    early, plain = make("qgpo", train_iter=10, **settings), make("qgpo", train_iter=10)
    np.testing.assert_array_equal(early.act(obs), plain.act(obs))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            dict(task="hopper"),
            "eval.energy_checkpoint bowl is of another model: task is 'hopper' there and 'avoid' here",
        ),
        (dict(obs_dim=11), "obs_dim is 11 there and 4 here"),
        (dict(action_dim=3), "action_dim is 3 there and 2 here"),
        (dict(cond_steps=1), "cond_steps is 1 there and 2 here"),
        (dict(horizon_steps=8), "horizon_steps is 8 there and 4 here"),
    ],
)
def test_an_energy_of_something_else_is_refused_with_both_values(facts, message, monkeypatch):
    monkeypatch.setattr(energy_correction, "load_energy", lambda path, device: bowl(**facts))
    with pytest.raises(ValueError, match=message):
        make("dppo", **ONE_STEP)
    if "task" in facts:  # a policy over single actions names none
        monkeypatch.setattr(
            energy_correction, "load_energy", lambda path, device: bowl(**facts, cond_steps=1, horizon_steps=1)
        )
        make("qgpo", **ONE_STEP)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(energy_correction_steps=3), "energy_checkpoint must name an energy: .*energy_correction_steps is 3"),
        (dict(energy_candidates=4), "energy_checkpoint must name an energy: eval.energy_candidates is 4"),
        (dict(energy_checkpoint="critic"), "is 'critic', but dppo has no critic of actions"),
        (dict(energy_noise=0.1), "energy_noise above 0 needs eval.energy_line_search=False"),
        (dict(energy_dims=[True]), r"energy_dims must have one entry for each of 2 action dimensions, got \[True\]"),
        (dict(energy_dims=[0, 1]), "energy_dims must be None or a list, each True or False"),
        (dict(energy_clip="norm"), r"energy_clip must be None or one of \('range', 'original_norm', 'current_norm'\)"),
        (dict(energy_candidates=0), "energy_candidates must be an integer >= 1"),
        (dict(energy_clip_frac=0.0), "energy_clip_frac must be a number > 0"),
        (dict(energy_correction_step=3), "did you mean 'energy_correction_steps'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make("dppo", **settings)


def test_a_network_that_binds_observations_is_asked_once_a_call(energies, monkeypatch):
    class Binding(Bowl):
        bound = 0

        def bind(self, obs: Tensor):
            Binding.bound += 1
            return lambda action: self(obs, action)

    energy = bowl()
    energy.network = Binding((energy.obs_normalizer, energy.action_normalizer)).requires_grad_(False)
    monkeypatch.setattr(energy_correction, "load_energy", lambda path, device: energy)
    policy = make("dppo", **settings_of("dppo", energy_correction_steps=4, energy_alpha=0.5, energy_candidates=4))
    bound = executed("dppo", policy)
    assert Binding.bound == 1
    monkeypatch.setattr(energy_correction, "load_energy", lambda path, device: bowl())
    policy = make("dppo", **settings_of("dppo", energy_correction_steps=4, energy_alpha=0.5, energy_candidates=4))
    np.testing.assert_array_equal(bound, executed("dppo", policy))


def test_an_energy_mlp_corrects_as_by_autograd_and_in_the_units_that_the_policy_has_now(monkeypatch):
    class Plain(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, obs: Tensor, action: Tensor) -> Tensor:
            return self.network(obs, action)

    torch.manual_seed(0)
    network, policies = EnergyMLP(DO, DA, TO, TP, (64, 64)), []
    nn.init.normal_(network.last.weight, std=5.0)
    for made in (network, Plain(network)):
        energy = bowl()
        energy.network = made.requires_grad_(False)
        monkeypatch.setattr(energy_correction, "load_energy", lambda path, device, energy=energy: energy)
        settings = dict(energy_correction_steps=3, energy_alpha=0.3, energy_clip="range", energy_candidates=2)
        policies.append(make("dppo", **settings_of("dppo", **settings)))
    for scale in (0.5, 2.0):
        for policy in policies:
            policy._model.action_normalizer.scale.fill_(scale)
        ours, expected = (executed("dppo", policy) for policy in policies)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        averages = [policy.eval_mode.get_attribute("energy_correction").averages() for policy in policies]
        for key in ("energy_before", "energy_after", "displacement", "clip_rate", "accept_rate"):
            assert averages[0][key] == pytest.approx(averages[1][key], rel=1e-4)
        assert averages[0]["displacement"] > 0.01
    assert 0.0 < averages[0]["clip_rate"] < 1.0


def test_an_energy_of_raw_units_is_that_of_its_network_on_normalized_ones():
    energy, obs = bowl(), torch.randn(E, TO, DO)
    action = torch.randn(E, TP, DA, requires_grad=True)
    value = energy.energy(obs, action)
    torch.testing.assert_close(value, (action - target(obs)).square().sum(dim=(1, 2)))
    (grad,) = torch.autograd.grad(value.sum(), action)
    torch.testing.assert_close(grad, 2.0 * (action - target(obs)).detach())
    assert (energy.obs_dim, energy.action_dim) == (DO, DA)
