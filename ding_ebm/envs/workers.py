"""Many environments in a few worker processes, whole chunks a call: for simulators that spend their time in Python.

Few processes with many environments each: one that has loaded a simulator such as robosuite takes some 450 MB, and a
call costs the same for one environment as for many.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import ChunkStep, GymBatch, Step, checked_action, checked_chunk, checked_rows

# What the batch of every worker says of itself.
FACTS = ("obs_dim", "action_dim", "action_low", "action_high", "max_episode_steps")
# Seconds that a worker gets to end by itself before it is killed.
PATIENCE = 5.0


class WorkerError(RuntimeError):
    """What went wrong in a worker process, with the traceback that it had there."""


class WorkerBatch:
    """:class:`~ding_ebm.envs.batch.GymBatch` with its environments divided among processes.

    The same seeds and actions give the same numbers, whatever the number of processes. The processes end with
    :meth:`close`, with the object, and with the process that made them, however that ends.

    On Linux workers are forked: they need not import anew what is loaded, and ``make_single`` may be any
    function. Elsewhere they are spawned, and it must be one that can be pickled.

    Args:
        make_single: Makes one environment, as of :class:`~ding_ebm.envs.batch.GymBatch`; it is called in the workers.
        num_envs: E.
        num_workers: Processes, at most E; None: as many as there are cores.

    Attributes:
        pids: Process number of each worker.

    Raises:
        ValueError: If a number is not positive.
        WorkerError: If an environment raises, here or in any method, or a worker is killed. All workers end with it.
    """

    obs_dim: int
    action_dim: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]
    max_episode_steps: int

    def __init__(
        self, make_single: Callable[[], gymnasium.Env[Any, Any]], num_envs: int, num_workers: int | None = None
    ) -> None:
        if num_envs < 1 or (num_workers is not None and num_workers < 1):
            raise ValueError(f"num_envs and num_workers must be at least 1, got {num_envs} and {num_workers}")
        self._parts = np.array_split(np.arange(num_envs), min(num_workers or os.cpu_count() or 1, num_envs))
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self._end = weakref.finalize(self, _end_workers, os.getpid(), self._connections, self._processes)
        for part in self._parts:
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            # A forked worker has copies of our ends; open there, they would keep it from seeing that we are gone.
            inherited = list(self._connections) if context.get_start_method() == "fork" else []
            work = (theirs, inherited, make_single, len(part))
            self._processes.append(context.Process(target=_work, args=work, daemon=True))
            self._processes[-1].start()
            theirs.close()
        self.pids = [process.pid for process in self._processes]

        self.num_envs = num_envs
        for name, value in zip(FACTS, self._answers(range(len(self._parts)))[0]):
            setattr(self, name, value)
        self._obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._success = np.zeros(num_envs, dtype=np.bool_)
        self._reports_success = False

    @property
    def running(self) -> NDArray[np.bool_]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return ~(self._terminated | self._truncated)

    @property
    def success(self) -> NDArray[np.bool_] | None:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return self._success.copy() if self._reports_success else None

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        index = checked_rows(seeds, self.num_envs, rows)
        seed_of = {int(i): int(seed) for i, seed in zip(index, seeds)}
        requests = {}
        for worker, part in enumerate(self._parts):
            mine = [i for i in index.tolist() if part[0] <= i <= part[-1]]
            if mine:
                requests[worker] = ("reset", ([seed_of[i] for i in mine], [i - part[0] for i in mine]))
        for worker, (obs, success) in self._ask(requests).items():
            self._obs[self._parts[worker]] = obs
            self._note_success(worker, success)
        self._terminated[index] = self._truncated[index] = False
        return self._obs.copy()

    def step(self, action: NDArray[Any]) -> Step:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        chunk = self.step_chunk(checked_action(action, self.num_envs, self.action_dim)[:, None])
        return chunk.obs[:, 0], chunk.reward[:, 0], chunk.terminated, chunk.truncated

    def step_chunk(self, actions: NDArray[Any]) -> ChunkStep:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        actions = checked_chunk(actions, self.num_envs, self.action_dim)
        answers = self._ask({worker: ("step_chunk", (actions[part],)) for worker, part in enumerate(self._parts)})
        for worker, (_, success) in answers.items():
            self._note_success(worker, success)
        chunks: list[ChunkStep] = [answers[worker][0] for worker in range(len(self._parts))]
        columns = zip(*((one.obs, one.reward, one.terminated, one.truncated, one.length) for one in chunks))
        joined = ChunkStep(*(np.concatenate(column) for column in columns))
        self._obs = joined.obs[:, -1].copy()
        self._terminated, self._truncated = joined.terminated.copy(), joined.truncated.copy()
        return joined

    def close(self) -> None:
        """End the workers, which release their environments."""
        self._end()

    def _note_success(self, worker: int, success: NDArray[np.bool_] | None) -> None:
        """What a worker says; as long as its environments have not reported success, theirs is False."""
        if success is not None:
            self._success[self._parts[worker]], self._reports_success = success, True

    def _ask(self, requests: Mapping[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]:
        """Have workers carry out a method of their batch each, and return what came of it and of success."""
        if not self._end.alive:
            raise WorkerError("the environments are closed: a worker has failed, or close() was called")
        for worker, request in requests.items():
            with contextlib.suppress(OSError):  # it has ended: there is no answer then
                self._connections[worker].send(request)
        return self._answers(requests)

    def _answers(self, workers: Iterable[int]) -> dict[int, Any]:
        try:
            return {worker: self._answer(worker) for worker in workers}
        except BaseException:  # an interrupt, too: what is left unread would be taken for the next answer
            self.close()
            raise

    def _answer(self, worker: int) -> Any:
        process: BaseProcess = self._processes[worker]
        try:
            went_well, answer = self._connections[worker].recv()
        except (EOFError, OSError):
            process.join(PATIENCE)
            killed = " (killed: is there enough memory?)" if process.exitcode == -signal.SIGKILL else ""
            went_well, answer = False, f"it ended with exit code {process.exitcode}{killed}"
        if not went_well:
            part = self._parts[worker]
            raise WorkerError(f"the worker of environments {part[0]} to {part[-1]} failed: {answer}")
        return answer


def _work(
    connection: Connection,
    inherited: Sequence[Connection],
    make_single: Callable[[], gymnasium.Env[Any, Any]],
    num_envs: int,
) -> None:
    """What a worker does: carry out methods of its batch until it is told to stop or there is nobody to tell it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole foreground group; who made the workers ends them
    for other in inherited:
        other.close()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        went_well, made = _outcome(lambda: GymBatch(make_single, num_envs))
        connection.send((went_well, [getattr(made, name) for name in FACTS] if went_well else made))
        while went_well and (request := connection.recv()) is not None:
            method, arguments = request
            went_well, result = _outcome(partial(getattr(made, method), *arguments))
            connection.send((went_well, (result, made.success) if went_well else result))
        if went_well:
            made.close()


def _outcome(act: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether a call went well, and what it returned, or else the traceback of what it raised."""
    try:
        return True, act()
    except BaseException:
        return False, f"\n{traceback.format_exc()}"


def _end_workers(owner: int, connections: Sequence[Connection], processes: Sequence[Any]) -> None:
    """Stop all workers, by force those that do not stop; nothing in a process that only inherited them."""
    if os.getpid() != owner:
        return
    for connection in connections:
        with contextlib.suppress(OSError):  # has ended already
            connection.send(None)
        connection.close()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
