"""Hopper, Walker2d and HalfCheetah as batches on ``mujoco.rollout``: a chunk of actions is one call an environment.

Model files, seeds, rewards, terminations and observations are those of Gymnasium's v4 tasks (version 4, because v5
rewards and ends episodes differently from D4RL's data), and so, bit by bit, are the episodes.

Each environment is rolled out by a call of its own. One call for all would save some 3 % of the time, but it neither
returns nor keeps the solver's warm start of each environment, and without that the episodes drift from Gymnasium's: by
meters within 200 steps of a cheetah.

Letters: E environments, n of them running, Ta actions of a chunk, Do and Da dimensions of an observation and of an
action, P positions, V velocities.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mujoco.rollout import Rollout
from numpy.typing import NDArray

from ding_ebm.envs.batch import ChunkStep, Step, checked_action, checked_chunk, checked_rows

Floats = NDArray[np.float64]

# Simulated time at the start of every chunk, seconds. Where MuJoCo warns, of an acceleration that is not finite, say,
# it resets the simulation or stops the rollout: time is then not what it should be. From 0 a reset could not be told.
_CLOCK = 1.0


@dataclass(frozen=True)
class Body:
    """What the tasks do not share.

    Attributes:
        file: Model among Gymnasium's assets.
        frame_skip: Simulation steps an action.
        control_cost: Cost of an action's squared length.
        alive_reward: Reward of every step, that of a fall included.
        reset_noise: Half the range of the first positions; of the velocities too, or their standard deviation.
        normal_velocity: Whether the first velocities are normal, not uniform.
        velocity_limit: Velocities are clipped to it in the observation.
        height: Range of the torso's height outside which an episode ends.
        angle: Limit of the torso's angle.
        state: Limit of every other position and velocity.
    """

    file: str
    frame_skip: int
    control_cost: float
    alive_reward: float
    reset_noise: float
    normal_velocity: bool = False
    velocity_limit: float = np.inf
    height: tuple[float, float] = (-np.inf, np.inf)
    angle: float = np.inf
    state: float = np.inf


BODIES = {
    "hopper": Body("hopper.xml", 4, 1e-3, 1.0, 5e-3, velocity_limit=10.0, height=(0.7, np.inf), angle=0.2, state=100.0),
    "walker2d": Body("walker2d.xml", 4, 1e-3, 1.0, 5e-3, velocity_limit=10.0, height=(0.8, 2.0), angle=1.0),
    "halfcheetah": Body("half_cheetah.xml", 5, 0.1, 0.0, 0.1, normal_velocity=True),
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
        num_threads: Threads that simulate, at most E; None: as many as there are cores. Results do not depend on it.
        max_episode_steps: Steps after which an episode is truncated.

    Attributes:
        success: None: running has no notion of it.

    Raises:
        ValueError: If an argument is out of its range; from a step, if a simulation breaks down.
    """

    success = None

    def __init__(
        self, name: str, num_envs: int, *, num_threads: int | None = None, max_episode_steps: int = 1000
    ) -> None:
        if name not in BODIES:
            raise ValueError(f"name must be one of {', '.join(BODIES)}, got {name!r}")
        if num_envs < 1 or max_episode_steps < 1 or (num_threads is not None and num_threads < 1):
            given = f"{num_envs}, {max_episode_steps} and {num_threads}"
            raise ValueError(f"num_envs, max_episode_steps and num_threads must be positive, got {given}")
        self._name, self._body = name, BODIES[name]
        file = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / self._body.file
        self._model = model = mujoco.MjModel.from_xml_path(str(file))
        # A body that is one tree is one island of constraints: the solver gets the same bits without looking for more,
        # and a step of hopper takes a tenth less time.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
        self._seconds = model.opt.timestep * self._body.frame_skip
        self.num_envs = num_envs
        self.obs_dim: int = model.nq - 1 + model.nv
        self.action_dim: int = model.nu
        self.action_low, self.action_high = model.actuator_ctrlrange.T.astype(np.float32)
        self.max_episode_steps = max_episode_steps
        threads = min(num_threads or os.cpu_count() or 1, num_envs)
        self._workers = [(Rollout(nthread=0), mujoco.MjData(model)) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix=name) if threads > 1 else None
        self._pause_openmp = _openmp_pause()
        # Time, positions and velocities: MuJoCo's "full physics".
        self._state = np.zeros((num_envs, 1 + model.nq + model.nv))
        self._warmstart = np.zeros((num_envs, model.nv))
        self._obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self.reset(range(num_envs))

    @property
    def running(self) -> NDArray[np.bool_]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return ~(self._terminated | self._truncated)

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`; a seed begins the episode that it begins in Gymnasium."""
        index = checked_rows(seeds, self.num_envs, rows)
        model, data, noise = self._model, self._workers[0][1], self._body.reset_noise
        for i, seed in zip(index, seeds):
            rng, _ = gymnasium.utils.seeding.np_random(int(seed))
            mujoco.mj_resetData(model, data)
            data.qpos += rng.uniform(-noise, noise, model.nq)
            if self._body.normal_velocity:
                data.qvel += noise * rng.standard_normal(model.nv)
            else:
                data.qvel += rng.uniform(-noise, noise, model.nv)
            mujoco.mj_forward(model, data)
            self._state[i] = np.concatenate([[_CLOCK], data.qpos, data.qvel])
            self._warmstart[i] = data.qacc_warmstart
        self._obs[index] = self._observe(self._state[index])
        self._steps[index] = 0
        self._terminated[index] = False
        self._truncated[index] = False
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
        states, warmstart = self._simulate(rows, actions[rows])
        healthy = self._is_healthy(states)
        # The first step that is unhealthy or the last one allowed is the last of its episode.
        ends = ~healthy | (self._steps[rows, None] + np.arange(1, size + 1) >= self.max_episode_steps)
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, size)
        executed = np.arange(size) < lengths[:, None]
        self._check_clock(rows, states, executed)

        reward = np.zeros((self.num_envs, size))
        reward[rows] = np.where(executed, self._rewards(rows, states, actions[rows]), 0.0)
        obs = np.repeat(self._obs[:, None], size, axis=1)
        last = np.minimum(np.arange(size), lengths[:, None] - 1)
        obs[rows] = np.take_along_axis(self._observe(states), last[:, :, None], axis=1)
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
        return ChunkStep(obs, reward, self._terminated.copy(), self._truncated.copy(), length)

    def close(self) -> None:
        """Release the threads."""
        if self._pool is not None:
            self._pool.shutdown()
        for rollout, _ in self._workers:
            rollout.close()

    def _simulate(self, rows: NDArray[np.int64], actions: NDArray[Any]) -> tuple[Floats, Floats]:
        """States after each action, (n, Ta, 1 + P + V), and the solver's warm starts after the last, (n, V)."""
        skip = self._body.frame_skip
        control = np.repeat(actions.astype(np.float64), skip, axis=1)
        states = np.empty((len(rows), control.shape[1], self._state.shape[1]))
        start, warmstart = self._state[rows], self._warmstart[rows]
        _stop_the_clock()
        waiting = iter(range(len(rows)))

        def work(worker: int) -> None:
            rollout, data = self._workers[worker]
            for i in waiting:  # shared: who is done takes the next
                one = slice(i, i + 1)
                rollout.rollout(
                    [self._model],
                    [data],
                    start[one],
                    control[one],
                    skip_checks=True,
                    nstep=control.shape[1],
                    initial_warmstart=warmstart[one],
                    state=states[one],
                )
                warmstart[i] = data.qacc_warmstart

        if self._pool is None:
            work(0)
        else:
            self._pause_openmp()
            others = [self._pool.submit(work, worker) for worker in range(1, len(self._workers))]
            work(0)
            for other in others:
                other.result()
        return states[:, skip - 1 :: skip], warmstart

    def _is_healthy(self, states: Floats) -> NDArray[np.bool_]:
        """Whether the task goes on, (n, Ta)."""
        body, height, angle = self._body, states[..., 2], states[..., 3]
        upright = (body.height[0] < height) & (height < body.height[1]) & (np.abs(angle) < body.angle)
        return upright & (np.abs(states[..., 3:]) < body.state).all(axis=-1)

    def _rewards(self, rows: NDArray[np.int64], states: Floats, actions: NDArray[Any]) -> Floats:
        """Forward velocity, reward for being alive and cost of the action, (n, Ta)."""
        velocity = np.diff(states[..., 1], prepend=self._state[rows, None, 1]) / self._seconds
        # Summed in the precision of the actions, as Gymnasium does: in float32 a cheetah's cost differs by 1e-8.
        squared = np.square(actions).sum(axis=-1).astype(np.float64)
        return velocity + self._body.alive_reward - self._body.control_cost * squared

    def _observe(self, states: Floats) -> NDArray[np.float32]:
        """Positions without the horizontal one, and velocities, (..., Do)."""
        first = 1 + self._model.nq
        limit = self._body.velocity_limit
        velocity = np.clip(states[..., first:], -limit, limit)
        return np.concatenate([states[..., 2:first], velocity], axis=-1, dtype=np.float32)

    def _check_clock(self, rows: NDArray[np.int64], states: Floats, executed: NDArray[np.bool_]) -> None:
        """Refuse a simulation that MuJoCo has reset or stopped in a step that counts."""
        expected = _CLOCK + self._seconds * np.arange(1, states.shape[1] + 1)
        broken = executed & ~(np.abs(states[..., 0] - expected) < 0.5 * self._model.opt.timestep)
        if broken.any():
            i, t = np.argwhere(broken)[0]
            raise ValueError(
                f"{self._name}: the simulation of environment {rows[i]} broke down at step {self._steps[rows[i]] + t} "
                f"of its episode: MuJoCo met a position, velocity, acceleration or control that is too large or not "
                f"finite, or too many contacts; {broken.any(axis=1).sum()} of {len(rows)} running environments did"
            )
