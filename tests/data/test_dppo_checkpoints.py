"""Checkpoints in the layout of DPPO's code become networks that compute what theirs computed, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ding_ebm.cli import main
from ding_ebm.data.dppo_checkpoints import DppoCheckpoint, read_dppo_checkpoint, write_policy
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.model.diffusion_mlp import DiffusionMLP
from ding_ebm.model.unet import Unet1D

# Weights, inputs and outputs of the reference's networks: see tests/model/test_dppo_parity.py.
RECORDED = Path(__file__).parents[1] / "model" / "reference"
DO, DA = 5, 3
# What no weight tells, and what the weights should.
TOLD: dict[str, dict[str, Any]] = {
    "mlp_residual": dict(activation="relu"),
    "mlp_residual_norm_encoder": dict(activation="mish"),
    "mlp_plain_norm": dict(activation="mish"),
    "unet_two_levels": dict(horizon=4),
    "unet_three_levels_encoder": dict(horizon=8),
}
INFERRED: dict[str, dict[str, Any]] = {
    "mlp_residual": dict(
        cond_steps=2, horizon_steps=4, mlp_dims=(16,) * 3, time_dim=8, residual=True, layer_norm=False
    ),
    "mlp_residual_norm_encoder": dict(
        cond_steps=2, mlp_dims=(16,) * 5, time_dim=16, residual=True, layer_norm=True, cond_mlp_dims=(12, 6)
    ),
    "mlp_plain_norm": dict(cond_steps=2, mlp_dims=(16, 12), residual=False, layer_norm=True, cond_mlp_dims=None),
    "unet_two_levels": dict(cond_steps=1, dim=8, dim_mults=(1, 2), time_dim=8, kernel_size=5, cond_mlp_dims=None),
    "unet_three_levels_encoder": dict(cond_steps=2, dim=8, dim_mults=(1, 2, 4), cond_mlp_dims=(12, 6)),
}
each_network = pytest.mark.parametrize("case", TOLD)
State = dict[str, Tensor]


def recorded(case: str) -> dict[str, np.ndarray]:
    with np.load(RECORDED / f"{case}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file}


def weights(case: str, prefix: str) -> State:
    """The recorded weights under the reference's names."""
    arrays, start = recorded(case), 0
    state = {}
    for name, text in zip(arrays["names"], arrays["shapes"]):
        shape = [int(n) for n in str(text).split("x")]
        flat = arrays["weights"][start : start + int(np.prod(shape))]
        start += len(flat)
        state[f"{prefix}.{name}"] = torch.from_numpy(flat.astype(np.float32) / 64).view(shape)
    return state


def pretrained(case: str = "mlp_residual") -> dict[str, Any]:
    ema = weights(case, "network")
    return dict(epoch=3000, model={name: value + 0.1 for name, value in ema.items()}, ema=ema)


def fine_tuned() -> dict[str, Any]:
    """As PPO's agent writes it: the frozen network twice, its copy, the critic, and DDIM's eta."""
    actor = weights("mlp_residual", "actor")
    copies = {name.replace("actor.", "actor_ft."): value + 0.01 for name, value in actor.items()}
    again = {name.replace("actor.", "network."): value for name, value in actor.items()}
    critic = weights("value", "critic")
    return dict(itr=100, model={**again, **actor, **copies, **critic, "eta.eta_logit": torch.ones(1)})


@pytest.fixture
def read(tmp_path: Path):
    """Write a checkpoint and a normalization, and read them back."""

    def write_and_read(content: Any, case: str = "mlp_residual", **told: Any) -> DppoCheckpoint:
        normalization = told.pop("normalization", ranges())
        torch.save(content, tmp_path / "state_1.pt")
        np.savez(tmp_path / "normalization.npz", **normalization)
        told = {**TOLD[case], **told}
        return read_dppo_checkpoint(tmp_path / "state_1.pt", tmp_path / "normalization.npz", **told)

    return write_and_read


def ranges(obs_dim: int = DO, action_dim: int = DA) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    lows, spans = (generator.normal(size=(2, n)) for n in (obs_dim, action_dim)), []
    for low, span in lows:
        spans += [low, low + np.abs(span) + 0.1]
    return dict(zip(("obs_min", "obs_max", "action_min", "action_max"), spans))


def inputs(case: str) -> list[Tensor]:
    return [torch.from_numpy(recorded(case)[f"input/{name}"]) for name in ("x", "k", "obs")]


def error(network: DiffusionMLP | Unet1D, case: str, y: str = "noise") -> float:
    with torch.no_grad():
        noise = network(*inputs(case)).double()
    return float((noise - torch.from_numpy(recorded(case)[f"output/{y}"])).abs().max())


@each_network
def test_a_pretrained_policy_computes_what_the_reference_computed(read, case):
    checkpoint = read(pretrained(case), case)
    assert isinstance(checkpoint.build(), Unet1D if case.startswith("unet") else DiffusionMLP)
    assert error(checkpoint.build(), case) < 1e-5
    assert {key: checkpoint.arguments[key] for key in INFERRED[case]} == INFERRED[case]
    assert (checkpoint.weights, checkpoint.step, checkpoint.fine_tuned, checkpoint.critic) == ("ema", 3000, None, None)


def test_the_moving_average_is_read_unless_the_model_is_asked_for(read):
    model = read(pretrained(), weights="model")
    assert model.weights == "model" and error(model.build(), "mlp_residual") > 0.1
    ema, name = read(pretrained()), "net.first.weight"
    torch.testing.assert_close(model.network[name], ema.network[name] + 0.1)


SWAPS = {
    "of one block": ("mlp_residual", "network.mlp_mean.layers.1.l1.weight", "network.mlp_mean.layers.1.l2.weight"),
    "of two blocks": (
        "mlp_residual_norm_encoder",
        "network.mlp_mean.layers.1.l1.weight",
        "network.mlp_mean.layers.2.l1.weight",
    ),
    "of the U-Net's middle": (
        "unet_two_levels",
        "network.mid_modules.0.blocks.1.block.0.weight",
        "network.mid_modules.1.blocks.1.block.0.weight",
    ),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_two_layers_of_one_shape_that_changed_places_give_another_function(read, swap):
    case, one, other = SWAPS[swap]
    content = pretrained(case)
    ema = content["ema"]
    ema[one], ema[other] = ema[other], ema[one]
    assert error(read(content, case).build(), case) > 1e-3


def test_two_layers_of_other_shapes_that_changed_places_are_refused(read):
    content = pretrained("unet_two_levels")
    ema, stem = content["ema"], "network.down_modules.{}.1.blocks.0.block.0.weight"
    one, other = stem.format(0), stem.format(1)
    ema[one], ema[other] = ema[other], ema[one]
    message = r"network\.down_modules\.0\.1\.blocks\.0\.block\.0\.weight has shape \(16, 16, 5\) where .* \(8, 8, 5\)"
    with pytest.raises(ValueError, match=message):
        read(content, "unet_two_levels")


def test_a_fine_tuned_policy_has_a_frozen_network_a_copy_and_a_critic(read):
    checkpoint = read(fine_tuned(), weights="model")
    assert checkpoint.step == 100
    assert (
        error(checkpoint.build(), "mlp_residual")
        < 1e-5
        < 0.01
        < error(checkpoint.build(fine_tuned=True), "mlp_residual")
    )
    torch.testing.assert_close(
        checkpoint.fine_tuned["net.last.bias"], checkpoint.network["net.last.bias"] + 0.01, rtol=0.0, atol=1e-7
    )
    critic = checkpoint.build_critic()
    value = critic(torch.from_numpy(recorded("value")["input/obs"])).double()
    torch.testing.assert_close(value, torch.from_numpy(recorded("value")["output/value"]), rtol=0.0, atol=1e-5)
    plain = read(pretrained())
    for build in (lambda: plain.build(fine_tuned=True), plain.build_critic):
        with pytest.raises(ValueError, match="pre-trained policy"):
            build()


def test_the_normalizers_are_the_maps_of_the_references_environments(read):
    given = ranges()
    given["action_max"][1] = given["action_min"][1]  # a constant action
    checkpoint = read(pretrained(), normalization=given)
    obs_normalizer, action_normalizer = Normalizer(DO), Normalizer(DA)
    obs_normalizer.load_state_dict(checkpoint.obs_normalizer)
    action_normalizer.load_state_dict(checkpoint.action_normalizer)
    generator = np.random.default_rng(1)
    obs, action = generator.normal(size=(20, DO)), generator.uniform(-1, 1, size=(20, DA))
    expected = 2 * ((obs - given["obs_min"]) / (given["obs_max"] - given["obs_min"] + 1e-6) - 0.5)
    np.testing.assert_allclose(obs_normalizer(torch.from_numpy(obs)).numpy(), expected, rtol=1e-5, atol=1e-5)
    expected = (action + 1) / 2 * (given["action_max"] - given["action_min"]) + given["action_min"]
    np.testing.assert_allclose(action_normalizer.inverse(torch.from_numpy(action)).numpy(), expected, atol=2e-6)
    assert torch.isfinite(action_normalizer(torch.zeros(DA))).all()


def without(content: dict[str, Any], part: str, *names: str) -> dict[str, Any]:
    return {**content, part: {name: value for name, value in content[part].items() if name not in names}}


def adding(content: dict[str, Any], part: str, **values: Any) -> dict[str, Any]:
    return {**content, part: {**content[part], **{name.replace("__", "."): value for name, value in values.items()}}}


LAST = "network.mlp_mean.layers.2.bias"
FOREIGN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no ema": (dict(itr=1, model=fine_tuned()["model"]), {}, "has no 'ema' weights.*ask for weights 'model'"),
    "no model": (dict(ema={}), dict(weights="model"), "has no 'model' weights, it has ema"),
    "unknown weights": (pretrained(), dict(weights="best"), r"one of \('ema', 'model'\), got 'best'"),
    "a list": ([torch.zeros(3)], {}, "holds a list"),
    "another project": (dict(ema={"policy.weight": torch.zeros(3)}), {}, "weights lie under policy.*foreign: policy.w"),
    "another algorithm": (
        dict(model={**fine_tuned()["model"], "critic_target.Q1.layers.0.weight": torch.zeros(3)}),
        dict(weights="model"),
        "foreign: critic_target.Q1.layers.0.weight",
    ),
    "no critic": (
        dict(model={name: value for name, value in fine_tuned()["model"].items() if not name.startswith("critic.")}),
        dict(weights="model"),
        "not a diffusion policy of the reference.*actor_ft.*critic",
    ),
    "learned eta": (adding(fine_tuned(), "model", eta__eta_res=torch.ones(2)), dict(weights="model"), "eta.eta_res"),
    "a Gaussian": (
        dict(ema={name: value for name, value in pretrained()["ema"].items() if "time" not in name}),
        {},
        "neither the reference's diffusion MLP .* nor its U-Net .* has mlp_mean",
    ),
    "images": (adding(pretrained(), "ema", network__backbone__w=torch.ones(2)), {}, "policy from images"),
    "a layer less": (without(pretrained(), "ema", LAST), {}, r"lacks mlp_mean\.layers\.2\.bias and has nothing"),
    "a layer more": (
        adding(pretrained(), "ema", network__mlp_mean__layers__9__weight=torch.ones(2)),
        {},
        r"lacks nothing and has mlp_mean\.layers\.9\.weight, which has no place",
    ),
    "no time": (without(pretrained(), "ema", "network.time_embedding.1.weight"), {}, "no time_embedding.1.weight"),
    "not a number": (adding(pretrained(), "ema", **{LAST: torch.full((12,), np.nan)}), {}, f"{LAST} of 'ema' is not"),
    "no tensor": (adding(pretrained(), "ema", **{LAST: 3}), {}, f"{LAST} of 'ema' is not a tensor of finite numbers"),
    "a shape": (adding(pretrained(), "ema", **{LAST: torch.ones(5)}), {}, r"layers\.2\.bias has shape \(5,\) where"),
    "no activation": (pretrained(), dict(activation=None), "no weight tells the activation of an MLP"),
    "an activation": (pretrained(), dict(activation="tanh"), r"one of \('relu', 'mish', 'silu'\), got 'tanh'"),
    "a horizon": (pretrained(), dict(horizon=8), "predicts 4 actions of 3 dimensions, but horizon says 8"),
    "another robot": (pretrained(), dict(normalization=ranges(action_dim=5)), "12, which is no multiple of the 5"),
    "other sensors": (pretrained(), dict(normalization=ranges(obs_dim=4)), "10, which is no multiple of the 4 dim"),
    "U-Net without horizon": (pretrained("unet_two_levels"), dict(horizon=None), "no weight tells the horizon"),
    "U-Net of relu": (pretrained("unet_two_levels"), dict(horizon=4, activation="relu"), "'mish', got 'relu'"),
    "U-Net, horizon": (pretrained("unet_two_levels"), dict(horizon=5), r"divisible by 2\^\(levels - 1\) = 2"),
    "U-Net, another robot": (
        pretrained("unet_two_levels"),
        dict(normalization=ranges(action_dim=4), horizon=4),
        r"has shape \(8, 3, 5\) where the other weights and the normalization make it \(8, 4, 5\)",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_such_policy_is_refused_with_what_is_wrong(read, name):
    content, told, message = FOREIGN[name]
    case = "unet_two_levels" if name.startswith("U-Net") else "mlp_residual"
    with pytest.raises(ValueError, match=message):
        read(content, case, **told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(obs_max=None), "lacks obs_max; a normalization has obs_min, obs_max, action_min, action_max"),
        (dict(obs_max=np.zeros(3)), r"obs_min and obs_max must be of one shape \(D,\), got \(5,\) and \(3,\)"),
        (dict(obs_min=np.full(DO, 99.0)), "obs_min must be finite and nowhere above obs_max"),
        (dict(action_min=np.full(DA, np.nan)), "action_min must be finite and nowhere above action_max"),
        (dict(action_min=np.array([{}] * DA, dtype=object)), "not an npz file of plain arrays"),
    ],
)
def test_a_normalization_that_is_none_is_refused(read, change, message):
    given = {key: value for key, value in {**ranges(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read(pretrained(), normalization=given)


class Malice:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise AssertionError('ran')",)


def test_files_that_are_missing_foreign_or_would_run_code_are_refused(tmp_path):
    np.savez(tmp_path / "n.npz", **ranges())
    path = tmp_path / "state_1.pt"
    with pytest.raises(FileNotFoundError, match="state_1.pt: no such file; a checkpoint of the reference is called"):
        read_dppo_checkpoint(path, tmp_path / "n.npz")
    with pytest.raises(FileNotFoundError, match="m.npz: no such file; the reference keeps normalization.npz"):
        read_dppo_checkpoint(path, tmp_path / "m.npz")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="state_1.pt is not a readable checkpoint of the reference"):
        read_dppo_checkpoint(path, tmp_path / "n.npz")
    torch.save(dict(ema=Malice()), path)
    with pytest.raises(ValueError, match="state_1.pt is not a readable checkpoint of the reference"):
        read_dppo_checkpoint(path, tmp_path / "n.npz")
    np.save(tmp_path / "n.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("not an npz")
    for name in ("n.npy", "text.npz"):
        with pytest.raises(ValueError, match=f"{name} is not an npz file of plain arrays"):
            read_dppo_checkpoint(path, tmp_path / name)
    with pytest.raises(ValueError, match="state_1.pt lacks obs_min, obs_max, action_min, action_max"):
        read_dppo_checkpoint(path, path)


def convert(folder: Path, *more: str) -> list[str]:
    names = ("--checkpoint", "state_1.pt"), ("--normalization", "normalization.npz"), ("--out", "out/policy.pt")
    return ["convert", "dppo", *(text for flag, name in names for text in (flag, str(folder / name))), *more]


def test_the_command_writes_a_file_of_tensors_that_builds_the_network(tmp_path, capsys):
    torch.save(pretrained(), tmp_path / "state_1.pt")
    np.savez(tmp_path / "normalization.npz", **ranges())
    assert main(convert(tmp_path, "--activation", "relu", "--denoising-steps", "20")) == 0
    said = capsys.readouterr().out
    assert "pre-trained mlp policy, weights ema" in said and "horizon_steps 4" in said
    policy = torch.load(tmp_path / "out" / "policy.pt", weights_only=True)
    assert sorted(policy) == ["meta", "model", "normalizer"]
    meta = policy["meta"]
    assert (meta["kind"], meta["denoising_steps"], meta["weights"], meta["step"]) == ("mlp", 20, "ema", 3000)
    network = DiffusionMLP(**meta["arguments"])
    network.load_state_dict(policy["model"])
    assert error(network, "mlp_residual") < 1e-5
    Normalizer(DO).load_state_dict(policy["normalizer"]["obs"])
    Normalizer(DA).load_state_dict(policy["normalizer"]["action"])


def test_the_command_says_what_is_wrong_and_overwrites_nothing(tmp_path, capsys):
    torch.save(fine_tuned(), tmp_path / "state_1.pt")
    np.savez(tmp_path / "normalization.npz", **ranges())
    assert main(convert(tmp_path, "--activation", "relu")) == 2
    assert "ask for weights 'model'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(convert(tmp_path, "--activation", "relu", "--weights", "model")) == 0
    assert sorted(torch.load(tmp_path / "out" / "policy.pt", weights_only=True)) == [
        "critic", "fine_tuned", "meta", "model", "normalizer",
    ]  # fmt: skip
    before = (tmp_path / "out" / "policy.pt").read_bytes()
    capsys.readouterr()
    assert main(convert(tmp_path, "--activation", "relu", "--weights", "model")) == 2
    assert "exists; remove it or choose another --out" in capsys.readouterr().err
    assert (tmp_path / "out" / "policy.pt").read_bytes() == before


def test_a_policy_is_not_written_over_another_file(read, tmp_path):
    (tmp_path / "there.pt").write_text("something")
    with pytest.raises(FileExistsError, match="there.pt exists"):
        write_policy(read(pretrained()), tmp_path / "there.pt")
