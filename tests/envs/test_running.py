"""What versions of the running tasks differ in: masses, friction, the reward of the last step, what is observed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from ding_ebm.envs.registry import get_task

if importlib.util.find_spec("mujoco") is None:
    pytest.skip("MuJoCo is not installed", allow_module_level=True)

import mujoco

from ding_ebm.envs.bodies import DYNAMICS
from ding_ebm.envs.inertia import use_legacy_capsules
from ding_ebm.envs.mujoco_batch import MujocoBatch
from ding_ebm.envs.running import RUNNERS, make_runner

PLANAR = ["hopper", "walker2d", "halfcheetah"]
FALLING = ["hopper", "walker2d", "ant", "humanoid"]


def masses(name: str, dynamics: str) -> np.ndarray:
    return make_runner(name, dynamics).model.body_mass[1:]


def test_legacy_masses_of_hopper_are_the_published_ones() -> None:
    published = [3.53429174, 3.92699082, 2.71433605, 5.0893801]
    np.testing.assert_allclose(masses("hopper", "d4rl-v2"), published, atol=5e-9)
    assert (masses("hopper", "v4") > 1.02 * np.array(published)).all()
    np.testing.assert_array_equal(masses("hopper", "v4"), masses("hopper", "v5"))


def test_the_cheetah_keeps_the_mass_that_its_file_states_and_the_others_lose_some() -> None:
    for dynamics in DYNAMICS:
        assert masses("halfcheetah", dynamics).sum() == pytest.approx(14, abs=1e-9)
    change = masses("halfcheetah", "d4rl-v2") / masses("halfcheetah", "v4") - 1
    assert change.min() == pytest.approx(-0.039, abs=2e-3) and change.max() == pytest.approx(0.018, abs=2e-3)
    change = masses("walker2d", "d4rl-v2") / masses("walker2d", "v4") - 1
    assert change.min() == pytest.approx(-0.071, abs=2e-3) and change.max() < 0


def test_legacy_inertia_is_that_of_cylinders_put_together() -> None:
    """Against a body of two capsules, integrated by points."""
    xml = """<mujoco><worldbody><body><freejoint/>
      <geom type="capsule" size="0.1" fromto="0 0 0 0.3 0 0.4" density="700"/>
      <geom type="capsule" size="0.05 0.2" pos="-0.1 0.2 0" density="700"/>
    </body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    use_legacy_capsules(model)
    rng = np.random.default_rng(0)
    points = rng.uniform([-0.6, -0.3, -0.6], [0.6, 0.4, 0.9], (400_000, 3))
    weights = np.zeros(len(points))
    for start, end, radius in (((0, 0, 0), (0.3, 0, 0.4), 0.1), ((-0.1, 0.2, -0.2), (-0.1, 0.2, 0.2), 0.05)):
        start, end = np.array(start), np.array(end)
        axis = (end - start) / np.linalg.norm(end - start)
        along = (points - (start + end) / 2) @ axis
        across = np.linalg.norm(points - (start + end) / 2 - along[:, None] * axis, axis=1)
        inside = (np.abs(along) <= np.linalg.norm(end - start) / 2 + radius / 2) & (across <= radius)
        weights += inside
    weights *= 700 * 1.2 * 0.7 * 1.5 / len(points)
    assert model.body_mass[1] == pytest.approx(weights.sum(), rel=0.02)
    center = weights @ points / weights.sum()
    np.testing.assert_allclose(model.body_ipos[1], center, atol=2e-3)
    offsets = points - center
    inertia = (weights * (offsets**2).sum(1)).sum() * np.eye(3) - (weights[:, None] * offsets).T @ offsets
    np.testing.assert_allclose(model.body_inertia[1], np.sort(np.linalg.eigvalsh(inertia))[::-1], rtol=0.03)
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.body_iquat[1])
    axes = rotation.reshape(3, 3)
    np.testing.assert_allclose(axes @ np.diag(model.body_inertia[1]) @ axes.T, inertia, atol=0.01)


def test_legacy_inertia_refuses_what_is_neither_capsule_nor_sphere() -> None:
    xml = "<mujoco><worldbody><body name='b'><geom name='g' type='box' size='1 1 1'/></body></worldbody></mujoco>"
    with pytest.raises(ValueError, match="geom 'g' of body 'b' must be a capsule or a sphere, got mjGEOM_BOX"):
        use_legacy_capsules(mujoco.MjModel.from_xml_string(xml))


def test_only_walker2d_has_another_model_in_version_5() -> None:
    for name in RUNNERS:
        models = [make_runner(name, dynamics).model for dynamics in ("v4", "v5")]
        different = np.flatnonzero((models[0].geom_friction != models[1].geom_friction).any(axis=1))
        assert [models[0].geom(i).name for i in different] == (["foot_geom"] if name == "walker2d" else [])
        np.testing.assert_array_equal(models[0].body_mass, models[1].body_mass)
    assert models[0].opt.timestep == models[1].opt.timestep
    foot = make_runner("walker2d", "v4").model.geom("foot_geom").friction[0]
    assert foot == 0.9 and make_runner("walker2d", "v5").model.geom("foot_geom").friction[0] == 1.9


@pytest.mark.parametrize("name", FALLING)
def test_version_5_pays_no_life_on_the_last_step(name: str) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 150, get_task(name).action_dim))
    old, new = (MujocoBatch(name, 6, dynamics=dynamics) for dynamics in ("v4", "v5"))
    if name == "walker2d":  # of the same model, so that both fall alike
        new._model.geom_friction[:] = old._model.geom_friction
    chunks = [env.step_chunk(actions) for env in (old, new)]
    fallen = np.flatnonzero(chunks[0].terminated)
    np.testing.assert_array_equal(chunks[0].length, chunks[1].length)
    rows = np.arange(6)
    less = (chunks[0].reward - chunks[1].reward)[rows, chunks[0].length - 1][fallen]
    alive = {"humanoid": 5.0}.get(name, 1.0)
    contact = {"ant": 5e-4 * 84, "humanoid": 10.0}.get(name, 0.0)  # at most; only version 5 makes it cost
    assert fallen.size and (less >= alive - 1e-9).all() and (less <= alive + contact + 1e-9).all()
    before = (chunks[0].reward - chunks[1].reward)[:, :5]
    assert (before >= 0).all() and (before <= contact).all()


def test_versions_observe_what_the_table_says() -> None:
    for name in RUNNERS:
        for dynamics in DYNAMICS:
            if (name, dynamics) != ("humanoid", "d4rl-v2"):
                task = get_task(name, dynamics)
                assert make_runner(name, dynamics).obs_dim == task.obs_dim
                assert task.name == (name if dynamics == "v4" else f"{name}-{dynamics}")


def test_legacy_masses_move_a_body_differently() -> None:
    for name in (*PLANAR, "ant"):
        old, legacy = (MujocoBatch(name, 1, dynamics=dynamics) for dynamics in ("v4", "d4rl-v2"))
        actions = np.full((1, 5, get_task(name).action_dim), 0.3)
        assert np.abs(old.step_chunk(actions).obs - legacy.step_chunk(actions).obs).max() > 1e-3
