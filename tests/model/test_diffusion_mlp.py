"""DPPO's MLP against its published size, a layer-by-layer twin, and itself row by row and bound to a sampling run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model.critics import ValueNet
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.networks import ResidualMLP, SinusoidalTimeEmbedding

DO, DA, TO, TP, K = 5, 2, 2, 3, 20
VARIANTS = {
    "residual": dict(),
    "plain": dict(residual=False, activation="mish"),
    "residual, norm, encoder": dict(layer_norm=True, cond_mlp_dims=(12, 6), activation="mish"),
    "plain, norm": dict(residual=False, layer_norm=True),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def indices(rows: int) -> Tensor:
    return torch.randint(0, K, (rows,), generator=torch.Generator().manual_seed(3))


def small_net(variant: str, dtype: torch.dtype = torch.float64) -> DiffusionMLP:
    torch.manual_seed(0)
    return DiffusionMLP(DO, DA, TO, TP, (16, 16, 16), time_dim=8, **VARIANTS[variant]).to(dtype)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_the_networks_of_the_papers_hopper_policy_have_its_number_of_parameters():
    assert count(DiffusionMLP(11, 3, cond_steps=1, horizon_steps=4)) == 553_020
    # 11 -> 256, two layers of 256 x 256, and 256 -> 1, with biases.
    assert count(ValueNet(11)) == 12 * 256 + 2 * 257 * 256 + 257


def test_the_residual_mlp_is_its_formula():
    net = ResidualMLP(4, (8,) * 5, 3, activation="relu", layer_norm=True).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    weights = net.state_dict()

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return y * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = random(6, 4)
    expected = dense(x, "first")
    for i in range(2):
        inner = dense(norm(expected, f"blocks.{i}.first.norm").relu(), f"blocks.{i}.first.linear")
        inner = dense(norm(inner, f"blocks.{i}.second.norm").relu(), f"blocks.{i}.second.linear")
        expected = expected + inner
    torch.testing.assert_close(net(x), dense(expected, "last"), rtol=0.0, atol=1e-10)


def test_the_plain_mlp_has_an_activation_between_all_layers_and_none_after_the_last():
    torch.manual_seed(0)
    net = ResidualMLP(4, (8, 6), 3, activation="mish", residual=False).double()
    x = random(6, 4)
    twin = nn.Sequential(net.first, nn.Mish(), net.blocks[0].linear, nn.Mish(), net.last.linear)
    torch.testing.assert_close(net(x), twin(x), rtol=0.0, atol=1e-12)
    assert net(100 * x).min() < -1.0


def test_the_time_embedding_is_of_sines_and_cosines_at_frequencies_from_1_to_one_in_10000():
    embedding = SinusoidalTimeEmbedding(8, 16)
    assert "frequency" not in embedding.state_dict()
    for k in (0, 1, 19, 99):
        phases = [k * 10000.0 ** (-i / 3) for i in range(4)]
        features = torch.tensor([[math.sin(p) for p in phases] + [math.cos(p) for p in phases]])
        expected = embedding.second(F.mish(embedding.first(features)))
        torch.testing.assert_close(embedding(torch.tensor([k])), expected, rtol=0.0, atol=1e-5)
    for dim in (2, 7):
        with pytest.raises(ValueError, match="even number of at least 4"):
            SinusoidalTimeEmbedding(dim, 16)


@each_variant
def test_the_noise_depends_on_every_entry_of_chunk_index_and_history(variant):
    net = small_net(variant)
    x, k, obs = random(1, TP, DA).requires_grad_(), torch.tensor([4]), random(1, TO, DO).requires_grad_()
    net(x, k, obs).square().sum().backward()
    assert x.grad.ne(0).all() and obs.grad.ne(0).any()
    if variant != "residual":  # ReLU leaves out what no unit of the few here looks at
        assert obs.grad.ne(0).all()
    assert not torch.allclose(net(x, k, obs), net(x, k + 1, obs))
    assert not torch.allclose(net(x, k, obs), net(x, k, obs.flip(1)))  # the order of the history counts
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_variant
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_bound_network_is_the_network_at_every_index(variant, rows, dtype, tolerance):
    net = small_net(variant, dtype)
    obs, x = random(rows, TO, DO, dtype=dtype), random(rows, TP, DA, seed=2, dtype=dtype)
    steps = list(reversed(range(K)))
    bound = net.bind(steps, obs)
    for i, k in enumerate(steps):
        expected = net(x, torch.full((rows,), k), obs)
        torch.testing.assert_close(bound(x, i), expected, rtol=0.0, atol=tolerance)
    assert not torch.allclose(bound(x, 0), net(x, torch.full((rows,), 0), obs), atol=1e-4)  # i is not k


@each_variant
def test_rows_that_share_observations_and_indices_are_the_same_rows_apart(variant):
    net = small_net(variant)
    n, f = 7, 4
    x, k, obs = random(n, f, TP, DA), torch.tensor([3, 2, 1, 0]), random(n, 1, TO, DO, seed=2)
    apart = net(x.flatten(0, 1), k.repeat(n), obs.squeeze(1).repeat_interleave(f, 0))
    gradient = torch.autograd.grad(apart.square().sum(), list(net.parameters()))
    together = net(x, k, obs)
    assert together.shape == x.shape
    torch.testing.assert_close(together.flatten(0, 1), apart, rtol=0.0, atol=1e-12)
    twin = torch.autograd.grad(together.square().sum(), list(net.parameters()))
    torch.testing.assert_close(twin, gradient, rtol=1e-10, atol=1e-12)
    one_by_one = torch.stack([net(x[:, j], k[j].expand(n), obs[:, 0]) for j in range(f)], 1)
    torch.testing.assert_close(together, one_by_one, rtol=0.0, atol=1e-12)
    wrong = net(x, k.flip(0), obs)  # the negative control
    assert not torch.allclose(wrong, together, atol=1e-3)


def test_shared_observations_are_encoded_once(monkeypatch):
    net = small_net("residual, norm, encoder")
    seen = []
    net.cond.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    net(random(7, 4, TP, DA), torch.arange(4), random(7, 1, TO, DO))
    bound = net.bind(range(K), random(7, TO, DO))
    for i in range(K):
        bound(random(7, TP, DA), i)
    assert seen == [(7, 1, TO * DO), (7, TO * DO)]


@each_variant
def test_rows_are_independent_of_each_other(variant):
    net = small_net(variant)
    x, k, obs = random(9, TP, DA), indices(9), random(9, TO, DO, seed=2)
    order = torch.tensor([4, 8, 0, 1, 7, 3, 2, 6, 5])
    torch.testing.assert_close(net(x[order], k[order], obs[order]), net(x, k, obs)[order], rtol=0.0, atol=1e-12)


def test_gradients_pass_through_a_bound_network():
    net = small_net("residual")
    x, obs = random(6, TP, DA), random(6, TO, DO, seed=2)
    parameters = list(net.parameters())
    bound = torch.autograd.grad(net.bind([7], obs)(x, 0).square().sum(), parameters)
    direct = torch.autograd.grad(net(x, torch.full((6,), 7), obs).square().sum(), parameters)
    torch.testing.assert_close(bound, direct, rtol=1e-10, atol=1e-12)


def test_under_autocast_the_noise_and_the_value_keep_the_precision_of_the_parameters():
    net, value = small_net("residual", torch.float32), ValueNet(DO, TO)
    x, k, obs = random(6, TP, DA).float(), indices(6), random(6, TO, DO).float()
    exact = net(x, k, obs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, bound = net(x, k, obs), net.bind([5], obs)(x, 0)
        assert value(obs).dtype == torch.float32
    assert rounded.dtype == bound.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.0, atol=0.05)


def test_the_value_is_one_number_a_history():
    value = ValueNet(DO, TO, (16, 16, 16)).double()
    obs = random(7, TO, DO)
    assert value(obs).shape == (7,)
    torch.testing.assert_close(value(obs), value.net(obs.view(7, -1))[:, 0], rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match=r"\(B, To, Do\) = \(B, \(2, 5\)\), got \(7, 10\)"):
        value(obs.flatten(1))


@pytest.mark.parametrize("bound", [False, True])
def test_chunks_and_histories_of_another_shape_are_refused(bound):
    net, k = small_net("residual"), indices(4)

    def noise(x: Tensor, obs: Tensor) -> Tensor:
        return net.bind([3], obs)(x, 0) if bound else net(x, k, obs)

    with pytest.raises(ValueError, match=r"Tp, Da\) = \(..., \(3, 2\)\), got \(4, 2, 3\)"):
        noise(random(4, DA, TP), random(4, TO, DO))  # transposed: the same number of entries
    with pytest.raises(ValueError, match=r"To, Do\) = \(..., \(2, 5\)\), got \(4, 5, 2\)"):
        noise(random(4, TP, DA), random(4, DO, TO))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mlp_dims=(16, 16)), "odd number of equal widths"),
        (dict(mlp_dims=(16, 32, 16)), "odd number of equal widths"),
        (dict(mlp_dims=()), "at least one hidden width"),
        (dict(cond_mlp_dims=(8,)), "at least one hidden width"),
        (dict(activation="tanh"), r"one of \('relu', 'mish', 'silu'\), got 'tanh'"),
        (dict(time_dim=9), "even number"),
    ],
)
def test_sizes_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiffusionMLP(DO, DA, TO, TP, **arguments)
