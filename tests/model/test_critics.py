"""Critics against separate networks, and values against loops and limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ding_ebm.model.critics import EnsembleQ, LogPartition, aggregate, in_support_value


def ensemble(num_critics: int = 3, dtype: torch.dtype = torch.float64, layer_norm: bool = False) -> EnsembleQ:
    torch.manual_seed(0)
    return EnsembleQ(5, 2, (16, 8), num_critics, layer_norm).to(dtype)


def separate(critics: EnsembleQ, n: int) -> nn.Sequential:
    """Critic n as a stack of torch's own layers that takes the concatenated input."""
    layers: list[nn.Module] = []
    critic = critics.critics[n]
    for ours, norm in zip((critic.first, *critic.hidden, critic.last), (*critic.norms, nn.Identity())):
        layer = nn.Linear(ours.in_features, ours.out_features, dtype=ours.weight.dtype)
        layer.load_state_dict(ours.state_dict())
        layers += [layer, norm, nn.ReLU()]
    return nn.Sequential(*layers[:-2])


@pytest.fixture
def data(generator) -> tuple[Tensor, Tensor]:
    return (torch.randn(6, 5, generator=generator).double(), torch.randn(6, 4, 2, generator=generator).double())


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_critics", [1, 2, 5])
def test_an_ensemble_is_a_loop_over_separate_networks(num_critics, layer_norm, data):
    obs, actions = data
    critics = ensemble(num_critics, layer_norm=layer_norm)
    values = critics(obs, actions[:, 0])
    assert values.shape == (num_critics, 6)
    for n in range(num_critics):
        expected = separate(critics, n)(torch.cat([obs, actions[:, 0]], 1)).squeeze(1)
        torch.testing.assert_close(values[n], expected, rtol=0.0, atol=1e-12)


def test_many_actions_of_a_state_get_the_values_that_they_get_one_by_one(data):
    obs, actions = data
    critics = ensemble()
    values = critics(obs, actions)
    assert values.shape == (3, 6, 4)
    for j in range(4):
        torch.testing.assert_close(values[..., j], critics(obs, actions[:, j]), rtol=0.0, atol=1e-12)


def test_a_normalized_critic_is_bounded_in_the_action_and_a_plain_one_is_not():
    # A normalized hidden layer of width n has norm sqrt(n), whatever the action.
    plain, normalized = ensemble(1), ensemble(1, layer_norm=True)
    obs, far = torch.ones(1, 5, dtype=torch.float64), torch.full((1, 2), 1e9, dtype=torch.float64)
    critic = normalized.critics[0]
    bound = math.sqrt(8) * critic.last.weight.norm() + critic.last.bias.abs()
    assert normalized(obs, far).abs() <= bound.item() < 1e3 < plain(obs, far).abs()


@pytest.mark.parametrize("shape", [(1, 2), (1, 1, 2), (1, 4, 2)])
def test_a_batch_of_one_and_one_action_keep_their_dimensions(shape, data):
    assert ensemble()(data[0][:1], data[1].flatten(0, 1)[: math.prod(shape[:-1])].view(shape)).shape == (3, *shape[:-1])


def test_critics_do_not_share_parameters_or_gradients(data):
    obs, actions = data
    critics = ensemble()
    first, second = (next(critics.critics[n].parameters()) for n in (0, 1))
    assert not torch.equal(first, second)
    critics(obs, actions[:, 0])[1].sum().backward()
    got_one = [any(p.grad is not None and p.grad.any() for p in critic.parameters()) for critic in critics.critics]
    assert got_one == [False, True, False]


def test_critics_begin_as_linear_layers_do():
    torch.manual_seed(0)
    for parameter in EnsembleQ(40, 24, (64, 64), num_critics=100).critics.parameters():
        assert parameter.abs().max() <= 0.125  # 1 / sqrt(64)
        if parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.125 / math.sqrt(3.0), rel=0.05)


def test_under_autocast_values_are_of_the_parameters_precision(data):
    critics = ensemble(dtype=torch.float32)
    obs, actions = data[0].float(), data[1].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = critics(obs, actions)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, critics(obs, actions), rtol=0.0, atol=0.02)


def test_an_ensemble_of_no_critic_is_refused():
    with pytest.raises(ValueError, match="num_critics"):
        EnsembleQ(5, 2, num_critics=0)


def test_aggregates_are_their_closed_forms():
    values = torch.tensor([[1.0, -4.0], [2.0, 0.0], [6.0, 1.0]])
    assert aggregate(values, "min").tolist() == [1.0, -4.0]
    assert aggregate(values, "mean").tolist() == [3.0, -1.0]
    spread = [math.sqrt((4 + 1 + 9) / 3), math.sqrt((9 + 1 + 4) / 3)]
    expected = [3.0 - 0.5 * spread[0], -1.0 - 0.5 * spread[1]]
    assert aggregate(values, "lcb", 0.5).tolist() == pytest.approx(expected)
    assert aggregate(values, "lcb", 0.0).tolist() == [3.0, -1.0]
    assert aggregate(values[:1], "lcb", 2.0).tolist() == [1.0, -4.0]
    with pytest.raises(ValueError, match="min.*mean.*lcb.*'median'"):
        aggregate(values, "median")


@pytest.mark.parametrize("beta", [0.0, 0.7, 3.0, 20.0])
def test_the_in_support_value_is_the_loop_over_actions(beta, generator):
    q = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    for row, value in zip(q.tolist(), in_support_value(q, beta).tolist()):
        weights = [math.exp(beta * x) for x in row]
        assert value == pytest.approx(sum(w * x for w, x in zip(weights, row)) / sum(weights), abs=1e-12)


def test_the_in_support_value_goes_from_the_mean_to_the_best_and_grows_in_between(generator):
    q = torch.randn(50, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(in_support_value(q, 0.0), q.mean(1))
    torch.testing.assert_close(in_support_value(q, 1e6), q.max(1).values)
    values = torch.stack([in_support_value(q, beta) for beta in (0.0, 0.5, 1.0, 2.0, 5.0)])
    assert (values.diff(dim=0) > 0.0).all()


def test_the_in_support_value_does_not_overflow_and_follows_a_shift(generator):
    q = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(in_support_value(q + 1e5, 30.0), in_support_value(q, 30.0) + 1e5, rtol=1e-9, atol=0.0)


def test_the_order_of_support_actions_changes_no_value(generator):
    q = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    order = torch.randperm(7, generator=generator)
    torch.testing.assert_close(in_support_value(q[:, order], 3.0), in_support_value(q, 3.0), rtol=1e-12, atol=0.0)


def test_one_support_action_gives_its_own_value():
    q = torch.tensor([[2.5], [-1.0]])
    torch.testing.assert_close(in_support_value(q, 3.0), torch.tensor([2.5, -1.0]))


@pytest.mark.parametrize("conditioned", [False, True])
def test_log_partition_is_zero_without_temperature_and_proportional_to_it_unless_conditioned(conditioned, generator):
    torch.manual_seed(0)
    net = LogPartition(5, 2, (16,), conditioned)
    obs, action = torch.randn(4, 5, generator=generator), torch.randn(4, 2, generator=generator)
    value = torch.randn(4, generator=generator)
    assert not net(obs, action, value, torch.zeros(4)).any()
    one, three = net(obs, action, value, torch.ones(4)), net(obs, action, value, torch.full((4,), 3.0))
    assert one.shape == (4,)
    assert torch.allclose(three, 3.0 * one) is not conditioned
    shifted = net(obs, action, value + 100.0, torch.ones(4))  # the size of values costs the network nothing
    torch.testing.assert_close(shifted, one + 100.0)
