"""D4RL's kitchen: a Franka arm that has four things to do, on the simulator of Gymnasium-Robotics.

Gymnasium-Robotics has the model of D4RL (Fu et al. 2020, arXiv:2004.07219; Gupta et al. 2019, arXiv:1910.11956) with
one difference, taken back here: the pedestal under the arm collides there. Observation, its noise, reward and the end
of an episode are D4RL's, which are not those of FrankaKitchen-v1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

MAX_EPISODE_STEPS = 280
OBS_DIM, ACTION_DIM, NUM_ROBOT, NUM_STATE = 60, 9, 9, 30
# A subtask is solved where its numbers of the state are closer than this to their goal, by Euclidean distance.
THRESHOLD = 0.3
# Where each subtask's numbers are in the state, and their goal.
SUBTASKS: dict[str, tuple[slice, tuple[float, ...]]] = {
    "bottom burner": (slice(11, 13), (-0.88, -0.01)),
    "top burner": (slice(15, 17), (-0.92, -0.01)),
    "light switch": (slice(17, 19), (-0.69, -0.05)),
    "slide cabinet": (slice(19, 20), (0.37,)),
    "hinge cabinet": (slice(20, 22), (0.0, 1.45)),
    "microwave": (slice(22, 23), (-0.75,)),
    "kettle": (slice(23, 30), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
# Half widths of the uniform noise on the observed positions are a tenth of the amplitudes in D4RL's description of the
# robot: 0.1 of every joint of the arm, and of the things these.
_NOISE_RATIO = 0.1
_AMPLITUDES = np.repeat([0.005, 0.0005, 0.005, 0.1, 0.005, 0.1, 0.005], [2, 6, 3, 3, 3, 3, 1])


def goal_of(subtasks: Sequence[str]) -> NDArray[np.float64]:
    """The goal as it is observed, (30,): the state with the subtasks solved, 0 in all that none of them is about."""
    goal = np.zeros(NUM_STATE)
    for name in subtasks:
        where, value = SUBTASKS[name]
        goal[where] = value
    return goal


class KitchenEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """An arm in a kitchen, paid 1 for each subtask when it is solved first.

    Observation (60): joint positions of the arm and fingers (9) and positions of the things (21), both with noise, and
    the goal (30). Action (9): velocities of the joints, of which 1 is 2 rad/s (fingers: 2 m/s), for 0.08 s; the arm is
    steered to where they lead from the positions that were *observed* last, as in D4RL. The episode ends when all
    subtasks are solved, or at the time limit. ``info`` holds ``success``, whether they are, and ``solved``, which are.

    Args:
        subtasks: Names of :data:`SUBTASKS`.
        max_episode_steps: Time limit.
        render_mode: As of Gymnasium's MuJoCo environments.

    Attributes:
        robot: Gymnasium-Robotics' arm, with ``model`` and ``data`` of the simulation.
    """

    def __init__(
        self, subtasks: Sequence[str], max_episode_steps: int = MAX_EPISODE_STEPS, render_mode: str | None = None
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its other tasks
            from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv as Kitchen

        self.robot = Kitchen(list(subtasks), robot_noise_ratio=_NOISE_RATIO, render_mode=render_mode).robot_env
        _free_pedestal(self.robot.model)
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.metadata = dict(self.robot.metadata)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self._subtasks = tuple(subtasks)
        self._goal = goal_of(subtasks)
        self._unsolved: list[str] = []
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; all begin with the same positions, the noise is the seed's."""
        super().reset(seed=seed)
        arm, _ = self.robot.reset(seed=seed)
        self._unsolved, self._steps = list(self._subtasks), 0
        return self._observe(arm).astype(np.float32), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Steer for 0.08 s, 40 steps of the simulation."""
        arm, *_ = self.robot.step(np.asarray(action, dtype=np.float64))
        obs = self._observe(arm)
        self._steps += 1
        solved = [name for name in self._unsolved if self._is_solved(name, obs)]
        self._unsolved = [name for name in self._unsolved if name not in solved]
        terminated, truncated = not self._unsolved, self._steps >= self.max_episode_steps
        return obs.astype(np.float32), float(len(solved)), terminated, truncated, self._info()

    def render(self) -> Any:
        """What the camera of Gymnasium-Robotics sees."""
        return self.robot.render()

    def close(self) -> None:
        """Release the simulation."""
        self.robot.close()

    def _observe(self, arm: NDArray[np.float64]) -> NDArray[np.float64]:
        noise = self.robot.np_random.uniform(-1.0, 1.0, len(_AMPLITUDES))
        things = self.robot.data.qpos[NUM_ROBOT:] + _NOISE_RATIO * _AMPLITUDES * noise
        return np.concatenate([arm[:NUM_ROBOT], things, self._goal])

    def _is_solved(self, name: str, obs: NDArray[np.float64]) -> bool:
        where, goal = SUBTASKS[name]
        return bool(np.linalg.norm(obs[where] - goal) < THRESHOLD)

    def _info(self) -> dict[str, Any]:
        solved = tuple(name for name in self._subtasks if name not in self._unsolved)
        return dict(success=not self._unsolved, solved=solved)


def _free_pedestal(model: Any) -> None:
    """Let the arm pass through the cylinder that it stands on, as in D4RL."""
    under = model.geom_bodyid == model.body("panda0_link0").parentid
    model.geom_contype[under] = model.geom_conaffinity[under] = 0
