"""NaN and infinity planted in a run: it stops within one step, in words, and what is bad is neither acted on nor kept.

Each plant goes through DI-engine's own pipelines, of every family of policies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ding.entry import serial_pipeline_offline, serial_pipeline_onpolicy
from ding.utils import POLICY_REGISTRY

import ding_ebm.policy  # noqa: F401
from ding_ebm.checkpoint import find_checkpoint, read_checkpoint
from ding_ebm.data.formats import write_d4rl_hdf5
from ding_ebm.envs.avoid import AvoidBatch
from ding_ebm.host.vector_env import VectorEnvManager
from ding_ebm.policy.guards import check_losses, check_state
from dizoo_configs.builder import imitation, offline, online

AT = 5  # iteration, counted from 0, that a number is planted in; checkpoints are after 2, 4, 6 ...
ENVS = dict(evaluator_env_num=2, n_evaluator_episode=2)
LEARN = dict(
    train_epoch=6,
    iterations_per_epoch=2,
    batch_size=16,
    learner=dict(hook=dict(log_show_after_iter=2, save_ckpt_after_iter=2)),
)
EVAL = dict(evaluator=dict(eval_freq=4))
CLONES = ("diffusion_bc", "gaussian_bc", "gmm_bc", "energy_model")
OFFLINE = ("ebm_qgpo", *CLONES)
SHORT = ("diffusion_bc",)


def files(name: str) -> tuple[Any, Any]:
    """A tiny run of a policy."""
    if name == "ebm_qgpo":
        model = dict(behavior_widths=(16, 8), qgpo_critic=dict(critic_widths=(8,), guidance_widths=(8,)))
        stages = dict(behavior_policy_stop_training_iter=4, q_value_stop_training_iter=8, support_cache=None)
        learn = dict(LEARN, batch_size_q=8, M=2, diffusion_steps=2, **stages)
        policy = dict(model=model, learn=learn, eval=dict(EVAL, diffusion_steps=2))
        return offline("qgpo", name, "avoid", "demonstrations", run_of(policy))
    if name == "dppo":
        learn = dict(batch_size=16, epoch_per_collect=2, learner=dict(hook=dict(save_ckpt_after_iter=1)))
        model = dict(denoising_steps=4, mlp=dict(mlp_dims=[8, 8, 8]), critic_widths=[8, 8, 8])
        sampler = dict(ft_denoising_steps=2)
        policy = dict(model=model, sampler=sampler, learn=learn, eval=dict(evaluator=dict(eval_freq=2)))
        policy.update(collect=dict(n_sample=16), base_policy_path=None)
        main = dict(exp_name="run", env=dict(ENVS, collector_env_num=4), policy=policy)
        return online(name, name, "avoid_m1", "diffusion_bc", main)
    small = dict(gaussian_bc=dict(mlp=dict(mlp_dims=[8, 8, 8])), gmm_bc=dict(mlp=dict(mlp_dims=[8, 8])))
    small.update(energy_model=dict(mlp=dict(mlp_dims=[8, 8, 8])))
    model = small.get(name, dict(denoising_steps=3, mlp=dict(mlp_dims=[8, 8, 8])))
    return imitation(name, name, "avoid_m1", "demonstrations", run_of(dict(model=model, learn=LEARN, eval=EVAL)))


def run_of(policy: dict[str, Any]) -> dict[str, Any]:
    policy["collect"] = dict(data_path="data.hdf5")
    return dict(exp_name="run", env=ENVS, policy=policy)


@pytest.fixture
def ding(make_transitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a policy in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    write_d4rl_hdf5(tmp_path / "data.hdf5", make_transitions())

    def run(name: str) -> None:
        if name == "dppo":
            serial_pipeline_onpolicy(files(name), seed=0, max_train_iter=4)
        else:
            serial_pipeline_offline(files(name), seed=0)

    return run


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the actions were finite, of every call that reached the environments."""
    seen: list[bool] = []
    original = AvoidBatch.step_chunk

    def step_chunk(self: AvoidBatch, actions: np.ndarray) -> Any:
        seen.append(bool(np.isfinite(actions).all()))
        return original(self, actions)

    monkeypatch.setattr(AvoidBatch, "step_chunk", step_chunk)
    return seen


def plant(monkeypatch: pytest.MonkeyPatch, name: str, kind: str, at: int = AT) -> None:
    """Make a number of a training iteration NaN."""
    policy = POLICY_REGISTRY.get(f"{name}_command")
    original = policy._forward_learn

    def forward(self: Any, data: Any) -> dict[str, float]:
        handle = None
        if self._train_iter == at:
            parameter = next(p for p in self._model.parameters() if p.requires_grad)
            if name == "ebm_qgpo" and at >= 4:
                parameter = next(self._model.critic.parameters())
            if kind == "batch":
                data["obs"][3] = torch.nan
            elif kind == "parameter":
                parameter.data.view(-1)[0] = torch.inf
            else:
                handle = parameter.register_hook(lambda grad: grad * torch.nan)
        made = original(self, data)
        if handle is not None:
            handle.remove()
        return made

    monkeypatch.setattr(policy, "_forward_learn", forward)


def all_finite(state: Any) -> bool:
    try:
        check_state(state, 0)
    except FloatingPointError:
        return False
    return True


def check_kept(folder: Path, last: int) -> None:
    """The checkpoints are good, and the newest is of ``last`` iterations."""
    kept = sorted((folder / "run" / "ckpt").iterdir())
    assert all(all_finite(read_checkpoint(str(path))) for path in kept)
    assert find_checkpoint(folder / "run").name == f"iteration_{last}.pth.tar"
    assert not [path for path in kept if path.name.endswith(".partial")]


def long_of(names: tuple[str, ...]) -> list[Any]:
    return [name if name in (*SHORT, "dppo") else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", long_of(OFFLINE))
def test_a_run_without_a_plant_goes_to_its_end(name, ding, tmp_path, stepped):
    ding(name)
    assert read_checkpoint(str(find_checkpoint(tmp_path / "run")))["train_iter"] == 12


@pytest.mark.parametrize("kind", ["batch", "parameter"])
@pytest.mark.parametrize("name", long_of(OFFLINE))
def test_what_makes_a_loss_nan_is_named_and_stops_the_run_in_that_step(name, kind, ding, tmp_path, monkeypatch):
    plant(monkeypatch, name, kind)
    named = r"obs of the batch \(\d+ of \d+ elements, first in row 3" if kind == "batch" else "(parameter|gradient of)"
    with pytest.raises(FloatingPointError, match=rf"is (nan|-?inf) at iteration {AT}; .*{named}"):
        ding(name)
    check_kept(tmp_path, AT - 1)


@pytest.mark.parametrize("name", long_of(OFFLINE))
@pytest.mark.parametrize("at", [AT, AT + 1], ids=["before a checkpoint", "between checkpoints"])
def test_a_nan_gradient_stops_the_run_before_the_next_step(name, at, ding, tmp_path, monkeypatch):
    plant(monkeypatch, name, "gradient", at)
    saved = rf"no checkpoint is written at iteration {at + 1}: model"
    lost = rf"is nan at iteration ({at}|{at + 1}); .*(gradient of|parameter)"
    with pytest.raises(FloatingPointError, match=f"{saved}|{lost}"):
        ding(name)
    check_kept(tmp_path, at // 2 * 2)


@pytest.mark.parametrize("kind", ["parameter", "gradient"])
def test_a_nan_while_fine_tuning_stops_the_run_and_no_environment_gets_it(kind, ding, tmp_path, monkeypatch, stepped):
    plant(monkeypatch, "dppo", kind, at=2)
    with pytest.raises((FloatingPointError, ValueError), match="iteration 2|iteration 3|not finite"):
        ding("dppo")
    check_kept(tmp_path, 2)
    assert stepped and all(stepped)


@pytest.mark.parametrize("name", long_of(("diffusion_bc", "dppo", "gaussian_bc", "gmm_bc", "energy_model")))
def test_an_action_that_is_not_finite_reaches_no_environment(name, ding, tmp_path, monkeypatch, stepped):
    policy = POLICY_REGISTRY.get(f"{name}_command")
    original = policy.act

    def act(self: Any, obs: np.ndarray) -> np.ndarray:
        action = original(self, obs)
        action[1] = np.nan
        return action

    monkeypatch.setattr(policy, "act", act)
    with pytest.raises(ValueError, match=r"the action of environment 1 at step 0 of its episode is not finite"):
        ding(name)
    assert all(stepped)


@pytest.mark.slow
def test_an_action_of_a_single_environment_is_checked_too(ding, monkeypatch):
    policy = POLICY_REGISTRY.get("ebm_qgpo_command")
    monkeypatch.setattr(policy, "act", lambda self, obs: np.full((len(obs), 2), np.inf, np.float32))
    with pytest.raises(Exception, match=r"action \[inf inf\] at step 0 is not finite|[Ee]xception|reset"):
        ding("ebm_qgpo")


@pytest.mark.parametrize("tensor", ["obs", "reward"])
@pytest.mark.parametrize("name", ["diffusion_bc", "dppo"])
def test_what_an_environment_gives_is_checked_where_it_comes_from(name, tensor, ding, tmp_path, monkeypatch):
    original, calls = AvoidBatch.step_chunk, [0]

    def step_chunk(self: AvoidBatch, actions: np.ndarray) -> Any:
        made, calls[0] = original(self, actions), calls[0] + 1
        if calls[0] != 3:
            return made
        values = getattr(made, tensor).copy()
        values[1, 2] = np.nan
        return (
            dataclasses.replace(made, **{tensor: values})
            if dataclasses.is_dataclass(made)
            else made._replace(**{tensor: values})
        )

    monkeypatch.setattr(AvoidBatch, "step_chunk", step_chunk)
    word = dict(obs="observation", reward="reward")[tensor]
    with pytest.raises(
        ValueError, match=rf"the {word} of environment 1 after step \d+ of its episode is not finite: nan"
    ):
        ding(name)
    assert calls[0] == 3


def test_the_manager_names_a_first_observation_that_is_not_finite(monkeypatch):
    original = AvoidBatch.reset

    def reset(self: AvoidBatch, *args: Any, **options: Any) -> np.ndarray:
        obs = original(self, *args, **options)
        obs[2, 1] = np.inf
        return obs

    from functools import partial

    from easydict import EasyDict

    from ding_ebm.host.env import TaskEnv

    manager = VectorEnvManager([partial(TaskEnv, cfg=EasyDict(env_id="avoid"))] * 3, EasyDict())
    manager.seed(0)
    monkeypatch.setattr(AvoidBatch, "reset", reset)
    with pytest.raises(ValueError, match="observation of environment 2 after step 0 of its episode is not finite: inf"):
        manager.launch()


def test_losses_and_states_that_are_finite_pass():
    model = torch.nn.Linear(2, 1)
    check_losses(dict(loss=1.0), 3, dict(obs=torch.ones(2, 2)), model)
    check_state(dict(model=model.state_dict(), steps=3, rate=float("inf"), nested=[dict(a=torch.ones(1))]), 3)
    with pytest.raises(FloatingPointError, match=r"iteration 3: nested\.0\.a \(1 of 2 elements, first in row 1\)"):
        check_state(dict(model=model.state_dict(), nested=[dict(a=torch.tensor([0.0, torch.inf]))]), 3)
