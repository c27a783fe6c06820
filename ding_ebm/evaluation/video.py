"""Films of episodes of a policy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ding_ebm.envs.batch import GymBatch
from ding_ebm.envs.registry import get_task, make_env
from ding_ebm.evaluation.rollout import Act, rollout

# Pictures a second at most.
_RATE = 30.0


def write_videos(
    act: Act, task: str, seeds: Sequence[int], folder: str | Path, *, label: str = "", **chunks: int
) -> list[Path]:
    """Film one episode for each seed, from the start that the seed begins, and return the files.

    A policy that draws random numbers draws others than in an evaluation of many environments at a time.

    Args:
        act: See :func:`~ding_ebm.evaluation.rollout.rollout`.
        task: Name of the task, which must be able to draw itself.
        seeds: Of the environment.
        folder: Where ``<task><label>_seed<seed>.mp4`` are written; it is made, files of these names are replaced.
        label: Part of the files' names.
        **chunks: ``act_steps`` and ``cond_steps`` of a policy over chunks.

    Raises:
        ValueError: If the task draws no pictures.
        ModuleNotFoundError: If imageio, which the extra ``mujoco`` brings, or a graphics library is not installed, see
            :class:`~ding_ebm.envs.render.Renderer`.
    """
    writer = _writer()
    env = Filmed(make_env(task), get_task(task).name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in seeds:
        env.frames.clear()
        rollout(act, GymBatch(lambda: env, 1), [seed], **chunks)
        paths.append(Path(folder) / f"{task}{label}_seed{seed}.mp4")
        writer(paths[-1], env.frames, fps=env.rate, macro_block_size=None, codec="libx264")
    env.close()
    return paths


class Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that keeps pictures of its steps.

    Args:
        env: The environment.
        name: What a message calls it.

    Attributes:
        frames: Pictures so far, (H, W, 3), uint8.
        rate: Of them, a second.

    Raises:
        ValueError: If it draws no pictures.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._draw = _drawer(env, name)
        steps_a_second = float(env.unwrapped.metadata.get("render_fps") or _RATE)
        self._every = max(1, round(steps_a_second / _RATE))
        self.rate = steps_a_second / self._every
        self.frames: list[NDArray[np.uint8]] = []
        self._steps = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, and keep its first picture."""
        made = self.env.reset(**options)
        self._steps = 0
        self.frames.append(self._draw())
        return made

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, and keep a picture if it is time for one."""
        made = self.env.step(action)
        self._steps += 1
        if self._steps % self._every == 0:
            self.frames.append(self._draw())
        return made


def _drawer(env: gymnasium.Env[Any, Any], name: str) -> Callable[[], NDArray[np.uint8]]:
    """What draws an environment: itself, or the renderer of MuJoCo models here, which is faster than Gymnasium's."""
    inner: Any = env.unwrapped
    if importlib.util.find_spec("mujoco") is not None and hasattr(inner, "model") and hasattr(inner, "data"):
        from ding_ebm.envs.render import FRAME_SIZE, Renderer

        renderer = Renderer(inner.model, FRAME_SIZE, FRAME_SIZE)
        camera = "track" if any(inner.model.camera(i).name == "track" for i in range(inner.model.ncam)) else -1
        return lambda: renderer.frame(inner.data, camera)
    if inner.render_mode == "rgb_array":
        return inner.render  # type: ignore[no-any-return]
    raise ValueError(f"the task {name} draws no pictures; the locomotion and robomimic tasks and the mazes do")


def _writer() -> Callable[..., None]:
    try:
        importlib.import_module("imageio_ffmpeg")
        return importlib.import_module("imageio").mimsave  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"videos need {error.name}, which pip install 'ding_ebm[mujoco]' installs") from error
