"""Chains of two networks: who is asked at which step, and densities against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.diffusion.denoising import ddim_plan, ddpm_plan, step_mean
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.model.chains import (
    LOG_PROB_RANGE,
    DiffusionPrior,
    chain_means,
    chunk_log_prob,
    chunk_loss,
    sample_chunks,
)
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.unet import Unet1D

K, B, TO, TP, DO, DA = 8, 6, 2, 4, 3, 2
SCHEDULE = CosineSchedule(K)
PLANS = {"ddpm": ddpm_plan(SCHEDULE), "ddim": ddim_plan(SCHEDULE, 4, 1.0)}


class Net(nn.Module):
    """Depends on everything it is given; counts the levels that it is asked for."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.asked: list[int] = []

    def forward(self, x: Tensor, k: Tensor, obs: Tensor) -> Tensor:
        drift = obs.sum((-2, -1)).view(-1, 1, 1) + 0.1 * k.view(-1, 1, 1)
        return torch.sin(self.weight * x.cumsum(-2) + drift)

    def bind(self, steps, obs):
        def predict(x: Tensor, i: int) -> Tensor:
            self.asked.append(steps[i])
            return self(x, torch.full((len(x),), steps[i]), obs)

        return predict


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(plan, fine_tuned_steps: int, base: Net, tuned: Net | None, seed: int = 0):
    return sample_chunks(
        base, tuned, plan, normal(B, TO, DO), normal(B, TP, DA, seed=1), std=plan.exploring_std(0.1),
        generator=torch.Generator().manual_seed(seed), fine_tuned_steps=fine_tuned_steps, noise_clip=3.0,
    )  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_each_network_is_asked_at_its_own_steps_and_nowhere_else(name):
    plan = PLANS[name]
    levels = [k - 1 for k in plan.steps]
    for fine_tuned_steps in (0, 1, 3, len(plan)):
        base, tuned = Net(1.0), Net(2.0)
        sample(plan, fine_tuned_steps, base, tuned)
        first = len(plan) - fine_tuned_steps
        assert base.asked == levels[:first] and tuned.asked == levels[first:]
    assert levels[-1] == 0 and max(levels) <= K - 1


@pytest.mark.parametrize("name", PLANS)
def test_a_fine_tuned_copy_samples_what_the_base_does(name):
    plan, base = PLANS[name], Net(1.3)
    alone = sample(plan, 0, base, None)
    for fine_tuned_steps in (1, len(plan)):
        assert torch.equal(sample(plan, fine_tuned_steps, base, Net(1.3)).x, alone.x)
        assert not torch.equal(sample(plan, fine_tuned_steps, base, Net(1.4)).x, alone.x)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("fine_tuned_steps", [1, 3, "all"])
def test_the_density_of_a_chain_is_the_product_of_its_normal_steps(name, fine_tuned_steps):
    plan, tuned, obs = PLANS[name], Net(0.7), normal(B, TO, DO)
    count = len(plan) if fine_tuned_steps == "all" else fine_tuned_steps
    chain = sample(plan, count, Net(1.0), tuned).chain
    std = torch.tensor(plan.exploring_std(0.1), dtype=torch.float64)
    for act_steps in (1, TP):
        ours, theirs = torch.zeros(B, dtype=torch.float64), torch.zeros(B, dtype=torch.float64)
        for i, j in enumerate(range(len(plan) - count, len(plan))):
            rows = torch.full((B,), j)
            mean = chain_means(tuned, plan, rows, chain[:, i], obs)
            ours += chunk_log_prob(chain[:, i + 1], mean, std[j], act_steps, "sum", cut=False)
            alone = step_mean(plan, j, chain[:, i], tuned(chain[:, i], torch.full((B,), plan.steps[j] - 1), obs))
            law = torch.distributions.Normal(alone, std[j])
            theirs += law.log_prob(chain[:, i + 1])[:, :act_steps].sum((1, 2))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", PLANS)
def test_before_an_update_the_ratio_is_one_and_its_gradient_that_of_the_log_density(name):
    plan, tuned, obs = PLANS[name], Net(0.7), normal(B, TO, DO)
    recorded = sample(plan, 3, Net(1.0), tuned)
    std = torch.tensor(plan.exploring_std(0.1), dtype=torch.float64)[-3:].view(3, 1, 1)
    old = chunk_log_prob(recorded.chain[:, 1:], recorded.mean.detach(), std, 2)
    j = torch.arange(len(plan) - 3, len(plan)).repeat(B)
    before, after = recorded.chain[:, :-1].flatten(0, 1).detach(), recorded.chain[:, 1:].flatten(0, 1).detach()
    mean = chain_means(tuned, plan, j, before, obs.repeat_interleave(3, 0))
    new = chunk_log_prob(after, mean, std.repeat(B, 1, 1), 2).view(B, 3)
    torch.testing.assert_close(new.exp() / old.detach().exp(), torch.ones_like(new))
    (of_ratio,) = torch.autograd.grad((new - old.detach()).exp().sum(), tuned.weight, retain_graph=True)
    (of_density,) = torch.autograd.grad(new.sum(), tuned.weight)
    torch.testing.assert_close(of_ratio, of_density)
    assert float(of_ratio.abs()) > 1e-3


def test_the_mean_reduction_is_the_sum_over_its_numbers_and_the_cut_is_per_number():
    x, mean = normal(5, TP, DA), normal(5, TP, DA, seed=1)
    total = chunk_log_prob(x, mean, 0.5, 3, "sum")
    torch.testing.assert_close(chunk_log_prob(x, mean, 0.5, 3, "mean"), total / (3 * DA))
    far = torch.full((1, 1, 1), 100.0, dtype=torch.float64)
    assert float(chunk_log_prob(far, torch.zeros_like(far), 1.0, 1)) == LOG_PROB_RANGE[0]
    near = torch.zeros(1, 1, 1, dtype=torch.float64)
    assert float(chunk_log_prob(near, near, 1e-3, 1)) == LOG_PROB_RANGE[1]
    exact = math.log(1e3) - 0.5 * math.log(2 * math.pi)
    assert float(chunk_log_prob(near, near, 1e-3, 1, cut=False)) == pytest.approx(exact)


def test_actions_that_are_not_executed_do_not_count():
    x, mean = normal(5, TP, DA), normal(5, TP, DA, seed=1)
    other = x.clone()
    other[:, 2:] += 1.0
    assert torch.equal(chunk_log_prob(x, mean, 0.5, 2), chunk_log_prob(other, mean, 0.5, 2))
    assert not torch.equal(chunk_log_prob(x, mean, 0.5, 3), chunk_log_prob(other, mean, 0.5, 3))


def test_the_loss_of_a_network_that_knows_the_noise_is_zero():
    action, noise, k = normal(B, TP, DA), normal(B, TP, DA, seed=1), torch.tensor([1, 2, 4, 6, 8, 8])

    def knows(x: Tensor, level: Tensor, obs: Tensor) -> Tensor:
        a = SCHEDULE.alpha_bar[level + 1].view(-1, 1, 1)
        return (x - a.sqrt() * action) / (1 - a).sqrt()

    obs = normal(B, TO, DO)
    assert float(chunk_loss(knows, SCHEDULE, action, obs, k, noise)) == pytest.approx(0.0, abs=1e-20)
    off = chunk_loss(lambda *args: knows(*args) + 0.5, SCHEDULE, action, obs, k, noise)
    assert float(off) == pytest.approx(0.25)


def test_missing_networks_and_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="2 fine-tuned steps need a fine-tuned network"):
        sample(PLANS["ddpm"], 2, Net(1.0), None)
    with pytest.raises(ValueError, match=r"reduction must be one of \('mean', 'sum'\), got 'max'"):
        chunk_log_prob(normal(1, 1, 1), normal(1, 1, 1), 1.0, 1, "max")


# Chains of a frozen policy.

NETWORKS = {
    "mlp": lambda: DiffusionMLP(DO, DA, TO, TP, mlp_dims=(32, 32, 32)),
    "unet": lambda: Unet1D(DO, DA, TO, TP, dim=16, num_groups=4),
}


def prior(network: str, plan: str, **options) -> DiffusionPrior:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = NETWORKS[network]().double()
    return DiffusionPrior(made, PLANS[plan], K, (TP, DA), **options)


def chains(of: DiffusionPrior, obs: Tensor, num: int, deterministic: bool = False, seed: int = 0) -> Tensor:
    return of.sample_chains(obs, num, deterministic, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", PLANS)
def test_a_chain_of_the_prior_is_one_that_the_policy_samples_from_its_noise(network, name):
    of, plan, obs = prior(network, name), PLANS[name], normal(B, TO, DO)
    drawn = chains(of, obs, 2)
    assert drawn.shape == (2, B, len(plan) + 1, TP, DA) and of.levels == plan.levels
    noise = torch.randn(
        len(plan) + 1, 2, 1, TP, DA, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )  # fmt: skip
    for m in range(2):
        for row in range(2):
            x = noise[0, m]
            for j, k in enumerate(plan.steps):
                torch.testing.assert_close(drawn[m, row, j], x[0], rtol=1e-10, atol=1e-12)
                predicted = of._network(x, torch.tensor([k - 1]), obs[row : row + 1])
                x = step_mean(plan, j, x, predicted) + plan.evaluation_std()[j] * noise[1 + j, m]
            torch.testing.assert_close(drawn[m, row, -1], x[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_chain_depends_on_its_own_observation_alone(network, deterministic):
    of, obs = prior(network, "ddpm"), normal(B, TO, DO)
    together = chains(of, obs, 2, deterministic)
    for row in range(B):
        alone = chains(of, obs[row : row + 1], 2, deterministic)[:, 0]
        torch.testing.assert_close(together[:, row], alone, rtol=1e-10, atol=1e-12)
    assert float((together[:, 0] - together[:, 1]).abs().max()) > 1e-3
    same = chains(of, obs, 2, deterministic, seed=1)
    if deterministic:
        assert torch.equal(same, together) and torch.equal(together[0], together[1])
        assert not bool(together[:, :, 0].any())
    else:
        assert not torch.equal(same, together) and not torch.equal(together[0], together[1])
    single = DiffusionPrior(of._network.float(), PLANS["ddpm"], K, (TP, DA))
    torch.testing.assert_close(chains(single, obs.float(), 2, deterministic), together.float(), rtol=1e-3, atol=1e-4)


def test_the_noise_of_the_priors_chains_can_be_that_of_collecting():
    obs, plan = normal(B, TO, DO), PLANS["ddpm"]
    still, noisy = prior("mlp", "ddpm"), prior("mlp", "ddpm", std=plan.exploring_std(0.5))
    last = chains(noisy, obs, 200)[:, 0, -1].std(0).mean()
    assert float(last) > 0.45 and float(chains(still, obs, 200)[:, 0, -1].std(0).mean()) < 0.9 * float(last)
    with pytest.raises(ValueError, match="starts at denoising index 8, beyond K = 7"):
        DiffusionPrior(NETWORKS["mlp"](), plan, 7, (TP, DA))
