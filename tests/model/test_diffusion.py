"""Denoising loss and sampling against loops, closed forms and negative controls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ding_ebm.diffusion.guidance import Guidance
from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan
from ding_ebm.model.diffusion import denoising_loss, random_times, sample_actions, standard_normal
from ding_ebm.model.energy import GuidanceNet
from ding_ebm.model.networks import NoiseNet

SCHEDULE = VPLinearSchedule()
PLAN = make_plan(SCHEDULE, 8)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> NoiseNet:
    torch.manual_seed(0)
    return NoiseNet(5, 2, (16, 8)).double()


def guidance() -> GuidanceNet:
    torch.manual_seed(1)
    return GuidanceNet(5, 2, (16, 16)).double()


class Known:
    """A noise model that predicts a function of the state: stands where a network would."""

    def __init__(self, function) -> None:
        self._function = function

    def __call__(self, x_t, t, obs):
        return self._function(x_t)

    def bind(self, times, obs):
        return lambda x_t, i: self._function(x_t)


class Forbidden(Guidance):
    """A guidance that must not be asked."""

    def value_and_grad(self, x_t, t, obs, inverse_temperature):
        raise AssertionError("the guidance was evaluated")


def test_the_denoising_loss_is_the_loop_over_rows_and_dimensions():
    net, x_t, noise, obs = network(), random(4, 2), random(4, 2, seed=2), random(4, 5, seed=3)
    t = torch.rand(4, dtype=torch.float64)
    predicted = net(x_t, t, obs)
    total = sum((predicted[i, j] - noise[i, j]).item() ** 2 for i in range(4) for j in range(2))
    assert denoising_loss(net, x_t, t, obs, noise).item() == pytest.approx(total / 4, rel=1e-12)


def test_the_denoising_loss_of_a_perfect_prediction_is_zero_and_of_none_is_the_dimension():
    noise, t, obs = random(5000, 2), torch.rand(5000, dtype=torch.float64), random(5000, 5)
    assert denoising_loss(Known(lambda x: noise), noise, t, obs, noise).item() == 0.0
    nothing = denoising_loss(Known(torch.zeros_like), noise, t, obs, noise)
    assert nothing.item() == pytest.approx(2.0, rel=0.05)


def test_random_times_are_uniform_between_the_smallest_and_one(generator):
    t = random_times((100_000,), SCHEDULE, generator)
    assert SCHEDULE.t_min <= t.min() and t.max() < 1.0
    assert t.mean().item() == pytest.approx(0.5005, abs=3e-3) and t.var().item() == pytest.approx(1 / 12, rel=0.01)
    assert random_times((3, 4), SCHEDULE, generator).shape == (3, 4)


def test_an_exponent_makes_more_of_the_random_times_early(generator):
    t = random_times((100_000,), SCHEDULE, generator, exponent=3.0)
    uniform = ((t - SCHEDULE.t_min) / (1.0 - SCHEDULE.t_min)) ** (1.0 / 3.0)
    assert float(t.min()) >= SCHEDULE.t_min and float(t.max()) < 1.0
    assert float(t.mean()) == pytest.approx(SCHEDULE.t_min + (1.0 - SCHEDULE.t_min) / 4.0, abs=5e-3)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=5e-3) and float(uniform.var()) == pytest.approx(
        1.0 / 12.0, abs=2e-3
    )


def test_random_numbers_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    like = torch.empty(6, 2, dtype=torch.float64)
    draws = [(random_times((4,), SCHEDULE, g), standard_normal(like, g)) for g in (first, second)]
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    assert draws[0][1].dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), before)


def test_a_guided_sample_is_the_solvers_loop_with_the_score_of_the_tilted_law():
    # Written out for the multistep solver of first order: x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) x_0.
    plan = make_plan(SCHEDULE, 6, order=1, spacing="time")
    net, energy, obs, x = network(), guidance(), random(4, 5, seed=3), random(4, 2)
    got = sample_actions(net, plan, obs, x, guidance=energy, guidance_scale=1.7, clip="none")
    grid = torch.linspace(1.0, SCHEDULE.t_min, 7, dtype=torch.float64)
    for t, after in zip(grid[:-1], grid[1:]):
        leaf = x.detach().requires_grad_()
        grad = torch.autograd.grad(energy(leaf, t.expand(4), obs, 1.0).sum(), leaf)[0]
        score = -net(x, t.expand(4), obs) / SCHEDULE.sigma(t) + 1.7 * grad
        clean = (x + SCHEDULE.sigma(t) ** 2 * score) / SCHEDULE.alpha(t)
        ratio = SCHEDULE.sigma(after) / SCHEDULE.sigma(t)
        x = (ratio * x + (SCHEDULE.alpha(after) - SCHEDULE.alpha(t) * ratio) * clean).detach()
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


def test_at_scale_zero_the_guidance_is_not_evaluated_and_the_sample_is_the_behaviors():
    net, obs, noise = network(), random(4, 5), random(4, 2, seed=2)
    behavior = sample_actions(net, PLAN, obs, noise)
    assert torch.equal(sample_actions(net, PLAN, obs, noise, guidance=Forbidden(), guidance_scale=0.0), behavior)
    with pytest.raises(AssertionError, match="was evaluated"):
        sample_actions(net, PLAN, obs, noise, guidance=Forbidden(), guidance_scale=1e-9)
    assert not torch.equal(sample_actions(net, PLAN, obs, noise, guidance=guidance(), clip="none"), behavior)


def test_the_noise_alone_decides_the_sample_and_is_left_as_it_was():
    net, obs, noise = network(), random(4, 5), random(4, 2, seed=2)
    kept = noise.clone()
    torch.manual_seed(0)
    first = sample_actions(net, PLAN, obs, noise)
    torch.manual_seed(1)
    assert torch.equal(sample_actions(net, PLAN, obs, noise), first)
    assert torch.equal(noise, kept)
    assert not torch.equal(sample_actions(net, PLAN, obs, random(4, 2, seed=9)), first)


def test_many_actions_of_a_state_are_the_samples_of_the_repeated_state():
    net, energy, obs, noise = network(), guidance(), random(4, 5), random(4, 3, 2, seed=2)
    together = sample_actions(net, PLAN, obs.unsqueeze(1), noise, guidance=energy)
    apart = sample_actions(net, PLAN, obs.repeat_interleave(3, 0), noise.flatten(0, 1), guidance=energy)
    torch.testing.assert_close(together.flatten(0, 1), apart, rtol=0.0, atol=1e-10)


def test_actions_are_clipped_when_and_only_when_it_is_asked_for():
    # This model finds the clean action 3 everywhere.
    plan = make_plan(SCHEDULE, 40)
    sigma, alpha = dict(zip(plan.times, plan.sigma)), dict(zip(plan.times, plan.alpha))

    class Three:
        def bind(self, times, obs):
            return lambda x, i: (x - 3.0 * alpha[times[i]]) / sigma[times[i]]

    noise = random(6, 2)
    end = {
        clip: sample_actions(Three(), plan, random(6, 5), noise, clip=clip) for clip in ("none", "final", "every_step")
    }
    torch.testing.assert_close(end["none"], torch.full_like(noise, 3.0), rtol=0.0, atol=0.05)
    assert torch.equal(end["final"], torch.ones_like(noise))
    assert end["every_step"].abs().max() <= 1.0
    torch.testing.assert_close(end["every_step"], torch.ones_like(noise), rtol=0.0, atol=0.05)


def test_clipping_every_step_is_not_clipping_the_end():
    net, obs, noise = network(), random(400, 5), random(400, 2, seed=2)
    free, last, every = (sample_actions(net, PLAN, obs, noise, clip=c) for c in ("none", "final", "every_step"))
    assert free.abs().max() > 1.0  # the untrained network leaves the range
    assert torch.equal(last, free.clamp(-1.0, 1.0)) and not torch.equal(every, last)


@pytest.mark.parametrize("mean", [-0.4, 0.3])
def test_sampling_a_gaussian_gives_its_mean_and_spread(mean):
    # The exact noise of N(mean, 0.2^2): everything is known, and the network's part is a formula.
    plan = make_plan(SCHEDULE, 30)

    class Gaussian:
        def bind(self, times, obs):
            def predict(x, i):
                alpha, sigma = plan.alpha[i], plan.sigma[i]
                return sigma * (x - alpha * mean) / (alpha**2 * 0.04 + sigma**2)

            return predict

    actions = sample_actions(Gaussian(), plan, random(20_000, 5), random(20_000, 1), clip="none")
    assert actions.mean().item() == pytest.approx(mean, abs=0.01)
    assert actions.std().item() == pytest.approx(0.2, rel=0.03)
    assert math.isfinite(actions.sum().item())


def test_sampling_leaves_no_graph():
    net, energy = network(), guidance()
    actions = sample_actions(net, PLAN, random(4, 5), random(4, 2), guidance=energy)
    assert not actions.requires_grad
    with torch.inference_mode():
        again = sample_actions(net, PLAN, random(4, 5), random(4, 2), guidance=energy)
    assert torch.equal(actions, again)
