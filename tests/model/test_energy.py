"""The guidance network against autograd, and its losses against enumeration of everything that can be drawn.

The tabular problem has eight clean points and eight noised ones, so that the expected contrastive loss over M
independent draws is a finite sum; L-BFGS then finds the guidance that each kind of label really asks for.

Letters: B batch, M actions, n clean points, m noised points.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan
from ding_ebm.model.energy import GuidanceNet, cep_labels, cep_loss, log_mean_exp, mse_guidance_loss

TIMES = make_plan(VPLinearSchedule(), 15).times


def network(obs_dim: int = 5, conditioned: bool = False, dtype: torch.dtype = torch.float64) -> GuidanceNet:
    torch.manual_seed(0)
    return GuidanceNet(obs_dim, 3, (32, 16, 16), conditioned).to(dtype)


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_autograd(net: GuidanceNet, x: Tensor, t: Tensor, obs: Tensor | None, beta: float) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = net(x, t, obs, beta)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


# The network.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("obs_dim", [0, 5])
@pytest.mark.parametrize("rows", [1, 20])
def test_the_analytic_gradient_is_autograds_at_every_time(rows, obs_dim, conditioned, dtype, tolerance):
    net = network(obs_dim, conditioned, dtype)
    x, obs = random(rows, 3, dtype=dtype), random(rows, 5, seed=2, dtype=dtype) if obs_dim else None
    bound = net.bind(TIMES, obs, 2.5)
    for i, t in enumerate(TIMES):
        expected = by_autograd(net, x, torch.full((rows,), t, dtype=dtype), obs, 2.5)
        assert expected[1].abs().max() > 1e-4
        for got in (bound(x, i), net.value_and_grad(x, t, obs, 2.5)):
            for ours, autograds in zip(got, expected):
                assert ours.dtype == dtype
                torch.testing.assert_close(ours, autograds, rtol=tolerance, atol=tolerance)


def test_the_gradient_takes_one_time_a_row():
    net = network()
    x, obs, t = random(6, 3), random(6, 5, seed=2), torch.rand(6, dtype=torch.float64)
    for ours, autograds in zip(net.value_and_grad(x, t, obs, 1.0), by_autograd(net, x, t, obs, 1.0)):
        torch.testing.assert_close(ours, autograds, rtol=1e-10, atol=1e-10)


def test_a_conditioned_guidance_vanishes_without_temperature_and_an_unconditioned_one_ignores_it():
    x, t, obs = random(6, 3), torch.rand(6, dtype=torch.float64), random(6, 5, seed=2)
    conditioned, plain = network(conditioned=True), network()
    value, grad = conditioned.value_and_grad(x, t, obs, 0.0)
    assert not value.any() and not grad.any() and not conditioned(x, t, obs, 0.0).any()
    assert torch.equal(plain(x, t, obs, 0.0), plain(x, t, obs, 7.0)) and plain(x, t, obs, 0.0).any()
    low, high = (conditioned(x, t, obs, beta) / beta for beta in (1.0, 4.0))
    assert not torch.allclose(low, high, rtol=1e-3)  # not only a factor: g depends on beta as well


@pytest.mark.parametrize("conditioned", [False, True])
def test_actions_that_share_time_observation_and_temperature_get_the_values_that_they_get_alone(conditioned):
    net = network(conditioned=conditioned)
    x, t, obs = random(6, 4, 3), torch.rand(6, dtype=torch.float64), random(6, 5, seed=2)
    beta = torch.linspace(0.5, 5.0, 6, dtype=torch.float64)
    together = net(x, t, obs, beta)
    assert together.shape == (6, 4)
    for j in range(4):
        torch.testing.assert_close(together[:, j], net(x[:, j], t, obs, beta), rtol=0.0, atol=1e-12)


def test_under_autocast_the_value_is_of_the_parameters_precision():
    net = network(dtype=torch.float32)
    x, t, obs = random(6, 3, dtype=torch.float32), torch.rand(6), random(6, 5, seed=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = net(x, t, obs, 1.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, net(x, t, obs, 1.0), rtol=0.0, atol=0.02)


# Labels and losses.


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_softmax_labels_and_their_loss_are_the_loops_over_actions(beta):
    q, f = random(4, 5), random(4, 5, seed=2)
    labels = cep_labels(q, beta, "softmax")
    total = 0.0
    for row in range(4):
        weights = [math.exp(beta * x) for x in q[row].tolist()]
        scores = [math.exp(x) for x in f[row].tolist()]
        for j in range(5):
            assert labels[row, j].item() == pytest.approx(weights[j] / sum(weights), abs=1e-12)
            total -= weights[j] / sum(weights) * math.log(scores[j] / sum(scores))
    assert cep_loss(f, labels).item() == pytest.approx(total / 4, abs=1e-12)


def test_unnormalized_labels_are_the_ratio_to_the_partition_function_and_a_state_counts_no_more_than_its_bound():
    q, beta, log_z = random(4, 5), torch.tensor([0.0, 1.0, 2.0, 8.0]), random(4, seed=2)
    labels = cep_labels(q, beta, "unnormalized", log_z, log_max=1.5)
    bounded = 0
    for row in range(4):
        ratios = [math.exp(beta[row].item() * x - log_z[row].item()) / 5 for x in q[row].tolist()]
        factor = min(1.0, math.exp(1.5) / sum(ratios))
        bounded += factor < 1.0
        assert labels[row].tolist() == pytest.approx([ratio * factor for ratio in ratios], abs=1e-12)
    assert 0 < bounded < 4


def test_each_row_of_labels_has_its_own_temperature():
    q, beta = random(4, 5), torch.tensor([0.0, 1.0, 2.0, 8.0], dtype=torch.float64)
    for row in range(4):
        alone = cep_labels(q[row : row + 1], beta[row].item(), "softmax")
        torch.testing.assert_close(cep_labels(q, beta, "softmax")[row : row + 1], alone)


@pytest.mark.parametrize("kind", ["softmax", "unnormalized"])
def test_a_permutation_of_support_actions_changes_nothing(kind):
    q, f, log_z = random(4, 5), random(4, 5, seed=2), random(4, seed=3)
    order = torch.tensor([3, 0, 4, 1, 2])
    losses = [cep_loss(a, cep_labels(b, 2.0, kind, log_z)) for a, b in ((f, q), (f[:, order], q[:, order]))]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0.0)


def test_labels_carry_no_gradient_to_values_or_partition():
    q, log_z = random(4, 5).requires_grad_(), random(4, seed=3).requires_grad_()
    assert not cep_labels(q, 1.0, "softmax").requires_grad
    assert not cep_labels(q, 1.0, "unnormalized", log_z).requires_grad
    assert not mse_guidance_loss(random(4, 5), q, 1.0).requires_grad


def test_a_constant_added_to_the_guidance_of_a_state_changes_no_contrastive_loss():
    f, labels = random(4, 5), cep_labels(random(4, 5, seed=2), 2.0, "softmax")
    torch.testing.assert_close(cep_loss(f + random(4, 1, seed=3), labels), cep_loss(f, labels), rtol=1e-12, atol=0.0)


def test_labels_that_are_not_known_or_lack_their_normalizer_are_refused():
    with pytest.raises(ValueError, match="softmax.*unnormalized.*'hard'"):
        cep_labels(random(4, 5), 1.0, "hard")
    with pytest.raises(ValueError, match="log_partition"):
        cep_labels(random(4, 5), 1.0, "unnormalized")


def test_large_values_do_not_overflow():
    q = random(4, 5) + 1e4
    assert cep_labels(q, 10.0, "softmax").isfinite().all()
    assert cep_labels(q, 10.0, "unnormalized", torch.zeros(4)).isfinite().all()
    torch.testing.assert_close(log_mean_exp(q), (q - 1e4).exp().mean(1).log() + 1e4, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(log_mean_exp(q.T, dim=0), log_mean_exp(q), rtol=1e-12, atol=0.0)
    for sign in (-1.0, 1.0):
        far = sign * 1e4 + q - q.mean()
        assert bool(torch.isfinite(log_mean_exp(far)).all()) and bool((log_mean_exp(far[:, :1]) == far[:, 0]).all())


def test_a_weighted_log_mean_exp_is_the_mean_under_the_weights():
    x, w = random(4, 5, 3), random(5, 1, seed=1).exp()
    expected = ((w * x.exp()).sum(1) / w.sum()).log()
    torch.testing.assert_close(log_mean_exp(x, dim=1, log_w=w.log()), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_mean_exp(x, 1, w.log() + 700.0), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_mean_exp(x, 1, torch.zeros(5, 1)), log_mean_exp(x, 1), rtol=1e-12, atol=1e-12)


# What each loss is minimal at.

BINS = 8


def tabular() -> tuple[Tensor, Tensor, Tensor]:
    """Values q (n,) and law (n,) of the clean points, and the noising kernel (n, m).

    q is standard normal on a grid, and half of its variance is left when the noised point is known.
    """
    q = torch.linspace(-2.2, 2.2, BINS, dtype=torch.float64)
    law = torch.softmax(-0.5 * q.square(), 0)
    noised = torch.linspace(-3.1, 3.1, BINS, dtype=torch.float64)
    return q, law, torch.softmax(-0.5 * (noised - q[:, None]).square(), 1)


def tuples(num_actions: int) -> Tensor:
    """All (b_1, ..., b_M) of bins, (BINS^M, M)."""
    return torch.cartesian_prod(*[torch.arange(BINS)] * num_actions).view(-1, num_actions)


def expected_labels(labels: Tensor, num_actions: int) -> Tensor:
    """Sum over clean tuples of law x label x kernel, for every noised tuple, (BINS^M, M), from labels (BINS^M, M)."""
    _, law, kernel = tabular()
    table = labels.view(*[BINS] * num_actions, num_actions)
    for _ in range(num_actions):  # each turn takes the first clean axis and appends a noised one behind the labels
        table = torch.tensordot(table, law[:, None] * kernel, dims=([0], [0]))
    return table.movedim(0, -1).reshape(-1, num_actions)


def minimizer(loss_of_table) -> Tensor:
    """The table f (m,) at which a loss is minimal, less its mean under the noised law."""
    f = torch.zeros(BINS, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [f], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = loss_of_table(f)
        loss.backward()
        return loss

    search.step(closure)
    _, law, kernel = tabular()
    return f.detach() - (law @ kernel) @ f.detach()


def trained(kind: str, beta: float, num_actions: int, log_max: float = 4.6) -> Tensor:
    """What contrastive energy prediction converges to with M fresh, independent actions a state."""
    q, law, _ = tabular()
    log_z = torch.logsumexp(law.log() + beta * q, 0).expand(BINS**num_actions)
    drawn = tuples(num_actions)
    labels = expected_labels(cep_labels(q[drawn], beta, kind, log_z, log_max), num_actions)
    return minimizer(lambda f: cep_loss(f[drawn], labels * len(drawn)))


def exact(beta: float) -> Tensor:
    """log E[exp(beta q) | x_t], (m,), less its mean."""
    q, law, kernel = tabular()
    posterior = law[:, None] * kernel
    f = torch.logsumexp(posterior.log() + beta * q[:, None], 0) - posterior.sum(0).log()
    return f - posterior.sum(0) @ f


def slope(f: Tensor, beta: float) -> float:
    """Slope of the regression of f on the exact guidance: 1 where it is exact, below 1 where it is too weak."""
    _, law, kernel = tabular()
    weights = law @ kernel
    return float((weights * f * exact(beta)).sum() / (weights * exact(beta).square()).sum())


@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("num_actions", [2, 3, 4])
def test_unnormalized_labels_are_exact_for_every_number_of_actions(num_actions, beta):
    torch.testing.assert_close(trained("unnormalized", beta, num_actions), exact(beta), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("num_actions", "beta", "expected"), [(2, 3.0, 0.53), (4, 3.0, 0.62), (2, 1.0, 0.85), (4, 1.0, 0.91)]
)
def test_softmax_labels_make_the_guidance_too_weak_by_the_documented_factor(num_actions, beta, expected):
    assert slope(trained("softmax", beta, num_actions), beta) == pytest.approx(expected, abs=0.005)


def test_the_bias_of_softmax_labels_falls_with_the_number_of_actions_and_with_the_temperature():
    slopes = [slope(trained("softmax", 3.0, m), 3.0) for m in (2, 3, 4)]
    assert slopes == sorted(slopes) and slopes[-1] < 0.7
    assert slope(trained("softmax", 0.01, 2), 0.01) == pytest.approx(1.0, abs=1e-3)


def test_the_bound_on_labels_costs_nothing_where_it_is_not_met_and_weakens_the_guidance_where_it_is():
    # The heaviest state has a log-weight of 3.3 nats over the average at beta = 3.
    assert slope(trained("unnormalized", 3.0, 2, log_max=4.6), 3.0) == pytest.approx(1.0, abs=1e-6)
    for num_actions, expected in ((2, 0.950), (3, 0.985), (4, 1.000)):
        found = slope(trained("unnormalized", 3.0, num_actions, log_max=2.0), 3.0)
        assert found == pytest.approx(expected, abs=0.001) and found > slope(trained("softmax", 3.0, num_actions), 3.0)


def test_labels_with_a_wrong_constant_are_exact_until_their_bound_is_met():
    # Any function of the state may normalize; too small a one meets the bound everywhere, which leaves softmax labels.
    q, law, _ = tabular()
    log_z = torch.logsumexp(law.log() + q, 0)
    drawn = tuples(2)

    def with_constant(offset: float) -> float:
        labels = cep_labels(q[drawn], 1.0, "unnormalized", (log_z + offset).expand(len(drawn)))
        expected = expected_labels(labels, 2)
        return slope(minimizer(lambda f: cep_loss(f[drawn], expected * len(drawn))), 1.0)

    assert with_constant(3.0) == pytest.approx(1.0, abs=1e-4)
    assert with_constant(-2.0) == pytest.approx(1.0, abs=1e-4)
    assert with_constant(-12.0) == pytest.approx(slope(trained("softmax", 1.0, 2), 1.0), abs=1e-4)


def test_regression_on_values_learns_their_mean_and_so_a_wrong_guidance():
    q, law, kernel = tabular()
    pairs = torch.cartesian_prod(torch.arange(BINS), torch.arange(BINS))
    weights = (law[:, None] * kernel).flatten() * len(pairs)

    def loss(f: Tensor) -> Tensor:
        terms = [mse_guidance_loss(f[y].view(1, 1), q[x].view(1, 1), 3.0) for x, y in pairs]
        return (weights * torch.stack(terms)).mean()

    learned = minimizer(loss)
    posterior = law[:, None] * kernel / (law @ kernel)
    mean = 3.0 * (posterior * q[:, None]).sum(0)
    torch.testing.assert_close(learned, mean - (law @ kernel) @ mean, rtol=0.0, atol=1e-6)
    assert (learned - exact(3.0)).abs().max() > 0.3


def test_the_contrastive_loss_of_the_exact_guidance_is_the_cross_entropy_bound():
    # No guidance does better than the one that is proportional to the labels.
    labels = F.softmax(random(6, 5), dim=1)
    best = cep_loss(labels.log(), labels)
    torch.testing.assert_close(best, -(labels * labels.log()).sum(1).mean())
    for seed in range(5):
        assert cep_loss(labels.log() + 0.3 * random(6, 5, seed=seed), labels) > best
