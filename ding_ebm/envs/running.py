"""Hopper, Walker2d, HalfCheetah, Ant and Humanoid: models, starts, rewards, ends and observations of Gymnasium's tasks.

Rows, notes and letters as in :mod:`ding_ebm.envs.bodies`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.bodies import DYNAMICS, Body, Floats
from ding_ebm.envs.inertia import use_legacy_capsules

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


@dataclass(frozen=True)
class Terms:
    """Numbers of a task in which a body runs forward.

    Attributes:
        file: Model among Gymnasium's assets.
        frame_skip: Simulation steps an action.
        control_cost: Cost of an action's squared length.
        alive_reward: Reward of every step; that of a fall included, but in v5.
        reset_noise: Half the range of the first positions; of the velocities too, or their standard deviation.
        normal_velocity: Whether the first velocities are normal, not uniform.
        velocity_limit: Velocities are clipped to it in the observation.
        height: Range of the torso's height outside which an episode ends.
        angle: Limit of the torso's angle.
        state: Limit of every other position and velocity.
        forward_reward: Reward of a meter a second.
        hidden: Number of first positions that are not observed.
        contact_cost: In v5, cost of the squared length of all bodies' contact forces.
        total_mass: Mass that the model's file states, kg.
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
    forward_reward: float = 1.0
    hidden: int = 1
    contact_cost: float = 0.0
    total_mass: float | None = None


class Runner(Body):
    """A body in the plane that is rewarded for running forward: hopper, walker2d, halfcheetah.

    Args:
        terms: The task's numbers.
        dynamics: One of ``DYNAMICS``.
        num_notes: N.
        extra_dim: Numbers of an observation beside positions and velocities.
    """

    def __init__(self, terms: Terms, dynamics: str, num_notes: int = 0, extra_dim: int = 0) -> None:
        model = mujoco.MjModel.from_xml_path(str(ASSETS / terms.file))
        if dynamics == "d4rl-v2":
            use_legacy_capsules(model, terms.total_mass)
        super().__init__(model, terms.frame_skip, model.nq - terms.hidden + model.nv + extra_dim, num_notes)
        self._terms, self._is_v5 = terms, dynamics == "v5"

    def start(self, rng: np.random.Generator, data: mujoco.MjData) -> Floats:
        """Noise around the model's pose, drawn as Gymnasium draws it."""
        noise = self._terms.reset_noise
        data.qpos += rng.uniform(-noise, noise, self.model.nq)
        if self._terms.normal_velocity:
            data.qvel += noise * rng.standard_normal(self.model.nv)
        else:
            data.qvel += rng.uniform(-noise, noise, self.model.nv)
        mujoco.mj_forward(self.model, data)
        return self._read(data)

    def goes_on(self, rows: Floats) -> NDArray[np.bool_]:
        """Whether height, angle and the rest of the state are in range."""
        terms, height, angle = self._terms, rows[..., 2], rows[..., 3]
        upright = (terms.height[0] < height) & (height < terms.height[1]) & (np.abs(angle) < terms.angle)
        return upright & (np.abs(rows[..., 3 : self._notes.start]) < terms.state).all(axis=-1)

    def rewards(self, rows: Floats, actions: NDArray[Any]) -> Floats:
        """Forward velocity and reward for being alive, less the costs."""
        velocity = np.diff(self._forward_position(rows), axis=1) / self.seconds
        alive = self._terms.alive_reward * (self.goes_on(rows[:, 1:]) if self._is_v5 else 1.0)
        return self._terms.forward_reward * velocity + alive - self._costs(rows[:, 1:], actions)

    def observe(self, rows: Floats) -> NDArray[np.float32]:
        """Positions but the first ones, velocities, and what else the task shows."""
        limit = self._terms.velocity_limit
        positions = rows[..., 1 + self._terms.hidden : self._velocities.start]
        velocities = np.clip(rows[..., self._velocities], -limit, limit)
        return np.concatenate([positions, velocities, self._extra(rows[..., self._notes])], axis=-1, dtype=np.float32)

    def _read(self, data: mujoco.MjData) -> Floats:
        """Notes of the moment that the simulation is at, (N,)."""
        return np.empty(0)

    def _forward_position(self, rows: Floats) -> Floats:
        """Where the body is on its way."""
        return rows[..., 1]

    def _costs(self, rows: Floats, actions: NDArray[Any]) -> Floats:
        """Costs of actions (n, Ta, Da) and of the moments after them."""
        # Summed in the precision of the actions, as Gymnasium does: in float32 a cheetah's cost differs by 1e-8.
        return self._terms.control_cost * np.square(actions).sum(axis=-1).astype(np.float64)

    def _extra(self, notes: Floats) -> Floats:
        """What an observation holds beside positions and velocities."""
        return notes[..., :0]


class Walker(Runner):
    """A body in space, of which something is read after every action that its positions and velocities do not tell.

    Gymnasium reads what MuJoCo computed *within* the last simulation step: it is of a moment between the positions
    before and after that step, and no later computation from the state gives it back to the bit. A chunk is therefore
    simulated action by action, which costs some 3 % more than in one call, and reading 2 %.

    Args:
        terms: See :class:`Runner`; likewise ``dynamics``, ``num_notes`` and ``extra_dim``.
        reads_forces: Whether contact forces are among what is read; they take a computation of their own.
    """

    stepwise = True

    def __init__(self, terms: Terms, dynamics: str, num_notes: int, extra_dim: int, reads_forces: bool) -> None:
        super().__init__(terms, dynamics, num_notes, extra_dim)
        self._reads_forces = reads_forces

    def advance(self, data: mujoco.MjData, control: Floats, notes: Floats) -> Floats:
        """See :class:`Body`."""
        data.ctrl[:] = control
        mujoco.mj_step(self.model, data, nstep=self.frame_skip)
        if self._reads_forces:
            mujoco.mj_rnePostConstraint(self.model, data)
        return self._read(data)

    def _forward_position(self, rows: Floats) -> Floats:
        return rows[..., self._notes.start]


class Ant(Walker):
    """Ant: notes are the torso's x and, in v5, the contact forces; v5 shows them, without those on the ground."""

    def __init__(self, terms: Terms, dynamics: str) -> None:
        forces = 84 if dynamics == "v5" else 0
        super().__init__(terms, dynamics, 1 + forces, max(forces - 6, 0), reads_forces=forces > 0)

    def goes_on(self, rows: Floats) -> NDArray[np.bool_]:
        """Whether the torso's height is in range, ends included."""
        return (self._terms.height[0] <= rows[..., 3]) & (rows[..., 3] <= self._terms.height[1])

    def _read(self, data: mujoco.MjData) -> Floats:
        forces = np.clip(data.cfrc_ext, -1.0, 1.0).ravel() if self._is_v5 else ()
        return np.concatenate([data.xpos[1, :1], forces])

    def _costs(self, rows: Floats, actions: NDArray[Any]) -> Floats:
        control = super()._costs(rows, actions)
        forces = rows[..., self._notes.start + 1 :]
        return control + self._terms.contact_cost * np.square(forces).sum(axis=-1) if self._is_v5 else control

    def _extra(self, notes: Floats) -> Floats:
        return notes[..., 7:]


class Humanoid(Walker):
    """Humanoid: notes are x of the center of mass, then what the observation shows.

    That is, of each of 14 bodies, the ground first, inertia (10) and velocity (6) of its center of mass, the actuators'
    forces on each of 23 degrees of freedom, and the contact forces (6) on each body. v5 leaves out the ground and the
    degrees of freedom of the root, which hold nothing but zeros and the forces on the ground.
    """

    _BLOCKS = ((140, 10), (84, 6), (23, 6), (84, 6))  # numbers of each, and how many of them v5 leaves out
    _MAX_CONTACT_COST = 10.0

    def __init__(self, terms: Terms, dynamics: str) -> None:
        if dynamics == "d4rl-v2":
            raise ValueError("D4RL has no humanoid: its dynamics must be v4 or v5, got 'd4rl-v2'")
        kept = np.concatenate([np.arange(size) >= (dynamics == "v5") * first for size, first in self._BLOCKS])
        self._shown = 1 + np.flatnonzero(kept)
        super().__init__(terms, dynamics, 1 + len(kept), len(self._shown), reads_forces=True)

    def goes_on(self, rows: Floats) -> NDArray[np.bool_]:
        """Whether the torso's height is in range."""
        return (self._terms.height[0] < rows[..., 3]) & (rows[..., 3] < self._terms.height[1])

    def _read(self, data: mujoco.MjData) -> Floats:
        mass = self.model.body_mass
        center = np.einsum("b,bj->j", mass, data.xipos) / mass.sum()
        seen = data.cinert.ravel(), data.cvel.ravel(), data.qfrc_actuator, data.cfrc_ext.ravel()
        return np.concatenate([center[:1], *seen])

    def _costs(self, rows: Floats, actions: NDArray[Any]) -> Floats:
        control = super()._costs(rows, actions.astype(np.float64))
        if not self._is_v5:
            return control
        forces = rows[..., -self._BLOCKS[-1][0] :]
        contact = self._terms.contact_cost * np.square(forces).sum(axis=-1)
        return control + np.minimum(contact, self._MAX_CONTACT_COST)

    def _extra(self, notes: Floats) -> Floats:
        return notes[..., self._shown]


def make_runner(name: str, dynamics: str) -> Runner:
    """One of ``RUNNERS``.

    Raises:
        ValueError: If there are no such dynamics of it.
    """
    if dynamics not in DYNAMICS:
        raise ValueError(f"dynamics of {name} must be one of {', '.join(DYNAMICS)}, got {dynamics!r}")
    kind, terms = RUNNERS[name]
    if (name, dynamics) == ("walker2d", "v5"):
        terms = replace(terms, file="walker2d_v5.xml")  # whose feet are of the same friction
    return kind(terms, dynamics)


_HOPPER = Terms("hopper.xml", 4, 1e-3, 1.0, 5e-3, velocity_limit=10.0, height=(0.7, np.inf), angle=0.2, state=100.0)
_WALKER2D = Terms("walker2d.xml", 4, 1e-3, 1.0, 5e-3, velocity_limit=10.0, height=(0.8, 2.0), angle=1.0)
_HALFCHEETAH = Terms("half_cheetah.xml", 5, 0.1, 0.0, 0.1, normal_velocity=True, total_mass=14.0)
_ANT = Terms("ant.xml", 5, 0.5, 1.0, 0.1, normal_velocity=True, height=(0.2, 1.0), hidden=2, contact_cost=5e-4)
_HUMANOID = Terms(
    "humanoid.xml", 5, 0.1, 5.0, 0.01, height=(1.0, 2.0), hidden=2, forward_reward=1.25, contact_cost=5e-7
)

RUNNERS: dict[str, tuple[Callable[[Terms, str], Runner], Terms]] = {
    "hopper": (Runner, _HOPPER),
    "walker2d": (Runner, _WALKER2D),
    "halfcheetah": (Runner, _HALFCHEETAH),
    "ant": (Ant, _ANT),
    "humanoid": (Humanoid, _HUMANOID),
}
