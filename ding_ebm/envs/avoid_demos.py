"""Scripted demonstrations of the avoid tasks, in the place of human recordings.

Those of ``avoid`` take every way through, at several levels of quality, and leave room for improvement on purpose: the
lanes that pay little are taken most often, a part of the demonstrators is slow, and a careless part hits the cylinders.

Those of ``avoid_m1``, ``avoid_m2`` and ``avoid_m3`` are the subsets on which DPPO (Ren et al. 2024, arXiv:2409.00588)
pre-trains: right of the first cylinder, left of the second row, and then by two gates of the last row in equal shares,
the rewarded one and one that is the farther away the higher the task's number. They are careful and last 100 steps.

Letters: E episodes, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.transitions import Transitions, join_episodes, split_episodes
from ding_ebm.envs.avoid import CYLINDERS, FINISH_Y, MAX_DISPLACEMENT, AvoidBatch
from ding_ebm.envs.avoid_modes import REWARDED_GATE, AvoidModesBatch

# Where a careful demonstrator passes each gate: range of x, by row and gate.
PASSAGES = (
    ((0.425, 0.450), (0.550, 0.575)),
    ((0.330, 0.385), (0.470, 0.530), (0.615, 0.670)),
    ((0.250, 0.305), (0.395, 0.455), (0.545, 0.605), (0.695, 0.750)),
)
# How often each gate of the last row, and so each lane of the finish line, is taken.
LANE_SHARES = (0.30, 0.32, 0.15, 0.23)


@dataclass(frozen=True)
class Style:
    """How a demonstrator moves.

    Attributes:
        share: Share of the episodes.
        speed: Range of the speed along the path, meters a step.
        noise: Standard deviation of an action, meters.
        error: Standard deviation of where a gate is passed, meters, beside its range.
    """

    share: float
    speed: tuple[float, float]
    noise: float
    error: float


STYLES = (
    Style(share=0.40, speed=(0.0085, 0.0098), noise=0.0010, error=0.0),  # good
    Style(share=0.25, speed=(0.0055, 0.0075), noise=0.0010, error=0.0),  # slow: some do not arrive in time
    Style(share=0.35, speed=(0.0075, 0.0095), noise=0.0030, error=0.03),  # careless: many hit a cylinder
)

# The gate of the last row that a task's demonstrations take when they do not take the rewarded one.
OTHER_GATES = {"avoid_m1": 1, "avoid_m2": 2, "avoid_m3": 3}
# Where they pass the right gate of the first row and the left one of the second, and the gates of the last row. The way
# to the rightmost is so long that it only just fits into the episode: it is passed close to its cylinder.
_MODE_PASSAGES = ((0.552, 0.566), (0.362, 0.380))
_MODE_LAST_PASSAGES = (*PASSAGES[2][:3], (0.695, 0.720))
# Speed, as the larger of its two components, and noise of an action: meters a step.
_MODE_SPEED = (0.0094, 0.0098)
_MODE_NOISE = 0.001

# Height of each row of cylinders, and how far below and above it a path is straight: a radius with a margin.
_ROWS_Y = np.unique(CYLINDERS[:, 1])
_STRAIGHT = 0.04
# Share of the distance to the path that a step takes back, and steps over which corners are rounded.
_GAIN = 0.3
_SMOOTHING = 9


def make_demonstrations(
    num_episodes: int = 500, seed: int = 0, *, tracking: str = "ideal", noise: float = 0.0
) -> Transitions:
    """Roll scripted demonstrators out in :class:`~ding_ebm.envs.avoid.AvoidBatch` and keep what it returned.

    Args:
        num_episodes: E.
        seed: Of everything random, the starts included; the same seed gives the same data.
        tracking: See :class:`~ding_ebm.envs.avoid.AvoidBatch`.
        noise: Standard deviation of noise beside that of the styles, as a share of the largest displacement.

    Raises:
        ValueError: If an argument is out of its range.
    """
    env = AvoidBatch(num_episodes, tracking=tracking)
    rng = np.random.default_rng(seed)
    obs = env.reset(rng.integers(2**31, size=num_episodes).tolist())
    styles = rng.choice(len(STYLES), size=num_episodes, p=[style.share for style in STYLES])
    lanes = rng.choice(len(LANE_SHARES), size=num_episodes, p=LANE_SHARES)
    paths = np.stack(
        [_path(start, STYLES[s], lane, env.max_episode_steps, rng) for start, s, lane in zip(obs[:, :2], styles, lanes)]
    )
    std = np.hypot(np.array([style.noise for style in STYLES])[styles], noise * MAX_DISPLACEMENT)
    source = f"{num_episodes} scripted demonstrations of avoid, seed {seed}, {tracking} tracking"
    return _record(env, obs, paths, std, rng, source)


def make_mode_demonstrations(
    task: str, num_episodes: int = 500, seed: int = 0, *, tracking: str = "ideal", noise: float = 0.0
) -> Transitions:
    """Roll careful demonstrators of one subset out in :class:`~ding_ebm.envs.avoid_modes.AvoidModesBatch`.

    Under ``arx`` tracking a quarter of those that take the other gate overshoot into a cylinder: only those that take
    the gate that they mean to are kept.

    Args:
        task: One of ``OTHER_GATES``.
        num_episodes: E; every other episode takes the rewarded gate.
        seed: Of everything random, the starts included; the same seed gives the same data.
        tracking: See :class:`~ding_ebm.envs.avoid.AvoidBatch`.
        noise: Standard deviation of noise beside the demonstrators' own, as a share of the largest displacement.

    Raises:
        ValueError: If an argument is out of its range, or under so much noise too few take the gate that they mean to.
    """
    if task not in OTHER_GATES:
        raise ValueError(f"task must be one of {', '.join(OTHER_GATES)}, got {task!r}")
    fails = tracking != "ideal"
    number = 4 * num_episodes + 16 if fails and num_episodes > 0 else num_episodes
    env = AvoidModesBatch(number, tracking=tracking)
    rng = np.random.default_rng(seed)
    obs = env.reset(rng.integers(2**31, size=number).tolist())
    gates = np.where(np.arange(number) % 2, OTHER_GATES[task], REWARDED_GATE)
    paths = []
    for gate, start in zip(gates, obs[:, :2]):
        xs = [rng.uniform(*passage) for passage in (*_MODE_PASSAGES, _MODE_LAST_PASSAGES[gate])]
        speed = rng.uniform(*_MODE_SPEED)
        paths.append(_path_through(start, xs, speed, env.max_episode_steps, np.maximum))
    source = f"{num_episodes} scripted demonstrations of {task}, seed {seed}"
    std = np.full(number, np.hypot(_MODE_NOISE, noise * MAX_DISPLACEMENT))
    made = _record(env, obs, np.stack(paths), std, rng, source)
    if not fails:
        return made
    right = ~made.terminated[made.episode_ends] & (env.gates[:, 2] == gates)
    kept = [np.flatnonzero(right & (np.arange(number) % 2 == i))[: (num_episodes + 1 - i) // 2] for i in (0, 1)]
    if sum(map(len, kept)) < num_episodes:
        raise ValueError(
            f"of {number} demonstrators too few take the gate that they mean to; use less noise ({noise:g})"
        )
    episodes = split_episodes(made)
    return join_episodes([episodes[i] for i in np.sort(np.concatenate(kept))], f"{source}, {tracking} tracking")


def _record(
    env: AvoidBatch,
    obs: NDArray[np.float32],
    paths: NDArray[np.float64],
    noise: NDArray[np.float64],
    rng: np.random.Generator,
    source: str,
) -> Transitions:
    """Rows of the episodes in which every environment follows its path, (E, T + 1, 2), with noise, (E,)."""
    rows, running = [], env.running
    for t in range(env.max_episode_steps):
        aim = paths[:, t + 1] - paths[:, t] + _GAIN * (paths[:, t] - obs[:, :2])
        action = (aim + noise[:, None] * rng.standard_normal(aim.shape)).astype(np.float32)
        action = np.clip(action, env.action_low, env.action_high)
        next_obs, reward, terminated, truncated = env.step(action)
        rows.append((obs, action, reward.astype(np.float32), next_obs, terminated, truncated, running))
        obs, running = next_obs, env.running
    # (T, E, ...) to rows in episode order, without the steps after an episode's end.
    *columns, kept = (np.stack(column).swapaxes(0, 1) for column in zip(*rows))
    obs, action, reward, next_obs, terminated, truncated = (column[kept] for column in columns)
    return Transitions(obs, action, reward, next_obs, terminated, truncated, source)


def _path(
    start: NDArray[np.float32], style: Style, lane: int, num_steps: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Positions that a demonstrator of a style means to be at, (num_steps + 1, 2), by random gates to a lane."""
    gates = (rng.integers(2), rng.integers(3), lane)
    passages = [PASSAGES[row][gate] for row, gate in enumerate(gates)]
    xs = [rng.uniform(*passage) + style.error * rng.standard_normal() for passage in passages]
    return _path_through(start, xs, rng.uniform(*style.speed), num_steps, np.hypot)


def _path_through(
    start: NDArray[np.float32],
    xs: Sequence[float],
    speed: float,
    num_steps: int,
    distance: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Positions of each step, (num_steps + 1, 2): straight through the gates at ``xs``, rounded between; then at rest.

    ``speed`` is in the metric ``distance``, which maps steps in x and in y, without their signs, to lengths.
    """
    corners = [start.astype(np.float64)]
    for row, x in enumerate(xs):
        corners += [np.array([x, _ROWS_Y[row] - _STRAIGHT]), np.array([x, _ROWS_Y[row] + _STRAIGHT])]
    corners.append(np.array([xs[-1], FINISH_Y + 0.1]))
    points = np.array(corners)
    along = np.concatenate([[0.0], np.cumsum(distance(*np.abs(np.diff(points, axis=0)).T))])
    half = _SMOOTHING // 2
    wanted = speed * np.arange(-half, num_steps + 1 + half)
    line = np.stack([np.interp(wanted, along, points[:, axis]) for axis in (0, 1)])
    window = np.hanning(_SMOOTHING + 2)[1:-1]
    return np.stack([np.convolve(axis, window / window.sum(), mode="valid") for axis in line], axis=1)
