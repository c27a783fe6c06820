"""What the halves of the demo share: runs of the host's command in the demo's folder, and rows of their policies."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ding_ebm.checkpoint import find_checkpoint
from ding_ebm.data.formats import DATA_FOLDER_VARIABLE
from ding_ebm.evaluation.checkpoint import read_run_config, rollout_policy, run_facts
from ding_ebm.evaluation.process import Job
from ding_ebm.evaluation.results import Result, make_result
from ding_ebm.evaluation.rollout import Episodes
from ding_ebm.host.backends import batch_env
from ding_ebm.policy.base import BasePolicy

FIRST_SEED = 1000
THREADS = 1  # networks this small gain nothing from more, and lose much where the cores are busy


@dataclass(frozen=True)
class Run:
    """A training run by the host, whose files are in the demo's folder.

    Attributes:
        name: What its progress is marked with, and of its log.
        pipeline: The host's name of how it is trained.
        config: The config file.
        folder: The demo's.
        train_iter: Iterations after which it ends, where the config does not say them.
    """

    name: str
    pipeline: str
    config: Path
    folder: Path
    train_iter: int | None = None

    @property
    def path(self) -> Path:
        """The run's own folder, which the host makes."""
        return self.folder / read_run_config(self.config).exp_name

    @property
    def checkpoint(self) -> Path:
        """The last one."""
        return find_checkpoint(self.path)

    @property
    def typed(self) -> str:
        """What one would type to make such a run here."""
        return f"{DATA_FOLDER_VARIABLE}={shown(self.folder)} {shlex.join(self._command('ding', shown(self.config)))}"

    def job(self) -> Job:
        """The run as a process to start; what an earlier one of its name has left is removed."""
        environment = dict(os.environ, DING_EBM_CACHE=str(self.folder / "cache"), PYTHONWARNINGS="ignore", TERM="dumb")
        environment[DATA_FOLDER_VARIABLE] = str(self.folder)
        environment.setdefault("OMP_NUM_THREADS", str(THREADS))
        # The process runs in another folder, from which an entry like '.' would not lead to the package.
        root = str(_configs_folder().parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        if self.path.exists():  # the host would give the new run another name
            shutil.rmtree(self.path)
        command = self._command(str(Path(sys.executable).with_name("ding")), str(self.config))
        return Job(self.name, command, self.folder, environment, self.folder / f"{self.name}.log", self.train_iter)

    def _command(self, ding: str, config: str) -> list[str]:
        command = [ding, "-m", self.pipeline, "-c", config, "-s", "0"]
        return command if self.train_iter is None else [*command, "--train-iter", str(self.train_iter)]


def stock_config(name: str) -> Path:
    """The config file of that name of the avoid tasks, as installed."""
    return _configs_folder() / "avoid" / f"{name}_config.py"


def written_config(folder: Path, name: str, text: str) -> Path:
    """A config file of the demo's own."""
    path = folder / f"quick_{name}_config.py"
    path.write_text(text, "utf-8")
    return path


def evaluate(run: Run, policy: BasePolicy, count: int, scale: float | None = None) -> tuple[Result, Episodes]:
    """Result and episodes of a policy, at a guidance scale if it has one; the same starts and noise every time."""
    config = read_run_config(run.config)
    episodes = rollout_policy(
        policy,
        batch_env(config.env, count),
        range(FIRST_SEED, FIRST_SEED + count),
        guidance_scale=scale,
        keep_trajectories=True,
        description=f"{run.name}, evaluation" + ("" if scale is None else f", guidance scale {scale:g}"),
    )
    options = "" if scale is None else f" --guidance-scale {scale:g}"
    result = make_result(
        episodes.returns,
        episodes.success,
        **run_facts(config, policy),
        guidance_scale=scale,
        seed=0,
        command=f"ding-ebm eval -c {shown(run.config)} --load-path {shown(run.checkpoint)}{options} --episodes {count} "
        f"--seed {FIRST_SEED} --num-envs {count}",
    )
    return result, episodes


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path)


def _configs_folder() -> Path:
    spec = importlib.util.find_spec("dizoo_configs")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package dizoo_configs, which is installed with ding_ebm, is not found")
    return Path(spec.submodule_search_locations[0])
