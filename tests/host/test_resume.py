"""Runs of the host's own commands that are killed at any moment, against the run that was not.

Every registered policy runs in its pipelines on avoid_m1, small. ``SIGKILL`` comes at random moments; the same command
goes on each time, and what it ends with must be, bit by bit, what the whole run ended with.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ding_ebm.checkpoint import checkpoints_of, read_checkpoint
from ding_ebm.data.formats import write_d4rl_hdf5
from ding_ebm.envs.avoid_demos import make_mode_demonstrations

CONFIG = """
from dizoo_configs.avoid.builder import {builder} as build

main_config, create_config = build("avoid_m1", {main!r})
main_config.exp_name = {name!r}
if {policy!r}:
    create_config.policy.type = {policy!r}
"""
QGPO = """
from dizoo_configs.builder import offline

main_config, create_config = offline("qgpo", {policy!r}, "avoid_m1", "demonstrations", {main!r})
main_config.exp_name = {name!r}
"""
MLP = dict(mlp_dims=[16, 16, 16])
HOOK = dict(log_show_after_iter=4, save_ckpt_after_iter=4)
CLONING = dict(
    env=dict(evaluator_env_num=2, n_evaluator_episode=2),
    policy=dict(
        model=dict(mlp=MLP),
        learn=dict(train_epoch=6, iterations_per_epoch=4, batch_size=16, learner=dict(hook=HOOK)),
        eval=dict(evaluator=dict(eval_freq=8)),
    ),
)
ONLINE = dict(
    env=dict(collector_env_num=3, evaluator_env_num=2, n_evaluator_episode=2),
    policy=dict(
        model=dict(mlp=MLP),
        collect=dict(n_sample=21),  # 7 decisions of 4 steps: episodes of 100 go on from one collection to the next
        learn=dict(epoch_per_collect=2, batch_size=32, learner=dict(hook=dict(HOOK, save_ckpt_after_iter=2))),
        eval=dict(evaluator=dict(eval_freq=5)),
    ),
)
ENERGY = dict(
    ebm_ckpt_path="energy_model", use_energy_scaling=True, use_pbrs=True, pbrs_use_mu_only=False, online_updates=1,
    online_batch_size=8, online_target_every=2,
)  # fmt: skip


def with_(base: dict[str, Any], **policy: Any) -> dict[str, Any]:
    """A main config with more in its policy."""
    merged = dict(base, policy=dict(base["policy"]))
    for key, value in policy.items():
        old = merged["policy"].get(key, {})
        merged["policy"][key] = {**old, **value} if isinstance(value, dict) else value
    return merged


# Pipeline, template, builder, registered policy where it is not the builder's, and the main config.
RUNS: dict[str, tuple[str, str, str, str, dict[str, Any]]] = {
    "diffusion_bc": ("serial_offline", CONFIG, "diffusion_bc", "", CLONING),
    "gaussian_bc": ("serial_offline", CONFIG, "gaussian_bc", "", CLONING),
    "gmm_bc": ("serial_offline", CONFIG, "gmm_bc", "", CLONING),
    "energy_model": ("serial_offline", CONFIG, "energy", "", CLONING),
    "ebm_qgpo": ("serial_offline", QGPO, "", "ebm_qgpo", {}),
    "dppo": ("serial_onpolicy", CONFIG, "dppo", "", with_(ONLINE, base_policy_path="diffusion_bc")),
    "dppo_ebm": (
        "serial_onpolicy", CONFIG, "dppo_ebm", "", with_(ONLINE, base_policy_path="diffusion_bc", energy=ENERGY),
    ),
    "dppo in serial": ("serial", CONFIG, "dppo", "", with_(ONLINE, base_policy_path="diffusion_bc")),
}  # fmt: skip
LENGTH = {"serial_offline": [], "serial_onpolicy": ["--train-iter", "13"], "serial": ["--train-iter", "13"]}


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ding.entry.cli", "ding_ebm.host", "ding_ebm.policy"])


def ding(folder: str, output: str, *arguments: str) -> None:
    """The host's command in a process that has imported it already, which takes longer than these runs."""
    os.chdir(folder)
    os.environ["DING_EBM_DATA"] = folder
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    from ding.entry.cli import cli

    cli(arguments, standalone_mode=False)


class Folder:
    """Where runs are made and killed."""

    def __init__(self, path: Path, qgpo: dict[str, Any]) -> None:
        self.path, self.qgpo = path, qgpo
        self.seconds: dict[str, float] = {}
        write_d4rl_hdf5(path / "avoid_m1_demonstrations.hdf5", make_mode_demonstrations("avoid_m1", 6, 0))

    def start(self, run: str, name: str, resume: bool) -> Any:
        """The command of a run, as a process."""
        pipeline, template, builder, policy, main = RUNS[run]
        if run == "ebm_qgpo":
            main = dict(self.qgpo, policy={key: v for key, v in self.qgpo["policy"].items() if key != "collect"})
        main = with_(main, learn=dict(main["policy"]["learn"], resume_training=resume))
        config = self.path / f"{name}_config.py"
        config.write_text(template.format(builder=builder, policy=policy, main=main, name=name))
        arguments = ("-m", pipeline, "-c", config.name, "-s", "0", *LENGTH[pipeline])
        process = PROCESSES.Process(target=ding, args=(str(self.path), f"{name}.txt", *arguments))
        process.start()
        return process

    def output(self, name: str) -> str:
        """What the last command of a run has written."""
        return (self.path / f"{name}.txt").read_text()

    def whole(self, run: str) -> float:
        """Make the run that is not killed, once; returns the seconds from its learner's log to its end."""
        if run not in self.seconds:
            for needed in re.findall("diffusion_bc|energy_model", str(RUNS[run][4])):
                self.whole(needed)
            process = self.start(run, run, resume=False)
            self.wait_for(process, f"{run}/log/learner")
            begin = time.monotonic()
            process.join()
            assert process.exitcode == 0, self.output(run)[-3000:]
            self.seconds[run] = time.monotonic() - begin
        return self.seconds[run]

    def last(self, name: str) -> str:
        """Name of a run's last checkpoint, empty if there is none."""
        return ([""] + [path.name for path in checkpoints_of(self.path / name)])[-1]

    def wait_for(self, process: Any, pattern: str) -> None:
        """Until such a file is there, or the process has ended."""
        while process.is_alive() and not any(self.path.glob(pattern)):
            time.sleep(0.001)

    def killed(self, run: str, name: str, moments: list[tuple[str, float]]) -> list[int]:
        """The same run, killed so many seconds after a file of it is there, and started again; then let to its end.

        Returns:
            The iterations that it went on from.
        """
        found = []
        for pattern, seconds in [*moments, ("", 0.0)]:
            for log in self.path.glob(f"{name}*/log"):
                shutil.rmtree(log)
            process = self.start(run, name, resume=True)
            if pattern:
                self.wait_for(process, f"{name}*/{pattern}")
                process.join(seconds)
                process.kill()
            process.join()
            output = self.output(name)
            found += [int(at) for at in re.findall(r"resumed from[\s\S]*?at\s+iteration\s+(\d+)", output)]
            if process.exitcode == 0:
                return found
            assert process.exitcode == -signal.SIGKILL, output[-3000:]
            if self.last(name) == self.last(run):  # it was about to end
                return found
        raise AssertionError(output[-3000:])


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two states of tensors and plain values are not the same bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{where}/{key}" for key in set(one) ^ set(other)]
        return missing + [
            d for key in set(one) & set(other) for d in differences(one[key], other[key], f"{where}/{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other)) for d in differences(*pair, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
        return [] if same else [where]
    return [] if one == other else [where]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny) -> Folder:
    return Folder(tmp_path_factory.mktemp("runs"), tiny)


def check(folder: Folder, run: str, name: str) -> None:
    """Compare the last and the best checkpoint of a killed run with those of the whole one."""
    assert folder.last(run) == folder.last(name) != ""
    for file in (folder.last(run), "ckpt_best.pth.tar"):
        states = [read_checkpoint(folder.path / one / "ckpt" / file) for one in (run, name)]
        assert {"sampling", "evaluator", "model"} <= set(states[0])
        assert differences(*states) == [], file


@pytest.mark.parametrize("run", ["ebm_qgpo", "dppo_ebm"])
def test_a_killed_run_goes_on_to_the_very_end_of_the_whole_one(run, folder):
    folder.whole(run)
    found = folder.killed(run, f"{run} killed", [("ckpt/iteration_*.pth.tar", 0.0)])
    check(folder, run, f"{run} killed")
    assert len(found) == 1 and found[0] < 24


def test_a_run_that_is_resumed_after_its_last_evaluation_ends_well(folder):
    """Where the host's pipeline looks for a score that this part of the run does not have."""
    folder.whole("dppo")
    found = folder.killed("dppo", "dppo late", [("ckpt/iteration_12.pth.tar", 0.0)])
    check(folder, "dppo", "dppo late")
    if found:  # else it was faster than the kill
        assert found == [12] and "it was evaluated at iteration 10 the last time" in folder.output("dppo late")


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_runs_killed_at_twenty_random_moments(run, folder):
    seconds, rng, resumed = folder.whole(run), random.Random(run), 0
    files = ["log/learner", *(f"ckpt/{path.name}" for path in checkpoints_of(folder.path / run)[:-1])]
    for number in range(10):
        # Anywhere between two checkpoints, or before the first one; the second time later than the first.
        after = sorted(rng.sample(range(len(files)), 2))
        moments = [(files[one], rng.uniform(0.0, seconds / len(files))) for one in after]
        resumed += len(folder.killed(run, f"{run} {number}", moments))
        check(folder, run, f"{run} {number}")
    assert resumed >= 5
