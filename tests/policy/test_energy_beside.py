"""An energy beside a cloning policy: the policy is what it is without, and the energy is one by itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.config import ConfigError
from ding_ebm.policy.trained_energy import load_energy

CLONES = ("diffusion_bc", "gaussian_bc", "gmm_bc")


def train(policy: Any, dataset: Any, iterations: int) -> list[dict[str, float]]:
    return [policy.learn_mode.forward(dataset.__getitems__(range(64))) for _ in range(iterations)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def small(**energy: Any) -> dict[str, Any]:
    return dict(energy=dict(model=dict(mlp=dict(mlp_dims=[16, 16])), **energy))


@pytest.fixture
def trained(make_clone, make_two_ways, tmp_path) -> dict[str, str]:
    """Folders of a cloned policy of each kind, and of an energy."""
    folders = {}
    for algorithm in (*CLONES, "energy_model"):
        overrides = dict(model=dict(mlp=dict(mlp_dims=[16, 16]))) if algorithm == "energy_model" else {}
        dataset = make_two_ways()
        policy = make_clone(algorithm, overrides, dataset, seed=4)
        train(policy, dataset, 8)
        folder = tmp_path / algorithm
        folder.mkdir()
        write_checkpoint(policy.learn_mode.state_dict(), folder / "iteration_8.pth.tar")
        folders[algorithm] = str(folder)
    return folders


@pytest.mark.parametrize("algorithm", CLONES)
@pytest.mark.parametrize("mode", ["monitor", "joint"])
def test_the_policy_is_bit_by_bit_what_it_is_alone(algorithm, mode, make_clone, make_two_ways, trained):
    runs = {}
    for name, overrides in {"alone": {}, mode: small(mode=mode, ebm_ckpt_path=trained["energy_model"])}.items():
        dataset = make_two_ways()
        policy = make_clone(algorithm, overrides, dataset)
        logs = train(policy, dataset, 12)
        runs[name] = (policy, logs, torch.random.get_rng_state())
        assert set(logs[0]) == set(policy._monitor_vars_learn())
    (alone, logs, state), (beside, watched, other_state) = runs.values()
    assert same(alone._model.state_dict(), beside._model.state_dict())
    assert torch.equal(state, other_state)
    assert [row["behavior_loss"] for row in logs] == [row["behavior_loss"] for row in watched]
    energy, before = beside._beside._model.network, load_energy(trained["energy_model"], "cpu").network
    assert same(energy.state_dict(), before.state_dict()) == (mode == "monitor")
    assert all(p.grad is None for p in energy.parameters())


def test_joint_training_teaches_the_energy(make_clone, make_chunks):
    dataset = make_chunks(lambda rng, state: 0.05 * rng.standard_normal((len(state), 1, 2)))
    energy = dict(mode="joint", learn=dict(temperature=0.1), model=dict(mlp=dict(mlp_dims=[64, 64])))
    policy = make_clone("gaussian_bc", dict(energy=energy, learn=dict(learning_rate=3e-3)), dataset)
    logs = train(policy, dataset, 100)
    first, last = (sum(row["energy/mi_bound"] for row in part) / 10 for part in (logs[:10], logs[-10:]))
    assert first < 0.2 < 0.6 < last
    assert logs[-1]["energy/E_pos"] < logs[-1]["energy/E_neg"]


@pytest.mark.parametrize("algorithm", CLONES)
def test_the_energy_alone_leaves_a_taken_policy_as_it_was(algorithm, make_clone, make_two_ways, trained, tmp_path):
    dataset = make_two_ways()
    against_policy = dict(objective="negatives", negatives=["policy"], num_negatives=3)
    overrides = small(mode="energy_only", policy_ckpt_path=trained[algorithm], learn=against_policy)
    policy = make_clone(algorithm, overrides, dataset)
    taken = torch.load(f"{trained[algorithm]}/iteration_8.pth.tar", weights_only=True)
    assert same(policy._model.state_dict(), taken["model"])
    begun = {key: value.clone() for key, value in policy._beside._model.state_dict().items()}
    train(policy, dataset, 12)
    assert same(policy._model.state_dict(), taken["model"])
    ended = policy._beside._model.state_dict()
    assert not any(torch.equal(begun[key], ended[key]) for key in begun if key.endswith("weight"))
    write_checkpoint(policy.learn_mode.state_dict(), tmp_path / "iteration_12.pth.tar")
    energy = load_energy(str(tmp_path), "cpu")
    batch = dataset.__getitems__(range(8))
    own = policy._beside._model.network_ema(batch["obs"], batch["action"])
    assert torch.equal(energy(batch["obs"], batch["action"]), own)


def test_negatives_of_the_policy_are_its_samples(make_clone, make_two_ways):
    dataset = make_two_ways()
    against_policy = dict(objective="negatives", negatives=["policy"], num_negatives=5)
    overrides = dict(small(mode="joint", learn=against_policy), learn=dict(learning_rate=1e-2))
    policy = make_clone("gaussian_bc", overrides, dataset)
    train(policy, dataset, 100)
    obs = dataset.__getitems__(range(400))["obs"]
    drawn = policy._beside._energy_loss._negatives(obs, torch.empty(0))
    assert drawn.shape == (400, 5, 4, 2)
    mean = policy._model.network_ema.sample(obs, None, deterministic=True)
    away = drawn - mean.unsqueeze(1)
    assert abs(float(away.mean())) < 0.005
    assert float(away.std()) == pytest.approx(0.1, rel=0.05)
    assert float((drawn - mean.flip(0).unsqueeze(1)).std()) > 0.12  # the control: of other states


def test_a_resumed_run_goes_on_bit_by_bit(make_clone, make_two_ways):
    def begun(dataset):
        return make_clone("diffusion_bc", small(mode="joint"), dataset)

    dataset = make_two_ways()
    policy = begun(dataset)
    train(policy, dataset, 5)
    state = copy.deepcopy(policy.learn_mode.state_dict())
    batches = [dataset.__getitems__(range(64)) for _ in range(5)]
    expected = [policy.learn_mode.forward(batch) for batch in batches]
    resumed = begun(make_two_ways())
    resumed.learn_mode.load_state_dict(state)
    assert [resumed.learn_mode.forward(batch) for batch in batches] == expected
    alone = make_clone("diffusion_bc", {}, dataset)
    with pytest.raises(ValueError, match="energy.mode is None, but the run to resume has one beside its policy"):
        alone.learn_mode.load_state_dict(state)


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (dict(mode="both"), "policy.energy.mode must be"),
        (dict(mode="monitor"), "policy.energy.ebm_ckpt_path must be given in energy.mode 'monitor'"),
        (dict(mode="energy_only"), "policy.energy.policy_ckpt_path must be given if and only if"),
        (dict(mode="joint", policy_ckpt_path="x"), "policy.energy.policy_ckpt_path must be given if and only if"),
        (dict(ebm_ckpt_path="x"), "policy.energy.ebm_ckpt_path needs an energy.mode"),
        (dict(mode="joint", learn=dict(gradient_penalty=0.1)), "policy.energy: learn.gradient_penalty needs"),
        (dict(mode="joint", weight=-1.0), "policy.energy.weight must be"),
    ],
)
def test_bad_configs_are_refused(energy, message, make_clone):
    with pytest.raises(ConfigError, match=message):
        make_clone("diffusion_bc", dict(energy=energy))


def test_an_energy_by_itself_has_no_policy_to_draw_negatives_from(make_clone):
    with pytest.raises(ConfigError, match="learn.negatives 'policy' needs a policy whose actions they are"):
        make_clone("energy_model", dict(learn=dict(objective="negatives", negatives=["uniform", "policy"])))


def test_foreign_checkpoints_are_refused(make_clone, make_two_ways, make_chunks, trained):
    with pytest.raises(ValueError, match="is of another model: .*mlp.mlp_dims is \\[16, 16\\] there and"):
        make_clone("diffusion_bc", dict(energy=dict(mode="monitor", ebm_ckpt_path=trained["energy_model"])))
    with pytest.raises(ValueError, match="is of another model"):
        make_clone("diffusion_bc", small(mode="energy_only", policy_ckpt_path=trained["gaussian_bc"]))
    wider = make_chunks(lambda rng, state: rng.choice([-2.0, 2.0], (len(state), 1, 1)))
    for options in (
        dict(mode="monitor", ebm_ckpt_path=trained["energy_model"]),
        dict(mode="energy_only", policy_ckpt_path=trained["diffusion_bc"]),
    ):
        with pytest.raises(ValueError, match="was trained in other units than the policy: action_normalizer's scale"):
            make_clone("diffusion_bc", small(**options), wider)
