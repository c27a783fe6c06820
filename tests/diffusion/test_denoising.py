"""DDPM and DDIM steps against Bayes' rule, the marginals they must keep, and a Gaussian whose score is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ding_ebm.diffusion.denoising import (
    DenoisingPlan,
    chain_index,
    ddim_plan,
    ddpm_plan,
    denoise,
    first_recorded,
    step_log_prob,
    step_mean,
)
from ding_ebm.diffusion.schedules import CosineSchedule

SCHEDULE = CosineSchedule(20)
PLANS = {
    "ddpm": ddpm_plan(SCHEDULE),
    "ddim": ddim_plan(SCHEDULE, 20),
    "ddim, eta 0.5": ddim_plan(SCHEDULE, 20, 0.5),
    "ddim, 5 steps": ddim_plan(SCHEDULE, 5),
    "ddim, 6 steps, eta 1": ddim_plan(SCHEDULE, 6, 1.0),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def transitions(plan: DenoisingPlan) -> list[tuple[int, int, int]]:
    """(j, k, l) of each step."""
    return [(j, k, after) for j, (k, after) in enumerate(zip(plan.steps, (*plan.steps[1:], 0)))]


# The schedule.


def test_cosine_schedule_is_the_product_of_its_clipped_ratios():
    g = [math.cos((k / 20 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(21)]
    product = 1.0
    for k in range(1, 21):
        beta = min(1.0 - g[k] / g[k - 1], 0.999)
        product *= 1.0 - beta
        assert float(SCHEDULE.beta[k]) == pytest.approx(beta, rel=1e-12)
        assert float(SCHEDULE.alpha_bar[k]) == pytest.approx(product, rel=1e-12)
    assert float(SCHEDULE.alpha_bar[0]) == 1.0 and float(SCHEDULE.beta[20]) == 0.999


def test_diffused_samples_have_the_schedules_mean_and_variance():
    x_0, noise, k = normal(3, 4, 2), normal(3, 4, 2, seed=1), torch.tensor([0, 7, 20])
    diffused = SCHEDULE.diffuse(x_0, k, noise)
    assert torch.equal(diffused[0], x_0[0])
    for row in (1, 2):
        a = SCHEDULE.alpha_bar[k[row]]
        torch.testing.assert_close(diffused[row], a.sqrt() * x_0[row] + (1 - a).sqrt() * noise[row])
    assert SCHEDULE.diffuse(x_0.float(), k, noise.float()).dtype == torch.float32


# The steps.


def test_a_ddpm_step_is_the_posterior_by_bayes_rule():
    plan = PLANS["ddpm"]
    for j, k, _ in transitions(plan):
        beta, before = float(SCHEDULE.beta[k]), float(SCHEDULE.alpha_bar[k - 1])
        if k == 1:
            assert (plan.mean_from_x0[j], plan.mean_from_x[j], plan.std[j]) == pytest.approx((1.0, 0.0, 0.0))
            continue
        # Prior x_{k-1} ~ N(sqrt(before) x_0, 1 - before), likelihood x_k ~ N(sqrt(1 - beta) x_{k-1}, beta).
        precision = 1.0 / (1.0 - before) + (1.0 - beta) / beta
        assert plan.std[j] ** 2 == pytest.approx(1.0 / precision, rel=1e-10)
        assert plan.mean_from_x0[j] == pytest.approx(math.sqrt(before) / (1.0 - before) / precision, rel=1e-10)
        assert plan.mean_from_x[j] == pytest.approx(math.sqrt(1.0 - beta) / beta / precision, rel=1e-10)


@pytest.mark.parametrize("name", PLANS)
def test_every_step_carries_the_marginal_at_its_start_to_the_marginal_at_its_end(name):
    plan = PLANS[name]
    for j, k, after in transitions(plan):
        now, then = float(SCHEDULE.alpha_bar[k]), float(SCHEDULE.alpha_bar[after])
        assert plan.mean_from_x0[j] + plan.mean_from_x[j] * math.sqrt(now) == pytest.approx(math.sqrt(then), rel=1e-9)
        variance = plan.mean_from_x[j] ** 2 * (1.0 - now) + plan.std[j] ** 2
        assert variance == pytest.approx(1.0 - then, rel=1e-9, abs=1e-12)


def test_ddim_with_eta_1_over_all_steps_is_ddpm():
    ours, theirs = ddim_plan(SCHEDULE, 20, 1.0), PLANS["ddpm"]
    assert ours.steps == theirs.steps
    for name in ("x0_from_x", "x0_from_noise", "mean_from_x0", "mean_from_x", "std"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-8, abs=1e-10), name


def test_ddim_steps_are_evenly_spaced_and_end_with_the_least():
    assert PLANS["ddim, 5 steps"].steps == (17, 13, 9, 5, 1)
    assert PLANS["ddim, 6 steps, eta 1"].steps == (16, 13, 10, 7, 4, 1)
    assert not any(PLANS["ddim, 5 steps"].std)


@pytest.mark.parametrize("name", PLANS)
def test_the_true_noise_gives_the_clean_sample_back(name):
    plan, x_0, noise = PLANS[name], normal(6, 3).clamp(-1, 1), normal(6, 3, seed=1)
    for j, k, after in transitions(plan):
        now, then = SCHEDULE.alpha_bar[k], SCHEDULE.alpha_bar[after]
        x = now.sqrt() * x_0 + (1 - now).sqrt() * noise
        left = max(1.0 - float(then) - plan.std[j] ** 2, 0.0) ** 0.5
        torch.testing.assert_close(step_mean(plan, j, x, noise), then.sqrt() * x_0 + left * noise)


def test_the_clean_sample_is_clipped_and_only_it():
    plan, x, noise = PLANS["ddpm"], normal(50, 2) * 3, normal(50, 2, seed=1)
    j = 15
    clean = x * plan.x0_from_x[j] + noise * plan.x0_from_noise[j]
    assert (clean.abs() > 0.5).any()
    expected = clean.clamp(-0.5, 0.5) * plan.mean_from_x0[j] + x * plan.mean_from_x[j]
    torch.testing.assert_close(step_mean(plan, j, x, noise, clip=0.5), expected)
    assert not torch.allclose(step_mean(plan, j, x, noise, clip=None), expected)


def test_a_step_index_for_each_entry_is_a_loop_over_steps():
    plan, x, noise = PLANS["ddim, eta 0.5"], normal(4, 20, 2, 3), normal(4, 20, 2, 3, seed=1)
    together = step_mean(plan, torch.arange(20).view(1, 20, 1, 1), x, noise)
    for j in range(20):
        torch.testing.assert_close(together[:, j], step_mean(plan, j, x[:, j], noise[:, j]), rtol=1e-12, atol=1e-12)


# Sampling.


def exact_noise(schedule: CosineSchedule, plan: DenoisingPlan, mean: Tensor, covariance: Tensor):
    """The noise predictor of N(mean, covariance): sqrt(1 - a) times minus the score of the diffused law."""

    def predict(x: Tensor, j: int) -> Tensor:
        a = schedule.alpha_bar[plan.steps[j]]
        diffused = a * covariance + (1 - a) * torch.eye(len(mean), dtype=torch.float64)
        return (1 - a).sqrt() * torch.linalg.solve(diffused, (x - a.sqrt() * mean).T).T

    return predict


MEAN = torch.tensor([0.3, -0.4], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.10, 0.03], [0.03, 0.05]], dtype=torch.float64)


def law_of_samples(plan: DenoisingPlan, predict) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what the plan samples: every step is an affine map plus noise."""
    mean, covariance = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for j in range(len(plan)):
        points = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
        shift, *columns = step_mean(plan, j, points, predict(points, j), clip=None)
        matrix = torch.stack(columns, 1) - shift.unsqueeze(1)
        mean = matrix @ mean + shift
        covariance = matrix @ covariance @ matrix.T + plan.std[j] ** 2 * torch.eye(2, dtype=torch.float64)
    return mean, covariance


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_the_exact_noise_of_a_gaussian_samples_it_the_better_the_more_steps(eta):
    errors = []
    for num_steps in (200, 400, 800):
        schedule = CosineSchedule(num_steps)
        plan = ddpm_plan(schedule) if eta is None else ddim_plan(schedule, num_steps, eta)
        mean, covariance = law_of_samples(plan, exact_noise(schedule, plan, MEAN, COVARIANCE))
        torch.testing.assert_close(mean, MEAN, rtol=0.0, atol=1e-3)
        errors.append(float((covariance - COVARIANCE).abs().max()))
    assert errors[-1] < 0.002
    # First order: half the step, half the error.
    assert 1.7 < errors[0] / errors[1] < 2.3 and 1.7 < errors[1] / errors[2] < 2.3


def test_samples_follow_the_law_that_the_steps_compose_to():
    plan = ddpm_plan(CosineSchedule(20))
    predict = exact_noise(CosineSchedule(20), plan, MEAN, COVARIANCE)
    mean, covariance = law_of_samples(plan, predict)
    x = denoise(plan, predict, normal(40000, 2), std=plan.std, generator=generator(1), clip=None).x
    torch.testing.assert_close(x.mean(0), mean, rtol=0.0, atol=0.006)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.0, atol=0.003)


def curved(x: Tensor, j: int) -> Tensor:
    return torch.sin(2.0 * x + j)


def run(plan: DenoisingPlan, recorded: int, seed: int = 0, **options):
    options = {"std": plan.exploring_std(0.1), **options}
    return denoise(plan, curved, normal(5, 4, 3), generator=generator(seed), recorded=recorded, **options)


@pytest.mark.parametrize("name", ["ddpm", "ddim, 5 steps"])
def test_the_recorded_chain_is_the_end_of_the_whole_chain_and_its_means_are_those_it_was_drawn_from(name):
    plan = PLANS[name]
    whole = run(plan, len(plan))
    assert whole.chain.shape == (5, len(plan) + 1, 4, 3) and torch.equal(whole.chain[:, 0], normal(5, 4, 3))
    for recorded in (0, 1, 3, len(plan)):
        sample = run(plan, recorded)
        assert torch.equal(sample.x, whole.x) and torch.equal(sample.chain[:, -1], sample.x)
        assert torch.equal(sample.chain, whole.chain[:, len(plan) - recorded :])
        assert torch.equal(sample.mean, whole.mean[:, len(plan) - recorded :])
        assert sample.mean.shape == (5, recorded, 4, 3)
        for i, j in enumerate(range(first_recorded(plan, recorded), len(plan))):
            before = sample.chain[:, i]
            torch.testing.assert_close(step_mean(plan, j, before, curved(before, j)), sample.mean[:, i])


def test_one_function_says_which_entry_of_a_chain_holds_which_index():
    ddpm, ddim = PLANS["ddpm"], PLANS["ddim, 5 steps"]
    assert ddpm.levels == tuple(range(20, -1, -1)) and ddim.levels == (17, 13, 9, 5, 1, 0)
    assert [chain_index(k, ddpm.levels) for k in (0, 1, 20)] == [20, 19, 0]
    recorded = run(ddpm, 3).chain
    for k in range(4):  # the last 3 steps' chain is the end of the whole one
        part, whole = chain_index(k, ddpm.levels[-4:]), chain_index(k, ddpm.levels)
        assert torch.equal(recorded[:, part], run(ddpm, 20).chain[:, whole])
    for k, levels in ((2, ddim.levels), (21, ddpm.levels), (-1, ddpm.levels), (4, ddpm.levels[-4:])):
        with pytest.raises(ValueError, match=f"no entry of the chain holds denoising index {k}; its entries hold"):
            chain_index(k, levels)


def test_samples_that_share_their_noise_are_functions_of_their_start():
    plan, std = PLANS["ddpm"], PLANS["ddpm"].exploring_std(0.1)
    start, shared = normal(1, 4, 3).expand(5, 4, 3), normal(20, 1, 4, 3, seed=1)
    x = denoise(plan, curved, start, std=std, generator=generator(), step_noise=shared).x
    assert torch.equal(x, x[:1].expand_as(x))
    own = denoise(plan, curved, start, std=std, generator=generator()).x
    assert float((own[0] - own[1]).abs().max()) > 0.01
    # Noise of one's own, given, is noise that is drawn.
    drawn = torch.stack([torch.randn(5, 4, 3, generator=g, dtype=torch.float64) for g in [generator()] for _ in std])
    assert torch.equal(denoise(plan, curved, start, std=std, generator=generator(9), step_noise=drawn).x, own)


def test_the_noise_of_a_step_has_its_standard_deviation_and_is_clipped():
    plan = PLANS["ddpm"]
    std = plan.exploring_std(0.1)
    assert min(std) == 0.1 and max(std) == max(plan.std) and std[-1] == 0.1
    sample = denoise(plan, curved, normal(4000, 3), std=std, generator=generator(), recorded=20, noise_clip=1.5)
    z = (sample.chain[:, 1:] - sample.mean) / torch.tensor(std, dtype=torch.float64).view(-1, 1)
    assert float(z.abs().max()) == pytest.approx(1.5, rel=1e-9)
    free = denoise(plan, curved, normal(4000, 3), std=std, generator=generator(), recorded=20)
    z = (free.chain[:, 1:] - free.mean) / torch.tensor(std, dtype=torch.float64).view(-1, 1)
    assert float(z.std()) == pytest.approx(1.0, abs=0.01) and float(z.abs().max()) > 3.0


def test_ddim_without_noise_depends_on_its_start_alone_and_other_runs_on_their_seed_too():
    plan = PLANS["ddim, 5 steps"]
    assert plan.evaluation_std() == plan.std
    assert torch.equal(run(plan, 0, seed=1, std=plan.std).x, run(plan, 0, seed=2, std=plan.std).x)
    assert not torch.equal(run(PLANS["ddpm"], 0, seed=1).x, run(PLANS["ddpm"], 0, seed=2).x)
    assert torch.equal(run(PLANS["ddpm"], 0, seed=1).x, run(PLANS["ddpm"], 0, seed=1).x)


def test_evaluation_by_ddpm_draws_no_noise_at_its_last_step():
    plan = PLANS["ddpm"]
    std = plan.evaluation_std()
    assert std[-1] == 0.0 and std[:-1] == plan.std[:-1] and min(std[:-1]) >= 1e-3
    sample = run(plan, 1, std=std)
    assert torch.equal(sample.x, sample.mean[:, 0])


def test_log_probabilities_are_those_of_a_normal_distribution():
    x, mean = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    std = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64).view(3, 1)
    expected = torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(x)
    torch.testing.assert_close(step_log_prob(x, mean, std), expected)
    torch.testing.assert_close(step_log_prob(x, mean, 0.3), torch.distributions.Normal(mean, 0.3).log_prob(x))


def test_arguments_out_of_range_are_refused():
    for make, message in (
        (lambda: CosineSchedule(0), "num_steps must be at least 1"),
        (lambda: ddim_plan(SCHEDULE, 21), "num_steps must be from 1 to the schedule's 20, got 21"),
        (lambda: ddim_plan(SCHEDULE, 0), "num_steps must be from 1"),
        (lambda: ddim_plan(SCHEDULE, 5, 1.5), "eta must be from 0 to 1, got 1.5"),
        (lambda: run(PLANS["ddpm"], 21), "recorded steps must be from 0 to the plan's 20, got 21"),
        (lambda: run(PLANS["ddpm"], 1, std=(0.1,)), "one entry for each of the 20 steps, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
