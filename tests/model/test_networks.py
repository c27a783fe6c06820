"""The networks against their published size, against layer-by-layer twins, and against themselves in another shape."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan
from ding_ebm.model.critics import EnsembleQ
from ding_ebm.model.energy import GuidanceNet
from ding_ebm.model.networks import FourierTimeEmbedding, NoiseNet, mlp

TIMES = make_plan(VPLinearSchedule(), 15).times


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def small_net(dtype: torch.dtype = torch.float64) -> NoiseNet:
    torch.manual_seed(0)
    return NoiseNet(5, 2, (32, 16, 8)).to(dtype)


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("module", "count"),
    [(NoiseNet(11, 3), 1_627_939), (GuidanceNet(11, 3), 210_721), (EnsembleQ(11, 3), 271_362)],
    ids=["noise", "guidance", "critics"],
)
def test_the_default_networks_have_the_papers_number_of_parameters(module, count):
    assert trainable(module) == count


def test_the_noise_network_is_the_residual_network_that_its_merged_matrices_stand_for():
    net = small_net()
    x, t, obs = random(7, 2), torch.rand(7, dtype=torch.float64), random(7, 5, seed=2)

    def block(block, weights: tuple[Tensor, Tensor], x: Tensor, embedding: Tensor) -> Tensor:
        n = block.dim_out
        first, skip = F.linear(x, block.first.weight[:n], block.first.bias[:n]), x
        if block.has_skip:
            skip = F.linear(x, block.first.weight[n:], block.first.bias[n:])
        hidden = F.silu(first) + F.linear(F.silu(embedding), *weights)
        return F.silu(block.second(hidden)) + skip

    split = net.cond_sizes
    conditions = list(zip(net.conditions.weight.split(split), net.conditions.bias.split(split)))
    embedding = net.embed_out(F.silu(net.embed(torch.cat([F.silu(net.obs(obs)), net.time(t)], 1))))
    down_1 = block(net.down[0], conditions[0], x, embedding)
    down_2 = block(net.down[1], conditions[1], down_1, embedding)
    down_3 = block(net.down[2], conditions[2], down_2, embedding)
    middle = block(net.middle, conditions[3], down_3, embedding)
    up_2 = block(net.up[0], conditions[4], torch.cat([down_3, middle], 1), embedding)
    up_1 = block(net.up[1], conditions[5], torch.cat([down_2, up_2], 1), embedding)
    expected = net.last(torch.cat([down_1, up_1], 1))
    torch.testing.assert_close(net(x, t, obs), expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rows", [1, 12, 600], ids=["one row", "table of conditions", "conditions step by step"])
def test_a_bound_network_is_the_network_at_every_time(rows, dtype, tolerance):
    # 600 rows x 15 times x 128 features are too many for a table: the other branch.
    net = small_net(dtype)
    obs, x = random(rows, 5, dtype=dtype), random(rows, 2, seed=2, dtype=dtype)
    bound = net.bind(TIMES, obs)
    for i, t in enumerate(TIMES):
        expected = net(x, torch.full((rows,), t, dtype=dtype), obs)
        torch.testing.assert_close(bound(x, i), expected, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("rows", [4, 600])
def test_a_bound_network_takes_many_actions_for_one_observation(rows):
    net = small_net()
    obs, x = random(rows, 5), random(rows, 3, 2, seed=2)
    together = net.bind(TIMES, obs.unsqueeze(1))
    apart = net.bind(TIMES, obs.repeat_interleave(3, 0))
    for i in (0, 7, 14):
        assert together(x, i).shape == (rows, 3, 2)
        torch.testing.assert_close(together(x, i).flatten(0, 1), apart(x.flatten(0, 1), i), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("widths", [(64,), (), (64, 32, 8), (32, 64), (0, 0)])
def test_widths_that_do_not_fit_each_other_are_refused(widths):
    with pytest.raises(ValueError, match="widths must be"):
        NoiseNet(5, 2, widths)


def test_every_parameter_of_the_noise_network_gets_a_gradient():
    net = small_net()
    net(random(6, 2), torch.rand(6, dtype=torch.float64), random(6, 5)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_time_features_are_sines_and_cosines_of_fixed_random_frequencies():
    embedding = FourierTimeEmbedding(8, scale=30.0).double()
    assert "frequency" not in dict(embedding.named_parameters()) and "frequency" in embedding.state_dict()
    with torch.no_grad():
        embedding.linear.weight.copy_(torch.eye(8))
        embedding.linear.bias.zero_()
    for t in (0.0, 0.3, 1.0):
        phases = [2.0 * math.pi * f * t for f in embedding.frequency.tolist()]
        expected = [math.sin(p) for p in phases] + [math.cos(p) for p in phases]
        got = embedding(torch.tensor([t], dtype=torch.float64))[0].tolist()
        assert got == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="even"):
        FourierTimeEmbedding(7)


def test_frequencies_have_the_standard_deviation_that_was_asked_for():
    torch.manual_seed(0)
    frequencies = torch.cat([FourierTimeEmbedding(64, scale=30.0).frequency for _ in range(200)])
    assert frequencies.std().item() == pytest.approx(30.0, rel=0.05)


def test_autocast_does_not_round_the_phase_of_time():
    torch.manual_seed(0)
    embedding = FourierTimeEmbedding(32)
    t = torch.linspace(0.0, 1.0, 257)
    exact = embedding(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = embedding(t).float()
    phase = (t[:, None] * embedding.frequency * 2.0 * math.pi).bfloat16().float()  # the negative control
    wrong = embedding.linear(torch.cat([phase.sin(), phase.cos()], 1))
    size = exact.std()
    assert (rounded - exact).abs().max() < 0.05 * size
    assert (wrong - exact).abs().max() > 0.5 * size


def test_under_autocast_the_predicted_noise_keeps_the_dtype_of_the_state():
    net = small_net(torch.float32)
    x, t, obs = random(6, 2, dtype=torch.float32), torch.rand(6), random(6, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noise = net(x, t, obs)
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise, net(x, t, obs), rtol=0.0, atol=0.02)


def test_an_mlp_ends_without_an_activation():
    net = mlp([3, 8, 8, 2])
    assert [type(layer).__name__ for layer in net] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert [layer.weight.shape for layer in net[::2]] == [(8, 3), (8, 8), (2, 8)]
