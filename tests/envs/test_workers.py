"""Environments in processes are the same as in one, errors come with their traceback, and no process is left."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ding_ebm.envs.avoid import AvoidEnv
from ding_ebm.envs.batch import GymBatch
from ding_ebm.envs.workers import WorkerBatch, WorkerError

LIMIT = 20
make = partial(AvoidEnv, max_episode_steps=LIMIT)


def some_fall(num: int, steps: int) -> np.ndarray:
    """Actions under which a part of the environments hits the first cylinder before the time limit, (num, steps, 2)."""
    sideways = np.linspace(-0.006, 0.006, num)[:, None]
    return np.stack(np.broadcast_arrays(sideways, np.full((1, steps), 0.0099)), axis=2).astype(np.float32)


def history(env, chunks: list[int]) -> list[np.ndarray]:
    """All that a batch returns: reset, chunks of the given sizes (0: a single step), a reset of some rows between."""
    actions = some_fall(env.num_envs, 2 * LIMIT)
    made, t = [env.reset(range(env.num_envs)), env.running], 0
    for number, size in enumerate(chunks):
        if size:
            step = env.step_chunk(actions[:, t : t + size])
            made += [step.obs, step.reward, step.terminated, step.truncated, step.length]
        else:
            made += env.step(actions[:, t])
        made += [env.running, env.success]
        t += size or 1
        if number == 3:
            made += [env.reset([70, 71, 72], [4, 0, 3]), env.running, env.success]
    return made


@pytest.mark.parametrize("num_workers", [1, 2, 3, 9])
def test_processes_give_the_numbers_of_one(num_workers: int) -> None:
    chunks = [3, 0, 4, 9, 4, 0, 5, 6, 3]
    expected = history(GymBatch(make, 5), chunks)
    batch = WorkerBatch(make, 5, num_workers)
    assert len(batch.pids) == min(num_workers, 5) and os.getpid() not in batch.pids
    for name in ("num_envs", "obs_dim", "action_dim", "max_episode_steps"):
        assert getattr(batch, name) == getattr(GymBatch(make, 5), name)
    np.testing.assert_array_equal(batch.action_low, -np.float32([0.01, 0.01]))
    for _ in range(2):  # the same again, whatever happened before
        for ours, theirs in zip(history(batch, chunks), expected):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    flags = np.array([theirs for theirs in expected if theirs.shape == (5,) and theirs.dtype == bool])
    assert flags.any(axis=0).all() and not flags.all(axis=0).any()
    batch.close()


def test_alone_it_is_the_same_and_chunks_are_steps() -> None:
    actions = some_fall(4, 24)
    by_steps, by_chunks = WorkerBatch(make, 4, 2), WorkerBatch(make, 4, 3)
    np.testing.assert_array_equal(by_steps.reset([3, 1, 4, 1]), by_chunks.reset([3, 1, 4, 1]))
    chunk = by_chunks.step_chunk(actions)
    steps = [by_steps.step(actions[:, t]) for t in range(24)]
    np.testing.assert_array_equal(chunk.obs, np.stack([step[0] for step in steps], axis=1))
    np.testing.assert_array_equal(chunk.reward, np.stack([step[1] for step in steps], axis=1))
    for i, seed in enumerate([3, 1, 4, 1]):
        env = make()
        env.reset(seed=seed)
        for t in range(chunk.length[i]):
            obs, reward, terminated, truncated, _ = env.step(actions[i, t])
            np.testing.assert_array_equal(chunk.obs[i, t], obs)
            assert chunk.reward[i, t] == reward
            assert (terminated or truncated) == (t == chunk.length[i] - 1)
        assert (chunk.terminated[i], chunk.truncated[i]) == (terminated, truncated)
    assert chunk.terminated.any() and chunk.truncated.any() and len(set(chunk.length)) == 2


def test_what_is_returned_is_the_callers_to_change() -> None:
    batch = WorkerBatch(make, 2, 2)
    first = batch.reset([1, 2])
    kept = first.copy()
    first[:] = 7
    step = batch.step_chunk(np.zeros((2, 3, 2)))
    after = step.obs[:, -1].copy()
    step.obs[:], step.truncated[:], batch.running[:] = 7, True, False
    assert batch.running.all()
    np.testing.assert_array_equal(batch.reset([], []), after)
    np.testing.assert_array_equal(batch.reset([1, 2]), kept)


class Faulty(AvoidEnv):
    """Raises in the step after one to the left, and ends its process in one after a step down."""

    def step(self, action):
        if action[1] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if action[0] < 0:
            raise OSError("the simulator broke")
        return super().step(action)


def test_an_error_comes_with_its_traceback_and_ends_all_workers() -> None:
    batch = WorkerBatch(Faulty, 3, 3)
    batch.reset([0, 1, 2])
    actions = np.zeros((3, 2, 2))
    actions[1, 1, 0] = -0.001
    with pytest.raises(
        WorkerError, match=r"environments 1 to 1 failed: (.|\n)*in step\n(.|\n)*OSError: the simulator br"
    ):
        batch.step_chunk(actions)
    assert all(is_gone(pid) for pid in batch.pids)
    with pytest.raises(WorkerError, match="are closed: a worker has failed"):
        batch.reset([0, 1, 2])


def test_a_killed_worker_is_reported() -> None:
    batch = WorkerBatch(Faulty, 3, 2)
    batch.reset([0, 1, 2])
    with pytest.raises(WorkerError, match=r"environments 0 to 1 failed: it ended with exit code -9 \(killed: is there"):
        batch.step(np.full((3, 2), -0.001))
    assert all(is_gone(pid) for pid in batch.pids)


class Failing(AvoidEnv):
    """Fails at one step of the run, once: a file remembers that it has."""

    def __init__(self, how: str, note: Path, at: int) -> None:
        super().__init__(max_episode_steps=LIMIT)
        self._how, self._note, self._at, self._made = how, note, at, 0

    def step(self, action):
        self._made += 1
        if self._made == self._at and self._is_first():
            if self._how == "raises":
                raise OSError("the simulator broke")
            if self._how == "hangs":
                time.sleep(1000)
            if self._how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

    def _is_first(self) -> bool:
        try:
            self._note.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def failures(how: str, moments: list[int], folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failure of each kind at each moment: what comes of it is what comes without one, and no process is left."""
    chunks = [3, 0, 4, 9, 4, 0, 5, 6, 3]
    expected = history(GymBatch(make, 5), chunks)
    for at in moments:
        note = folder / f"{how} {at}"
        batch = WorkerBatch(partial(Failing, how, note, at), 5, 2, timeout=1.0 if how == "hangs" else None)
        first = batch.pids
        for ours, theirs in zip(history(batch, chunks), expected):
            np.testing.assert_array_equal(ours, theirs)
        assert note.exists() and batch.restarts == 1
        last = batch.pids
        assert len(set(first) & set(last)) == 1
        batch.close()
        assert all(is_gone(pid) for pid in [*first, *last])
        said = {"raises": "OSError: the simulator broke", "hangs": "has not answered for 1 seconds"}
        assert said.get(how, "exit code -9") in caplog.text and "started anew (attempt 2)" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("how", ["raises", "hangs", "is killed"])
def test_a_worker_that_fails_is_replaced_and_nothing_is_lost(how, tmp_path, caplog) -> None:
    failures(how, [1, 17] if how != "hangs" else [17], tmp_path, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "hangs", "is killed"])
def test_workers_that_fail_at_twenty_random_steps_are_replaced(how, tmp_path, caplog) -> None:
    failures(how, random.Random(how).sample(range(1, 30), 20), tmp_path, caplog)


def test_restarts_are_bounded(caplog) -> None:
    batch = WorkerBatch(Faulty, 3, 3, max_restarts=1)
    batch.reset([0, 1, 2])
    actions = np.zeros((3, 2, 2))
    actions[1, 1, 0] = -0.001
    with pytest.raises(WorkerError, match="OSError: the simulator broke"):
        batch.step_chunk(actions)
    assert batch.restarts == 1 and all(is_gone(pid) for pid in batch.pids)


def test_an_environment_that_cannot_be_made_is_reported() -> None:
    with pytest.raises(WorkerError, match=r"environments 0 to 0 failed: (.|\n)*TypeError: .*no_such_option"):
        WorkerBatch(partial(AvoidEnv, no_such_option=1), 2, 2)


def test_an_interrupt_leaves_no_answer_for_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = WorkerBatch(make, 2, 2)

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(batch._connections[1]), "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batch.reset([0, 1])
    with pytest.raises(WorkerError, match="are closed"):
        batch.step(np.zeros((2, 2)))


def test_bad_arguments_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0 and None"):
        WorkerBatch(make, 0)
    with pytest.raises(ValueError, match="must be at least 1, got 2 and 0"):
        WorkerBatch(make, 2, 0)
    batch = WorkerBatch(make, 3, 2)
    first = batch.reset([0, 1, 2])
    for call, message in {
        "reset([1, 2])": "one seed for each of the 3 environments, got 2",
        "reset([1, 2], [0, 0])": r"different indices from 0 to 2, got \[0, 0\]",
        "step(np.zeros(2))": r"shape \(3, 2\), got \(2,\)",
        "step_chunk(np.full((3, 2, 2), np.nan))": "finite, got .* for environment 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            eval(f"batch.{call}")
    np.testing.assert_array_equal(batch.reset([], []), first)
    batch.close()


def is_gone(pid: int, patience: float = 5.0) -> bool:
    """Whether a process ends within some seconds; one that nobody has waited for counts as ended."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_no_process_is_left_after_close_or_when_nothing_refers_to_the_batch() -> None:
    closed, dropped, kept = (WorkerBatch(make, 2, 2) for _ in range(3))
    pids = closed.pids, dropped.pids
    closed.close()
    closed.close()
    del dropped
    gc.collect()
    assert all(is_gone(pid) for pair in pids for pid in pair)
    assert not any(is_gone(pid, 0.1) for pid in kept.pids)
    kept.reset([0, 1])


PROGRAM = """
import os, signal, sys
from ding_ebm.envs.avoid import AvoidEnv
from ding_ebm.envs.workers import WorkerBatch
one, two = WorkerBatch(AvoidEnv, 3, 3), WorkerBatch(AvoidEnv, 2, 2)
one.reset([1, 2, 3])
print(*one.pids, *two.pids, flush=True)
{end}
"""


@linux
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError", "sys.exit()", "os._exit(0)"]
)
def test_no_process_is_left_when_the_program_ends(end: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=60, check=False
    )
    pids = [int(word) for word in re.findall(r"\d+", run.stdout)]
    assert len(pids) == 5 and all(is_gone(pid) for pid in pids)
    assert ("ValueError" in run.stderr) == (end == "raise ValueError") and "WorkerError" not in run.stderr
