"""robomimic's tasks ``lift``, ``can``, ``square`` and ``transport`` on robosuite 1.4.1, as DPPO runs them.

Robots, controllers and rewards are those of robomimic's data sets: Panda arms whose hands are moved by differences of
position and rotation (operational space control, 20 actions a second), a reward of 1 in every step in which the task is
done, else 0. As in DPPO (Ren et al. 2024, arXiv:2409.00588) nothing but the time limit ends an episode, the observation
is position, rotation (a quaternion, x first) and finger positions of every hand and then what robosuite tells of the
objects, and an episode has succeeded once it has been paid 1.

robosuite steps as it would, bit by bit, but in three quarters of the time: its controller asks for the whole forward
dynamics up to three times a simulated step, of which it uses positions and velocities, and once is enough. What is
observed and paid is the state after the action, as in robomimic's data; robosuite's own ``step`` tells that of one
simulated step (2 ms) before.

Letters: R robots, C cameras.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.render import FRAME_SIZE, Renderer
from ding_ebm.envs.seeding import global_seed


@dataclass(frozen=True)
class Setup:
    """What distinguishes a task.

    Attributes:
        name: robosuite's name of it.
        robots: R.
        cameras: Those that policies over images see, C.
        object_dim: Numbers that describe the objects.
        options: Further arguments of robosuite.
    """

    name: str
    robots: int
    cameras: tuple[str, ...]
    object_dim: int
    options: Mapping[str, Any]

    @property
    def obs_dim(self) -> int:
        """Do."""
        return HAND_DIM * self.robots + self.object_dim

    @property
    def action_dim(self) -> int:
        """Da."""
        return 7 * self.robots


# Numbers that describe a robot's hand: position 3, rotation 4, fingers 2.
HAND_DIM = 9
_WRIST = ("robot0_eye_in_hand",)
SETUPS = {
    "lift": Setup("Lift", 1, _WRIST, 10, {}),
    "can": Setup("PickPlaceCan", 1, _WRIST, 14, {}),
    "square": Setup("NutAssemblySquare", 1, ("agentview",), 14, {}),
    "transport": Setup(
        "TwoArmTransport",
        2,
        ("shouldercamera0", "shouldercamera1"),
        41,
        {"env_configuration": "single-arm-opposed"},
    ),
}
# A difference of 1 moves the hand's aim by 5 cm or half a radian.
_CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
_FREQUENCY = 20
# Of the images that policies see.
IMAGE_SIZE = 96
# robosuite's group of geoms for collisions, which are not drawn.
_COLLISION_GROUP = 0
# Sizes of objects are drawn when a model is loaded, once: they are the same in every environment.
_MODEL_SEED = 0


def env_args(name: str) -> dict[str, Any]:
    """What robomimic's files say of the environment of a task."""
    setup = SETUPS[name]
    options = {
        "robots": ["Panda"] * setup.robots,
        "controller_configs": copy.deepcopy(_CONTROLLER),
        "control_freq": _FREQUENCY,
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "use_object_obs": True,
        "reward_shaping": False,
        "ignore_done": True,
        **setup.options,
    }
    return {"env_name": setup.name, "env_version": "1.4.1", "type": 1, "env_kwargs": options}


class RobomimicEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One of robomimic's tasks; the same seed begins the same episode, whatever happened before.

    ``info["success"]`` tells whether an action has been paid 1 so far.

    Args:
        name: One of ``SETUPS``.
        max_episode_steps: Steps after which an episode is truncated.
        render_mode: ``rgb_array``, the only one.

    Raises:
        ValueError: If the name is unknown.
        ModuleNotFoundError: If robosuite cannot be imported, for want of a graphics library, say.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": _FREQUENCY}

    def __init__(self, name: str, *, max_episode_steps: int, render_mode: str = "rgb_array") -> None:
        if name not in SETUPS:
            raise ValueError(f"name must be one of {', '.join(SETUPS)}, got {name!r}")
        self._setup = setup = SETUPS[name]
        self.max_episode_steps, self.render_mode = max_episode_steps, render_mode
        with global_seed(_MODEL_SEED):
            self._robosuite = _robosuite().make(setup.name, **env_args(name)["env_kwargs"], hard_reset=False)
        robots = range(setup.robots)
        hands = (f"robot{i}_{part}" for i in robots for part in ("eef_pos", "eef_quat", "gripper_qpos"))
        self._keys = (*hands, "object-state")
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (setup.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (setup.action_dim,), np.float32)
        self._renderers: dict[int, Renderer] = {}
        self._steps, self._success = 0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin the episode of ``seed``; without one, the next of the sequence that the last seed began."""
        super().reset(seed=seed)
        with global_seed(int(self.np_random.integers(2**31)) if seed is None else seed):
            seen = self._robosuite.reset()
        self._steps, self._success = 0, False
        return self._observation(seen), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Act for a twentieth of a second; actions beyond -1 and 1 are clipped."""
        self._advance(np.asarray(action, dtype=np.float64))
        reward = float(self._robosuite.reward())
        self._success = self._success or reward >= 1.0
        self._steps += 1
        truncated = self._steps >= self.max_episode_steps
        seen = self._robosuite._get_observations(force_update=True)
        return self._observation(seen), reward, False, truncated, {"success": self._success}

    def images(self) -> NDArray[np.uint8]:
        """What the task's cameras see, (C, 96, 96, 3), from top to bottom; the hands in numbers go with them.

        Raises:
            ModuleNotFoundError: See :class:`~ding_ebm.envs.render.Renderer`.
        """
        return np.stack([self._render(camera, IMAGE_SIZE) for camera in self._setup.cameras])

    def hands(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of observations that DPPO's policies over images see beside them, (..., 9 R)."""
        return obs[..., : HAND_DIM * self._setup.robots]

    def render(self) -> NDArray[np.uint8]:
        """A view of the scene for people, (256, 256, 3); raises as :meth:`images`."""
        return self._render("agentview", FRAME_SIZE)

    def close(self) -> None:
        """Release the simulation."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _advance(self, action: NDArray[np.float64]) -> None:
        """robosuite's ``step`` without what it returns, its simulated steps split where controllers act."""
        sim = self._robosuite.sim
        model, data = sim.model._model, sim.data._data
        sim.forward = _nothing  # for the controllers: positions and velocities are there
        try:
            for number in range(int(self._robosuite.control_timestep / self._robosuite.model_timestep)):
                mujoco.mj_step1(model, data)
                self._robosuite._pre_action(action, number == 0)
                mujoco.mj_step2(model, data)
        finally:
            del sim.forward
        sim.forward()

    def _observation(self, seen: Mapping[str, Any]) -> NDArray[np.float32]:
        return np.concatenate([seen[key] for key in self._keys]).astype(np.float32)

    def _render(self, camera: str, size: int) -> NDArray[np.uint8]:
        sim = self._robosuite.sim
        if size not in self._renderers:
            self._renderers[size] = Renderer(sim.model._model, size, size, hidden_groups=(_COLLISION_GROUP,))
        return self._renderers[size].frame(sim.data._data, camera)


def _nothing() -> None:
    pass


def _robosuite() -> Any:
    """robosuite, without its notices on files of macros."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        import robosuite
    except (ImportError, AttributeError) as error:
        raise ModuleNotFoundError(
            f"robosuite cannot be imported: {error}. It loads a graphics library even where nothing is drawn: install "
            "EGL (libegl1 and libgl1-mesa-dri in Debian), or OSMesa (libosmesa6) and set MUJOCO_GL=osmesa"
        ) from error
    return robosuite
