"""Scripted demonstrations of the avoid task: every way through, at several levels of quality.

They take the place of human recordings, and leave room for improvement on purpose: the lanes that pay little are
taken most often, a part of the demonstrators is slow, and a careless part hits the cylinders.

Letters: E episodes, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.formats import Transitions
from ding_ebm.envs.avoid import CYLINDERS, FINISH_Y, AvoidBatch

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

# Height of each row of cylinders, and how far below and above it a path is straight: a radius with a margin.
_ROWS_Y = np.unique(CYLINDERS[:, 1])
_STRAIGHT = 0.04
# Share of the distance to the path that a step takes back, and steps over which corners are rounded.
_GAIN = 0.3
_SMOOTHING = 9


def make_demonstrations(num_episodes: int = 500, seed: int = 0, *, tracking: str = "ideal") -> Transitions:
    """Roll scripted demonstrators out in :class:`~ding_ebm.envs.avoid.AvoidBatch` and keep what it returned.

    Args:
        num_episodes: E.
        seed: Of everything random, the starts included; the same seed gives the same data.
        tracking: See :class:`~ding_ebm.envs.avoid.AvoidBatch`.

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
    noise = np.array([style.noise for style in STYLES])[styles]
    rows, running = [], np.ones(num_episodes, dtype=np.bool_)
    for t in range(env.max_episode_steps):
        aim = paths[:, t + 1] - paths[:, t] + _GAIN * (paths[:, t] - obs[:, :2])
        action = (aim + noise[:, None] * rng.standard_normal(aim.shape)).astype(np.float32)
        action = np.clip(action, env.action_low, env.action_high)
        next_obs, reward, terminated, truncated = env.step(action)
        rows.append((obs, action, reward.astype(np.float32), next_obs, terminated, truncated, running))
        obs, running = next_obs, ~(terminated | truncated)
    # (T, E, ...) to rows in episode order, without the steps after an episode's end.
    *columns, kept = (np.stack(column).swapaxes(0, 1) for column in zip(*rows))
    obs, action, reward, next_obs, terminated, truncated = (column[kept] for column in columns)
    source = f"{num_episodes} scripted demonstrations of avoid, seed {seed}, {tracking} tracking"
    return Transitions(obs, action, reward, next_obs, terminated, truncated, source)


def _path(
    start: NDArray[np.float32], style: Style, lane: int, num_steps: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Positions that a demonstrator means to be at, (num_steps + 1, 2); straight through each gate, rounded between."""
    gates = (rng.integers(2), rng.integers(3), lane)
    corners = [start.astype(np.float64)]
    for row, gate in enumerate(gates):
        x = rng.uniform(*PASSAGES[row][gate]) + style.error * rng.standard_normal()
        corners += [np.array([x, _ROWS_Y[row] - _STRAIGHT]), np.array([x, _ROWS_Y[row] + _STRAIGHT])]
    corners.append(np.array([x, FINISH_Y + 0.1]))
    points = np.array(corners)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    half = _SMOOTHING // 2
    wanted = rng.uniform(*style.speed) * np.arange(-half, num_steps + 1 + half)
    line = np.stack([np.interp(wanted, along, points[:, axis]) for axis in (0, 1)])
    window = np.hanning(_SMOOTHING + 2)[1:-1]
    return np.stack([np.convolve(axis, window / window.sum(), mode="valid") for axis in line], axis=1)
