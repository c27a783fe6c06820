"""Tasks on MuJoCo as batches on ``mujoco.rollout``: a chunk of actions is one call an environment.

Model files, seeds, rewards, terminations and observations of the running tasks are Gymnasium's, by default of version 4
(because v5 rewards and ends episodes differently from D4RL's data), and so, bit by bit, are the episodes.

Each environment is rolled out by a call of its own. One call for all would save some 3 % of the time, but it neither
returns nor keeps the solver's warm start of each environment, and without that the episodes drift from Gymnasium's: by
meters within 200 steps of a cheetah.

Letters: E environments, n of them running, Ta actions of a chunk, Do and Da dimensions of an observation and of an
action, P positions, V velocities, N notes (see :mod:`ding_ebm.envs.bodies`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mujoco.rollout import Rollout
from numpy.typing import NDArray

from ding_ebm.envs.batch import ChunkStep, Step, checked_action, checked_chunk, checked_rows
from ding_ebm.envs.bodies import Body, Floats
from ding_ebm.envs.mazes import MAZES, make_maze
from ding_ebm.envs.render import FRAME_SIZE, Renderer
from ding_ebm.envs.running import RUNNERS, make_runner

# Simulated time at the start of every chunk, seconds. Where MuJoCo warns, of an acceleration that is not finite, say,
# it resets the simulation or stops the rollout: time is then not what it should be. From 0 a reset could not be told.
_CLOCK = 1.0

# What makes the body of each task, by the task's name and the name of the dynamics.
BODIES: dict[str, Callable[[str, str], Body]] = {
    **dict.fromkeys(RUNNERS, make_runner),
    **dict.fromkeys(MAZES, make_maze),
}


def _stop_the_clock() -> None:
    """Turn off MuJoCo's profiling clock in this process, unless the user has set one.

    MuJoCo's Python package starts it with every ``MjData``. To read it takes a fifth of a step of hopper. Without it
    the durations in ``MjData.timer`` stand still.
    """
    if mujoco.get_mjcb_time() is None:
        mujoco.set_mjcb_time(None)


def _openmp_pause() -> Callable[[], object]:
    """What ends the OpenMP threads that torch keeps for the calling thread; its next parallel operation begins others.

    Until then they would wait in a busy loop, for milliseconds: after a policy's call they take all cores but one, and
    the simulation gets what is left. To begin a thread anew takes some 30 us. Nothing is done where torch is not in
    use, or where its OpenMP runtime is older than version 5.
    """
    torch = sys.modules.get("torch")
    pause = torch and getattr(ctypes.CDLL(torch._C.__file__), "omp_pause_resource_all", None)
    soft = 1  # keeps the settings, such as the number of threads
    return partial(pause, soft) if pause else lambda: None


class MujocoBatch:
    """E environments of one task as a :class:`~ding_ebm.envs.batch.BatchEnv`.

    As in Gymnasium, actions outside the range are not clipped here: the simulation clips them, their cost is that of
    the action as given. An episode may terminate and be truncated in one step.

    Args:
        name: One of ``BODIES``.
        num_envs: E.
        dynamics: See ``DYNAMICS`` of :mod:`ding_ebm.envs.bodies`; not every task has all.
        num_threads: Threads that simulate, at most E; None: as many as there are cores. Results do not depend on it.
        max_episode_steps: Steps after which an episode is truncated.

    Raises:
        ValueError: If an argument is out of its range; from a step, if a simulation breaks down.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        *,
        dynamics: str = "v4",
        num_threads: int | None = None,
        max_episode_steps: int = 1000,
    ) -> None:
        if name not in BODIES:
            raise ValueError(f"name must be one of {', '.join(BODIES)}, got {name!r}")
        if num_envs < 1 or max_episode_steps < 1 or (num_threads is not None and num_threads < 1):
            given = f"{num_envs}, {max_episode_steps} and {num_threads}"
            raise ValueError(f"num_envs, max_episode_steps and num_threads must be positive, got {given}")
        self._name, self._body = name, BODIES[name](name, dynamics)
        self._model = model = self._body.model
        # A body that is one tree is one island of constraints: the solver gets the same bits without looking for more,
        # and a step of hopper takes a tenth less time.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
        self.num_envs = num_envs
        self.obs_dim = self._body.obs_dim
        self.action_dim: int = model.nu
        self.action_low, self.action_high = self._body.action_low, self._body.action_high
        self.max_episode_steps = max_episode_steps
        threads = min(num_threads or os.cpu_count() or 1, num_envs)
        self._workers = [(Rollout(nthread=0), mujoco.MjData(model)) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix=name) if threads > 1 else None
        self._pause_openmp = _openmp_pause()
        self._renderer: Renderer | None = None
        self._physics = 1 + model.nq + model.nv  # time, positions and velocities: MuJoCo's "full physics"
        self._state = np.zeros((num_envs, self._physics + self._body.num_notes))
        self._warmstart = np.zeros((num_envs, model.nv))
        self._obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._success = np.zeros(num_envs, dtype=np.bool_)
        self.reset(range(num_envs))

    @property
    def running(self) -> NDArray[np.bool_]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return ~(self._terminated | self._truncated)

    @property
    def success(self) -> NDArray[np.bool_] | None:
        """Whether the goal has been reached; None for running, which has no notion of it."""
        return self._success.copy() if self._body.has_goal else None

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`; a seed begins the episode that it begins in Gymnasium."""
        index = checked_rows(seeds, self.num_envs, rows)
        data = self._workers[0][1]
        for i, seed in zip(index, seeds):
            rng, _ = gymnasium.utils.seeding.np_random(int(seed))
            mujoco.mj_resetData(self._model, data)
            notes = self._body.start(rng, data)
            self._state[i] = np.concatenate([[_CLOCK], data.qpos, data.qvel, notes])
            self._warmstart[i] = data.qacc_warmstart
        self._obs[index] = self._body.observe(self._state[index])
        self._steps[index] = 0
        self._terminated[index] = self._truncated[index] = self._success[index] = False
        return self._obs.copy()

    def step(self, action: NDArray[Any]) -> Step:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        action = checked_action(action, self.num_envs, self.action_dim)
        chunk = self.step_chunk(action[:, None])
        return chunk.obs[:, 0], chunk.reward[:, 0], chunk.terminated, chunk.truncated

    def step_chunk(self, actions: NDArray[Any]) -> ChunkStep:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`.

        A chunk is simulated to its end and cut where the episode ends.
        """
        actions = checked_chunk(actions, self.num_envs, self.action_dim)
        size = actions.shape[1]
        rows = np.flatnonzero(self.running)
        moments, warmstart = self._simulate(rows, actions[rows])
        states = moments[:, 1:]
        healthy = self._body.goes_on(states)
        # The first step that is unhealthy or the last one allowed is the last of its episode.
        ends = ~healthy | (self._steps[rows, None] + np.arange(1, size + 1) >= self.max_episode_steps)
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, size)
        executed = np.arange(size) < lengths[:, None]
        self._check_clock(rows, states, executed)

        reward = np.zeros((self.num_envs, size))
        reward[rows] = np.where(executed, self._body.rewards(moments, actions[rows]), 0.0)
        obs = np.repeat(self._obs[:, None], size, axis=1)
        last = np.minimum(np.arange(size), lengths[:, None] - 1)
        obs[rows] = np.take_along_axis(self._body.observe(states), last[:, :, None], axis=1)
        length = np.zeros(self.num_envs, dtype=np.int64)
        length[rows] = lengths

        final = np.arange(len(rows)), lengths - 1
        self._state[rows] = states[final]
        self._state[rows, 0] = _CLOCK
        self._warmstart[rows] = (
            warmstart  # where a chunk was cut it is that of its end, and never used: a reset follows
        )
        self._obs = obs[:, -1].copy()
        self._steps[rows] += lengths
        self._terminated[rows] = ~healthy[final]
        self._truncated[rows] = self._steps[rows] >= self.max_episode_steps
        self._success |= (reward > 0).any(axis=1)
        return ChunkStep(obs, reward, self._terminated.copy(), self._truncated.copy(), length)

    @property
    def steps_per_second(self) -> float:
        """Actions a second of simulated time."""
        return 1.0 / self._body.seconds

    def frame(self, row: int) -> NDArray[np.uint8]:
        """A picture of one environment, (256, 256, 3).

        Raises:
            ModuleNotFoundError: See :class:`~ding_ebm.envs.render.Renderer`.
        """
        if self._renderer is None:
            self._renderer = Renderer(self._model, FRAME_SIZE, FRAME_SIZE)
        data = self._workers[0][1]
        mujoco.mj_setState(self._model, data, self._state[row, : self._physics], mujoco.mjtState.mjSTATE_FULLPHYSICS)
        mujoco.mj_forward(self._model, data)
        return self._renderer.frame(data, "track" if self._name in RUNNERS else -1)

    def close(self) -> None:
        """Release the threads."""
        if self._renderer is not None:
            self._renderer.close()
        if self._pool is not None:
            self._pool.shutdown()
        for rollout, _ in self._workers:
            rollout.close()

    def _simulate(self, rows: NDArray[np.int64], actions: NDArray[Any]) -> tuple[Floats, Floats]:
        """Moments before and after actions, (n, Ta + 1, 1 + P + V + N), and the solver's last warm starts, (n, V)."""
        control = self._body.control(actions)
        moments = np.repeat(self._state[rows, None], control.shape[1] + 1, axis=1)
        warmstart = self._warmstart[rows]
        act = self._act_by_steps if self._body.stepwise else self._act_in_one_call
        _stop_the_clock()
        waiting = iter(range(len(rows)))

        def work(worker: int) -> None:
            for i in waiting:  # shared: who is done takes the next
                act(worker, moments[i], control[i], warmstart[i])

        if self._pool is None:
            work(0)
        else:
            self._pause_openmp()
            others = [self._pool.submit(work, worker) for worker in range(1, len(self._workers))]
            work(0)
            for other in others:
                other.result()
        return moments, warmstart

    def _act_in_one_call(self, worker: int, moments: Floats, control: Floats, warmstart: Floats) -> None:
        """Fill in the moments after a chunk's actions, (Ta, Da), and the warm start."""
        rollout, data = self._workers[worker]
        skip = self._body.frame_skip
        states = np.empty((1, skip * len(control), self._physics))
        rollout.rollout(
            [self._model],
            [data],
            moments[:1, : self._physics],
            np.repeat(control, skip, axis=0)[None],
            skip_checks=True,
            nstep=states.shape[1],
            initial_warmstart=warmstart[None],
            state=states,
        )
        moments[1:, : self._physics] = states[0, skip - 1 :: skip]
        warmstart[:] = data.qacc_warmstart

    def _act_by_steps(self, worker: int, moments: Floats, control: Floats, warmstart: Floats) -> None:
        """The same for a body that is read or changed after every action."""
        data, notes = self._workers[worker][1], moments[0, self._physics :]
        mujoco.mj_setState(self._model, data, moments[0, : self._physics], mujoco.mjtState.mjSTATE_FULLPHYSICS)
        data.qacc_warmstart[:] = warmstart
        for t, single in enumerate(control):
            notes = self._body.advance(data, single, notes)
            np.concatenate([[data.time], data.qpos, data.qvel, notes], out=moments[t + 1])
        warmstart[:] = data.qacc_warmstart

    def _check_clock(self, rows: NDArray[np.int64], states: Floats, executed: NDArray[np.bool_]) -> None:
        """Refuse a simulation that MuJoCo has reset or stopped in a step that counts."""
        expected = _CLOCK + self._body.seconds * np.arange(1, states.shape[1] + 1)
        broken = executed & ~(np.abs(states[..., 0] - expected) < 0.5 * self._model.opt.timestep)
        if broken.any():
            i, t = np.argwhere(broken)[0]
            raise ValueError(
                f"{self._name}: the simulation of environment {rows[i]} broke down at step {self._steps[rows[i]] + t} "
                f"of its episode: MuJoCo met a position, velocity, acceleration or control that is too large or not "
                f"finite, or too many contacts; {broken.any(axis=1).sum()} of {len(rows)} running environments did"
            )
