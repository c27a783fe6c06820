"""What a batch of simulations asks of a task on MuJoCo.

A *row* is what the batch keeps of an environment at one moment: time, P positions, V velocities and N notes. Notes are
numbers beside the physical state that a task's rewards or observations need.

Letters: n environments, Ta actions of a chunk, Do and Da dimensions of an observation and of an action.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# v4: Gymnasium's version 4, whose rewards and ends are those of D4RL's data. v5: its version 5. d4rl-v2: version 4 with
# the capsules' masses and inertias of the engine that D4RL's data were made with.
DYNAMICS = ("v4", "v5", "d4rl-v2")


class Body:
    """What a batch of simulations does not know of its task.

    Args:
        model: The compiled model.
        frame_skip: Simulation steps an action.
        obs_dim: Do.
        num_notes: N.

    Attributes:
        stepwise: Whether the simulation is read or changed after every action; else a chunk of actions is one call.
        has_goal: Whether a reward above 0 means that the episode has succeeded.
    """

    stepwise = False
    has_goal = False

    def __init__(self, model: mujoco.MjModel, frame_skip: int, obs_dim: int, num_notes: int = 0) -> None:
        self.model, self.frame_skip, self.obs_dim, self.num_notes = model, frame_skip, obs_dim, num_notes
        self.seconds: float = model.opt.timestep * frame_skip
        self.action_low, self.action_high = model.actuator_ctrlrange.T.astype(np.float32)
        self._velocities = slice(1 + model.nq, 1 + model.nq + model.nv)
        self._notes = slice(1 + model.nq + model.nv, None)

    def start(self, rng: np.random.Generator, data: mujoco.MjData) -> Floats:
        """Put a reset simulation where an episode begins, computed forward, and return the notes, (N,)."""
        raise NotImplementedError

    def advance(self, data: mujoco.MjData, control: Floats, notes: Floats) -> Floats:
        """Act once, if ``stepwise``; takes the notes from before the action, (N,), and returns those after it."""
        raise NotImplementedError

    def control(self, actions: NDArray[Any]) -> Floats:
        """Controls of the actuators, (n, Ta, Da)."""
        return actions.astype(np.float64)

    def goes_on(self, rows: Floats) -> NDArray[np.bool_]:
        """Whether the task does not end the episode at these moments, (n, Ta)."""
        raise NotImplementedError

    def rewards(self, rows: Floats, actions: NDArray[Any]) -> Floats:
        """Rewards (n, Ta) of actions (n, Ta, Da) whose moments, the one before the first included, are (n, Ta + 1)."""
        raise NotImplementedError

    def observe(self, rows: Floats) -> NDArray[np.float32]:
        """Observations of moments, (..., Do)."""
        raise NotImplementedError
