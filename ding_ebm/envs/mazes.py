"""AntMaze and Maze2d: D4RL's mazes, through which an ant or a point finds its way to a goal, on plain MuJoCo.

Layouts, sizes, starts, goals, rewards, limits and physics are those of D4RL's ``antmaze-*-v2`` and ``maze2d-*-v1`` (Fu
et al. 2020, arXiv:2004.07219). What is drawn at random comes from an episode's own seed, not from NumPy's global
generator. Lengths are meters.

AntMaze: an ant among boxes of 4 x 4 x 2, one a wall cell, that begins at the origin, in the middle of its cell.
Observation (29): all positions, x and y first, and velocities; not the goal. Action (8): torques, of which 1 is 30 Nm.
Reward 1 where the torso is within 0.5 of the goal, which ends the episode; else 0. The goal is drawn anew in each
episode, from a corner region of its cell. Falling over ends nothing.

Maze2d: a point of radius 0.1 among boxes of 1 x 1, pushed by forces in x and y. Observation (4): position and velocity.
Reward 1 in every step within 0.5 of the goal, which is the same in all episodes; only the limit ends them. Velocities
above 5 are cut *before* an action, so an observed one can be larger.

Rows, notes and letters as in :mod:`ding_ebm.envs.bodies`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.bodies import Body, Floats
from ding_ebm.envs.inertia import use_legacy_capsules
from ding_ebm.envs.running import ASSETS

# '#' wall, 'S' start, 'G' goal.
ANT_LAYOUTS = {
    "umaze": """
        #####
        #S  #
        ### #
        #G  #
        #####""",
    "medium": """
        ########
        #S ##  #
        #  #   #
        ##   ###
        #  #   #
        # #  # #
        #   # G#
        ########""",
    "large": """
        ############
        #S   #     #
        # ## # # # #
        #      #   #
        # #### ### #
        #  # #     #
        ## # # # ###
        #  #   # G #
        ############""",
}
# The first index of a cell counts along x, the second along y.
POINT_LAYOUTS = {
    "umaze": """
        #####
        #G  #
        ### #
        #   #
        #####""",
    "medium": """
        ########
        #  ##  #
        #  #   #
        ##   ###
        #  #   #
        # #  # #
        #   # G#
        ########""",
    "large": """
        ############
        #    #     #
        # ## # # # #
        #      #   #
        # #### ### #
        #  # #     #
        ## # # # ###
        #  #   # G #
        ############""",
}
CELL = 4.0  # of AntMaze; of Maze2d it is 1
GOAL_RADIUS = 0.5
TORQUE = 30.0
MAX_SPEED = 5.0
# Of Maze2d: where the observed position of a wall's cell is, less its row and column.
_WALL_OFFSET = 1.0 - 1.2


def cells(layout: str, kinds: str) -> NDArray[np.int64]:
    """Row and column of every cell of some kinds, (n, 2), row by row."""
    lines = layout.split("\n        ")[1:]
    return np.array([(i, j) for i, line in enumerate(lines) for j, kind in enumerate(line) if kind in kinds])


class _Maze(Body):
    """What both mazes do: a reward of 1 near a goal."""

    has_goal = True

    def _goal(self, rows: Floats) -> Floats:
        """Where the goal is, (..., 2)."""
        raise NotImplementedError

    def _is_there(self, rows: Floats) -> NDArray[np.bool_]:
        return np.linalg.norm(rows[..., 1:3] - self._goal(rows), axis=-1) <= GOAL_RADIUS

    def rewards(self, rows: Floats, actions: NDArray[Any]) -> Floats:
        """1 where an action ends near the goal."""
        return self._is_there(rows[:, 1:]).astype(np.float64)

    def observe(self, rows: Floats) -> NDArray[np.float32]:
        """Positions and velocities."""
        return rows[..., 1 : self._notes.start].astype(np.float32)


class AntMaze(_Maze):
    """An ant in a maze; notes are the goal.

    Args:
        size: One of ``ANT_LAYOUTS``.
        dynamics: ``d4rl-v2`` for the masses of the engine that D4RL's data were made with, see
            :func:`~ding_ebm.envs.inertia.use_legacy_capsules`; ``v4`` for those of today's engine.

    Raises:
        ValueError: If there are no such dynamics.
    """

    def __init__(self, size: str, dynamics: str) -> None:
        if dynamics not in ("v4", "d4rl-v2"):
            raise ValueError(f"dynamics of antmaze must be v4 or d4rl-v2, got {dynamics!r}")
        layout = ANT_LAYOUTS[size]
        model = _ant_maze_model(layout)
        if dynamics == "d4rl-v2":
            use_legacy_capsules(model)
        super().__init__(model, frame_skip=5, obs_dim=29, num_notes=2)
        self._low, self._high = self.action_low, self.action_high
        self.action_low, self.action_high = -np.ones(8, dtype=np.float32), np.ones(8, dtype=np.float32)
        self._goal_corner = _ant_positions(layout, "G")[0]

    def start(self, rng: np.random.Generator, data: mujoco.MjData) -> Floats:
        """A goal, and noise around the pose in which the ant's legs are straight."""
        goal = self._goal_corner + rng.uniform(0.0, CELL / 4, 2) + rng.uniform(0.0, CELL / 8, 2)
        data.qpos += rng.uniform(-0.1, 0.1, self.model.nq)
        data.qvel += 0.1 * rng.standard_normal(self.model.nv)
        mujoco.mj_forward(self.model, data)
        return goal

    def control(self, actions: NDArray[Any]) -> Floats:
        """Torques, computed in the precision of the actions, as D4RL does."""
        torques = self._low + (actions + 1.0) * 0.5 * (self._high - self._low)
        return np.clip(torques, self._low, self._high).astype(np.float64)

    def goes_on(self, rows: Floats) -> NDArray[np.bool_]:
        """Whether the goal has not been reached."""
        return ~self._is_there(rows)

    def _goal(self, rows: Floats) -> Floats:
        return rows[..., self._notes]


class Maze2d(_Maze):
    """A point in a maze.

    Args:
        size: One of ``POINT_LAYOUTS``.
    """

    stepwise = True

    def __init__(self, size: str) -> None:
        layout = POINT_LAYOUTS[size]
        super().__init__(mujoco.MjModel.from_xml_string(_point_maze_xml(layout)), 1, obs_dim=4)
        self._starts = np.concatenate([cells(layout, " "), cells(layout, "G")])
        self._target = cells(layout, "G")[0].astype(np.float64)

    def start(self, rng: np.random.Generator, data: mujoco.MjData) -> Floats:
        """Any free cell, and noise."""
        cell = self._starts[rng.integers(len(self._starts))]
        data.qpos[:] = cell + rng.uniform(-0.1, 0.1, 2)
        data.qvel[:] = 0.1 * rng.standard_normal(2)
        mujoco.mj_forward(self.model, data)
        return np.empty(0)

    def advance(self, data: mujoco.MjData, control: Floats, notes: Floats) -> Floats:
        """Cut the velocity, then act; what D4RL computes in between (``mj_forward``) does not change a bit of it."""
        np.clip(data.qvel, -MAX_SPEED, MAX_SPEED, out=data.qvel)
        data.ctrl[:] = control
        mujoco.mj_step(self.model, data)
        return notes

    def control(self, actions: NDArray[Any]) -> Floats:
        """Forces, cut to the range."""
        return np.clip(actions, -1.0, 1.0).astype(np.float64)

    def goes_on(self, rows: Floats) -> NDArray[np.bool_]:
        """Always."""
        return np.ones(rows.shape[:-1], dtype=np.bool_)

    def _goal(self, rows: Floats) -> Floats:
        return self._target


def make_maze(name: str, dynamics: str) -> Body:
    """One of ``MAZES``."""
    kind, size = name.split("_")[:2]
    return AntMaze(size, dynamics) if kind == "antmaze" else Maze2d(size)


MAZES = (
    *("antmaze_umaze", "antmaze_umaze_diverse", "antmaze_medium_play", "antmaze_medium_diverse"),
    *("antmaze_large_play", "antmaze_large_diverse", "maze2d_umaze", "maze2d_medium", "maze2d_large"),
)


@dataclass(frozen=True)
class FloorPlan:
    """A maze from above, in the coordinates of its observations.

    Attributes:
        walls: Centers of the cells that are walls, (n, 2).
        half: Half the width of a cell.
        goals: Lowest and highest corner of the area that goals are drawn from, (2, 2).
    """

    walls: Floats
    half: float
    goals: Floats


def floor_plan(name: str) -> FloorPlan:
    """The floor plan of one of ``MAZES``."""
    kind, size = name.split("_")[:2]
    if kind == "antmaze":
        corner = _ant_positions(ANT_LAYOUTS[size], "G")[0]
        return FloorPlan(_ant_positions(ANT_LAYOUTS[size], "#"), CELL / 2, np.stack([corner, corner + 3 * CELL / 8]))
    goal = cells(POINT_LAYOUTS[size], "G")[0].astype(np.float64)
    return FloorPlan(cells(POINT_LAYOUTS[size], "#") + _WALL_OFFSET, 0.5, np.stack([goal, goal]))


def _ant_positions(layout: str, kinds: str) -> Floats:
    """Middle of every cell of some kinds, (n, 2); rows count along y, and the start is the origin."""
    return CELL * (cells(layout, kinds) - cells(layout, "S"))[:, ::-1]


def _ant_maze_model(layout: str) -> mujoco.MjModel:
    """Gymnasium's ant with D4RL's time step, contacts and motors, and the walls."""
    spec = mujoco.MjSpec.from_file(str(ASSETS / "ant.xml"))
    spec.option.timestep = 0.02
    for actuator in spec.actuators:
        actuator.gear[0], actuator.ctrlrange = 1.0, [-TORQUE, TORQUE]
    for x, y in _ant_positions(layout, "#"):
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[x, y, CELL / 4],
            size=[CELL / 2, CELL / 2, CELL / 4],
            conaffinity=1,
            friction=[1.0, 0.5, 0.5],
            margin=0.01,
        )
    for geom in spec.geoms:
        geom.solimp[:3] = 0.8, 0.8, 0.01
    return spec.compile()


def _point_maze_xml(layout: str) -> str:
    """The model of a Maze2d; its positions count from 1.2, those of the walls from 1, as D4RL's do."""
    walls = "".join(
        f'<geom type="box" pos="{x + 1} {y + 1} 0" size="0.5 0.5 0.2" conaffinity="1"/>' for x, y in cells(layout, "#")
    )
    return f"""<mujoco>
      <compiler inertiafromgeom="true" angle="radian"/>
      <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
      <default>
        <joint damping="1" limited="false"/>
        <geom friction="0.5 0.1 0.1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
      </default>
      <worldbody>
        <geom type="plane" size="40 40 0.25" pos="0 0 -0.1" contype="1" conaffinity="0"/>
        <body name="particle" pos="1.2 1.2 0">
          <geom type="sphere" size="0.1" contype="1"/>
          <joint name="ball_x" type="slide" pos="0 0 0" axis="1 0 0"/>
          <joint name="ball_y" type="slide" pos="0 0 0" axis="0 1 0"/>
        </body>
        {walls}
      </worldbody>
      <actuator>
        <motor joint="ball_x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
        <motor joint="ball_y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
      </actuator>
    </mujoco>"""
