"""Films are of the episode of their seed, and what cannot be filmed is refused."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from ding_ebm.envs.registry import make_env
from ding_ebm.evaluation.video import Filmed, write_videos

if any(importlib.util.find_spec(name) is None for name in ("mujoco", "imageio", "imageio_ffmpeg")):
    pytest.skip("needs the extra mujoco", allow_module_level=True)

import imageio.v3

from ding_ebm.envs.render import _graphics_context


def can_draw() -> bool:
    try:
        _graphics_context(8, 8).free()
    except ModuleNotFoundError:
        return False
    return True


needs_graphics = pytest.mark.skipif(not can_draw(), reason="there is neither EGL nor what MUJOCO_GL names")


def act(obs: np.ndarray) -> np.ndarray:
    """A hopper that falls."""
    return np.repeat([[1.0, 0.3, -0.5]], len(obs), axis=0).astype(np.float32)


@needs_graphics
def test_a_film_has_the_pictures_of_its_episode(tmp_path) -> None:
    paths = write_videos(act, "hopper", [3, 4], tmp_path / "films", label="_test")
    assert [path.name for path in paths] == ["hopper_test_seed3.mp4", "hopper_test_seed4.mp4"]
    env, steps, over = make_env("hopper"), 0, False
    env.reset(seed=3)
    while not over:
        *_, terminated, truncated, _ = env.step(act(np.zeros((1, 11)))[0])
        over, steps = terminated or truncated, steps + 1
    film = imageio.v3.imread(paths[0])
    # 125 steps a second, every fourth in the film
    assert film.shape == (1 + steps // 4, 256, 256, 3) and steps > 20
    assert imageio.v3.immeta(paths[0])["fps"] == pytest.approx(125 / 4, abs=0.1)
    first, last = film[0].astype(int), film[-1].astype(int)
    assert np.abs(first - last).max() > 100
    assert not np.array_equal(film, imageio.v3.imread(paths[1])[: len(film)])


def test_a_task_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="the task avoid draws no pictures"):
        Filmed(make_env("avoid"), "avoid")
