"""Pictures of a MuJoCo simulation without a screen, of low quality but some fifteen times as fast as the default.

Drawn by EGL, or by what the variable ``MUJOCO_GL`` names, ``egl`` or ``osmesa``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

BACKENDS = ("egl", "osmesa")
# Of pictures for people, height and width in pixels.
FRAME_SIZE = 256


class Renderer:
    """Draws what cameras of a model see, without shadows, reflections and smoothed edges.

    Its graphics context belongs to the thread that made it.

    Args:
        model: The model; that its pictures are made so is noted in it.
        height: Of a picture, in pixels.
        width: Likewise.
        hidden_groups: Groups of geoms that are not drawn.

    Raises:
        ModuleNotFoundError: If the graphics library is not installed.
        ValueError: If ``MUJOCO_GL`` names none that draws without a screen.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, hidden_groups: Sequence[int] = ()) -> None:
        self._model = model
        self._context = _graphics_context(height, width)
        self._context.make_current()
        # Quality counts when the context of the model is made; later changes do nothing.
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        self._resources = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._resources)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options = mujoco.MjvOption()
        for group in hidden_groups:
            self._options.geomgroup[group] = 0
        self._camera = mujoco.MjvCamera()
        self._area = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), dtype=np.uint8)

    def frame(self, data: mujoco.MjData, camera: str | int = -1) -> NDArray[np.uint8]:
        """What a camera sees, (H, W, 3), from top to bottom.

        Args:
            data: State, whose positions have been computed.
            camera: Name or number; -1: from outside, the whole model.

        Raises:
            ValueError: If the model has no such camera.
        """
        self._look_from(camera)
        self._context.make_current()
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._area, self._scene, self._resources)
        mujoco.mjr_readPixels(self._pixels, None, self._area, self._resources)
        return self._pixels[::-1].copy()

    def close(self) -> None:
        """Release the graphics context."""
        self._resources.free()
        self._context.free()

    def _look_from(self, camera: str | int) -> None:
        if isinstance(camera, str):
            names = [self._model.camera(i).name for i in range(self._model.ncam)]
            if camera not in names:
                raise ValueError(f"there is no camera {camera!r}; found {', '.join(names) or 'none'}")
            camera = names.index(camera)
        if camera == -1:
            mujoco.mjv_defaultFreeCamera(self._model, self._camera)
        else:
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera


def _graphics_context(height: int, width: int) -> Any:
    backend = os.environ.get("MUJOCO_GL") or BACKENDS[0]
    if backend not in BACKENDS:
        raise ValueError(f"MUJOCO_GL must be {' or '.join(BACKENDS)} to draw without a screen, got {backend!r}")
    try:
        return importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
    except (ImportError, AttributeError) as error:
        raise ModuleNotFoundError(
            f"MUJOCO_GL={backend} does not work here: {error}. Install EGL (libegl1 and libgl1-mesa-dri in Debian), or "
            "OSMesa (libosmesa6) and set MUJOCO_GL=osmesa"
        ) from error
