"""Learner hooks: what they write and load, when, and what a crash leaves behind."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ding.policy import create_policy
from ding.worker import BaseLearner
from ding.worker.learner import learner_hook
from easydict import EasyDict
from tensorboardX import SummaryWriter

from ding_ebm.checkpoint import read_checkpoint, write_checkpoint
from ding_ebm.data.datasets import OfflineDataset
from ding_ebm.host import hooks


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Bar:
    """Stands in for tqdm and keeps what it was told."""

    made: list[Bar] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.count = options, options["initial"]
        Bar.made.append(self)

    def update(self, n: int = 1) -> None:
        self.count += n

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.shown = text


@pytest.fixture
def bars(monkeypatch) -> list[Bar]:
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(hooks, "tqdm", Bar)
    return Bar.made


def learner_of(
    make_cfg, dataset: OfflineDataset, load: str = "", name: str = "run", seed: int = 0, every: int = 4, **learn: Any
):
    """The host's learner with a policy, after its ``before_run`` hooks, and the config that the host's loop reads."""
    hook = dict(log_show_after_iter=2, save_ckpt_after_iter=every, load_ckpt_before_run=load)
    cfg = make_cfg(dict(policy=dict(learn=dict(learn, learner=dict(hook=hook)))))
    torch.manual_seed(seed)
    policy = create_policy(cfg.policy, enable_field=["learn", "eval"])
    policy.set_statistic(dataset.statistics)
    learner = BaseLearner(cfg.policy.learn.learner, policy.learn_mode, SummaryWriter(f"{name}/log"), exp_name=name)
    learner.call_hook("before_run")
    return learner, policy, cfg


@pytest.fixture
def dataset(make_transitions) -> OfflineDataset:
    return OfflineDataset(make_transitions(), obs_normalization="mean_std", action_normalization="min_max")


def test_the_hosts_hooks_are_replaced():
    mapping = learner_hook.hook_mapping
    assert mapping["save_ckpt"] is hooks.SaveCheckpointHook and mapping["load_ckpt"] is hooks.LoadCheckpointHook
    assert mapping["log_show"] is hooks.LogAndProgressHook


def test_checkpoints_are_named_by_the_iterations_that_are_in_them(make_cfg, dataset, folder, bars):
    learner, policy, _ = learner_of(make_cfg, dataset)
    for _ in range(9):
        learner.train(dataset.__getitems__(range(32)))
    learner.save_checkpoint("ckpt_best.pth.tar")
    learner.call_hook("after_run")
    kept = {path.name: read_checkpoint(str(path)) for path in (folder / "run" / "ckpt").iterdir()}
    assert {name: (state["last_iter"], state["train_iter"]) for name, state in kept.items()} == {
        "iteration_4.pth.tar": (4, 4),
        "iteration_8.pth.tar": (8, 8),
        "iteration_9.pth.tar": (9, 9),
        "ckpt_best.pth.tar": (9, 9),
    }
    assert all(
        torch.equal(value, kept["iteration_9.pth.tar"]["model"][name])
        for name, value in policy._model.state_dict().items()
    )


def test_a_resumed_run_goes_on_to_the_identical_parameters(make_cfg, dataset, folder, bars):
    learner, policy, _ = learner_of(make_cfg, dataset, name="whole")
    batches = [dataset.__getitems__(range(32)) for _ in range(12)]
    for batch in batches:
        learner.train(batch)
    for done in (4, 8):
        path = str(folder / "whole" / "ckpt" / f"iteration_{done}.pth.tar")
        resumed, again, cfg = learner_of(make_cfg, dataset, path, f"resumed {done}", seed=9)
        assert resumed.train_iter == done and cfg.policy.learn.train_epoch == 3 - done // 4
        for batch in batches[done:]:
            resumed.train(batch)
        resumed.call_hook("after_run")
        end = read_checkpoint(f"resumed {done}/ckpt/iteration_12.pth.tar")
        assert end["last_iter"] == end["train_iter"] == 12
        theirs = policy._model.state_dict()
        assert [name for name, value in again._model.state_dict().items() if not torch.equal(value, theirs[name])] == []


def test_a_checkpoint_within_an_epoch_is_refused(make_cfg, dataset, folder, bars):
    learner, _, _ = learner_of(make_cfg, dataset)
    for _ in range(6):
        learner.train(dataset.__getitems__(range(32)))
    learner.save_checkpoint("middle.pth.tar")
    with pytest.raises(ValueError, match="middle.pth.tar is of iteration 6, within an epoch of 4"):
        learner_of(make_cfg, dataset, "run/ckpt/middle.pth.tar")


def test_a_checkpoint_that_is_not_there_is_named(make_cfg, dataset, bars):
    with pytest.raises(FileNotFoundError, match="no checkpoint at 'nowhere.pth.tar'"):
        learner_of(make_cfg, dataset, "nowhere.pth.tar")


def test_a_run_that_is_complete_is_refused_by_name(make_cfg, dataset, folder, bars):
    learner, _, _ = learner_of(make_cfg, dataset)
    for _ in range(12):
        learner.train(dataset.__getitems__(range(32)))
    learner.call_hook("after_run")
    with pytest.raises(ValueError, match="is of iteration 12: the run of 3 epochs of 4 is complete"):
        learner_of(make_cfg, dataset, "run/ckpt/iteration_12.pth.tar")


class OnlinePolicy:
    """A policy of no epochs, as a learner's hook sees it."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def forward(self) -> None: ...

    def get_attribute(self, name: str) -> Any:
        return EasyDict(learn=dict())


def engine_of(state: dict[str, Any] | None = None, completed: int = 4) -> SimpleNamespace:
    """What a hook sees of the host's learner."""
    return SimpleNamespace(
        exp_name="run",
        ckpt_name=None,
        instance_name="learner",
        collector_envstep=-1,
        last_iter=SimpleNamespace(val=completed),
        policy=OnlinePolicy({"a": torch.ones(3)} if state is None else state),
        info=lambda message: None,
    )


def save_hook(freq: int = 1, position: str = "after_run") -> hooks.SaveCheckpointHook:
    return hooks.SaveCheckpointHook("save", 20, position=position, ext_args=dict(freq=freq))


@pytest.mark.parametrize("where", ["torch.save", "os.fsync", "os.replace"])
def test_a_crash_while_saving_leaves_the_last_good_checkpoint(where, folder, monkeypatch):
    path = folder / "run" / "ckpt" / "iteration_4.pth.tar"
    save_hook()(engine_of({"a": torch.zeros(3)}))
    good = path.read_bytes()

    def crash(*args: Any, **kwargs: Any) -> None:
        if where == "torch.save":
            args[1].write(b"half a file")
        raise OSError("no space left")

    module, name = where.split(".")
    target = {"torch": torch, "os": os}[module]
    monkeypatch.setattr(Path, "replace", crash) if name == "replace" else monkeypatch.setattr(target, name, crash)
    with pytest.raises(OSError, match="no space"):
        save_hook()(engine_of({"a": torch.ones(3)}))
    assert path.read_bytes() == good
    monkeypatch.undo()
    os.chdir(folder)
    save_hook()(engine_of({"a": torch.ones(3)}))
    assert read_checkpoint(str(path))["a"].tolist() == [1.0, 1.0, 1.0]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_saving_follows_the_number_of_completed_iterations(folder):
    hook = save_hook(freq=3, position="after_iter")
    for done in range(7):  # the host adds to the counter after this hook
        hook(engine_of(completed=done))
    assert sorted(path.name for path in (folder / "run" / "ckpt").iterdir()) == [
        "iteration_3.pth.tar",
        "iteration_6.pth.tar",
    ]


def test_a_checkpoint_that_would_run_code_is_not_loaded(folder):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "hacked"),))

    write_checkpoint({"last_iter": 0, "x": Evil()}, "evil.pth.tar")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        read_checkpoint("evil.pth.tar")
    assert not (folder / "hacked").exists()


def test_the_progress_bar_counts_iterations_of_the_whole_run(make_cfg, dataset, bars):
    learner, _, _ = learner_of(make_cfg, dataset)
    for _ in range(5):
        learner.train(dataset.__getitems__(range(32)))
    (bar,) = bars
    assert (bar.options["initial"], bar.options["total"], bar.count) == (0, 12, 5)
    assert bar.shown == "critic and guidance"
    for _ in range(4):
        learner.train(dataset.__getitems__(range(32)))
    assert bar.shown == "guidance"


def test_the_progress_bar_of_a_resumed_run_begins_where_it_was_and_ends_at_the_same_total(
    make_cfg, dataset, folder, bars
):
    learner, _, _ = learner_of(make_cfg, dataset)
    for _ in range(8):
        learner.train(dataset.__getitems__(range(32)))
    learner.call_hook("after_run")
    bars.clear()
    resumed, _, _ = learner_of(make_cfg, dataset, "run/ckpt/iteration_8.pth.tar", "resumed")
    resumed.train(dataset.__getitems__(range(32)))
    (bar,) = bars
    assert (bar.options["initial"], bar.options["total"], bar.count) == (8, 12, 9)


def test_the_hosts_table_shows_the_losses_of_the_stage(make_cfg, dataset, bars):
    learner, _, _ = learner_of(make_cfg, dataset)
    rows = []
    learner._tb_logger.add_scalar = lambda name, value, step: rows.append((step, name, value))
    for _ in range(12):
        learner.train(dataset.__getitems__(range(32)))
    shown = {step: {name.split("/")[1] for at, name, _ in rows if at == step} for step, _, _ in rows}
    assert shown[0] == {"behavior_loss_avg"}
    assert shown[6] == {"critic_loss_avg", "q_mean_avg", "guidance_loss_avg", "log_partition_loss_avg"}
    assert shown[10] == {"guidance_loss_avg", "log_partition_loss_avg"}
    assert all(math.isfinite(value) for _, _, value in rows)


def resume(make_cfg, dataset, name: str, how: bool | str):
    """A run of that name with ``resume_training``."""
    return learner_of(make_cfg, dataset, name=name, resume_training=how)


def test_resuming_goes_on_from_the_latest_of_the_runs_own_checkpoints(make_cfg, dataset, folder, bars):
    learner, _, _ = resume(make_cfg, dataset, "run", True)
    assert learner.train_iter == 0, "there is nothing yet to go on from"
    for _ in range(9):
        learner.train(dataset.__getitems__(range(32)))
    # The host gives an offline run whose folder exists another name; its checkpoints stay in one place.
    again, _, cfg = resume(make_cfg, dataset, "run_261122_010203", True)
    assert again.train_iter == 8 and cfg.policy.learn.train_epoch == 1
    again.call_hook("after_run")
    assert not (folder / "run_261122_010203" / "ckpt").exists()
    other, _, _ = resume(make_cfg, dataset, "another", True)
    assert other.train_iter == 0
    for _ in range(4):
        again.train(dataset.__getitems__(range(32)))
    again.call_hook("after_run")
    with pytest.raises(SystemExit) as ended:
        resume(make_cfg, dataset, "run_261122_030405", True)
    assert ended.value.code == 0


def test_a_damaged_checkpoint_ends_a_resume_and_the_one_before_is_taken_when_asked_for(make_cfg, dataset, folder, bars):
    learner, _, _ = learner_of(make_cfg, dataset)
    for _ in range(12):
        learner.train(dataset.__getitems__(range(32)))
    newest = folder / "run" / "ckpt" / "iteration_8.pth.tar"
    damaged = bytearray(newest.read_bytes())
    damaged[1000] ^= 1
    newest.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"iteration_8\.pth\.tar is damaged: its SHA-256 sum was"):
        resume(make_cfg, dataset, "run", True)
    again, _, _ = resume(make_cfg, dataset, "run", "newest_good")
    assert again.train_iter == 4


def test_offline_checkpoints_are_of_ends_of_epochs(make_cfg, dataset, folder, bars):
    learner, _, _ = learner_of(make_cfg, dataset, every=5)
    for _ in range(13):
        learner.train(dataset.__getitems__(range(32)))
    saved = sorted(path.name for path in (folder / "run" / "ckpt").iterdir())
    assert saved == ["iteration_12.pth.tar", "iteration_8.pth.tar"]
