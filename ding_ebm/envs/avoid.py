"""``avoid``: steer a point between three rows of cylinders; vectorized NumPy, thousands of episodes a second.

A light stand-in for the avoiding task of D3IL (Jia et al. 2024, arXiv:2402.14606) in the form in which DPPO (Ren et al.
2024, arXiv:2409.00588) fine-tunes it: the same cylinders, start, observation, action and ways through, but a
point that follows its target by a formula instead of a simulated arm. Differences: the reward and the end of an
episode are ours (below), the start varies by up to a centimeter so that episodes differ by their seed, and an
observation is taken after the action, not before it, unless ``stale_obs`` says so. Lengths are meters.

Observation (4): target x, y and actual x, y. Action (2): displacement of the target, clipped to +-0.01 in x and in y.

Reward of a step: the share of the distance in y to the finish line that it gains (a crossing sums to about 1), less
``TIME_COST``; less ``FAILURE_COST`` if it touches a cylinder or leaves the field in x, which ends the episode; plus
the entry of ``LANE_BONUS`` if it crosses the finish line, which ends the episode too. The four lanes of the finish
line lie above the four gates of the last row. So the reward is a function of state and action, and which of the many
ways a policy takes decides its return.

Letters: E environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import ChunkStep, Step, checked_action, checked_rows, step_chunk_by_steps
from ding_ebm.envs.single import SingleEnv

TRACKINGS = ("ideal", "arx")

START = (0.525, -0.28)
START_SPREAD = 0.01
FINISH_Y = 0.40
FIELD_X = (0.2, 0.8)
MAX_DISPLACEMENT = 0.01
ROD_RADIUS = 0.01
CYLINDERS = np.array(  # x, y, radius
    [
        (0.5, -0.1, 0.03),
        (0.425, 0.08, 0.025),
        (0.575, 0.08, 0.025),
        (0.35, 0.26, 0.025),
        (0.5, 0.26, 0.025),
        (0.65, 0.26, 0.025),
    ]
)
# Range of y in which each row of cylinders is judged, and the x at which one gate of it ends and the next begins.
ROWS_Y = ((-0.13, -0.07), (0.05, 0.11), (0.26, np.inf))
ROWS_X = ((0.5,), (0.425, 0.575), (0.35, 0.5, 0.65))

TIME_COST = 0.002
FAILURE_COST = 1.0
# The best lane is an inner one: drifting to one side does not find it, nor leads out of the data.
LANE_BONUS = (0.5, 0.0, 2.0, 1.0)

# Fitted to recorded motions of the simulated arm, both axes alike: actual position from the two actual positions
# before, the target and the target before. The weights sum to 1: a target at rest is reached.
_ARX = (1.790, -0.834, 0.2173, -0.1733)

_ROWS_LOW, _ROWS_HIGH = np.array(ROWS_Y).T
_ROWS_EDGES = np.array([edges + (np.inf,) * (3 - len(edges)) for edges in ROWS_X])
_FIRST_BIT = np.array([0, 2, 5])
_LANES = np.array(ROWS_X[2])
_BONUS = np.array(LANE_BONUS)
_CONTACT = np.square(CYLINDERS[:, 2] + ROD_RADIUS)


class AvoidBatch:
    """E environments as a :class:`~ding_ebm.envs.batch.BatchEnv`, stepped as arrays.

    Args:
        num_envs: E.
        tracking: ``ideal``, the actual position is the target (the observation is then the whole state); or ``arx``,
            it follows with the arm's lag and overshoot, by a recursion over two steps.
        stale_obs: Whether a step returns what was before it, so that the first one returns the first observation again.
            The simulated arm's environment does.
        max_episode_steps: Steps after which an episode is truncated.

    Attributes:
        gates: Which gate of each row was passed first, counted from the left, (E, 3), int64; -1 where none was.
        success: Whether the finish line was crossed, (E,), bool.

    Raises:
        ValueError: If an argument is out of its range.
    """

    obs_dim = 4
    action_dim = 2
    gates: NDArray[np.int64]
    success: NDArray[np.bool_]
    _target: NDArray[np.float64]
    _actual: NDArray[np.float64]
    _previous: NDArray[np.float64]
    _shown: NDArray[np.float32]

    def __init__(
        self, num_envs: int, *, tracking: str = "ideal", stale_obs: bool = False, max_episode_steps: int = 150
    ) -> None:
        if num_envs < 1 or max_episode_steps < 1:
            raise ValueError(f"num_envs and max_episode_steps must be positive, got {num_envs} and {max_episode_steps}")
        if tracking not in TRACKINGS:
            raise ValueError(f"tracking must be one of {TRACKINGS}, got {tracking!r}")
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.action_low = np.full(2, -MAX_DISPLACEMENT, dtype=np.float32)
        self.action_high = -self.action_low
        self._tracking, self._stale = tracking, stale_obs
        self._shown = np.zeros((num_envs, 4), dtype=np.float32)
        self._target = self._actual = self._previous = np.zeros((num_envs, 2))
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._collided = np.zeros(num_envs, dtype=np.bool_)
        self._terminated = self._truncated = self.success = self._collided
        self.gates = np.full((num_envs, 3), -1)
        self.reset(range(num_envs))

    @property
    def running(self) -> NDArray[np.bool_]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return ~(self._terminated | self._truncated)

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        index = checked_rows(seeds, self.num_envs, rows)
        spread = [np.random.default_rng(int(seed)).uniform(-START_SPREAD, START_SPREAD, 2) for seed in seeds]
        start = np.add(START, np.reshape(spread, (-1, 2)))
        begin = dict(_target=start, _actual=start, _previous=start, _steps=0, gates=-1)
        flags = dict.fromkeys(("_collided", "_terminated", "_truncated", "success"), False)
        for name, value in {**begin, **flags}.items():
            array = getattr(self, name).copy()  # the old one may be held outside, or by another name
            array[index] = value
            setattr(self, name, array)
        self._shown = self._shown.copy()
        self._shown[index] = self._state()[index]
        return self._shown.copy()

    def step(self, action: NDArray[Any]) -> Step:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        action = checked_action(action, self.num_envs, self.action_dim)
        running = self.running
        before, stale = self._actual, self._state() if self._stale else None
        self._move(np.clip(action, -MAX_DISPLACEMENT, MAX_DISPLACEMENT), running[:, None])
        x, y = self._actual[:, 0], self._actual[:, 1]
        # (x - c)^2 + (y - d)^2 < r^2 for each cylinder
        squared = np.square(x[:, None] - CYLINDERS[:, 0]) + np.square(y[:, None] - CYLINDERS[:, 1])
        self._collided = self._collided | (squared < _CONTACT).any(axis=1)
        self._note_gates(x, y)
        self._steps = self._steps + running
        # Where an episode has ended nothing has moved, so that the judgement stays as it was.
        reward = self._judge(before, (x < FIELD_X[0]) | (x > FIELD_X[1]))
        self._truncated = ~self._terminated & (self._steps >= self.max_episode_steps)
        self._shown = self._state() if stale is None else np.where(running[:, None], stale, self._shown)
        return self._shown.copy(), np.where(running, reward, 0.0), self._terminated.copy(), self._truncated.copy()

    def step_chunk(self, actions: NDArray[Any]) -> ChunkStep:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return step_chunk_by_steps(self, actions)

    def way_through(self) -> NDArray[np.bool_]:
        """The nine mode bits of D3IL, (E, 9): one for each gate of the rows of 2, 3 and 4, set where it was passed."""
        bits = np.zeros((self.num_envs, 9), dtype=np.bool_)
        env, row = np.nonzero(self.gates >= 0)
        bits[env, _FIRST_BIT[row] + self.gates[env, row]] = True
        return bits

    def _judge(self, before: NDArray[np.float64], outside: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Rewards of a step from the positions ``before``; notes who has arrived and whose episode the task ends."""
        x, y = self._actual[:, 0], self._actual[:, 1]
        failed = self._collided | outside
        self.success = (y > FINISH_Y) & ~failed
        self._terminated = failed | self.success
        bonus = np.where(self.success, _BONUS[np.searchsorted(_LANES, x)], 0.0)
        gain = (np.minimum(y, FINISH_Y) - before[:, 1]) / (FINISH_Y - START[1])
        return gain - TIME_COST - FAILURE_COST * failed + bonus

    def _move(self, displacement: NDArray[Any], running: NDArray[np.bool_]) -> None:
        target = self._target + np.where(running, displacement, 0.0)
        actual = target
        if self._tracking == "arx":
            keep, keep_previous, new, old = _ARX
            actual = keep * self._actual + keep_previous * self._previous + new * target + old * self._target
            actual = np.where(running, actual, self._actual)
        self._target, self._actual, self._previous = target, actual, self._actual

    def _note_gates(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        first = (self.gates < 0) & (y[:, None] >= _ROWS_LOW) & (y[:, None] <= _ROWS_HIGH)
        if first.any():
            gate = (x[:, None, None] > _ROWS_EDGES).sum(axis=2)
            self.gates = np.where(first, gate, self.gates)

    def _state(self) -> NDArray[np.float32]:
        return np.concatenate([self._target, self._actual], axis=1, dtype=np.float32)


class AvoidEnv(SingleEnv):
    """One environment of :class:`AvoidBatch` with Gymnasium's interface; ``info`` holds ``success`` and ``way``.

    Args:
        tracking: See :class:`AvoidBatch`.
        stale_obs: See :class:`AvoidBatch`.
        max_episode_steps: See :class:`AvoidBatch`.
    """

    batch_type: type[AvoidBatch] = AvoidBatch

    def __init__(self, *, tracking: str = "ideal", stale_obs: bool = False, max_episode_steps: int = 150) -> None:
        self._avoid = self.batch_type(1, tracking=tracking, stale_obs=stale_obs, max_episode_steps=max_episode_steps)
        super().__init__(self._avoid)

    def _info(self) -> dict[str, Any]:
        return {**super()._info(), "way": self._avoid.way_through()[0]}
