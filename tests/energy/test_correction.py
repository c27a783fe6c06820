"""Descent of an energy against closed forms, what it must leave alone, and the best of N against order statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.energy.correction import best_of_n, correct
from ding_ebm.energy.line_search import Rescaled
from ding_ebm.model.critics import EnsembleQ, aggregate
from ding_ebm.model.networks import mlp

B, TP, DA = 64, 3, 2
FREE = dict(clip=None, bounds=None)  # nothing but gradient steps


def quadratic(generator: torch.Generator, largest: float = 4.0) -> tuple[Tensor, Tensor]:
    """Eigenvalues up to ``largest`` and eigenvectors (columns) of a positive form on whole chunks, float64."""
    size = TP * DA
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return torch.linspace(0.1, largest, size, dtype=torch.float64), basis


def quadratic_energy(values: Tensor, basis: Tensor):
    form = basis @ torch.diag(values) @ basis.T
    return lambda x: 0.5 * ((x.flatten(1) @ form) * x.flatten(1)).sum(dim=1)


def random_net(generator: torch.Generator, widths: tuple[int, ...] = (32, 32), dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=generator)))
    return mlp([TP * DA, *widths, 1]).to(dtype)


def bumpy(net: nn.Module):
    """Not convex, with steep walls."""
    return lambda x: 40.0 * net(6.0 * x.flatten(1)).squeeze(1) + x.flatten(1).pow(4).sum(dim=1)


def chunks(generator: torch.Generator, dtype=torch.float32, scale: float = 0.9) -> Tensor:
    return scale * (2.0 * torch.rand(B, TP, DA, generator=generator, dtype=dtype) - 1.0)


class Counted:
    """An energy that counts its evaluations."""

    def __init__(self, energy_fn) -> None:
        self.energy_fn, self.calls = energy_fn, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.energy_fn(x)


# The descent lemma: E(a - alpha g) <= E(a) - alpha (1 - alpha L / 2) |g|^2.


@pytest.mark.parametrize("share", [0.5, 1.0, 1.9, 1.999])
def test_below_two_over_l_every_row_falls_by_at_least_what_the_descent_lemma_says(share, generator):
    values, basis = quadratic(generator)
    energy_fn, curvature = quadratic_energy(values, basis), float(values[-1])
    alpha, action = share / curvature, chunks(generator, torch.float64)
    grad = action.flatten(1) @ (basis @ torch.diag(values) @ basis.T)
    _, info = correct(energy_fn, action, steps=1, alpha=alpha, line_search=False, **FREE)
    promised = alpha * (1.0 - alpha * curvature / 2.0) * grad.square().sum(dim=1)
    assert ((info.energy_before - info.energy_after) / promised).min() >= 1.0 - 1e-9


@pytest.mark.parametrize("share", [0.3, 1.999, 2.001])
def test_along_an_eigenvector_the_energy_changes_by_the_exact_factor(share, generator):
    values, basis = quadratic(generator)
    action = basis[:, -1].view(1, TP, DA)
    _, info = correct(
        quadratic_energy(values, basis), action, steps=1, alpha=share / float(values[-1]), line_search=False, **FREE
    )
    assert float(info.energy_after / info.energy_before) == pytest.approx((1.0 - share) ** 2, rel=1e-9)


def largest_curvature(energy_fn, action: Tensor) -> float:
    """Greatest eigenvalue, in absolute value, of the Hessians at rows (B, Tp, Da)."""
    x = action.clone().requires_grad_()
    (grad,) = torch.autograd.grad(energy_fn(x).sum(), x, create_graph=True)
    columns = [torch.autograd.grad(one.sum(), x, retain_graph=True)[0] for one in grad.flatten(1).unbind(1)]
    return float(torch.linalg.eigvalsh(torch.stack(columns, 1).flatten(2)).abs().max())


def test_up_to_one_over_l_every_row_of_a_smooth_network_falls(generator):
    net = random_net(generator, dtype=torch.float64)
    energy_fn = lambda x: net(x.flatten(1)).squeeze(1)  # noqa: E731
    action = chunks(generator, torch.float64)
    alpha = 1.0 / largest_curvature(energy_fn, action)
    _, info = correct(energy_fn, action, steps=1, alpha=alpha, line_search=False, **FREE)
    assert (info.energy_after < info.energy_before).all()


# The toy: s ~ N(0, I), a | s ~ N(W s, SIGMA^2 I), and so a ~ N(0, S0 I).

W = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])
SIGMA, S0 = 0.5, 1.5


def row_energy(state: Tensor):
    """What telling an expert's action from those of other states is minimized by: -log p(a | s) / p(a)."""
    return lambda x: (x[:, 0] - state @ W.T).square().sum(1) / (2 * SIGMA**2) - x[:, 0].square().sum(1) / (2 * S0)


def uniform_energy(state: Tensor):
    """What telling it from uniform actions is minimized by: -log p(a | s)."""
    return lambda x: (x[:, 0] - state @ W.T).square().sum(1) / (2 * SIGMA**2)


def away(action: Tensor, state: Tensor) -> float:
    """Distance from the expert's mean relative to that mean, on the average."""
    mean = state @ W.T
    return float(((action[:, 0] - mean).norm(dim=1) / mean.norm(dim=1)).mean())


def test_the_energy_falls_while_the_action_leaves_the_expert(generator):
    state = torch.randn(400, 2, generator=generator)
    start = (state @ W.T).unsqueeze(1)
    found, info = correct(row_energy(state), start, steps=100, alpha=0.05, **FREE)
    assert (info.energy_after < info.energy_before).all()
    assert away(found, state) == pytest.approx(SIGMA**2 / (S0 - SIGMA**2), abs=0.01)  # 0.2
    found, _ = correct(uniform_energy(state), start, steps=100, alpha=0.05, **FREE)
    assert away(found, state) < 1e-5


def trained_energy(kind: str, steps: int = 300, batch: int = 64) -> nn.Module:
    """An MLP of (state, action) trained to tell the expert's action from others."""
    torch.manual_seed(1)
    net = mlp([4, 64, 64, 64, 1])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        state = torch.randn(batch, 2)
        action = state @ W.T + SIGMA * torch.randn(batch, 2)
        others = action if kind == "row" else 10.0 * torch.rand(batch, 2) - 5.0
        pairs = torch.cat([state.unsqueeze(1).expand(-1, batch, -1), others.expand(batch, -1, -1)], dim=-1)
        energies = net(pairs).squeeze(-1)
        if kind == "row":
            loss = F.cross_entropy(-energies, torch.arange(batch))
        else:
            energies = torch.cat([net(torch.cat([state, action], 1)), energies], dim=1)
            loss = F.cross_entropy(-energies, torch.zeros(batch, dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


@pytest.mark.slow
def test_trained_energies_do_as_the_exact_ones_and_fall_below_one_over_l_only(generator):
    state = torch.randn(400, 2, generator=generator)
    start = (state @ W.T).unsqueeze(1)
    reached = {}
    for kind in ("row", "uniform"):
        net = trained_energy(kind).requires_grad_(False)
        energy_fn = lambda x, net=net: net(torch.cat([state, x[:, 0]], dim=1)).squeeze(1)  # noqa: E731
        found, info = correct(energy_fn, start, steps=100, alpha=0.05, line_search=False, **FREE)
        assert (info.energy_after <= info.energy_before + 1e-5).all()
        reached[kind] = away(found, state)
        curvature = largest_curvature(energy_fn, start)
        beside = start + 0.4 * torch.randn(start.shape, generator=generator)
        for share, least, most in ((0.5, 1.0, 1.0), (1.0, 1.0, 1.0), (4.0, 0.0, 0.05)):
            _, info = correct(energy_fn, beside, steps=1, alpha=share / curvature, line_search=False, **FREE)
            assert least <= float((info.energy_after < info.energy_before).float().mean()) <= most
    assert reached["row"] == pytest.approx(0.2, abs=0.06)
    assert reached["uniform"] < 0.09


# The line search.


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("options", [FREE, dict(), dict(clip="current_norm", clip_frac=1.0)], ids=str)
def test_with_the_line_search_no_energy_rises_whatever_the_step(alpha, options, generator):
    energy_fn = bumpy(random_net(generator))
    action = chunks(generator)
    moved, info = correct(energy_fn, action, steps=5, alpha=alpha, **options)
    assert (info.energy_after <= info.energy_before).all()
    assert (info.energy_after < info.energy_before - 0.01).float().mean() > 0.9
    with torch.no_grad():
        torch.testing.assert_close(energy_fn(moved), info.energy_after)
        torch.testing.assert_close(energy_fn(action), info.energy_before)
    _, without = correct(energy_fn, action, steps=1, alpha=alpha, line_search=False, **FREE)
    assert (without.energy_after > without.energy_before).any()


def test_only_the_rows_that_rose_are_changed_by_the_line_search(generator):
    """Rows of curvature 1 take the step of 1.5; rows of curvature 10 would rise, and go to the parabola's least."""
    curvature = torch.tensor([1.0, 10.0]).repeat(B // 2)
    energy_fn = lambda x: 0.5 * curvature * x.flatten(1).square().sum(1)  # noqa: E731
    action = chunks(generator)
    moved, info = correct(energy_fn, action, steps=1, alpha=1.5, **FREE)
    plain, _ = correct(energy_fn, action, steps=1, alpha=1.5, line_search=False, **FREE)
    assert torch.equal(moved[::2], plain[::2]) and not torch.equal(moved[1::2], plain[1::2])
    # The first attempt may not be shorter than a tenth: 1.5 / 10 = 0.15 rather than 1 / curvature.
    torch.testing.assert_close(moved[1::2], (1.0 - 0.15 * 10.0) * action[1::2])
    assert info.accept_rate == 0.5


def test_the_parabola_finds_the_least_of_a_quadratic_at_once(generator):
    energy_fn = Counted(lambda x: 2.0 * x.flatten(1).square().sum(1))
    moved, _ = correct(energy_fn, chunks(generator), steps=1, alpha=0.6, **FREE)
    assert energy_fn.calls == 3 and moved.abs().max() < 1e-6


def test_a_gradient_costs_one_evaluation_and_gives_the_energy(generator):
    energy_fn = Counted(quadratic_energy(*quadratic(generator)))
    action = chunks(generator, torch.float64)
    for steps in (1, 3, 10):
        for line_search in (False, True):
            energy_fn.calls = 0
            correct(energy_fn, action, steps=steps, alpha=0.1, line_search=line_search)
            assert energy_fn.calls == steps + 1


def test_at_the_minimum_rounding_is_not_searched(generator):
    energy_fn = Counted(lambda x: 100.0 + (x - 0.3).square().flatten(1).sum(1))
    action = torch.full((B, TP, DA), 0.3) + 1e-4 * torch.randn(B, TP, DA, generator=generator)
    correct(energy_fn, action, steps=10, alpha=0.9)
    assert energy_fn.calls <= 14


def test_an_energy_that_overflows_on_the_way_is_a_rise(generator):
    energy_fn = lambda x: x.flatten(1).pow(2).sum(1).exp()  # noqa: E731
    action = chunks(generator)
    _, info = correct(energy_fn, action, steps=3, alpha=50.0, **FREE)
    assert (info.energy_after < info.energy_before).all()
    with pytest.raises(ValueError, match=r"energies of the actions after step 1 must be finite, got inf at \(0,\)"):
        correct(energy_fn, action, steps=3, alpha=50.0, line_search=False, **FREE)


# Clips, bounds and masks.


@pytest.mark.parametrize("fraction", [0.05, 0.2])
def test_a_clip_bounds_each_step_and_the_whole_way(fraction, generator):
    steep, action, steps = (lambda x: 100.0 * x.flatten(1).sum(1)), chunks(generator) + 3.0, 5
    given = action.flatten(1).norm(dim=1)
    options = dict(alpha=1.0, clip_frac=fraction, bounds=None)
    for clip, total in (("original_norm", steps * fraction), ("current_norm", (1.0 + fraction) ** steps - 1.0)):
        for count, limit in ((1, fraction), (steps, total)):
            _, info = correct(steep, action, steps=count, clip=clip, **options)
            assert (info.displacement <= limit * given * (1.0 + 1e-5)).all()
            assert info.clip_rate == 1.0
        _, info = correct(lambda x: -steep(x), action, steps=steps, clip=clip, **options)
        # Growing chunks reach the bound of the original rule, and come near that of the current one.
        assert (info.displacement / given).max() > (1.0 if clip == "original_norm" else 0.9) * total * (1.0 - 1e-5)
    moved, info = correct(steep, action, steps=1, alpha=1.0, clip_frac=fraction, bounds=(-5.0, 3.0))
    torch.testing.assert_close(moved, action - 8.0 * fraction)
    assert info.clip_rate == 1.0
    _, info = correct(steep, action, steps=steps, alpha=1e-6, clip_frac=fraction)
    assert info.clip_rate == 0.0


def test_the_clip_rate_counts_the_rows_steps_that_were_shortened(generator):
    """The first step of rows of slope 1 is of 0.1 and of the others, of slope 9, of 0.9, cut to 0.4."""
    slope = torch.tensor([1.0, 1.0, 1.0, 9.0]).repeat(B // 4)
    _, info = correct(lambda x: slope * x[:, 0, 0], chunks(generator), steps=3, alpha=0.1)
    assert info.clip_rate == 0.25


def test_a_chunk_of_zeros_moves_under_a_range_and_not_under_a_norm(generator):
    energy_fn, zeros = (lambda x: x.flatten(1).sum(1)), torch.zeros(4, TP, DA)
    for clip in ("original_norm", "current_norm"):
        moved, info = correct(energy_fn, zeros, steps=3, alpha=1.0, clip=clip)
        assert torch.equal(moved, zeros) and (info.displacement == 0.0).all()
    moved, _ = correct(energy_fn, zeros, steps=3, alpha=1.0, clip="range", clip_frac=0.1)
    torch.testing.assert_close(moved, torch.full_like(zeros, -0.6))


@pytest.mark.parametrize("clip", ["range", "original_norm", "current_norm", None])
def test_what_is_not_to_be_corrected_stays_bit_by_bit(clip, generator):
    energy_fn, action = bumpy(random_net(generator)), chunks(generator)
    moved, _ = correct(energy_fn, action, steps=4, alpha=0.5, clip=clip, first_only=True)
    assert torch.equal(moved[:, 1:], action[:, 1:]) and not (moved[:, 0] == action[:, 0]).all(dim=1).any()
    moved, _ = correct(energy_fn, action, steps=4, alpha=0.5, clip=clip, dims=[True, False])
    assert torch.equal(moved[..., 1], action[..., 1]) and not (moved[..., 0] == action[..., 0]).all(dim=1).any()
    both, _ = correct(energy_fn, action, steps=4, alpha=0.5, clip=clip, dims=[True, False], first_only=True)
    assert torch.equal(both[:, 1:], action[:, 1:]) and torch.equal(both[..., 1], action[..., 1])


def test_the_norm_that_bounds_a_step_is_of_what_is_corrected(generator):
    steep, action = (lambda x: 100.0 * x.flatten(1).sum(1)), chunks(generator)
    _, info = correct(steep, action, steps=1, alpha=1.0, clip="original_norm", first_only=True)
    torch.testing.assert_close(info.displacement, (0.2 * action[:, 0].norm(dim=1)).minimum(info.displacement))
    _, whole = correct(steep, action, steps=1, alpha=1.0, clip="original_norm", bounds=None)
    torch.testing.assert_close(whole.displacement, 0.2 * action.flatten(1).norm(dim=1))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.5]))], ids=str)
def test_actions_stay_within_bounds_and_those_outside_go_no_further(bounds, generator):
    low, high = (torch.as_tensor(bound).expand(DA) for bound in bounds)
    action = chunks(generator, scale=3.0)
    for sign in (1.0, -1.0):
        moved, _ = correct(
            lambda x, sign=sign: sign * 9.0 * x.flatten(1).sum(1), action, steps=20, alpha=1.0, bounds=bounds
        )
        outside = torch.minimum(action, low), torch.maximum(action, high)
        assert (moved >= outside[0]).all() and (moved <= outside[1]).all()
        assert torch.equal(moved, outside[0] if sign > 0 else outside[1])


# What is left alone.


@pytest.mark.parametrize("options", [dict(steps=0, alpha=0.1), dict(steps=3, alpha=0.0)], ids=str)
def test_no_steps_or_steps_of_no_length_are_the_identity(options, generator):
    energy_fn, action = bumpy(random_net(generator)), chunks(generator, scale=1.5)
    moved, info = correct(energy_fn, action, **options)
    assert torch.equal(moved, action) and moved.data_ptr() != action.data_ptr()
    assert torch.equal(info.energy_before, info.energy_after) and (info.displacement == 0.0).all()
    torch.testing.assert_close(info.energy_before, energy_fn(action))
    assert (info.clip_rate, info.accept_rate) == (0.0, 1.0)


def test_parameters_gradients_modes_and_the_given_action_are_untouched(generator):
    net = nn.Sequential(nn.Flatten(1), nn.Linear(TP * DA, 16), nn.Dropout(0.5), nn.SiLU(), nn.Linear(16, 1))
    net.append(nn.Flatten(0))
    net[3].eval()
    modes, before = [m.training for m in net.modules()], [p.clone() for p in net.parameters()]
    action = chunks(generator).requires_grad_()
    kept = action.detach().clone()
    with torch.no_grad():
        first, info = correct(net, action, steps=4, alpha=1.0)
        second, _ = correct(net, action, steps=4, alpha=1.0)
        assert not torch.is_grad_enabled()
    assert torch.equal(first, second)  # without dropout
    assert (info.energy_after < info.energy_before).all()
    assert not first.requires_grad and not info.energy_after.requires_grad and not info.energy_before.requires_grad
    assert action.grad is None and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters())) and torch.equal(action, kept)
    assert [m.training for m in net.modules()] == modes
    with pytest.raises(ValueError, match=r"energies of the given actions must be finite, got nan at \(0,\)"):
        correct(nn.Sequential(net, nn.Threshold(math.inf, math.nan)), action, steps=1, alpha=1.0)
    assert [m.training for m in net.modules()] == modes


def test_minus_a_critic_is_an_energy(generator):
    critic, obs = EnsembleQ(4, TP * DA, (32, 32)), torch.randn(B, 4, generator=generator)
    q = lambda x: aggregate(critic(obs, x.flatten(1)))  # noqa: E731
    action = chunks(generator)
    moved, _ = correct(lambda x: -q(x), action, steps=5, alpha=1.0)
    better = (q(moved) - q(action)).detach()
    assert (better >= -1e-6).all() and better.mean() > 0.01


def test_an_energy_with_gradients_of_its_own_and_one_in_other_units_descend_alike(generator):
    values, basis = quadratic(generator)
    energy_fn, form = quadratic_energy(values, basis), basis @ torch.diag(values) @ basis.T

    class Analytic:
        def evaluate(self, x: Tensor, with_grad: bool):
            assert not torch.is_grad_enabled()
            return energy_fn(x), (x.flatten(1) @ form).view_as(x) if with_grad else None

    action = chunks(generator, torch.float64)
    expected, info = correct(energy_fn, action, steps=5, alpha=0.6)
    found, own = correct(Analytic(), action, steps=5, alpha=0.6)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own.energy_after, info.energy_after)
    scale, shift = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([0.1, -0.3], dtype=torch.float64)
    composed, _ = correct(lambda x: energy_fn(x * scale + shift), action, steps=5, alpha=0.2)
    for inner in (energy_fn, Analytic()):
        twice = Rescaled(Rescaled(inner, 4.0, 1.0), scale / 4.0, (shift - 1.0) / 4.0)
        for energy in (Rescaled(inner, scale, shift), twice):
            found, _ = correct(energy, action, steps=5, alpha=0.2)
            torch.testing.assert_close(found, composed)


def test_langevin_noise_has_the_stationary_variance_of_its_temperature(generator):
    curvature, temperature, alpha = 4.0, 0.3, 0.2
    energy_fn = lambda x: 0.5 * curvature * x.flatten(1).square().sum(1)  # noqa: E731
    action = torch.zeros(20000, 1, 2)
    moved, info = correct(
        energy_fn, action, steps=40, alpha=alpha, line_search=False, noise=temperature, generator=generator, **FREE
    )
    expected = temperature / (curvature * (1.0 - alpha * curvature / 2.0))
    assert float(moved.var()) == pytest.approx(expected, rel=0.03)
    assert info.accept_rate == 1.0
    masked, _ = correct(
        energy_fn, action, steps=3, alpha=alpha, line_search=False, noise=temperature, generator=generator,
        dims=[False, True],
    )  # fmt: skip
    assert (masked[..., 0] == 0.0).all() and (masked[..., 1] != 0.0).all()


# The best of N.


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_the_rank_of_the_chosen_is_that_of_the_least_of_n_draws(count, generator):
    """The share of the prior that is better than the best of N is Beta(1, N)."""
    rows = 4000
    candidates = torch.rand(count, rows, 1, 1, generator=generator)
    action, index, energies = best_of_n(lambda x: 3.0 * x.flatten(), candidates)
    rank, spread = action.flatten(), math.sqrt(count / ((count + 1) ** 2 * (count + 2)))
    assert float(rank.mean()) == pytest.approx(1.0 / (count + 1), abs=4.0 * spread / math.sqrt(rows))
    assert torch.equal(energies, 3.0 * candidates[..., 0, 0])
    assert torch.equal(action, candidates[index, torch.arange(rows)])
    assert torch.equal(energies.min(dim=0).values, energies[index, torch.arange(rows)])
    if count == 1:
        assert torch.equal(action, candidates[0])


def test_more_candidates_reach_the_expert_by_the_right_energy_and_overshoot_by_the_other(generator):
    state = torch.randn(400, 2, generator=generator)
    errors: dict[str, list[float]] = dict(uniform=[], row=[])
    for count in (4, 16, 64, 256):
        candidates = math.sqrt(S0) * torch.randn(count, 400, 1, 2, generator=generator)
        for kind, energy in (("uniform", uniform_energy), ("row", row_energy)):
            action, _, _ = best_of_n(energy(state), candidates)
            mean = state @ W.T
            errors[kind].append(float((action[:, 0] - mean).norm(dim=1).mean() / mean.norm(dim=1).mean()))
    uniform, row = errors["uniform"], errors["row"]
    assert uniform == sorted(uniform, reverse=True) and uniform[-1] < 0.3 * uniform[0]
    assert row[-1] > 1.5 * uniform[-1] and row[-1] == pytest.approx(0.2, abs=0.06)


# What is refused.


def energy_of_shape(x: Tensor) -> Tensor:
    return x.flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("energy_fn", "message"),
    [
        (energy_of_shape, r"one energy a row, \(64,\) for actions \(64, 3, 2\), got \(64, 1\)"),
        (lambda x: x.sum(), r"got \(\)"),
        (lambda x: torch.ones(len(x)), "no gradient in the actions"),
        (lambda x: x.detach().flatten(1).sum(1), "no gradient in the actions"),
        (lambda x: torch.ones(len(x), requires_grad=True) * 2.0, "no gradient in the actions"),
        (
            lambda x: x.flatten(1).sum(1) / (torch.arange(len(x)) != 7),
            r"energies of the given actions .* got -?inf at \(7,\)",
        ),
        (
            lambda x: (x - x.detach()).flatten(1).sum(1).abs().sqrt(),
            r"gradients at the given actions .* got nan at \(0, 0, 0\)",
        ),
    ],
)
def test_an_energy_that_is_none_is_refused(energy_fn, message, generator):
    with pytest.raises(ValueError, match=message):
        correct(energy_fn, chunks(generator), steps=1, alpha=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=-1), "steps must be at least 0, got -1"),
        (dict(alpha=-0.1), "alpha must be finite and at least 0, got -0.1"),
        (dict(alpha=math.nan), "alpha must be finite"),
        (dict(clip="norm"), "clip must be one of .*got 'norm'"),
        (dict(clip_frac=0.0), "clip_frac above 0"),
        (dict(bounds=None), "clip='range' needs bounds"),
        (dict(bounds=(1.0, -1.0)), "low < high"),
        (dict(dims=[True]), "dims must be 2 of True and False"),
        (dict(dims=[1, 0]), "dims must be 2 of True and False"),
        (dict(noise=0.1), "noise needs line_search=False"),
        (dict(noise=0.1, line_search=False), "noise needs a generator"),
        (dict(noise=-1.0), "noise must be finite and at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message, generator):
    with pytest.raises(ValueError, match=message):
        correct(lambda x: x.flatten(1).sum(1), chunks(generator), **{"steps": 1, "alpha": 0.1, **options})


def test_actions_that_are_none_are_refused(generator):
    energy_fn, action = (lambda x: x.flatten(1).sum(1)), chunks(generator)
    broken = action.clone()
    broken[3, 1, 0] = math.nan
    for given, message in (
        (action[0], r"actions must be \(B, Tp, Da\), floating point, got \(3, 2\)"),
        (action.long(), "torch.int64"),
        (broken, r"the given actions must be finite, got nan at \(3, 1, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            correct(energy_fn, given, steps=1, alpha=0.1)
    for candidates, message in (
        (action, r"\(N, B, Tp, Da\) with N >= 1"),
        (action[None][:0], "N >= 1"),
        (torch.stack([action, broken]), r"candidate 1 must be finite, got nan at \(3, 1, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            best_of_n(energy_fn, candidates)
    with pytest.raises(ValueError, match=r"energies of candidate 1 must be finite, got nan at \(\d+,\)"):
        best_of_n(lambda x: torch.where(x > 1.0, math.nan, x).flatten(1).sum(1), torch.stack([action, action + 2.0]))
