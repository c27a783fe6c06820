"""Many environments in a few worker processes, whole chunks a call: for simulators that spend their time in Python.

Few processes with many environments each: one that has loaded a simulator such as robosuite takes some 450 MB, and a
call costs the same for one environment as for many.

A worker that fails (its environment raises, it hangs, or it is killed) is started anew, and its episodes are begun
again and done again up to where they were: nothing is lost but time, nothing that the failure has touched is handed on.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import ChunkStep, GymBatch, Step, checked_action, checked_chunk, checked_rows, replay

# What the batch of every worker says of itself.
FACTS = ("obs_dim", "action_dim", "action_low", "action_high", "max_episode_steps")
# Seconds that a worker gets to end by itself before it is killed.
PATIENCE = 5.0
# Times that a call is tried.
ATTEMPTS = 3


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
        timeout: Seconds after which a worker that has not answered a call is taken to hang; None: it is waited for.
        max_restarts: How many workers are started anew in all.

    Attributes:
        pids: Process number of each worker.
        restarts: How many have been started anew.

    Raises:
        ValueError: If a number is not positive.
        WorkerError: If an environment cannot be made; if a call fails ``ATTEMPTS`` times, as where an environment
            raises whenever an action is done in a state; or if no restart is left. All workers end with it.
    """

    obs_dim: int
    action_dim: int
    action_low: NDArray[np.float32]
    action_high: NDArray[np.float32]
    max_episode_steps: int

    def __init__(
        self,
        make_single: Callable[[], gymnasium.Env[Any, Any]],
        num_envs: int,
        num_workers: int | None = None,
        *,
        timeout: float | None = 300.0,
        max_restarts: int = 20,
    ) -> None:
        if num_envs < 1 or (num_workers is not None and num_workers < 1):
            raise ValueError(f"num_envs and num_workers must be at least 1, got {num_envs} and {num_workers}")
        self._parts = np.array_split(np.arange(num_envs), min(num_workers or os.cpu_count() or 1, num_envs))
        self._make_single, self._timeout, self._max_restarts = make_single, timeout, max_restarts
        self._context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        self.restarts = 0
        self._end = weakref.finalize(self, _end_workers, os.getpid(), self._connections, self._processes)
        for worker in range(len(self._parts)):
            self._start(worker)
        # What each running episode is made of: its seed, and what was done in it, (n, Da) a call.
        self._seeds = [0] * num_envs
        self._done: list[list[NDArray[np.float32]]] = [[] for _ in range(num_envs)]

        self.num_envs = num_envs
        try:
            facts = [self._answer(worker) for worker in range(len(self._parts))]
        except BaseException:
            self.close()
            raise
        for name, value in zip(FACTS, facts[0]):
            setattr(self, name, value)
        self._obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._success = np.zeros(num_envs, dtype=np.bool_)
        self._reports_success = False

    @property
    def pids(self) -> list[int]:
        """See the class."""
        return [process.pid for process in self._processes]

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
        for i in index.tolist():
            self._seeds[i], self._done[i] = seed_of[i], []
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
        for done, chunk, length in zip(self._done, actions, joined.length):
            if length:
                done.append(chunk[:length].astype(np.float32))
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
        try:
            for worker, request in requests.items():
                self._send(worker, request)
            return {worker: self._insist(worker, request) for worker, request in requests.items()}
        except BaseException:  # an interrupt, too: what is left unread would be taken for the next answer
            self.close()
            raise

    def _insist(self, worker: int, request: tuple[str, tuple[Any, ...]]) -> Any:
        """The answer to a request that was sent, if need be from another process in the worker's place."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._answer(worker)
            except WorkerError as error:
                if attempt == ATTEMPTS or self.restarts >= self._max_restarts:
                    raise
                logging.getLogger("ding_ebm").warning("%s\nIt is started anew (attempt %d).", error, attempt + 1)
            self.restarts += 1
            _end_worker(self._connections[worker], self._processes[worker], patience=0.0)
            self._start(worker)
            part = self._parts[worker]
            self._answer(worker)  # that its environments are made
            empty = np.zeros((0, self.action_dim), dtype=np.float32)
            done = [np.concatenate([empty, *self._done[i]]) for i in part]
            self._send(worker, ("replay", ([self._seeds[i] for i in part], done)))
            self._answer(worker)
            self._send(worker, request)
        raise AssertionError("unreachable")

    def _start(self, worker: int) -> None:
        """A process for a worker, in the place of the one that it had."""
        ours, theirs = self._context.Pipe()
        others = [one for i, one in enumerate(self._connections) if i != worker]
        # A forked worker has copies of our ends; open there, they would keep it from seeing that we are gone.
        inherited = [*others, ours] if self._context.get_start_method() == "fork" else []
        work = (theirs, inherited, self._make_single, len(self._parts[worker]))
        process = self._context.Process(target=_work, args=work, daemon=True)
        process.start()
        theirs.close()
        if worker < len(self._processes):
            self._connections[worker], self._processes[worker] = ours, process
        else:
            self._connections.append(ours)
            self._processes.append(process)

    def _send(self, worker: int, request: tuple[str, tuple[Any, ...]]) -> None:
        with contextlib.suppress(OSError):  # it has ended: there is no answer then
            self._connections[worker].send(request)

    def _answer(self, worker: int) -> Any:
        process: BaseProcess = self._processes[worker]
        try:
            if not self._connections[worker].poll(self._timeout):
                went_well, answer = False, f"it has not answered for {self._timeout:g} seconds"
            else:
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
            act = partial(replay, made) if method == "replay" else getattr(made, method)
            went_well, result = _outcome(partial(act, *arguments))
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
    for connection, process in zip(connections, processes):
        _end_worker(connection, process, PATIENCE)


def _end_worker(connection: Connection, process: Any, patience: float) -> None:
    """Wait for a worker to stop, and stop it by force."""
    connection.close()
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()
