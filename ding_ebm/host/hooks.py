"""Learner hooks: checkpoints that are never half written, resuming, and a progress bar.

They take the place of DI-engine's hooks of the same names, which write files in place, count the iteration that a
checkpoint was saved in twice, keep nothing but the policy, and show no progress.

A checkpoint is of the moment at which the next iteration's data have not been drawn yet: online right after an update;
offline the host may evaluate at that moment, and it is written when that is over.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

from ding.utils import get_rank
from ding.worker.learner.learner_hook import LearnerHook, LogShowHook, register_learner_hook
from tqdm import tqdm

from ding_ebm.checkpoint import check_sum, checkpoints_of, find_checkpoint, read_checkpoint, write_checkpoint
from ding_ebm.host.run_state import (
    evaluator_of,
    evaluator_state,
    load_evaluator_state,
    load_sampling_state,
    sampling_state,
)
from ding_ebm.policy.guards import check_state

# What the host appends to the name of a run whose folder exists.
_DATE = re.compile(r"_\d{6}_\d{6}$")


class SaveCheckpointHook(LearnerHook):
    """Write the run's state beside its final name and rename it, so that the last good checkpoint is never lost.

    Args:
        ext_args: ``freq``, iterations between checkpoints; the checkpoint after a run needs none.
    """

    def __init__(self, *args: Any, ext_args: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._freq = (ext_args or {}).get("freq", 1)
        self._due: dict[str, Any] | None = None
        self._waits_for_evaluation = False

    def __call__(self, engine: Any) -> None:
        """Save at the end of the run and every ``freq`` iterations; offline at the end of the epoch then begun."""
        if get_rank() != 0:
            return
        # The host counts an iteration after the hooks that follow it.
        completed = engine.last_iter.val + (self.position == "after_iter")
        if self.position == "after_iter" and not self._is_due(engine, completed):
            return
        sampling = sampling_state(engine.exp_name)
        if self.position != "after_iter" or not is_offline(engine):
            self._save(engine, completed, sampling)
            return
        self._due = sampling
        if not self._waits_for_evaluation:
            engine.register_hook(SaveDueHook(self))
            self._waits_for_evaluation = True

    def _is_due(self, engine: Any, completed: int) -> bool:
        if not is_offline(engine):
            return bool(completed % self._freq == 0)
        epoch = engine.policy.get_attribute("cfg").learn.iterations_per_epoch
        return bool(completed % epoch == 0 and completed // self._freq > (completed - epoch) // self._freq)

    def save_due(self, engine: Any) -> None:
        """Save what was due after the last iteration, if anything."""
        if self._due is not None:
            sampling, self._due = self._due, None
            self._save(engine, engine.last_iter.val, sampling)

    def _save(self, engine: Any, completed: int, sampling: dict[str, Any]) -> None:
        folder = checkpoint_folder(engine)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (engine.ckpt_name or f"iteration_{completed}.pth.tar")
        learned = engine.policy.state_dict()
        check_state(learned, completed)
        state = {
            **learned,
            "last_iter": completed,
            "last_step": engine.collector_envstep,
            "sampling": sampling,
            "evaluator": evaluator_state(engine),
        }
        write_checkpoint(state, path)
        engine.info(f"{engine.instance_name} save ckpt in {path}")


class SaveDueHook(LearnerHook):
    """Before an iteration: have the checkpoint written that was due after the last one."""

    def __init__(self, saving: SaveCheckpointHook) -> None:
        super().__init__("save_ckpt_due", 20, position="before_iter")
        self._saving = saving

    def __call__(self, engine: Any) -> None:
        """See :meth:`SaveCheckpointHook.save_due`."""
        self._saving.save_due(engine)


class LoadCheckpointHook(LearnerHook):
    """Go on with a run: with the one that ``learn.resume_training`` finds, or ``load_ckpt_before_run`` names."""

    def __init__(self, *args: Any, ext_args: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._path = ext_args["load_path"]

    def __call__(self, engine: Any) -> None:
        """Load the checkpoint, if there is one to go on from."""
        engine.register_hook(CloseLogsHook())
        learn = engine.policy.get_attribute("cfg").learn
        path = find_checkpoint(self._path) if self._path else _newest(engine, learn.get("resume_training", False))
        if path is None:
            return
        state = read_checkpoint(path)
        completed = int(state.pop("last_iter"))
        engine.collector_envstep = state.pop("last_step")
        engine.last_iter.update(completed)
        evaluator = state.pop("evaluator")
        load_evaluator_state(engine, evaluator)
        engine.register_hook(EndWithoutScoreHook(evaluator))
        sampling = state.pop("sampling")
        engine.policy.load_state_dict(state)
        load_sampling_state(engine.exp_name, sampling)
        if is_offline(engine):
            learn.train_epoch -= _epochs_done(path, completed, learn)
        engine.info(f"{engine.instance_name} resumed from {path} at iteration {completed}")


class EndWithoutScoreHook(LearnerHook):
    """After a resumed run that has not come to an evaluation: end the process, well.

    The host's pipelines go on to print or write the score of the last evaluation, and fail where there was none.

    Args:
        evaluator: The evaluator's state when the run was resumed.
    """

    def __init__(self, evaluator: dict[str, Any]) -> None:
        super().__init__("end_without_score", 100, position="after_run")  # after the last checkpoint
        self._evaluator = evaluator

    def __call__(self, engine: Any) -> None:
        """End it if no evaluation was made since."""
        if engine.ckpt_name is None and evaluator_state(engine) == self._evaluator != {}:
            last = self._evaluator["last_eval_iter"]
            sys.stderr.write(
                f"the run is complete at iteration {engine.last_iter.val}; it was evaluated at iteration {last} the "
                "last time, before it was resumed\n"
            )
            raise SystemExit(0)


class CloseLogsHook(LearnerHook):
    """After a run: close its log files, which the host leaves open, with the next run of the process in them, too."""

    def __init__(self) -> None:
        super().__init__("close_logs", 90, position="after_run")  # after the last checkpoint, of which the log tells

    def __call__(self, engine: Any) -> None:
        """Close what lies in the run's folder of logs."""
        folder = (Path(engine.exp_name) / "log").resolve()
        for logger in list(logging.Logger.manager.loggerDict.values()):
            for handler in list(getattr(logger, "handlers", [])):
                if isinstance(handler, logging.FileHandler) and folder in Path(handler.baseFilename).parents:
                    logger.removeHandler(handler)  # type: ignore[union-attr]
                    handler.close()


def is_offline(engine: Any) -> bool:
    """Whether the learner's policy learns from a data set, by epochs."""
    return engine.policy.get_attribute("cfg").learn.get("train_epoch") is not None


def checkpoint_folder(engine: Any) -> Path:
    """Where a run's checkpoints are; ``learn.resume_training`` keeps all of a run's in one folder.

    The host gives an offline run that finds its folder another one, with the date, for logs and all.
    """
    own = Path(engine.exp_name)
    if not engine.policy.get_attribute("cfg").learn.get("resume_training", False):
        return own / "ckpt"
    return own.with_name(_DATE.sub("", own.name)) / "ckpt"


def _newest(engine: Any, resume: bool | str) -> Path | None:
    """The run's latest checkpoint, or with ``newest_good`` the latest whose sum is right; None if it has none yet."""
    found = checkpoints_of(checkpoint_folder(engine)) if resume else []
    if resume != "newest_good":
        return found[-1] if found else None
    for path in reversed(found):
        try:
            check_sum(path)
        except ValueError as error:
            engine.info(f"{engine.instance_name} leaves out a checkpoint: {error}")
        else:
            return path
    return None


def _epochs_done(path: Path, completed: int, learn: Any) -> int:
    done, rest = divmod(completed, learn.iterations_per_epoch)
    if rest:
        raise ValueError(
            f"{path} is of iteration {completed}, within an epoch of {learn.iterations_per_epoch}; "
            "resume from a checkpoint at the end of one (choose save_ckpt_after_iter a multiple of it)"
        )
    if done >= learn.train_epoch:
        complete = (
            f"{path} is of iteration {completed}: the run of {learn.train_epoch} epochs of "
            f"{learn.iterations_per_epoch} is complete; raise learn.train_epoch to go on"
        )
        if not learn.get("resume_training", False):
            raise ValueError(complete)
        # A command that is given until it succeeds has succeeded. The host's pipeline cannot make a run of no epoch.
        sys.stderr.write(f"{complete}\n")
        raise SystemExit(0)
    return done


class LogAndProgressHook(LogShowHook):
    """DI-engine's table of averages, and a progress bar with rate, time left, stage and the last evaluation's score."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bar: tqdm[Any] | None = None
        self._environments: Any = None  # of the evaluator

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
                evaluator = evaluator_of(engine)
                self._environments = None if evaluator is None else evaluator._env
            score = getattr(self._environments, "mean_return", None)
            known = [engine.policy.get_attribute("stage"), "" if score is None else f"last score {score:.4g}"]
            self._bar.set_postfix_str(", ".join(filter(None, known)), refresh=False)
            self._bar.update()
        super().__call__(engine)


register_learner_hook("save_ckpt", SaveCheckpointHook)
register_learner_hook("load_ckpt", LoadCheckpointHook)
register_learner_hook("log_show", LogAndProgressHook)
