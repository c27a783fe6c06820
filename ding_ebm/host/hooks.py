"""Learner hooks: checkpoints that are never half written, resuming, and a progress bar.

They take the place of DI-engine's hooks of the same names, which write files in place, count the iteration that a
checkpoint was saved in twice, and show no progress.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from ding.utils import get_rank
from ding.worker.learner.learner_hook import LearnerHook, LogShowHook, register_learner_hook
from tqdm import tqdm

from ding_ebm.policy.checkpoint_files import read_checkpoint


class SaveCheckpointHook(LearnerHook):
    """Write the policy's state beside its final name and rename it, so that the last good checkpoint is never lost.

    Args:
        ext_args: ``freq``, iterations between checkpoints; the checkpoint after a run needs none.
    """

    def __init__(self, *args: Any, ext_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._freq = (ext_args or {}).get("freq", 1)

    def __call__(self, engine: Any) -> None:
        """Save if the number of completed iterations is a multiple of ``freq``, or at the end of the run."""
        # The host counts an iteration after the hooks that follow it.
        completed = engine.last_iter.val + (self.position == "after_iter")
        if get_rank() != 0 or (self.position == "after_iter" and completed % self._freq):
            return
        folder = Path(engine.exp_name) / "ckpt"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (engine.ckpt_name or f"iteration_{completed}.pth.tar")
        state = {**engine.policy.state_dict(), "last_iter": completed, "last_step": engine.collector_envstep}
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        engine.info(f"{engine.instance_name} save ckpt in {path}")


class LoadCheckpointHook(LearnerHook):
    """Resume from ``learn.learner.hook.load_ckpt_before_run``; an offline run then makes only the epochs left."""

    def __init__(self, *args: Any, ext_args: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._path = ext_args["load_path"]

    def __call__(self, engine: Any) -> None:
        """Load the checkpoint, if the config names one."""
        if not self._path:
            return
        state = read_checkpoint(self._path)
        completed = int(state.pop("last_iter"))
        engine.collector_envstep = state.pop("last_step")
        engine.last_iter.update(completed)
        engine.policy.load_state_dict(state)
        learn = engine.policy.get_attribute("cfg").learn
        if learn.get("train_epoch") is not None:
            done, rest = divmod(completed, learn.iterations_per_epoch)
            if rest:
                raise ValueError(
                    f"{self._path} is of iteration {completed}, within an epoch of {learn.iterations_per_epoch}; "
                    "resume from a checkpoint at the end of one (choose save_ckpt_after_iter a multiple of it)"
                )
            if done >= learn.train_epoch:
                raise ValueError(
                    f"{self._path} is of iteration {completed}: the run of {learn.train_epoch} epochs of "
                    f"{learn.iterations_per_epoch} is complete; raise learn.train_epoch to go on"
                )
            learn.train_epoch -= done
        engine.info(f"{engine.instance_name} resumed from {self._path} at iteration {completed}")


class LogAndProgressHook(LogShowHook):
    """DI-engine's table of averages, and a progress bar with the rate and the time left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bar: tqdm[Any] | None = None

    def __call__(self, engine: Any) -> None:
        """Advance the bar by the iteration just made, and log as the host does."""
        if engine.rank == 0:
            if self._bar is None:
                initial, left = engine.last_iter.val, engine.policy.get_attribute("total_iterations")
                # A file takes a line a report: few of them.
                interval = 0.5 if sys.stderr.isatty() else 15.0
                self._bar = tqdm(
                    desc="train",
                    initial=initial,
                    total=None if left is None else initial + left,
                    unit="it",
                    mininterval=interval,
                    smoothing=0.05,
                )
            self._bar.update()
        super().__call__(engine)


register_learner_hook("save_ckpt", SaveCheckpointHook)
register_learner_hook("load_ckpt", LoadCheckpointHook)
register_learner_hook("log_show", LogAndProgressHook)
