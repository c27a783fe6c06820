"""Pictures show what is there, the right way up."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("MuJoCo is not installed", allow_module_level=True)

import mujoco

from ding_ebm.envs.registry import make_env
from ding_ebm.envs.render import Renderer, _graphics_context

# Red above blue; a green ball of group 0 on the right.
XML = """
<mujoco>
  <asset><texture type="skybox" builtin="flat" rgb1="0 0 0" rgb2="0 0 0" width="8" height="48"/></asset>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="front" pos="0 -4 0" xyaxes="1 0 0 0 0 1"/>
    <geom type="sphere" size="0.3" pos="0 0 1" rgba="1 0 0 1" group="1"/>
    <geom type="sphere" size="0.3" pos="0 0 -1" rgba="0 0 1 1" group="1"/>
    <geom type="sphere" size="0.3" pos="1 0 0" rgba="0 1 0 1" group="0"/>
  </worldbody>
</mujoco>
"""


def can_draw() -> bool:
    try:
        _graphics_context(8, 8).free()
    except ModuleNotFoundError:
        return False
    return True


needs_graphics = pytest.mark.skipif(not can_draw(), reason="there is neither EGL nor what MUJOCO_GL names")


def place(picture: np.ndarray, color: int) -> np.ndarray:
    """Middle of what has a color, as shares of height and width."""
    others = [other for other in range(3) if other != color]
    return np.argwhere((picture[..., color] > 150) & (picture[..., others] < 80).all(axis=-1)).mean(axis=0) / 64


@needs_graphics
def test_what_is_above_is_at_the_top_and_hidden_groups_are_hidden() -> None:
    model = mujoco.MjModel.from_xml_string(XML)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, 64, 64)
    picture = renderer.frame(data, "front")
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    (red_row, red_column), (blue_row, blue_column) = place(picture, 0), place(picture, 2)
    assert red_row < 0.35 and blue_row > 0.65 and abs(red_column - 0.5) < 0.05 and abs(blue_column - 0.5) < 0.05
    assert place(picture, 1)[1] > 0.65
    with pytest.raises(ValueError, match="there is no camera 'back'; found front"):
        renderer.frame(data, "back")
    assert not np.array_equal(renderer.frame(data), picture), "from outside"
    renderer.close()
    without = Renderer(model, 64, 64, hidden_groups=(0,))
    hidden = without.frame(data, "front")
    assert not ((hidden[..., 1] > 150) & (hidden[..., 0] < 80)).any()
    np.testing.assert_allclose(place(hidden, 0), (red_row, red_column), atol=0.02)
    without.close()


def test_what_cannot_draw_without_a_screen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match="MUJOCO_GL must be egl or osmesa to draw without a screen, got 'glfw'"):
        Renderer(mujoco.MjModel.from_xml_string(XML), 8, 8)


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("ding_ebm.envs.render.importlib.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"MUJOCO_GL=egl .*eglQueryString.*libegl1.*MUJOCO_GL=osmesa"):
        _graphics_context(8, 8)


@needs_graphics
def test_a_maze_draws_its_state() -> None:
    env = make_env("maze2d_umaze")
    env.reset(seed=0)
    first = env.render()
    np.testing.assert_array_equal(env.render(), first)
    for _ in range(40):
        env.step(np.array([1.0, 1.0]))
    moved = env.render()
    assert first.shape == (256, 256, 3) and not np.array_equal(moved, first)
    before = env.step(np.array([0.0, 0.0]))
    env.reset(seed=0)
    for _ in range(40):
        env.step(np.array([1.0, 1.0]))
    np.testing.assert_array_equal(env.step(np.array([0.0, 0.0]))[0], before[0]), "drawing changes nothing"
    env.close()
