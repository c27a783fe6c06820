"""The U-Net against itself row by row and bound, what its structure promises, and sizes that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.model import unet
from ding_ebm.model.unet import Unet1D

DO, DA, TO, TP, K = 5, 2, 2, 8, 20
VARIANTS = {
    "two levels": dict(dim_mults=(1, 2)),
    "three levels, encoder": dict(dim_mults=(1, 2, 4), cond_mlp_dims=(12, 6)),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def indices(rows: int) -> Tensor:
    return torch.randint(0, K, (rows,), generator=torch.Generator().manual_seed(3))


def small_net(variant: str = "two levels", dtype: torch.dtype = torch.float64, horizon: int = TP) -> Unet1D:
    torch.manual_seed(0)
    net = Unet1D(DO, DA, TO, horizon, dim=8, time_dim=8, num_groups=4, **VARIANTS[variant])
    for parameter in net.parameters():  # so that no part is negligible
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    return net.to(dtype)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (dict(dim_mults=(1, 2)), 1_623_255),
        (dict(dim_mults=(1, 2, 4)), 6_729_559),
        (dict(dim_mults=(1, 2, 4), cond_mlp_dims=(64, 32)), 4_005_751),
    ],
)
def test_it_has_as_many_parameters_as_dppos_with_the_same_arguments(arguments, count):
    # Counted on their class at can's sizes (commit cc7234ad).
    net = Unet1D(23, 7, cond_steps=1, horizon_steps=8, dim=64, **arguments)
    assert sum(p.numel() for p in net.parameters()) == count


@each_variant
@pytest.mark.parametrize("horizon", [4, 8, 16])
def test_the_noise_has_the_shape_of_the_chunk(variant, horizon):
    net = small_net(variant, horizon=horizon)
    assert net(random(3, horizon, DA), indices(3), random(3, TO, DO)).shape == (3, horizon, DA)


@each_variant
def test_every_parameter_and_every_entry_of_the_input_gets_a_gradient(variant):
    net = small_net(variant)
    x, obs = random(6, TP, DA).requires_grad_(), random(6, TO, DO).requires_grad_()
    net(x, indices(6), obs).square().sum().backward()
    assert x.grad.ne(0).all() and obs.grad.ne(0).all()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_variant
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("table", [True, False])
def test_a_bound_network_is_the_network_at_every_index(variant, table, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(unet, "_TABLE", unet._TABLE if table else 0)
    net = small_net(variant, dtype)
    obs, x = random(5, TO, DO, dtype=dtype), random(5, TP, DA, seed=2, dtype=dtype)
    steps = [19, 15, 4, 0]
    bound = net.bind(steps, obs)
    for i, k in enumerate(steps):
        expected = net(x, torch.full((5,), k), obs)
        torch.testing.assert_close(bound(x, i), expected, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(bound(x, 0), net(x, torch.full((5,), 0), obs), atol=1e-4)  # i is not k


@pytest.mark.parametrize(("table", "passes"), [(True, 1), (False, 4)])
def test_scales_and_shifts_of_all_steps_are_computed_in_one_pass_where_they_are_few(table, passes, monkeypatch):
    monkeypatch.setattr(unet, "_TABLE", unet._TABLE if table else 0)
    net = small_net()
    calls = []
    net.middle[0].film.layers[2].register_forward_hook(lambda *_: calls.append(1))
    bound = net.bind([19, 15, 4, 0], random(5, TO, DO))
    for i in range(4):
        bound(random(5, TP, DA), i)
    assert len(calls) == passes


@each_variant
@pytest.mark.parametrize("table", [True, False])
def test_a_bound_network_takes_many_chunks_for_one_observation(variant, table, monkeypatch):
    monkeypatch.setattr(unet, "_TABLE", unet._TABLE if table else 0)
    net = small_net(variant)
    obs, x = random(4, TO, DO), random(4, 3, TP, DA, seed=2)
    together = net.bind([9, 2], obs.unsqueeze(1))
    apart = net.bind([9, 2], obs.repeat_interleave(3, 0))
    for i in range(2):
        torch.testing.assert_close(together(x, i).flatten(0, 1), apart(x.flatten(0, 1), i), rtol=0.0, atol=1e-12)


@each_variant
def test_rows_that_share_observations_and_indices_are_the_same_rows_apart(variant):
    net = small_net(variant)
    n, f = 5, 3
    x, k, obs = random(n, f, TP, DA), torch.tensor([2, 1, 0]), random(n, 1, TO, DO, seed=2)
    apart = net(x.flatten(0, 1), k.repeat(n), obs.squeeze(1).repeat_interleave(f, 0))
    together = net(x, k, obs)
    torch.testing.assert_close(together.flatten(0, 1), apart, rtol=0.0, atol=1e-12)
    assert not torch.allclose(net(x, k.flip(0), obs), together, atol=1e-3)  # the negative control
    parameters = list(net.parameters())
    gradients = [torch.autograd.grad(y.square().sum(), parameters) for y in (together, apart)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@each_variant
def test_rows_are_independent_of_each_other(variant):
    net = small_net(variant)
    x, k, obs = random(9, TP, DA), indices(9), random(9, TO, DO, seed=2)
    order = torch.tensor([4, 8, 0, 1, 7, 3, 2, 6, 5])
    torch.testing.assert_close(net(x[order], k[order], obs[order]), net(x, k, obs)[order], rtol=0.0, atol=1e-12)


def test_convolutions_alone_commute_with_a_shift_of_the_chunk_except_at_its_ends():
    net = Unet1D(DO, DA, TO, 40, dim=8, dim_mults=(1,), time_dim=8, num_groups=4).double()
    for module in net.modules():
        if isinstance(module, unet._ConvBlock):
            module.norm = nn.Identity()  # its statistics are of the whole chunk
    x, k, obs = random(1, 40, DA), indices(1), random(1, TO, DO)
    shifted, noise = net(x.roll(1, dims=1), k, obs), net(x, k, obs).roll(1, dims=1)
    reach = 9 * 2  # nine convolutions of width 5
    inside = slice(reach + 1, 40 - reach)
    torch.testing.assert_close(shifted[:, inside], noise[:, inside], rtol=0.0, atol=1e-12)
    assert not torch.allclose(shifted[:, :2], noise[:, :2], rtol=0.0, atol=1e-6)


def test_a_scale_of_zero_and_a_shift_of_zero_leave_only_the_skip():
    torch.manual_seed(0)
    block = unet._FilmBlock(3, 8, unet._FilmNet(4, 5, 8, 3), 5, 4, 1e-5).double()
    nn.init.zeros_(block.second.conv.bias)
    x = random(2, 3, 6)
    torch.testing.assert_close(block(x, torch.zeros(2, 16, dtype=torch.float64)), block.skip(x), rtol=0.0, atol=1e-12)
    one = torch.cat([torch.ones(2, 8), torch.zeros(2, 8)], 1).double()  # scale before shift
    expected = block.second(block.first(x)) + block.skip(x)
    torch.testing.assert_close(block(x, one), expected, rtol=0.0, atol=1e-12)


def test_under_autocast_the_predicted_noise_keeps_the_dtype_of_the_parameters():
    net = small_net(dtype=torch.float32)
    x, k, obs = random(6, TP, DA).float(), indices(6), random(6, TO, DO).float()
    exact = net(x, k, obs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = net(x, k, obs)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(horizon_steps=6, dim_mults=(1, 2, 4)),
            r"horizon_steps must be divisible by 2\^.* = 4, .*got 6",
        ),
        (dict(horizon_steps=5), r"horizon_steps must be divisible by 2\^.* = 2, .*got 5"),
        (dict(horizon_steps=0), "horizon_steps must be divisible"),
        (dict(dim_mults=(2, 4)), "dim_mults must be positive and begin with 1"),
        (dict(dim_mults=()), "dim_mults must be positive and begin with 1"),
        (dict(dim=20), "dim must be divisible by num_groups = 8, got 20"),
        (dict(kernel_size=4), "kernel_size must be odd, got 4"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Unet1D(DO, DA, TO, **{"horizon_steps": TP, **arguments})


def test_a_chunk_of_another_length_is_refused_although_convolutions_would_take_it():
    net = small_net()
    with pytest.raises(ValueError, match=r"Tp, Da\) = \(..., \(8, 2\)\), got \(3, 12, 2\)"):
        net(random(3, 12, DA), indices(3), random(3, TO, DO))
