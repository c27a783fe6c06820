"""A folder of npz files, one an episode: the easiest format to write by hand.

Each holds ``observations`` (T + 1, Do; the last one is that after the last action), ``actions`` (T, Da), ``rewards``
(T,), and ``terminated`` and ``truncated``, either one flag of the episode's last step or (T,). ``truncated`` may be
missing: an episode that was not terminated then was cut. Files are read in the order of the numbers in their names.
``metadata.json`` beside them may hold texts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from ding_ebm.data.files import new_folder
from ding_ebm.data.npz import flags, numbers, read_json_texts, read_npz, write_npz
from ding_ebm.data.transitions import Episode, Transitions, join_episodes, split_episodes

_METADATA_FILE = "metadata.json"


def read_episode_folder(path: str | Path) -> Transitions:
    """Read the episodes of a folder.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no npz files.
        ValueError: If a file is not of this layout; the message names file, array and what was expected.
    """
    path = Path(path)
    files = sorted(path.glob("*.npz"), key=_by_numbers)
    if not files:
        raise FileNotFoundError(f"no npz files in {path}; one an episode is expected")
    texts = read_json_texts(path / _METADATA_FILE)
    return join_episodes([_read_episode(file) for file in files], str(path), texts)


def write_episode_folder(path: str | Path, transitions: Transitions) -> None:
    """Write a new folder of episodes, which :func:`read_episode_folder` reads back unchanged.

    Within an episode ``next_obs`` is the following row's ``obs``, also where the two differed by rounding. The folder
    appears under its name only when it is complete.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If the rows are no episodes, see :func:`~ding_ebm.data.transitions.split_episodes`.
    """
    episodes = split_episodes(transitions)
    with new_folder(path) as part:
        for number, episode in enumerate(episodes):
            arrays = dict(observations=episode.obs, actions=episode.action, rewards=episode.reward)
            ends = dict(terminated=episode.terminated, truncated=episode.truncated)
            write_npz(part / f"episode_{number:06d}.npz", {**arrays, **ends})
        (part / _METADATA_FILE).write_text(json.dumps(dict(transitions.metadata)), "utf-8")


def _by_numbers(file: Path) -> list[tuple[int, str]]:
    """What orders file names by the numbers in them: 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _read_episode(file: Path) -> Episode:
    required = ("observations", "actions", "rewards", "terminated")
    found = read_npz(file, "an episode", required, ("truncated",))
    action = numbers(found["actions"], (None, None), f"{file}: 'actions'")
    steps = len(action)
    terminated = flags(found["terminated"], steps, f"{file}: 'terminated'")
    cut = found.get("truncated", np.array(not terminated[-1]))
    return Episode(
        numbers(found["observations"], (steps + 1, None), f"{file}: 'observations'"),
        action,
        numbers(found["rewards"], (steps,), f"{file}: 'rewards'"),
        terminated,
        flags(cut, steps, f"{file}: 'truncated'"),
    )
