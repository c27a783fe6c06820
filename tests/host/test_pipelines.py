"""DI-engine's own commands as processes: train, resume, evaluate and refuse.

The data file has one row, so that every batch is the same: a resumed run must then end with the very parameters of the
run that was not interrupted, though the data set's generator is not in the host's checkpoint.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ding_ebm.data.formats import Transitions, write_d4rl_hdf5

ROOT = Path(__file__).parents[2]
CONFIG = """
from dizoo_configs.builder import offline

main_config, create_config = offline("qgpo", {policy!r}, "avoid", "demonstrations", {main!r})
"""


class Ding:
    """A folder with data, in which ``ding`` runs."""

    def __init__(self, folder: Path, tiny: dict[str, Any]) -> None:
        self.folder, self.tiny = folder, tiny
        one = Transitions(
            obs=np.array([[0.52, -0.28, 0.52, -0.28]], np.float32),
            action=np.array([[0.002, 0.009]], np.float32),
            reward=np.ones(1, np.float32),
            next_obs=np.array([[0.522, -0.271, 0.522, -0.271]], np.float32),
            terminated=np.zeros(1, np.bool_),
            truncated=np.ones(1, np.bool_),
            source="one row",
        )
        write_d4rl_hdf5(folder / "data.hdf5", one)

    def config(self, name: str, policy: str = "ebm_qgpo", eval_freq: int = 12, **learn: Any) -> str:
        """Write a config file and return its name."""
        tiny = self.tiny["policy"]
        changed = dict(
            self.tiny,
            exp_name=name,
            policy=dict(
                tiny,
                learn={**tiny["learn"], "support_cache": "cache", **learn},
                # One row has no range to normalize by.
                collect=dict(data_path="data.hdf5", obs_normalization="none", action_normalization="none"),
                eval=dict(tiny["eval"], evaluator=dict(eval_freq=eval_freq)),
            ),
        )
        (self.folder / f"{name}.py").write_text(CONFIG.format(policy=policy, main=changed))
        return f"{name}.py"

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        beside = Path(sys.executable).parent / "ding"
        command = [str(beside)] if beside.exists() else [sys.executable, "-c", "from ding.entry.cli import cli; cli()"]
        environment = {key: value for key, value in os.environ.items() if key != "DING_EBM_DATA"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        environment.update(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
        return subprocess.run(
            [*command, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )

    def checkpoint(self, name: str, file: str) -> dict[str, Any]:
        return torch.load(self.folder / name / "ckpt" / file, weights_only=True)


def output(process: subprocess.CompletedProcess[str]) -> str:
    return process.stdout + process.stderr


@pytest.fixture(scope="module")
def ding(tmp_path_factory, tiny) -> Ding:
    return Ding(tmp_path_factory.mktemp("ding"), tiny)


@pytest.fixture(scope="module")
def whole(ding) -> subprocess.CompletedProcess[str]:
    """A run of three epochs of four iterations: one epoch a stage."""
    return ding("-m", "serial_offline", "-c", ding.config("whole"), "-s", "0")


def test_serial_offline_trains_through_all_stages_and_evaluates(ding, whole):
    assert whole.returncode == 0, output(whole)[-3000:]
    assert "final reward is: {'eval_episode_return'" in whole.stdout
    names = {path.name for path in (ding.folder / "whole" / "ckpt").iterdir()}
    assert names == {"iteration_4.pth.tar", "iteration_8.pth.tar", "iteration_12.pth.tar", "ckpt_best.pth.tar"}
    before, after, end = (ding.checkpoint("whole", f"iteration_{done}.pth.tar") for done in (4, 8, 12))
    assert [state["train_iter"] for state in (before, after, end)] == [4, 8, 12]

    def changes(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
        pairs = first["model"].items()
        return {name.split(".")[0] for name, value in pairs if not torch.equal(value, second["model"][name])}

    assert changes(before, after) == {"critic", "target_critic", "guidance", "log_partition"}
    assert changes(after, end) == {"guidance", "log_partition"}


def test_progress_is_shown_with_rate_and_time_left(whole):
    assert re.search(r"train:.*12/12.*it/s.*guidance", whole.stderr)
    assert re.search(r"support actions:.*2/2.*state/s", whole.stderr)


def test_the_config_that_the_host_keeps_beside_a_run_can_be_read(ding, whole):
    ast.parse((ding.folder / "whole" / "total_config.py").read_text())


def test_eval_gives_the_return_that_training_gave(ding, whole):
    returns = ast.literal_eval(re.search(r"final reward is: (\{.*\})", whole.stdout).group(1))["eval_episode_return"]
    path = str(ding.folder / "whole" / "ckpt" / "iteration_12.pth.tar")
    process = ding("-m", "eval", "-c", "whole.py", "-s", "0", "--load-path", path)
    assert process.returncode == 0, output(process)[-3000:]
    found = float(re.search(r"The performance of your RL policy is (\S+)", process.stdout).group(1))
    assert found == pytest.approx(np.mean(returns), abs=1e-6)


def test_a_resumed_run_ends_with_the_parameters_of_the_run_that_was_not_interrupted(ding, whole):
    path = str(ding.folder / "whole" / "ckpt" / "iteration_8.pth.tar")
    hook = dict(ding.tiny["policy"]["learn"]["learner"]["hook"], load_ckpt_before_run=path)
    process = ding("-m", "serial_offline", "-c", ding.config("resumed", learner=dict(hook=hook)), "-s", "5")
    assert process.returncode == 0, output(process)[-3000:]
    assert "resumed from" in output(process) and "at iteration 8" in output(process)
    assert {path.name for path in (ding.folder / "resumed" / "ckpt").iterdir()} >= {"iteration_12.pth.tar"}
    end, again = (ding.checkpoint(name, "iteration_12.pth.tar") for name in ("whole", "resumed"))
    assert (again["last_iter"], again["train_iter"]) == (12, 12)
    assert [name for name, value in end["model"].items() if not torch.equal(value, again["model"][name])] == []
    assert len(list((ding.folder / "cache").iterdir())) == 1  # support actions were read, not drawn again


def test_the_free_slot_of_the_hosts_own_name_runs_ours(ding):
    name = ding.config("qgpo", policy="qgpo", eval_freq=8, train_epoch=2, q_value_stop_training_iter=6)
    process = ding("-m", "serial_offline", "-c", name, "-s", "0")
    assert process.returncode == 0, output(process)[-3000:]
    assert ding.checkpoint("qgpo", "iteration_8.pth.tar")["train_iter"] == 8


def test_a_mistyped_key_ends_the_process_at_once_and_in_words(ding):
    before = os.times().children_user
    process = ding("-m", "serial_offline", "-c", ding.config("refused", batchsize=32), "-s", "0")
    assert process.returncode != 0
    assert "policy.learn.batchsize is not a known key; did you mean 'batch_size'?" in process.stderr
    assert not (ding.folder / "refused" / "ckpt").exists()
    # Nearly all of it is the host's import, 5 seconds of a quiet core.
    assert os.times().children_user - before < 40.0
