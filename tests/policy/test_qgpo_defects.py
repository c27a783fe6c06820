"""The nineteen defects of DI-engine's own QGPO, one test each: ours lacks it and, where that is cheap, theirs has it.

Theirs is ding.policy.qgpo, ding.model.template.qgpo and ding.example.qgpo of DI-engine 0.5.3.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ding.model.template import qgpo as their_model
from ding.policy import create_policy
from ding.policy import qgpo as their_policy
from ding.utils import MODEL_REGISTRY, POLICY_REGISTRY
from easydict import EasyDict
from torch.utils.data import DataLoader

from ding_ebm.data.datasets import OfflineDataset
from ding_ebm.host.datasets import HostOfflineDataset
from ding_ebm.model.energy import GuidanceNet
from ding_ebm.policy.qgpo import QGPOModel, QGPOPolicy

ROOT = Path(__file__).parents[2]
OBS = np.random.default_rng(0).standard_normal((5, 4))


@pytest.fixture(scope="module")
def theirs() -> their_model.QGPO:
    torch.manual_seed(0)
    cfg = EasyDict(device="cpu", obs_dim=4, action_dim=2, qgpo_critic=dict(alpha=3, q_alpha=1))
    return their_model.QGPO(cfg)


@pytest.fixture
def ours(make_policy, dataset, run) -> QGPOPolicy:
    """In the last stage, with DI-engine's evaluator in mind."""
    policy = make_policy(dict(sampler=dict(clip="final")), dataset)
    run(policy, dataset, 10)
    return policy


def test_01_the_default_config_has_the_steps_of_evaluation():
    assert "diffusion_steps" not in their_policy.QGPOPolicy.default_config().eval
    assert QGPOPolicy.default_config().eval.diffusion_steps == 15


def test_02_the_default_config_runs_without_cuda(make_cfg):
    assert their_policy.QGPOPolicy.default_config().model.device == "cuda"
    cfg = make_cfg()
    assert cfg.policy.cuda is False and "device" not in cfg.policy.model
    policy = create_policy(cfg.policy, enable_field=["learn", "eval"])
    assert {p.device.type for p in policy._model.parameters()} == {"cpu"}


def test_03_it_has_a_registered_default_model_and_a_name_for_the_serial_pipelines(make_cfg):
    assert "default_model" not in vars(their_policy.QGPOPolicy)
    name, modules = QGPOPolicy.default_model(None)
    assert MODEL_REGISTRY.get(name) is QGPOModel and modules == ["ding_ebm.policy.qgpo"]
    for policy_type in ("ebm_qgpo_command", "qgpo_command"):
        policy = create_policy(make_cfg(policy_type=policy_type).policy, enable_field=["learn"])
        assert isinstance(policy, POLICY_REGISTRY.get("ebm_qgpo"))


def test_04_evaluation_needs_the_observations_and_nothing_else(ours):
    theirs_takes = inspect.signature(their_policy.QGPOPolicy._forward_eval).parameters
    assert theirs_takes["guidance_scale"].default is inspect.Parameter.empty
    output = ours.eval_mode.forward({0: torch.zeros(4), 3: torch.ones(4)})
    assert list(output) == [0, 3] and output[3]["action"].shape == (2,)


def test_05_the_guidance_has_all_four_hidden_layers_of_the_papers_code():
    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    assert size(their_model.GuidanceQt(3, 11)) == 144_929
    assert size(GuidanceNet(11, 3)) == 210_721


def test_06_a_single_state_is_acted_on_and_one_without_a_batch_is_refused_in_words(ours, theirs):
    with pytest.raises((RuntimeError, IndexError)):
        theirs.select_actions(OBS[0].astype(np.float32))
    assert ours.act(OBS[:1]).shape == (1, 2)
    assert ours.eval_mode.forward({4: torch.zeros(4)})[4]["action"].shape == (2,)
    with pytest.raises(ValueError, match=r"obs must be \(E, 4\), got \(4,\)"):
        ours.act(OBS[0])


@pytest.mark.parametrize("num_actions", [1, 4])
def test_07_a_batch_of_one_row_and_one_support_action_are_computed(num_actions, theirs, make_policy):
    obs, action = torch.zeros(1, 4), torch.zeros(1, num_actions, 2)
    with pytest.raises(IndexError):
        theirs.q_loss_fn(torch.zeros(1, 2), obs, torch.zeros(1, 1), obs, torch.zeros(1, 1), torch.zeros(1, 1, 2))
    policy = make_policy({})
    batch = dict(obs=obs, action=action[:, 0], reward=torch.ones(1), next_obs=obs, done=torch.zeros(1))
    loss, _ = policy._critic_loss(batch, action)
    q = policy._target_q(obs, action)
    assert loss.isfinite() and q.shape == (1, num_actions)
    t = torch.full((1,), 0.5)
    assert all(
        part.isfinite()
        for part in policy._guidance_loss(obs, action[:, 0], action, q, 3.0 * t, t, torch.ones_like(action))
    )


def test_08_the_checkpoint_holds_all_optimizers_and_the_stage(ours):
    state = ours.learn_mode.state_dict()
    assert state["train_iter"] == 10
    assert {name: len(part["state"]) > 0 for name, part in state["optimizers"].items()} == dict(
        behavior=True, critic=True, guidance=True
    )
    assert {"model", "generator", "data_fingerprint"} <= set(state)
    assert "q_optimizer" not in inspect.getsource(their_policy.QGPOPolicy._state_dict_learn)


def test_09_support_actions_are_drawn_once_in_a_run(make_policy, dataset, run, monkeypatch):
    draws = []
    draw = QGPOPolicy._draw_support
    monkeypatch.setattr(QGPOPolicy, "_draw_support", lambda self: draws.append(1) or draw(self))
    policy = make_policy(dict(learn=dict(q_value_stop_training_iter=None)), dataset)
    run(policy, dataset, 10)
    assert len(draws) == 1
    # The overlap of stages in which theirs draws all of them in every iteration cannot be asked for.
    with pytest.raises(ValueError, match="must be None or at least 4"):
        make_policy(dict(learn=dict(energy_guided_policy_begin_training_iter=2)))


def test_10_an_epoch_is_as_many_rows_as_the_config_says(make_cfg, make_transitions, monkeypatch):
    monkeypatch.setattr("ding_ebm.host.datasets.find_data_file", lambda name: name)
    monkeypatch.setattr("ding_ebm.host.datasets.read_data", lambda path: make_transitions())
    monkeypatch.setattr("ding_ebm.host.datasets.check_transitions", lambda *args: None)
    cfg = make_cfg(
        dict(policy=dict(learn=dict(iterations_per_epoch=7, batch_size=20), eval=dict(evaluator=dict(eval_freq=7))))
    )
    dataset = HostOfflineDataset(cfg)
    batches = list(DataLoader(dataset, 20, shuffle=True, collate_fn=lambda x: x))
    assert len(dataset) == 140 and [len(batch["reward"]) for batch in batches] == [20] * 7
    seen = torch.cat([batch["index"] for batch in batches])
    assert seen.max() < 48 and len(seen.unique()) > 30  # rows of the data, which has 48


def test_11_the_host_evaluates_one_scale_that_is_fixed_before(make_policy, dataset, run):
    # Theirs makes one evaluator a scale, each of which overwrites the best checkpoint's value.
    assert their_policy.QGPOPolicy.default_config().eval.guidance_scale[0] == 0.0
    policy = make_policy(dict(eval=dict(guidance_scale=[2.0, 0.0, 5.0])), dataset)
    run(policy, dataset, 10)
    policy.eval_mode.reset()
    expected = policy.act(OBS, guidance_scale=2.0)
    policy.eval_mode.reset()
    output = policy.eval_mode.forward({i: torch.from_numpy(row) for i, row in enumerate(OBS)})
    assert np.array_equal(np.stack([one["action"].numpy() for one in output.values()]), expected)


def test_12_an_untrained_guidance_is_not_evaluated(make_policy, dataset, run, monkeypatch):
    policy = make_policy({}, dataset)
    run(policy, dataset, 3)

    def fail(*args: object) -> None:
        raise AssertionError("the guidance was evaluated")

    monkeypatch.setattr(GuidanceNet, "bind", fail)
    assert policy.act(OBS).shape == (5, 2)
    with pytest.raises(ValueError, match="not trained"):
        policy.act(OBS, guidance_scale=1.0)


def test_13_acting_and_learning_warn_of_nothing(ours, theirs, dataset, run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs.select_actions(OBS.astype(np.float32))
    assert sum("copy construct" in str(warning.message) for warning in caught) >= 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.act(OBS)
        run(ours, dataset, 2)


def test_14_observations_of_float64_are_taken(ours, theirs):
    with pytest.raises(TypeError):
        theirs.select_actions(torch.from_numpy(OBS))
    ours.eval_mode.reset()
    actions = ours.act(OBS)
    ours.eval_mode.reset()
    assert np.array_equal(ours.act(OBS.astype(np.float32)), actions)
    assert ours.eval_mode.forward({0: torch.zeros(4, dtype=torch.float64)})[0]["action"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:To copy construct:UserWarning")
def test_15_it_acts_in_inference_mode(ours, theirs):
    ours.eval_mode.reset()
    expected = ours.act(OBS, guidance_scale=2.0)
    ours.eval_mode.reset()
    with torch.inference_mode():
        with pytest.raises(RuntimeError):
            theirs.select_actions(OBS.astype(np.float32))
        assert np.array_equal(ours.act(OBS, guidance_scale=2.0), expected)


@pytest.mark.filterwarnings("ignore:To copy construct:UserWarning")
def test_16_actions_and_support_stay_in_the_range_of_the_data_by_default(theirs, make_policy, dataset, run):
    obs = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    assert np.abs(np.stack(theirs.select_actions(obs))).max() > 1.0
    default = QGPOPolicy.default_config().sampler.clip
    policy = make_policy(dict(sampler=dict(clip=default)), dataset)
    run(policy, dataset, 6)
    assert policy._support.abs().max() <= 1.0
    assert np.abs(policy.act(obs, guidance_scale=5.0)).max() <= 1.0


@pytest.mark.filterwarnings("ignore:To copy construct:UserWarning")
def test_17_a_forward_pass_leaves_no_graph_behind(ours, theirs, dataset, run):
    theirs.score_model_loss_fn(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(theirs)
    run(ours, dataset, 1)
    ours.act(OBS)
    kept = copy.deepcopy(ours._model)
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), ours._model.state_dict().values()))


def test_18_every_config_exists_and_so_does_each_that_the_documentation_names():
    tasks = ("hopper", "walker2d", "halfcheetah")
    data_sets = ("medium", "medium_replay", "medium_expert", "expert")
    for task in tasks:
        for data_set in data_sets:
            for size in ("", "_small"):
                assert (ROOT / "dizoo_configs" / "gym" / f"{task}_{data_set}_qgpo{size}_config.py").is_file()
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.rst")]
    named = {path for page in pages for path in re.findall(r"dizoo_configs/[\w/]+\.py", page.read_text())}
    assert named and {path for path in named if not (ROOT / path).is_file()} == set()


def test_19_nothing_imports_wandb_d4rl_or_gym_and_the_data_set_is_a_part_of_the_package():
    assert {"d4rl", "gym"} <= imported(Path(their_policy.__file__).parents[1] / "example" / "qgpo.py")
    files = [*(ROOT / "ding_ebm").rglob("*.py"), *(ROOT / "dizoo_configs").rglob("*.py")]
    found = {(path.name, name) for path in files for name in imported(path)}
    assert {pair for pair in found if pair[1] in ("wandb", "d4rl", "gym", "mujoco_py")} == set()
    assert issubclass(HostOfflineDataset, OfflineDataset)


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}
