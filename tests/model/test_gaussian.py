"""Gaussian and mixture models against torch.distributions, their own samples, and the clamp that they do without."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, distributions, nn

from ding_ebm.model.gaussian import GaussianMixtureMLP, GaussianMLP

DO, DA, TO, TP = 5, 2, 2, 3


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: type, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    net = kind(DO, DA, TO, TP, (16, 16, 16), **arguments).double()
    for parameter in net.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    if net.std.learned is not None:  # one for each component and action dimension, some out of bounds
        learned = net.std.learned
        learned.data = torch.linspace(math.log(0.005), math.log(0.3), learned.numel()).view_as(learned).double()
    return net


def expected_std(net: nn.Module, low: float = 0.01, high: float = 0.2) -> Tensor:
    return net.std.learned.detach().exp().clamp(low, high)


@pytest.mark.parametrize("learn_std", [False, True])
def test_the_gaussians_log_prob_is_torchs_entry_by_entry(learn_std):
    net = make(GaussianMLP, learn_std=learn_std)
    obs, actions = random(9, TO, DO), random(9, TP, DA, seed=2)
    mean, _ = net(obs)
    std = expected_std(net) if learn_std else torch.tensor(0.1, dtype=torch.float64)
    expected = distributions.Normal(mean, std.expand_as(mean)).log_prob(actions)
    assert net.log_prob(actions, obs).shape == (9, TP, DA)
    torch.testing.assert_close(net.log_prob(actions, obs), expected, rtol=1e-6, atol=1e-8)
    assert mean.abs().max() < 1.0 and mean.abs().max() > 0.5


@pytest.mark.parametrize("learn_std", [False, True])
def test_the_mixtures_log_prob_is_torchs(learn_std):
    net = make(GaussianMixtureMLP, learn_std=learn_std)
    obs, actions = random(9, TO, DO), random(9, TP, DA, seed=2) * 0.3
    mean, _, log_weight = net(obs)
    assert mean.shape == (9, 5, TP, DA)
    std = expected_std(net).expand_as(mean) if learn_std else torch.full_like(mean, 0.1)
    expected = distributions.MixtureSameFamily(
        distributions.Categorical(logits=net.logits(obs.flatten(1))),
        distributions.Independent(distributions.Normal(mean, std), 2),
    ).log_prob(actions)
    assert net.log_prob(actions, obs).shape == (9,)
    torch.testing.assert_close(net.log_prob(actions, obs), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(log_weight.exp().sum(-1), torch.ones(9, dtype=torch.float64))


def test_a_mixture_of_one_component_is_the_gaussian():
    mixture, gaussian = make(GaussianMixtureMLP, num_modes=1), make(GaussianMLP)
    gaussian.mean.load_state_dict(mixture.mean.state_dict())
    obs, actions = random(9, TO, DO), random(9, TP, DA, seed=2)
    expected = gaussian.log_prob(actions, obs).sum((1, 2))
    torch.testing.assert_close(mixture.log_prob(actions, obs), expected, rtol=1e-10, atol=1e-9)


def test_the_order_of_the_components_does_not_matter():
    net = make(GaussianMixtureMLP, num_modes=3)
    obs, actions = random(9, TO, DO), random(9, TP, DA, seed=2)
    before = net.log_prob(actions, obs)
    order = torch.tensor([2, 0, 1])
    for parameter in (*net.mean.last.parameters(), *net.logits.last.parameters()):
        parameter.data = parameter.data.unflatten(0, (3, -1))[order].flatten(0, 1)
    torch.testing.assert_close(net.log_prob(actions, obs), before, rtol=1e-10, atol=1e-9)
    net.logits.last.bias.data += torch.tensor([5.0, 0.0, 0.0])  # the negative control
    assert not torch.allclose(net.log_prob(actions, obs), before, atol=1e-2)


def test_near_its_means_the_mixture_has_the_gradient_that_a_clamp_at_2_would_kill():
    # Defect D3 of DPPO's code: at a standard deviation of 0.1 the sum over a chunk of 4 x 7 is far above 2.
    torch.manual_seed(0)
    net = GaussianMixtureMLP(DO, 7, TO, 4, (16, 16, 16))
    obs = random(64, TO, DO, dtype=torch.float32)
    log_prob = net.log_prob(net.sample(obs, seeded()), obs)
    assert (log_prob > 2.0).float().mean() > 0.9
    parameters = list(net.parameters())
    ours = torch.autograd.grad(log_prob.sum(), parameters, retain_graph=True)
    clamped = torch.autograd.grad(log_prob.clamp(-5.0, 2.0).sum(), parameters)
    size = sum(g.square().sum() for g in ours).sqrt()
    assert size > 1.0 and sum(g.square().sum() for g in clamped).sqrt() < 0.1 * size


@pytest.mark.parametrize("kind", [GaussianMLP, GaussianMixtureMLP])
def test_every_parameter_gets_a_gradient(kind):
    net = make(kind, learn_std=True)
    net.std.learned.data.fill_(math.log(0.1))
    net.log_prob(random(9, TP, DA), random(9, TO, DO)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_samples_have_the_mean_and_the_standard_deviation():
    net = make(GaussianMLP, learn_std=True)
    n = 40_000
    obs = random(1, TO, DO).expand(n, -1, -1)
    samples = net.sample(obs, seeded())
    mean, std = net(obs)[0][0], expected_std(net).expand(TP, DA)
    assert samples.shape == (n, TP, DA) and not samples.requires_grad
    assert ((samples.mean(0) - mean).abs() < 5.0 * std / math.sqrt(n)).all()
    torch.testing.assert_close(samples.std(0), std.detach(), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("at_means", [False, True])
def test_samples_of_the_mixture_come_from_its_components_by_their_weights(at_means):
    net = make(GaussianMixtureMLP, std=0.001)
    n = 20_000
    obs = random(1, TO, DO).expand(n, -1, -1)
    samples = net.sample(obs, seeded(), deterministic=at_means, draw_component=at_means)
    mean, _, log_weight = net(obs[:1])
    distance = (samples.unsqueeze(1) - mean).square().sum((2, 3)).sqrt()
    nearest = distance.argmin(1)
    assert distance.min(1).values.max() < (1e-12 if at_means else 0.001 * 8)
    shares, weights = nearest.bincount(minlength=5) / n, log_weight.exp()[0]
    assert weights.min() < 0.1 < weights.max()
    assert ((shares - weights).abs() < 5.0 * (weights * (1 - weights) / n).sqrt()).all()


def test_the_mixture_draws_with_the_standard_deviation_of_the_drawn_component():
    net = make(GaussianMixtureMLP, num_modes=2, learn_std=True)
    net.logits.last.weight.data.zero_()
    net.logits.last.bias.data.zero_()
    net.std.learned.data[0], net.std.learned.data[1] = -9.0, 9.0  # beyond the bounds, 0.01 and 0.2
    obs = random(1, TO, DO).expand(20_000, -1, -1)
    samples, mean = net.sample(obs, seeded()), net(obs[:1])[0][0].detach()
    from_first = (samples - mean[0]).abs().amax((1, 2)) < 0.06
    assert (from_first.double().mean() - 0.5).abs() < 0.05
    assert (samples[from_first] - mean[0]).std().item() == pytest.approx(0.01, rel=0.1)
    assert (samples[~from_first] - mean[1]).std().item() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("kind", [GaussianMLP, GaussianMixtureMLP])
def test_a_seed_gives_the_same_chunks_and_deterministic_ones_need_none(kind):
    net, obs = make(kind), random(9, TO, DO)
    assert torch.equal(net.sample(obs, seeded(3)), net.sample(obs, seeded(3)))
    assert not torch.equal(net.sample(obs, seeded(3)), net.sample(obs, seeded(4)))
    before = torch.get_rng_state()
    fixed = net.sample(obs, None, deterministic=True)
    assert torch.equal(torch.get_rng_state(), before)
    mean = net(obs)[0]
    expected = mean if kind is GaussianMLP else mean[torch.arange(9), net(obs)[2].argmax(1)]
    assert torch.equal(fixed, expected)


def test_the_noise_is_cut_off_where_asked():
    net = make(GaussianMLP)
    obs = random(1, TO, DO).expand(5000, -1, -1)
    mean = net(obs)[0]
    deviation = ((net.sample(obs, seeded(), noise_clip=1.5) - mean) / 0.1).abs()
    assert deviation.max().item() == pytest.approx(1.5) and (deviation > 1.499).double().mean() > 0.1
    assert ((net.sample(obs, seeded()) - mean) / 0.1).abs().max() > 3.0


def test_a_learned_std_begins_where_it_is_told_stays_in_its_bounds_and_comes_back():
    net = GaussianMLP(DO, DA, TO, TP, std=0.1, learn_std=True)
    obs = torch.zeros(1, TO, DO)
    torch.testing.assert_close(net(obs)[1].exp(), torch.full((DA,), 0.1))
    optimizer = torch.optim.Adam(net.std.parameters(), lr=0.1)
    for up, bound in ((True, 0.2), (False, 0.01)):
        for _ in range(60):
            optimizer.zero_grad()
            log_std = net(obs)[1]
            (-log_std if up else log_std).sum().backward()
            optimizer.step()
        torch.testing.assert_close(net(obs)[1].exp(), torch.full((DA,), bound))
    # Past the bounds: no gradient further out, the whole one back in.
    for value, slope, expected in ((-9.0, 1.0, 0.0), (-9.0, -1.0, -1.0), (9.0, -1.0, 0.0), (9.0, 1.0, 1.0)):
        net.std.learned.data.fill_(value)
        (grad,) = torch.autograd.grad((slope * net(obs)[1]).sum(), [net.std.learned])
        assert grad.tolist() == [expected] * DA


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(std=0.0), "std must be positive, got 0.0"),
        (dict(std=0.3, learn_std=True), "begins within its std_bounds"),
        (dict(learn_std=True, std_bounds=(0.0, 1.0)), "begins within its std_bounds"),
        (dict(mlp_dims=(16, 16)), "odd number of equal widths"),
    ],
)
@pytest.mark.parametrize("kind", [GaussianMLP, GaussianMixtureMLP])
def test_arguments_that_make_no_model_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(DO, DA, TO, TP, **arguments)
    with pytest.raises(ValueError, match="num_modes"):
        GaussianMixtureMLP(DO, DA, TO, TP, num_modes=0)
