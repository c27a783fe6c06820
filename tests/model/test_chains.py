"""Chains of two networks: who is asked at which step, and densities against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.diffusion.denoising import ddim_plan, ddpm_plan, step_mean
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.model.chains import LOG_PROB_RANGE, chain_means, chunk_log_prob, chunk_loss, sample_chunks

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
