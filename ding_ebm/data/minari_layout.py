"""Minari's folders of the format ``hdf5``, read and written without the ``minari`` package.

``<folder>/data/main_data.hdf5`` holds a group ``episode_<i>`` for each episode: ``observations`` (T + 1, Do),
``actions`` (T, Da), ``rewards``, ``terminations`` and ``truncations`` (T,); observations may be a group of arrays by
key. ``metadata.json`` beside it holds counts, spaces and texts; the texts are kept.

Source:
    Minari 0.5 (Farama Foundation), its storage in HDF5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ding_ebm.data.files import new_folder
from ding_ebm.data.hdf5 import get_group, is_group, keys_of, open_hdf5, read_flags, read_numbers
from ding_ebm.data.npz import read_json_texts
from ding_ebm.data.transitions import Episode, Transitions, join_episodes, split_episodes

MAIN_FILE = "main_data.hdf5"
_METADATA_FILE = "metadata.json"
# What is written of a data set itself, not by its recorder.
_OWN = (
    *("total_episodes", "total_steps", "data_format", "observation_space", "action_space"),
    *("dataset_id", "dataset_size", "minari_version"),
)
# The version whose layout is written, without which Minari does not load a data set.
_VERSION = "0.5.3"


def find_main_file(path: Path) -> Path | None:
    """The HDF5 file of a data set's folder, of its folder ``data``, or itself; None if it is none of these."""
    places = (path / "data" / MAIN_FILE, path / MAIN_FILE, *([path] if path.name == MAIN_FILE else []))
    return next((place for place in places if place.is_file()), None)


def read_minari_folder(path: str | Path, obs_keys: Sequence[str] | None = None) -> Transitions:
    """Read the episodes in the order of their numbers.

    Args:
        path: The data set's folder, its folder ``data``, or ``main_data.hdf5`` in it.
        obs_keys: Where observations are arrays by key: those whose columns make an observation, in this order, with a
            ``/`` where keys lie in keys.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, or the keys are not given, not there, or given for nothing.
    """
    path = Path(path)
    main = find_main_file(path)
    if main is None:
        raise FileNotFoundError(f"no data/{MAIN_FILE} in {path}; a folder of Minari's format hdf5 is expected")
    with open_hdf5(main, "Minari's layout") as file:
        names = sorted(
            (name for name in keys_of(file) if re.fullmatch(r"episode_\d+", name)), key=lambda name: int(name[8:])
        )
        episodes = [_read_episode(get_group(file, name), obs_keys) for name in names]
    texts = read_json_texts(main.with_name(_METADATA_FILE))
    return join_episodes(episodes, str(path), {key: text for key, text in texts.items() if key not in _OWN})


def write_minari_folder(path: str | Path, transitions: Transitions) -> None:
    """Write a data set's folder, which Minari loads by its name and :func:`read_minari_folder` reads back unchanged.

    Within an episode ``next_obs`` is the following row's ``obs``, also where the two differed by rounding. Spaces are
    boxes without bounds. The folder appears under its name only when it is complete.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If the rows are no episodes, see :func:`~ding_ebm.data.transitions.split_episodes`.
    """
    episodes = split_episodes(transitions)
    metadata = {
        **transitions.metadata,
        "total_episodes": len(episodes),
        "total_steps": len(transitions),
        "data_format": "hdf5",
        "observation_space": _space(transitions.obs),
        "action_space": _space(transitions.action),
        "dataset_id": Path(path).name,
        "minari_version": _VERSION,
    }
    with new_folder(path) as part:
        (part / "data").mkdir()
        with h5py.File(part / "data" / MAIN_FILE, "w", track_order=True) as file:
            for number, episode in enumerate(episodes):
                _write_episode(file.create_group(f"episode_{number}"), number, episode)
        (part / "data" / _METADATA_FILE).write_text(json.dumps(metadata), "utf-8")


def _write_episode(group: h5py.Group, number: int, episode: Episode) -> None:
    group.attrs.update(id=number, total_steps=len(episode.action))
    group.create_dataset("observations", data=episode.obs, compression="gzip")
    group.create_dataset("actions", data=episode.action, compression="gzip")
    group["rewards"] = episode.reward
    group["terminations"] = episode.terminated
    group["truncations"] = episode.truncated


def _space(array: NDArray[np.float32]) -> str:
    """The space of rows of an array, as Minari writes one."""
    size = array.shape[1]
    bounds = dict(low=[-float("inf")] * size, high=[float("inf")] * size)
    return json.dumps(dict(type="Box", dtype="float32", shape=[size], **bounds))


def _read_episode(group: h5py.Group, obs_keys: Sequence[str] | None) -> Episode:
    where = f"{group.file.filename}: {group.name.strip('/')}"
    if is_group(group, "observations"):
        obs = _side_by_side(group["observations"], obs_keys, where)
    elif obs_keys is None:
        obs = read_numbers(group, "observations", 2)
    else:
        raise ValueError(f"{where}: observations are one array, there are no keys to choose; leave obs_keys out")
    action, reward = read_numbers(group, "actions", 2), read_numbers(group, "rewards", 1)
    terminated, truncated = read_flags(group, "terminations"), read_flags(group, "truncations")
    steps = {len(obs) - 1, len(action), len(reward), len(terminated), len(truncated)}
    if len(steps) != 1 or steps == {0}:
        raise ValueError(
            f"{where} must have one observation more than actions, rewards, terminations and truncations, got "
            f"{len(obs)}, {len(action)}, {len(reward)}, {len(terminated)}, {len(truncated)}"
        )
    return Episode(obs, action, reward, terminated, truncated)


def _side_by_side(group: h5py.Group, obs_keys: Sequence[str] | None, where: str) -> NDArray[np.float32]:
    """Observations by key as columns, in the order of the keys."""
    if not obs_keys:
        raise ValueError(
            f"{where}: observations have the keys {', '.join(keys_of(group))}; choose those to read and their order "
            "(obs_keys, --obs-keys)"
        )
    parts: list[NDArray[Any]] = []
    for key in obs_keys:
        *folders, name = key.split("/")
        place = group
        for folder in folders:
            place = get_group(place, folder)
        parts.append(read_numbers(place, name, 2, f"one of {', '.join(keys_of(place))}"))
    if len({len(part) for part in parts}) > 1:
        raise ValueError(f"{where}: observations have different lengths: {', '.join(str(len(part)) for part in parts)}")
    return np.concatenate(parts, axis=1)
