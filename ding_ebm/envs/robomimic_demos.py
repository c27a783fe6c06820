"""Scripted demonstrations of ``lift`` and ``can``, in the place of robomimic's recordings of people.

A demonstrator sees what a policy sees and keeps no memory: it goes above the object (turning its hand with the sides of
a cube), down, closes the fingers, and, holding it, goes up (``lift``) or to the can's bin, where it lets go (``can``).
How fast and how directly, where it grasps and how much its hand trembles differ from demonstration to demonstration.
Failed attempts are left out, and a
demonstration ends half a second after its first success, as people's do. Lengths are meters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.formats import Transitions
from ding_ebm.envs.registry import get_task, make_batch_env

# Of an observation.
_HAND, _ROTATION, _FINGERS, _OBJECT, _OBJECT_ROTATION = map(slice, (0, 3, 7, 9, 12), (3, 7, 9, 12, 16))
# Distance of the fingers below which they hold something: 0.08 when open, 0.044 around the widest cube, 0.05 a can.
_CLOSED = 0.055
# Middle of the can's bin, how near to it a can is let go, and heights of its floor's surroundings.
BIN = (0.1975, 0.4025)
_OVER_BIN, _IN_BIN_Z, _RELEASE_Z = 0.06, 0.9, 0.95
# The hand goes up to here before it moves sideways with a can: the walls of the bins are in between.
_CLEAR_Z = 1.02
# Steps that are recorded after the first success.
_STEPS_AFTER = 10
# Environments that are stepped together; the demonstrations do not depend on it.
_ENVS = 8
_OPEN, _CLOSE = -1.0, 1.0
# Radians of an action of 1.
_TURN = 0.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Manner:
    """How a demonstrator moves.

    Attributes:
        gain: Action for each meter to its aim; 20 is as fast as its aim can be followed.
        hover: How high above an object it goes first.
        grasp: Where it grasps, from the object's middle, (3,).
        height: How high it lifts or carries.
        drop: Where it lets a can go, from the middle of the bin, (2,).
        noise: Standard deviation of an action's differences of position; of those of rotation a third of it.
    """

    gain: float
    hover: float
    grasp: Floats
    height: float
    drop: Floats
    noise: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Manner:
        """One at random."""
        return cls(
            gain=rng.uniform(12.0, 20.0),
            hover=rng.uniform(0.05, 0.10),
            grasp=rng.uniform(-0.004, 0.004, size=3),
            height=rng.uniform(0.0, 0.06),
            drop=rng.uniform(-0.025, 0.025, size=2),
            noise=rng.uniform(0.05, 0.2),
        )


def _lift(seen: Floats, manner: Manner) -> tuple[Floats, float]:
    """Where the hand is to go, and what the fingers do."""
    hand = seen[_HAND]
    grasp = seen[_OBJECT] + manner.grasp
    if _is_around(hand, grasp, 0.012, 0.014):
        if _distance_of_fingers(seen) > _CLOSED:
            return grasp, _CLOSE
        return np.array([hand[0], hand[1], min(hand[2] + 0.05, 0.9 + manner.height)]), _CLOSE
    return _approach(hand, grasp, manner, 0.010), _OPEN


def _can(seen: Floats, manner: Manner) -> tuple[Floats, float]:
    hand, can = seen[_HAND], seen[_OBJECT]
    grasp, drop = can + manner.grasp, np.array(BIN) + manner.drop
    is_over_bin = bool(np.abs(can[:2] - np.array(BIN)).max() < _OVER_BIN)
    if is_over_bin and can[2] < _IN_BIN_Z:
        return np.array([*drop, 1.05]), _OPEN
    if not _is_around(hand, grasp, 0.02, 0.025):
        return _approach(hand, grasp, manner, 0.012), _OPEN
    if _distance_of_fingers(seen) > _CLOSED:
        return grasp, _CLOSE
    carry = 1.06 + manner.height
    if bool(np.abs(can[:2] - drop).max() < 0.03):
        return np.array([*drop, _RELEASE_Z - 0.02]), _CLOSE if hand[2] > _RELEASE_Z else _OPEN
    if hand[2] < _CLEAR_Z:
        return np.array([hand[0], hand[1], carry]), _CLOSE
    return np.array([*drop, carry]), _CLOSE


def _is_around(hand: Floats, grasp: Floats, sideways: float, along: float) -> bool:
    return bool(np.abs(grasp - hand)[:2].max() < sideways and abs(grasp[2] - hand[2]) < along)


def _distance_of_fingers(seen: Floats) -> float:
    return float(seen[_FINGERS] @ (1.0, -1.0))


def _turn(seen: Floats) -> float:
    """The angle to the nearest of a cube's four sides, about the vertical."""
    angles = []
    for x, y, z, w in (seen[_ROTATION], seen[_OBJECT_ROTATION]):
        angles.append(np.arctan2(2 * (x * y + w * z), 1 - 2 * (y**2 + z**2)))
    return float((angles[1] - angles[0] + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def _approach(hand: Floats, grasp: Floats, manner: Manner, above: float) -> Floats:
    """The way to a grasp from above: straight down where the hand is above it, and does not stray far on the way."""
    away = np.abs(grasp - hand)[:2].max()
    is_above = away < above or (away < 2 * above and hand[2] - grasp[2] < manner.hover)
    return grasp if is_above else grasp + np.array([0.0, 0.0, manner.hover])


SCRIPTS: dict[str, Callable[[Floats, Manner], tuple[Floats, float]]] = {"lift": _lift, "can": _can}


@dataclass
class _Attempt:
    """An episode of one demonstrator, and its rows so far."""

    number: int
    rng: np.random.Generator
    manner: Manner
    seed: int
    rows: list[tuple[NDArray[np.float32], NDArray[np.float32], float, NDArray[np.float32]]] = field(
        default_factory=list
    )
    steps_since_success: int | None = None

    @classmethod
    def begun(cls, seed: int, number: int) -> _Attempt:
        rng = np.random.default_rng([seed, number])
        return cls(number, rng, Manner.drawn(rng), int(rng.integers(2**31)))

    def decide(self, task: str, seen: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
        """An action, (7,)."""
        exact = seen.astype(np.float64)
        aim, fingers = SCRIPTS[task](exact, self.manner)
        action = np.zeros(7)
        action[:3] = self.manner.gain * (aim - exact[_HAND])
        if task == "lift":
            action[5] = _turn(exact) / _TURN
        action[:6] += self.manner.noise * self.rng.standard_normal(6) * np.repeat([1.0, 1.0 / 3.0], 3)
        action[6] = fingers
        action += noise * self.rng.standard_normal(7)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def note(self, row: tuple[NDArray[np.float32], NDArray[np.float32], float, NDArray[np.float32]]) -> None:
        """Take what came of a step."""
        self.rows.append(row)
        if self.steps_since_success is not None:
            self.steps_since_success += 1
        elif row[2] >= 1.0:
            self.steps_since_success = 0

    @property
    def has_shown_enough(self) -> bool:
        return self.steps_since_success is not None and self.steps_since_success >= _STEPS_AFTER


def make_demonstrations(task: str, num_episodes: int = 200, seed: int = 0, *, noise: float = 0.0) -> Transitions:
    """Successful episodes of scripted demonstrators; what was left out is in the metadata.

    Args:
        task: ``lift`` or ``can``.
        num_episodes: Demonstrations that are kept.
        seed: Of everything random, the starts included; the same seed gives the same data.
        noise: Standard deviation of noise beside the demonstrators' own, as a share of half the range of actions.

    Raises:
        ValueError: If the task has no script, the number is not positive, or hardly any attempt succeeds.
        ModuleNotFoundError: If the extra that the task needs is not installed.
    """
    if task not in SCRIPTS or num_episodes < 1:
        raise ValueError(
            f"a task with a script ({', '.join(SCRIPTS)}) and at least one episode are needed, got {task!r} and "
            f"{num_episodes}"
        )
    attempts = _attempts(task, num_episodes, seed, noise)
    kept = [attempt for attempt in attempts if attempt.has_shown_enough]
    rows = [row for attempt in kept for row in attempt.rows]
    obs, action, reward, next_obs = (np.array(column, dtype=np.float32) for column in zip(*rows))
    truncated = np.zeros(len(obs), dtype=np.bool_)
    truncated[np.cumsum([len(attempt.rows) for attempt in kept]) - 1] = True
    source = f"{num_episodes} scripted demonstrations of {task}, seed {seed}"
    return Transitions(
        obs,
        action,
        reward,
        next_obs,
        np.zeros_like(truncated),
        truncated,
        source,
        _facts(task, len(attempts), len(kept)),
    )


def _facts(task: str, attempts: int, kept: int) -> dict[str, str]:
    """What the data say of themselves: as robomimic's files do, and how many attempts failed."""
    from ding_ebm.envs.robomimic import HAND_DIM, env_args  # imports the simulator

    parts = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
    parts["object"] = get_task(task).obs_dim - HAND_DIM
    return {
        "env_args": json.dumps(env_args(task)),
        "obs_keys": ", ".join(f"{key} {size}" for key, size in parts.items()),
        "left_out": f"{attempts - kept} of {attempts} attempts, which failed",
    }


def _attempts(task: str, wanted: int, seed: int, noise: float) -> list[_Attempt]:
    """All attempts up to the one with which as many as wanted have succeeded, in the order of their numbers."""
    env = make_batch_env(task, min(_ENVS, wanted))
    try:
        active = [_Attempt.begun(seed, number) for number in range(env.num_envs)]
        obs = env.reset([attempt.seed for attempt in active])
        ended: dict[int, _Attempt] = {}
        while True:
            actions = np.stack([attempt.decide(task, seen, noise) for attempt, seen in zip(active, obs)])
            next_obs, reward, _, truncated = env.step(actions)
            for i, attempt in enumerate(active):
                attempt.note((obs[i], actions[i], float(reward[i]), next_obs[i]))
            obs = next_obs
            over = [i for i, attempt in enumerate(active) if truncated[i] or attempt.has_shown_enough]
            for i in over:
                ended[active[i].number] = active[i]
                active[i] = _Attempt.begun(seed, len(ended) + len(active) - 1)
            if over:
                made = _first(ended, wanted)
                if made:
                    return made
                _check_rate(task, ended, noise)
                obs = env.reset([active[i].seed for i in over], over)
    finally:
        env.close()  # type: ignore[attr-defined]


def _first(ended: dict[int, _Attempt], wanted: int) -> list[_Attempt]:
    """The ended attempts, without a gap, up to the one with which as many as wanted have succeeded; or none."""
    made, successes = [], 0
    for number in range(len(ended)):
        if number not in ended:
            return []
        made.append(ended[number])
        successes += ended[number].has_shown_enough
        if successes == wanted:
            return made
    return []


def _check_rate(task: str, ended: dict[int, _Attempt], noise: float) -> None:
    successes = sum(attempt.has_shown_enough for attempt in ended.values())
    if len(ended) >= 20 and successes < len(ended) / 10:
        raise ValueError(
            f"{successes} of {len(ended)} scripted attempts at {task} succeeded with noise {noise:g}; give less"
        )
