"""One environment of a batch, with Gymnasium's interface."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import BatchEnv


class SingleEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A batch of one as a Gymnasium environment; ``info`` holds ``success`` where the task has a notion of it.

    It draws itself where the batch does, by ``frame(row)`` and ``steps_per_second``.

    Args:
        batch: A batch of one environment.

    Raises:
        ValueError: If there are more.
    """

    def __init__(self, batch: BatchEnv) -> None:
        if batch.num_envs != 1:
            raise ValueError(f"the batch must be of one environment, got {batch.num_envs}")
        self._batch = cast(Any, batch)
        if hasattr(batch, "frame"):
            self.render_mode = "rgb_array"
            self.metadata = {"render_modes": ["rgb_array"], "render_fps": self._batch.steps_per_second}
        self.max_episode_steps = batch.max_episode_steps
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (batch.obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(batch.action_low, batch.action_high, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin the episode of ``seed``; without one, the next of the sequence that the last seed began."""
        super().reset(seed=seed)
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        return self._batch.reset([episode])[0], self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """See :class:`~ding_ebm.envs.batch.BatchEnv`."""
        obs, reward, terminated, truncated = self._batch.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._info()

    def render(self) -> NDArray[np.uint8]:
        """A picture, (H, W, 3).

        Raises:
            NotImplementedError: If the batch draws none.
        """
        if self.render_mode is None:
            raise NotImplementedError(f"{type(self._batch).__name__} draws no pictures")
        frame: NDArray[np.uint8] = self._batch.frame(0)
        return frame

    def close(self) -> None:
        """Release what the batch holds."""
        if hasattr(self._batch, "close"):
            self._batch.close()

    def _info(self) -> dict[str, Any]:
        success = self._batch.success
        return {} if success is None else {"success": bool(success[0])}
