"""robomimic's HDF5 layout: ``data/demo_<i>/{actions, rewards, dones, obs/<key>, next_obs/<key>}``, rows of one episode.

An observation is several arrays by key. Of those that describe the state a chosen list is put side by side, (T, Do);
images are not read. ``next_obs`` may be missing. Texts among the attributes of ``data`` are kept, as ``env_args``, and
so is the list of keys. Whether an episode was cut is written here as the attribute ``truncated`` of a demonstration,
which robomimic does not know.

Source:
    Mandlekar et al. 2021 (arXiv:2108.03298) and the documentation of its code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.files import new_file
from ding_ebm.data.hdf5 import (
    flag_attribute,
    get_array,
    get_group,
    is_array,
    is_group,
    keys_of,
    open_hdf5,
    read_flags,
    read_names,
    read_numbers,
    text_attributes,
)
from ding_ebm.data.transitions import Transitions, end_episodes, shift_successors

# What DPPO's code takes of an observation, in its order; robot1 is there in tasks of two arms.
STATE_KEYS = (
    *(f"robot{robot}_{part}" for robot in (0, 1) for part in ("eef_pos", "eef_quat", "gripper_qpos")),
    "object",
)
# Name in the metadata of the keys that observations were made of and their sizes, and the key of others.
_KEYS = "obs_keys"
_FLAT_KEY = "state"


def read_robomimic_hdf5(
    path: str | Path,
    obs_keys: Sequence[str] | None = None,
    leave_out_images: bool = False,
    split: str | None = None,
) -> Transitions:
    """Read the demonstrations in the order of their numbers.

    A demonstration is one episode. It is terminated where ``dones`` is set in its last row, else truncated; ``dones``
    before, which say that the task was already solved there, end nothing. Without ``next_obs`` next observations are
    the following rows', so that the last row of a truncated episode is lost, see
    :func:`~ding_ebm.data.transitions.shift_successors`.

    Args:
        path: The file.
        obs_keys: Keys whose columns make an observation, in this order. None: those that the file was written from
            here, else those of ``STATE_KEYS`` that are there if it is of a robot, else all.
        leave_out_images: Whether there may be images where ``obs_keys`` does not say what to read.
        split: Name of a list of demonstrations in the file's ``mask``, as ``train``; None: all.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is no such file, or a key is missing or of an image.
    """
    path = Path(path)
    with open_hdf5(path, "robomimic's layout") as file:
        data = get_group(file, "data")
        demos = [get_group(data, name) for name in _demo_names(file, split)]
        noted = list(_key_sizes(text_attributes(data).get(_KEYS, "")))
        sizes = _choose(demos[0], obs_keys or noted or None, leave_out_images)
        columns, lengths = _read_columns(demos, sizes)
        metadata = {**text_attributes(data), _KEYS: ", ".join(f"{key} {size}" for key, size in sizes.items())}
    end_episodes(columns["terminated"], columns["truncated"], lengths)
    if "next_obs" not in columns:
        columns = shift_successors(str(path), columns, "'next_obs'")
    return Transitions(**columns, source=str(path), metadata=metadata)


def write_robomimic_hdf5(path: str | Path, transitions: Transitions) -> None:
    """Write the episodes as demonstrations, which :func:`read_robomimic_hdf5` reads back unchanged.

    Observations that were read from such a file get their keys again; others get the key ``state``. For robomimic to
    train on the file, ``env_args`` must be among the metadata. It appears under its name only when it is complete.
    """
    sizes = _key_sizes(transitions.metadata.get(_KEYS, ""))
    if sum(sizes.values()) != transitions.obs.shape[1]:
        sizes = {_FLAT_KEY: transitions.obs.shape[1]}
    borders = np.cumsum([0, *sizes.values()])
    with new_file(path) as part, h5py.File(part, "w") as file:
        data = file.create_group("data")
        keys = ", ".join(f"{key} {size}" for key, size in sizes.items())
        data.attrs.update({**transitions.metadata, _KEYS: keys, "total": len(transitions)})
        for number, (start, stop) in enumerate(zip(*transitions.pieces)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update(num_samples=stop - start, truncated=transitions.truncated[stop - 1])
            demo["actions"] = transitions.action[start:stop]
            demo["rewards"] = transitions.reward[start:stop]
            demo["dones"] = transitions.terminated[start:stop].astype(np.int64)
            for group, array in (("obs", transitions.obs), ("next_obs", transitions.next_obs)):
                for key, low, high in zip(sizes, borders[:-1], borders[1:]):
                    demo[f"{group}/{key}"] = array[start:stop, low:high]


def _key_sizes(text: str) -> dict[str, int]:
    """Keys and sizes from what the metadata say of them: ``robot0_eef_pos 3, object 10``."""
    return {key: int(size) for key, size in re.findall(r"([^\s,]+) (\d+)", text)}


def _demo_names(file: h5py.File, split: str | None) -> list[str]:
    """Names of the demonstrations, in the order of their numbers; of a split, if there is one asked for."""
    names = [name for name in keys_of(file["data"]) if re.fullmatch(r"demo_\d+", name)]
    if split is not None:
        masks = keys_of(get_group(file, "mask")) if is_group(file, "mask") else []
        if split not in masks:
            raise ValueError(f"{file.filename}: there is no split {split!r}; found {', '.join(masks) or 'none'}")
        chosen = read_names(file["mask"], split)
        for name in set(chosen) - set(names):
            raise ValueError(f"{file.filename}: the split {split!r} names {name!r}, which is not there")
        names = [name for name in names if name in chosen]
    if not names:
        raise ValueError(f"{file.filename}: there are no demonstrations, data/demo_0 and on are expected")
    return sorted(names, key=lambda name: int(name[len("demo_") :]))


def _choose(demo: h5py.Group, obs_keys: Sequence[str] | None, leave_out_images: bool) -> dict[str, int]:
    """The keys that make an observation, and their sizes."""
    where = demo.file.filename
    if not is_group(demo, "obs"):
        raise ValueError(
            f"{where}: {demo.name} has no observations; raw recordings get theirs by robomimic's dataset_states_to_obs"
        )
    ranks = {key: len(demo["obs"][key].shape) for key in keys_of(demo["obs"]) if is_array(demo["obs"], key)}
    images = [key for key, rank in ranks.items() if rank > 2]
    if obs_keys is None:
        if images and not leave_out_images:
            raise ValueError(
                f"{where}: {', '.join(images)} are images, and only states are read; choose keys (obs_keys, "
                "--obs-keys), or leave images out (leave_out_images, --leave-out-images)"
            )
        states = [key for key in ranks if key not in images]
        obs_keys = [key for key in STATE_KEYS if key in states] if STATE_KEYS[0] in states else states
    for key in obs_keys:
        if key not in ranks:
            raise ValueError(f"{where}: there is no observation {key!r}; found {', '.join(ranks)}")
        if key in images:
            raise ValueError(
                f"{where}: {key!r} is an image of shape {demo['obs'][key].shape[1:]}; only states are read"
            )
    if not obs_keys:
        raise ValueError(f"{where}: there is no key to read as an observation; found {', '.join(ranks) or 'none'}")
    sizes = {key: get_array(demo["obs"], key).shape[1:] for key in obs_keys}
    return {key: size[0] if size else 1 for key, size in sizes.items()}


def _read_columns(demos: list[h5py.Group], sizes: dict[str, int]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """The columns, next observations among them if every demonstration has them, and the episodes' lengths."""
    actions = [read_numbers(demo, "actions", 2) for demo in demos]
    lengths = np.array([len(action) for action in actions])
    stops = np.cumsum(lengths)
    columns: dict[str, NDArray[Any]] = {"action": np.concatenate(actions)}
    columns["reward"] = np.concatenate([_of_length(read_numbers(demo, "rewards", 1), demo) for demo in demos])
    names = ["obs", "next_obs"] if all(is_group(demo, "next_obs") for demo in demos) else ["obs"]
    for name in names:
        columns[name] = np.empty((stops[-1], sum(sizes.values())), np.float32)
        for demo, start, stop in zip(demos, stops - lengths, stops):
            _read_observations(get_group(demo, name), sizes, columns[name][start:stop])
    terminated, truncated = np.zeros((2, stops[-1]), dtype=np.bool_)
    for demo, stop in zip(demos, stops):
        terminated[stop - 1] = _of_length(read_flags(demo, "dones"), demo)[-1]
        truncated[stop - 1] = flag_attribute(demo, "truncated", not terminated[stop - 1])
    return {**columns, "terminated": terminated, "truncated": truncated}, lengths


def _read_observations(group: h5py.Group, sizes: dict[str, int], rows: NDArray[np.float32]) -> None:
    """Write the observations of one demonstration into its rows, key beside key."""
    left = 0
    for key, size in sizes.items():
        found = get_array(group, key)
        if found.shape not in ((len(rows), size), *([(len(rows),)] if size == 1 else [])):
            raise ValueError(
                f"{group.file.filename}: {found.name} must have shape {(len(rows), size)}, as actions and the first "
                f"demonstration say, got {found.shape}"
            )
        rows[:, left : left + size] = read_numbers(group, key, found.ndim).reshape(len(rows), size)
        left += size


def _of_length(array: NDArray[Any], demo: h5py.Group) -> NDArray[Any]:
    """An array of a demonstration, refused if it has not as many rows as its actions."""
    rows = demo["actions"].shape[0]
    if len(array) != rows or rows == 0:
        raise ValueError(f"{demo.file.filename}: {demo.name} has {rows} actions and {len(array)} rewards or dones")
    return array
