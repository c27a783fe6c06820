"""Masses and inertias that MuJoCo before 2.1.2 gave to capsules, with which D4RL's data were made."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def use_legacy_capsules(model: mujoco.MjModel, total_mass: float | None = None) -> None:
    """Replace masses and inertias of a compiled model by those of MuJoCo 2.1.1 and before, in place.

    A capsule of radius r and half length h was a cylinder of length H = 2 h + r: its mass was rho pi r^2 H, its moments
    m (3 r^2 + H^2) / 12, twice, and m r^2 / 2. From version 2.1.2 on they are exact, with 2 h + 4 r / 3 in the volume.
    Spheres have always been exact.

    Args:
        model: A model whose bodies consist of capsules and spheres, of one density within a body.
        total_mass: What all masses and inertias are scaled to, where the model's file states it (``settotalmass``).

    Raises:
        ValueError: If a body has a geom of another shape.

    Source:
        Changelog of MuJoCo 2.1.2; the masses published for D4RL's hopper follow from it to all their digits.
    """
    for body in range(1, model.nbody):
        geoms = np.flatnonzero(model.geom_bodyid == body)
        if geoms.size:
            _set_body(model, body, geoms)
    if total_mass is not None:
        factor = total_mass / model.body_mass.sum()
        model.body_mass *= factor
        model.body_inertia *= factor
    mujoco.mj_setConst(model, mujoco.MjData(model))


def _set_body(model: mujoco.MjModel, body: int, geoms: NDArray[np.int64]) -> None:
    """Sum up a body's geoms."""
    exact, legacy = zip(*(_volumes(model, geom) for geom in geoms))
    masses = np.array(legacy) * (model.body_mass[body] / sum(exact))
    positions = model.geom_pos[geoms]
    mass = masses.sum()
    center = masses @ positions / mass
    inertia = np.zeros((3, 3))
    for geom, own, position in zip(geoms, masses, positions):
        offset = position - center
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        axes = rotation.reshape(3, 3)
        inertia += axes @ np.diag(_moments(model, geom, own)) @ axes.T
        inertia += own * (offset @ offset * np.eye(3) - np.outer(offset, offset))
    moments, axes, quaternion = np.empty(3), np.empty(9), np.empty(4)
    mujoco.mju_eig3(moments, axes, quaternion, inertia.ravel())
    model.body_mass[body], model.body_ipos[body] = mass, center
    model.body_inertia[body], model.body_iquat[body] = moments, quaternion


def _volumes(model: mujoco.MjModel, geom: int) -> tuple[float, float]:
    """Volume of a geom as it is, and as it was."""
    radius, half = model.geom_size[geom, :2]
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_SPHERE:
        return (4 / 3 * np.pi * radius**3,) * 2
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
        disk = np.pi * radius**2
        return disk * (2 * half + 4 / 3 * radius), disk * (2 * half + radius)
    raise ValueError(
        f"geom {model.geom(geom).name!r} of body {model.body(model.geom_bodyid[geom]).name!r} must be a capsule or a "
        f"sphere, got {mujoco.mjtGeom(model.geom_type[geom]).name}"
    )


def _moments(model: mujoco.MjModel, geom: int, mass: float) -> Floats:
    """Principal moments of inertia of a geom, (3,)."""
    radius, half = model.geom_size[geom, :2]
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_SPHERE:
        return np.full(3, 0.4 * mass * radius**2)
    length = 2 * half + radius
    across = mass * (3 * radius**2 + length**2) / 12
    return np.array([across, across, mass * radius**2 / 2])
