"""With DPPO's weights our networks are DPPO's functions, with its gradients.

``reference/*.npz`` are recorded from the networks of irom-princeton/dppo at commit
cc7234ad7ff39a8f32de3af903606723a16f0648, in float64 and with torch 2.13 on a CPU: the weights in units of 1/64 with
their names and shapes, inputs, outputs, and the gradient of sum(output * probe) with respect to the inputs and to the
weights, of which every 16th entry is kept. No code of theirs is needed to run this.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ding_ebm.data.dppo_layout import mlp_names, reference_names
from ding_ebm.model.critics import ValueNet
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.gaussian import GaussianMixtureMLP, GaussianMLP
from ding_ebm.model.unet import Unet1D

FOLDER = Path(__file__).parent / "reference"
DO, DA = 5, 3
KEPT = 16  # of a gradient every 16th entry is recorded
NOISE_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp_residual": lambda: DiffusionMLP(DO, DA, 2, 4, (16,) * 3, time_dim=8, activation="relu"),
    "mlp_residual_norm_encoder": lambda: DiffusionMLP(
        DO, DA, 2, 4, (16,) * 5, time_dim=16, activation="mish", layer_norm=True, cond_mlp_dims=(12, 6)
    ),
    "mlp_plain_norm": lambda: DiffusionMLP(
        DO, DA, 2, 4, (16, 12), time_dim=8, activation="mish", residual=False, layer_norm=True
    ),
    "unet_two_levels": lambda: Unet1D(DO, DA, 1, 4, dim=8, dim_mults=(1, 2), time_dim=8),
    "unet_three_levels_encoder": lambda: Unet1D(
        DO, DA, 2, 8, dim=8, dim_mults=(1, 2, 4), time_dim=8, cond_mlp_dims=(12, 6)
    ),
}
each_network = pytest.mark.parametrize("case", NOISE_NETWORKS)


def read(case: str) -> dict[str, Tensor]:
    """The recorded arrays; weights and gradients by the reference's names."""
    with np.load(FOLDER / f"{case}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file}
    names = [str(name) for name in arrays.pop("names")]
    shapes = [tuple(int(n) for n in str(shape).split("x")) for shape in arrays.pop("shapes")]
    sizes = [int(np.prod(shape)) for shape in shapes]
    values = np.split(arrays.pop("weights").astype(np.float32) / 64, np.cumsum(sizes)[:-1])
    kept = np.cumsum([-(-size // KEPT) for size in sizes])
    gradients = np.split(arrays.pop("gradients"), kept[:-1])
    for name, shape, value, gradient in zip(names, shapes, values, gradients):
        arrays[f"weight/{name}"], arrays[f"gradient/{name}"] = value.reshape(shape), gradient
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return {key: value.double() if value.is_floating_point() else value for key, value in tensors.items()}


def load(network: nn.Module, recorded: dict[str, Tensor], names: dict[str, str]) -> None:
    """Give the network the recorded weights, all of them; ``load_state_dict`` compares names and shapes."""
    theirs = {key.partition("/")[2] for key in recorded if key.startswith("weight/")}
    assert sorted(names.values()) == sorted(theirs)
    network.load_state_dict({ours: recorded[f"weight/{name}"] for ours, name in names.items()})


def check_gradients(
    network: nn.Module, recorded: dict[str, Tensor], names: dict[str, str], y: Tensor, **inputs: Tensor
) -> None:
    """Compare the gradients of sum(y * probe), which were recorded in float32."""
    (y * recorded["probe"]).sum().backward()
    for name, value in inputs.items():
        torch.testing.assert_close(value.grad, recorded[f"input_grad/{name}"], rtol=1e-6, atol=1e-7)
    parameters = dict(network.named_parameters())
    for ours, theirs in names.items():
        expected, got = recorded[f"gradient/{theirs}"], parameters[ours].grad.flatten()[::KEPT]
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, msg=lambda text, name=ours: f"{name}: {text}")


@each_network
def test_the_noise_and_its_gradients_are_the_references(case):
    recorded = read(case)
    network = NOISE_NETWORKS[case]().double()
    names = reference_names(network)
    load(network, recorded, names)
    x, obs = (recorded[f"input/{name}"].requires_grad_() for name in ("x", "obs"))
    noise = network(x, recorded["input/k"], obs)
    torch.testing.assert_close(noise, recorded["output/noise"], rtol=0.0, atol=1e-10)
    assert recorded["output/noise"].std() > 0.5
    check_gradients(network, recorded, names, noise, x=x, obs=obs)


@each_network
def test_in_float32_the_noise_is_the_references_to_1e_5(case):
    recorded = read(case)
    network = NOISE_NETWORKS[case]()
    load(network, recorded, reference_names(network))
    x, k, obs = (recorded[f"input/{name}"] for name in ("x", "k", "obs"))
    noise = network(x.float(), k, obs.float())
    torch.testing.assert_close(noise.double(), recorded["output/noise"], rtol=0.0, atol=1e-5)


@each_network
def test_a_bound_network_is_the_references_function(case):
    recorded = read(case)
    network = NOISE_NETWORKS[case]().double()
    load(network, recorded, reference_names(network))
    bound = network.bind(recorded["input/k"].tolist(), recorded["input/obs"])
    for i, expected in enumerate(recorded["output/noise"]):
        torch.testing.assert_close(bound(recorded["input/x"], i)[i], expected, rtol=0.0, atol=1e-10)


@each_network
def test_no_two_weights_of_the_same_shape_can_change_places_unseen(case):
    # The negative control of the mapping of names: each pair of neighbors of one shape, swapped.
    recorded = read(case)
    network = NOISE_NETWORKS[case]().double()
    load(network, recorded, reference_names(network))
    inputs = [recorded[f"input/{name}"] for name in ("x", "k", "obs")]
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in network.named_parameters():
        by_shape.setdefault(tuple(parameter.shape), []).append(name)
    parameters, swaps = dict(network.named_parameters()), 0
    with torch.no_grad():
        for same in by_shape.values():
            for one, other in zip(same, same[1:]):
                a, b = parameters[one], parameters[other]
                for _ in range(2):  # there and back
                    a.data, b.data = b.data, a.data
                    error = (network(*inputs) - recorded["output/noise"]).abs().max()
                    swaps += 1
                    assert error > 1e-4 if swaps % 2 else error < 1e-10, (one, other)
    assert swaps >= 8


def test_the_value_and_its_gradients_are_the_references():
    recorded = read("value")
    network = ValueNet(DO, 2, (16, 16, 16)).double()
    names = reference_names(network)
    load(network, recorded, names)
    obs = recorded["input/obs"].requires_grad_()
    value = network(obs)
    torch.testing.assert_close(value, recorded["output/value"], rtol=0.0, atol=1e-10)
    check_gradients(network, recorded, names, value, obs=obs)


def parameter_names(network: nn.Module, parts: dict[str, str]) -> dict[str, str]:
    modules: dict[str, str] = {}
    for ours, theirs in parts.items():
        modules.update(mlp_names(getattr(network, ours), ours, theirs))
    stems = (name.rpartition(".") for name in network.state_dict() if name != "std.learned")
    return {f"{module}.{leaf}": f"{modules[module]}.{leaf}" for module, _, leaf in stems}


MODELS = {
    "gaussian": (GaussianMLP, "relu", {"mean": "mlp_mean"}),
    "mixture": (GaussianMixtureMLP, "mish", {"mean": "mlp_mean", "logits": "mlp_weights"}),
}


@pytest.mark.parametrize("case", MODELS)
def test_means_deviations_log_prob_and_gradients_of_the_other_models_are_the_references(case):
    # The recorded log-probability of the mixture is that of the reference's distribution, before its clamp (D3).
    recorded = read(case)
    kind, activation, parts = MODELS[case]
    network = kind(DO, DA, 2, 4, (16, 16, 16), learn_std=True, activation=activation).double()
    names = parameter_names(network, parts)
    learned = (0.5 * recorded["logvar"]).view_as(network.std.learned)
    load(network, {**recorded, "weight/logvar": learned}, {**names, "std.learned": "logvar"})
    actions, obs = recorded["input/actions"], recorded["input/obs"].requires_grad_()
    mean, log_std, *log_weight = network(obs)
    torch.testing.assert_close(mean, recorded["output/mean"], rtol=0.0, atol=1e-10)
    # The bounds are float32 in the reference.
    torch.testing.assert_close(log_std.exp().expand_as(mean), recorded["output/std"], rtol=1e-6, atol=0.0)
    if log_weight:
        torch.testing.assert_close(log_weight[0], recorded["output/log_weight"], rtol=0.0, atol=1e-10)
    log_prob = network.log_prob(actions, obs)
    torch.testing.assert_close(log_prob, recorded["output/log_prob"], rtol=1e-6, atol=1e-5)
    check_gradients(network, recorded, names, log_prob, obs=obs)
    # Theirs is of the logarithm of the variance, ours of the standard deviation.
    gradient = (0.5 * network.std.learned.grad).flatten()
    torch.testing.assert_close(gradient, recorded["logvar_gradient"], rtol=1e-5, atol=1e-5)
