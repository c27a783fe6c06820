"""With DI-engine's weights our networks are DI-engine's functions, and the same noise gives the same action."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from ding.model.template import qgpo as theirs
from easydict import EasyDict
from torch import Tensor, nn

from ding_ebm.diffusion.schedules import VPLinearSchedule
from ding_ebm.diffusion.solvers import make_plan
from ding_ebm.model.critics import EnsembleQ
from ding_ebm.model.diffusion import sample_actions
from ding_ebm.model.energy import GuidanceNet
from ding_ebm.model.networks import FourierTimeEmbedding, NoiseNet

DO, DA = 11, 3
SCHEDULE = VPLinearSchedule()
# torch.tensor(t) of a tensor, on every call of theirs.
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")


@pytest.fixture(scope="module")
def reference() -> theirs.QGPO:
    torch.manual_seed(0)
    model = theirs.QGPO(EasyDict(device="cpu", obs_dim=DO, action_dim=DA, qgpo_critic=dict(alpha=3, q_alpha=1)))
    for module in model.modules():  # larger than at initialization, so that no part is negligible
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.5 * module.in_features**-0.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


@torch.no_grad()
def copy_time(ours: FourierTimeEmbedding, embed: nn.Sequential) -> None:
    ours.frequency.copy_(embed[0].W / (2.0 * np.pi))
    ours.linear.load_state_dict(embed[1].state_dict())


@torch.no_grad()
def noise_net(score: theirs.ScoreNet) -> NoiseNet:
    """Our network with their weights; it predicts noise, which is minus their h."""
    net = NoiseNet(DO, DA)
    copy_time(net.time, score.embed)
    net.obs.load_state_dict(score.pre_sort_condition[0].state_dict())
    net.embed.load_state_dict(score.sort_t[0].state_dict())
    net.embed_out.load_state_dict(score.sort_t[2].state_dict())
    blocks = [score.down_block1, score.down_block2, score.down_block3, score.middle1, score.up_block3, score.up_block2]
    for block, source in zip([*net.down, net.middle, *net.up], blocks):
        first = [source.dense1[0]] + ([source.modify_x] if isinstance(source.modify_x, nn.Linear) else [])
        block.first.weight.copy_(torch.cat([layer.weight for layer in first]))
        block.first.bias.copy_(torch.cat([layer.bias for layer in first]))
        block.second.load_state_dict(source.dense2[0].state_dict())
    net.conditions.weight.copy_(torch.cat([source.time_mlp[1].weight for source in blocks]))
    net.conditions.bias.copy_(torch.cat([source.time_mlp[1].bias for source in blocks]))
    net.last.weight.copy_(-score.last.weight)
    net.last.bias.copy_(-score.last.bias)
    return net


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def guidance_net(source: theirs.GuidanceQt) -> GuidanceNet:
    """Our network with their weights; theirs has one hidden layer fewer than the paper's."""
    net = GuidanceNet(DO, DA, (256, 256, 256))
    copy_time(net.time, source.embed)
    for ours, layer in zip([net.first, *net.hidden, net.last], linear_layers(source.qt)):
        ours.load_state_dict(layer.state_dict())
    return net


@torch.no_grad()
def twin_critics(source: theirs.TwinQ) -> EnsembleQ:
    """Our network with their weights; theirs takes the action before the observation."""
    net = EnsembleQ(DO, DA)
    for critic, mlp in zip(net.critics, (source.q1, source.q2)):
        for ours, layer in zip([critic.first, *critic.hidden, critic.last], linear_layers(mlp)):
            ours.load_state_dict(layer.state_dict())
        weight = critic.first.weight.clone()
        critic.first.weight.copy_(torch.cat([weight[:, DA:], weight[:, :DA]], 1))
    return net


def data(rows: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, obs = torch.randn(rows, DA, generator=generator), torch.randn(rows, DO, generator=generator)
    return x, 1e-3 + 0.999 * torch.rand(rows, generator=generator), obs


def relative(ours: Any, reference: Any) -> float:
    ours, reference = torch.as_tensor(np.array(ours)), torch.as_tensor(np.array(reference))
    return float((ours - reference).norm() / reference.norm())


@torch.no_grad()
def test_the_noise_network_is_the_paper_codes_score_network(reference):
    x, t, obs = data()
    sigma = theirs.marginal_prob_std(t, "cpu")[1]
    expected = -reference.score_model(x, t, obs) * sigma[:, None]
    assert relative(noise_net(reference.score_model)(x, t, obs), expected) < 1e-5
    assert expected.std() > 0.1


@torch.no_grad()
def test_the_critics_are_the_twin_critic(reference):
    x, _, obs = data()
    net = twin_critics(reference.q.q0)
    for ours, expected in zip(net(obs, x), reference.q.q0.both(x, obs)):
        assert relative(ours, expected[:, 0]) < 1e-5
    assert relative(net(obs, x).min(0).values, reference.q(x, obs)[:, 0]) < 1e-5


def test_the_guidance_and_its_gradient_are_theirs(reference):
    x, t, obs = data()
    net = guidance_net(reference.q.qt)
    value, grad = net.value_and_grad(x, t, obs, 1.0)
    assert relative(value.detach(), reference.q.qt(x, t, obs).detach()[:, 0]) < 1e-5
    expected = reference.q.calculate_guidance(x.clone(), t, obs, guidance_scale=1.0)
    assert relative(grad.detach(), expected) < 1e-5


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 32])
def test_the_same_noise_gives_the_reference_solvers_action(reference, rows, scale):
    # T8: the paper's call is 15 evaluations of the singlestep solver of order 2 on a grid uniform in time.
    _, _, obs = data(rows)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.select_actions(obs.numpy(), diffusion_steps=15, guidance_scale=scale)
    torch.manual_seed(1)
    noise = torch.randn(rows, DA)
    plan = make_plan(SCHEDULE, 15, method="singlestep", order=2, spacing="time")
    actions = sample_actions(
        noise_net(reference.score_model), plan, obs, noise,
        guidance=guidance_net(reference.q.qt), guidance_scale=scale, clip="none",
    )  # fmt: skip
    assert relative(actions, np.stack(expected)) < 1e-5


def test_support_actions_are_theirs_too(reference):
    _, _, obs = data(4)
    torch.manual_seed(1)
    expected = reference.sample(obs.numpy(), sample_per_state=5, diffusion_steps=15, guidance_scale=0.0)
    torch.manual_seed(1)
    noise = torch.randn(20, DA).view(4, 5, DA)
    plan = make_plan(SCHEDULE, 15, method="singlestep", order=2, spacing="time")
    actions = sample_actions(noise_net(reference.score_model), plan, obs.unsqueeze(1), noise, clip="none")
    assert relative(actions, expected) < 1e-5
