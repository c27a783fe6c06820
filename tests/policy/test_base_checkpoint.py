"""The policy that fine-tuning starts from: own clones and converted ones sample as their source did, or are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from torch import Tensor, nn

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.cli import main as command
from ding_ebm.data.dppo_layout import reference_names
from ding_ebm.diffusion.schedules import CosineSchedule
from ding_ebm.model.critics import ValueNet
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.unet import Unet1D
from ding_ebm.policy.dppo import DPPOPolicy
from dizoo_configs.builder import online

TP, TA, TO, K, F, DO, DA = 4, 3, 2, 10, 4, 4, 2
MLP = dict(mlp_dims=[16, 16, 16], activation="mish", residual=True, layer_norm=True)
UNET = dict(dim=8, dim_mults=[1, 2], kernel_size=5, num_groups=8)
NETWORKS = {
    "mlp": lambda: DiffusionMLP(DO, DA, TO, TP, time_dim=8, cond_mlp_dims=(12, 6), **MLP),
    "unet": lambda: Unet1D(DO, DA, TO, TP, time_dim=8, cond_mlp_dims=(12, 6), **UNET),
}
RANGES = dict(
    obs_min=np.array([-1.0, -2.0, 0.0, 1.0]),
    obs_max=np.array([1.0, 3.0, 0.5, 4.0]),
    action_min=np.array([-3.0, 0.0]),
    action_max=np.array([-1.0, 5.0]),
)


def policy_of(path: Path | str, overrides: dict[str, Any] | None = None, seed: int = 0) -> DPPOPolicy:
    model = dict(
        horizon_steps=TP, act_steps=TA, cond_steps=TO, denoising_steps=K, time_dim=8, cond_mlp_dims=[12, 6], mlp=MLP,
        unet=UNET, critic_widths=[16, 16, 16],
    )  # fmt: skip
    small = dict(
        env=dict(evaluator_env_num=2, n_evaluator_episode=2),
        policy=dict(model=model, sampler=dict(ft_denoising_steps=F)),
    )
    main, create = online("dppo", "dppo_command", "avoid", "diffusion_bc", small)
    main = deep_merge_dicts(main, EasyDict(policy=dict(overrides or {}, base_policy_path=str(path))))
    cfg = compile_config(main, seed=seed, auto=True, create_cfg=create, save_cfg=False)
    torch.manual_seed(seed)
    return create_policy(cfg.policy, enable_field=["learn", "collect", "eval"])


def random_network(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = NETWORKS[kind]() if kind in NETWORKS else ValueNet(DO, TO, (16, 16, 16))
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    return network.requires_grad_(False)


def theirs(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights under the reference's names."""
    names = reference_names(network)
    return {f"{prefix}.{names[name]}": value for name, value in network.state_dict().items()}


@pytest.fixture
def convert(tmp_path):
    """Write networks in the reference's layout, one pre-trained or three of a fine-tuned policy; convert the file."""

    def write(networks: Sequence[nn.Module], *options: str) -> Path:
        np.savez(tmp_path / "normalization.npz", **RANGES)
        if len(networks) == 1:
            ema = theirs(networks[0], "network")
            content = dict(epoch=7, model={name: 0.0 * value for name, value in ema.items()}, ema=ema)
        else:
            parts = [theirs(network, name) for network, name in zip(networks, ("actor", "actor_ft", "critic"))]
            content = dict(itr=7, model={**parts[0], **parts[1], **parts[2]})
        torch.save(content, tmp_path / "state_7.pt")
        out = tmp_path / "policy.pt"
        told = ["--activation", "mish"] if isinstance(networks[0], DiffusionMLP) else ["--horizon", str(TP)]
        weights = "ema" if len(networks) == 1 else "model"
        files = [("--checkpoint", "state_7.pt"), ("--normalization", "normalization.npz"), ("--out", "policy.pt")]
        paths = [text for flag, name in files for text in (flag, str(tmp_path / name))]
        assert command(["convert", "dppo", *paths, "--weights", weights, *told, *options]) == 0
        return out

    return write


def sampled(
    base: nn.Module, last: nn.Module, obs: np.ndarray, generator: torch.Generator, least_std: float
) -> np.ndarray:
    """Actions in the environment's units by DDPM written out, the last F steps by ``last``."""
    low, high = RANGES["obs_min"], RANGES["obs_max"]
    histories = torch.from_numpy(2 * (obs - low) / (high - low) - 1).float()
    schedule = CosineSchedule(K)
    x = torch.randn((len(obs), TP, DA), generator=generator)
    for k in range(K, 0, -1):
        noise = (last if k <= F else base)(x, torch.full((len(obs),), k - 1), histories)
        beta, now, then = (float(a) for a in (schedule.beta[k], schedule.alpha_bar[k], schedule.alpha_bar[k - 1]))
        x_0 = (x / math.sqrt(now) - math.sqrt(1 / now - 1) * noise).clamp(-1, 1)
        mean = math.sqrt(then) * beta / (1 - now) * x_0 + math.sqrt(1 - beta) * (1 - then) / (1 - now) * x
        std = max(math.sqrt(beta * (1 - then) / (1 - now)), least_std)
        x = mean + std * torch.randn(x.shape, generator=generator).clamp(-3, 3)
    low, high = RANGES["action_min"], RANGES["action_max"]
    return (x[:, :TA].numpy() + 1) / 2 * (high - low) + low


def observations() -> np.ndarray:
    low, high = RANGES["obs_min"], RANGES["obs_max"]
    return np.random.default_rng(0).uniform(low, high, (20, TO, DO)).astype(np.float32)


def collected(policy: DPPOPolicy, seed: int = 3) -> np.ndarray:
    policy._collect_generator.manual_seed(seed)
    return policy.collect_chunks(observations())["action"].numpy()


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_converted_pretrained_policy_samples_as_its_source_did(kind, convert):
    source = random_network(kind, 0)
    policy = policy_of(convert([source], "--denoising-steps", str(K)), dict(model=dict(network=kind)))
    expected = sampled(source, source, observations(), torch.Generator().manual_seed(3), 0.1)
    assert np.abs(collected(policy) - expected).max() < 1e-4
    other = sampled(source, random_network(kind, 1), observations(), torch.Generator().manual_seed(3), 0.1)
    assert np.abs(collected(policy) - other).max() > 0.1  # the negative control
    copies = [policy._model.base.state_dict(), policy._model.fine_tuned.state_dict()]
    assert all(torch.equal(copies[0][name], copies[1][name]) for name in copies[0])


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_converted_fine_tuned_policy_has_its_own_network_in_the_last_steps_and_its_critic(kind, convert):
    base, last, critic = random_network(kind, 0), random_network(kind, 1), random_network("critic", 2)
    path = convert([base, last, critic], "--denoising-steps", str(K), "--ft-denoising-steps", str(F))
    policy = policy_of(path, dict(model=dict(network=kind)))
    expected = sampled(base, last, observations(), torch.Generator().manual_seed(3), 0.1)
    assert np.abs(collected(policy) - expected).max() < 1e-4
    for one, two in ((base, base), (last, last), (last, base)):  # negative controls
        wrong = sampled(one, two, observations(), torch.Generator().manual_seed(3), 0.1)
        assert np.abs(collected(policy) - wrong).max() > 0.1
    histories = policy._model.obs_normalizer(torch.from_numpy(observations()))
    torch.testing.assert_close(policy._model.critic(histories), critic(histories))
    assert all(not p.requires_grad for p in policy._model.base.parameters())
    assert all(p.requires_grad for p in policy._model.fine_tuned.parameters())


def test_an_own_clone_acts_as_it_did(tmp_path, make_clone, make_two_ways):
    overrides = dict(
        model=dict(horizon_steps=TP, act_steps=TA, cond_steps=TO, denoising_steps=K, time_dim=8, cond_mlp_dims=[12, 6]),
        learn=dict(ema_start_iter=1),
    )
    dataset = make_two_ways()
    clone = make_clone("diffusion_bc", deep_merge_dicts(overrides, dict(model=dict(mlp=MLP))), dataset)
    for _ in range(5):  # the average is not the network any more
        clone.learn_mode.forward(dataset.__getitems__(range(64)))
    (tmp_path / "ckpt").mkdir()
    write_checkpoint(clone.learn_mode.state_dict(), tmp_path / "ckpt" / "iteration_5.pth.tar")
    policy = policy_of(tmp_path)
    np.testing.assert_allclose(policy.act(observations()), clone.act(observations()), rtol=0.0, atol=1e-5)
    for model in (clone._model.network_ema, policy._model.fine_tuned):
        assert not torch.equal(model.net.first.weight, clone._model.network.net.first.weight)


K_OF_IT = ("--denoising-steps", str(K))
F_OF_IT = (*K_OF_IT, "--ft-denoising-steps", str(F))
REFUSED: list[tuple[int, Sequence[str], dict[str, Any], str]] = [
    (1, K_OF_IT, dict(model=dict(network="unet")), "network is 'mlp' there and 'unet' here$"),
    (1, K_OF_IT, dict(model=dict(mlp=dict(mlp_dims=[32] * 3))), r"mlp_dims is \(16, 16, 16\) there and \(32, 32, 32"),
    (1, K_OF_IT, dict(model=dict(mlp=dict(activation="relu"))), "activation is 'mish' there and 'relu' here"),
    (1, K_OF_IT, dict(model=dict(mlp=dict(layer_norm=False))), "layer_norm is True there and False here"),
    (1, K_OF_IT, dict(model=dict(time_dim=16)), "time_dim is 8 there and 16 here"),
    (1, K_OF_IT, dict(model=dict(cond_mlp_dims=None)), r"cond_mlp_dims is \(12, 6\) there and None here"),
    (1, K_OF_IT, dict(model=dict(horizon_steps=8)), "horizon_steps is 4 there and 8 here"),
    (1, K_OF_IT, dict(model=dict(cond_steps=1)), "cond_steps is 2 there and 1 here"),
    (1, K_OF_IT, dict(model=dict(action_dim=3)), "action_dim is 2 there and 3 here"),
    (1, K_OF_IT, dict(model=dict(denoising_steps=20)), "denoising_steps is 10 there and 20 here"),
    (1, (), {}, "does not say the policy's denoising_steps.*--denoising-steps"),
    (3, F_OF_IT, dict(sampler=dict(ft_denoising_steps=5)), "ft_denoising_steps is 4 there and 5 here"),
    (3, F_OF_IT, dict(sampler=dict(ddim_steps=5)), "ddim_steps is None there and 5 here"),
    (3, (*F_OF_IT, "--ddim-steps", "5"), {}, "ddim_steps is 5 there and None here"),
    (3, F_OF_IT, dict(model=dict(critic_widths=[8] * 3)), r"critic's hidden is \(16, 16, 16\) there and \(8, 8, 8\)"),
    (3, K_OF_IT, {}, "does not say the policy's ft_denoising_steps.*--ft-denoising-steps"),
]


@pytest.mark.parametrize(("count", "options", "overrides", "message"), REFUSED)
def test_a_converted_policy_of_another_model_is_refused_with_both_values(count, options, overrides, message, convert):
    networks = [random_network("mlp", 0), random_network("mlp", 1), random_network("critic", 2)]
    path = convert(networks[:count], *options)
    with pytest.raises(ValueError, match=message):
        policy_of(path, overrides)


def test_a_unet_whose_normalization_no_config_has_is_refused(convert):
    path = convert([random_network("unet", 0)], *K_OF_IT, "--norm-eps", "1e-4")
    with pytest.raises(ValueError, match=r"norm_eps is 0\.0001 there and 1e-05 here"):
        policy_of(path, dict(model=dict(network="unet")))


def test_what_is_no_cloned_policy_is_refused_with_what_it_holds(tmp_path, convert):
    convert([random_network("mlp", 0)], *K_OF_IT)
    with pytest.raises(ValueError, match="do not end with the SHA-256 sum .* must be converted by ding-ebm convert"):
        policy_of(tmp_path / "state_7.pt")
    own = policy_of(tmp_path / "policy.pt")
    write_checkpoint(own.learn_mode.state_dict(), tmp_path / "iteration_1.pth.tar")  # fine-tuned, to be resumed instead
    with pytest.raises(ValueError, match="is no cloned policy"):
        policy_of(tmp_path)


def test_steps_of_fine_tuning_are_not_written_for_a_pretrained_policy(convert, capsys):
    with pytest.raises(AssertionError):
        convert([random_network("mlp", 0)], *F_OF_IT)
    assert "this one is pre-trained" in capsys.readouterr().err
