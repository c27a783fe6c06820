"""Furniture-Bench's simulated assembly tasks through the batched interface that their authors published.

Heo et al. 2023 (arXiv:2305.12821), in the fork with ``FurnitureRLSimEnv`` and the use of it of Ren et al. 2024
(arXiv:2409.00588). It needs IsaacGym, which no registry has: this file has been run with a stand-in of the interface
only, never with the simulator.

Letters: E environments, Ta actions of a chunk, Do observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import ChunkStep, Step, checked_action, checked_rows, step_chunk_by_steps

ACTION_DIM = 10
# What the published use of the environments sets: absolute positions of the gripper, rotations by six numbers.
_OPTIONS: dict[str, Any] = dict(
    act_rot_repr="rot_6d",
    action_type="pos",
    april_tags=False,
    concat_robot_state=True,
    ctrl_mode="diffik",
    gpu_id=0,
    headless=True,
    observation_space="state",
    record=False,
    pos_scalar=1,
    rot_scalar=1,
    stiffness=1_000,
    damping=200,
)


def rotation_6d(quaternion: NDArray[Any]) -> NDArray[Any]:
    """The first two rows of the rotation matrix of a quaternion, real part last: (..., 4) to (..., 6).

    Source:
        Zhou et al. 2019 (arXiv:1812.07035), in rows as PyTorch3D has it.
    """
    x, y, z, w = np.moveaxis(np.asarray(quaternion), -1, 0)
    s = 2.0 / (x * x + y * y + z * z + w * w)
    rows = [
        1.0 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w),
        s * (x * y + z * w), 1.0 - s * (x * x + z * z), s * (y * z - x * w),
    ]  # fmt: skip
    return np.stack(rows, axis=-1)


class FurnitureBatch:
    """``FurnitureRLSimEnv`` as a :class:`~ding_ebm.envs.batch.BatchEnv`.

    Observation: the gripper's position (3), rotation (6, see :func:`rotation_6d`), velocities (3 and 3) and width (1),
    then position and quaternion of each part and of the obstacle (7 each). Action (10): position that the gripper shall
    go to (3), its rotation (6), and whether to close it (1). Each part that is newly assembled pays 1. An episode ends
    at the time limit only: it is truncated. The published code takes that for an end of the task.

    The simulator cannot be seeded for a row: seeds set torch's generator before a reset, so that runs with the same
    resets repeat as far as the simulator does, but an episode is not its seed's. A reset of some rows lets the others
    take one step of the simulation.

    Args:
        furniture: ``one_leg``, ``lamp`` or ``round_table``.
        randomness: Of the start: ``low`` or ``med``.
        num_envs: E.
        obs_dim: Do, which the number of parts decides.
        parts_to_assemble: How many must have been assembled for success.
        max_episode_steps: Time limit.

    Raises:
        ValueError: If the simulator observes another number of numbers.
    """

    def __init__(
        self,
        furniture: str,
        randomness: str,
        num_envs: int,
        *,
        obs_dim: int,
        parts_to_assemble: int,
        max_episode_steps: int,
    ) -> None:
        from furniture_bench.envs.furniture_rl_sim_env import FurnitureRLSimEnv  # before torch: IsaacGym asks for it
        from furniture_bench.envs.observation import DEFAULT_STATE_OBS

        own = dict(furniture=furniture, randomness=randomness, num_envs=num_envs, max_env_steps=max_episode_steps)
        self._env = FurnitureRLSimEnv(obs_keys=DEFAULT_STATE_OBS, **own, **_OPTIONS)
        self.num_envs, self.obs_dim, self.action_dim = num_envs, obs_dim, ACTION_DIM
        self.action_low, self.action_high = -np.ones(ACTION_DIM, np.float32), np.ones(ACTION_DIM, np.float32)
        self.max_episode_steps = max_episode_steps
        self._parts_to_assemble = parts_to_assemble
        self._obs = np.zeros((num_envs, obs_dim), dtype=np.float32)
        self._assembled = np.zeros(num_envs)
        self._steps = np.full(num_envs, max_episode_steps)
        self._last_action = np.zeros((num_envs, ACTION_DIM), dtype=np.float32)

    @property
    def running(self) -> NDArray[np.bool_]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return self._steps < self.max_episode_steps

    @property
    def success(self) -> NDArray[np.bool_]:
        """Whether enough parts have been assembled, (E,)."""
        return self._assembled >= self._parts_to_assemble

    def reset(self, seeds: Sequence[int], rows: Sequence[int] | None = None) -> NDArray[np.float32]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`; what a seed means here the class says."""
        import torch

        index = checked_rows(seeds, self.num_envs, rows)
        if index.size:
            with torch.random.fork_rng():
                torch.manual_seed(int(np.random.SeedSequence([int(seed) for seed in seeds]).generate_state(1)[0]))
                seen = self._env.reset(torch.as_tensor(index, device=self._env.device))
            self._obs[index] = self._view(seen)[index]
            self._assembled[index], self._steps[index] = 0.0, 0
        return self._obs.copy()

    def step(self, action: NDArray[Any]) -> Step:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`; an environment that has ended is told its last action again."""
        import torch

        action, running = checked_action(action, self.num_envs, ACTION_DIM), self.running
        self._last_action[running] = action[running]
        seen, paid, _, _ = self._env.step(torch.as_tensor(self._last_action, device=self._env.device))
        self._obs[running] = self._view(seen)[running]
        reward = np.where(running, paid.cpu().numpy().reshape(self.num_envs), 0.0).astype(np.float64)
        self._assembled += reward
        self._steps[running] += 1
        ended = ~self.running
        return self._obs.copy(), reward, np.zeros_like(ended), ended

    def step_chunk(self, actions: NDArray[Any]) -> ChunkStep:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        return step_chunk_by_steps(self, actions)

    def _view(self, seen: dict[str, Any]) -> NDArray[np.float32]:
        robot, parts = (seen[key].cpu().numpy() for key in ("robot_state", "parts_poses"))
        obs = np.concatenate([robot[:, :3], rotation_6d(robot[:, 3:7]), robot[:, 7:], parts], axis=1)
        if obs.shape[1] != self.obs_dim:
            raise ValueError(f"Furniture-Bench observes {obs.shape[1]} numbers, {self.obs_dim} are expected")
        return obs.astype(np.float32)
