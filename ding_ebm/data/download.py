"""Downloads of published data sets: resumed where they stopped, checked by their sums, complete or not there.

Nobody has published sums of D4RL's files. The sum of the first download is written beside the file,
``<file>.sha256`` as ``sha256sum`` writes and checks it, and every later download of the file must have it.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py

from ding_ebm.data.sums import file_sum

MIRROR_VARIABLE = "DING_EBM_MIRROR"
D4RL_HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_BLOCK = 1 << 20
_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        place: Where it lies below its host, or below a mirror of it.
        name: Name that configs look for it by.
        sha256: Its sum where one is published, else None.
        host: Address of its host.
    """

    place: str
    name: str
    sha256: str | None = None
    host: str = D4RL_HOST


def _locomotion() -> dict[str, RemoteFile]:
    files = {}
    for task in ("hopper", "walker2d", "halfcheetah", "ant"):
        for kind in ("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay"):
            stem = f"{task}_{kind.replace('-', '_')}"
            files[f"{task}-{kind}-v2"] = RemoteFile(f"gym_mujoco_v2/{stem}-v2.hdf5", f"{stem}.hdf5")
    return files


def _antmaze() -> dict[str, RemoteFile]:
    mazes = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
    kinds = {"": (False, False), "diverse": (True, True), "play": (True, False)}  # many starts, many goals
    files = {}
    for name in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"):
        maze, _, kind = name.partition("-")
        starts, goals = kinds[kind]
        stem = f"Ant_maze_{mazes[maze]}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed"
        files[f"antmaze-{name}-v2"] = RemoteFile(f"ant_maze_v2/{stem}.hdf5", f"antmaze_{name.replace('-', '_')}.hdf5")
    return files


def _maze2d() -> dict[str, RemoteFile]:
    return {
        f"maze2d-{size}-v1": RemoteFile(f"maze2d/maze2d-{size}-sparse-v1.hdf5", f"maze2d_{size}.hdf5")
        for size in ("umaze", "medium", "large")
    }


def _kitchen() -> dict[str, RemoteFile]:
    stems = {
        "complete": "mini_kitchen_microwave_kettle_light_slider-v0",
        "partial": "kitchen_microwave_kettle_light_slider-v0",
        "mixed": "kitchen_microwave_kettle_bottomburner_light-v0",
    }
    return {
        f"kitchen-{kind}-v0": RemoteFile(f"kitchen/{stem}.hdf5", f"kitchen_{kind}.hdf5") for kind, stem in stems.items()
    }


# D4RL (Fu et al. 2020, arXiv:2004.07219), by the names of its environments.
REMOTE_FILES: Mapping[str, RemoteFile] = {**_locomotion(), **_antmaze(), **_maze2d(), **_kitchen()}


def download(
    remote: RemoteFile,
    path: str | Path,
    *,
    mirror: str | None = None,
    sha256: str | None = None,
    progress: Callable[[int, int | None], object] | None = None,
) -> str:
    """Bring a file here and return its SHA-256; a file that is there with the right sum is left as it is.

    What has arrived is kept in ``<path>.part``, where the next call goes on if the server can, and if what it has is
    still the same file. The file appears under its name when it is complete and has the right sum.

    Args:
        remote: The file.
        path: Where it goes.
        mirror: Address that stands in for the host's; None: ``$DING_EBM_MIRROR`` if set, else the host.
        sha256: Sum that it must have; None: the published one, else that of the first download if it is noted.
        progress: Called with the bytes that have arrived and those expected, None where the server does not say.

    Raises:
        ConnectionError: If the host cannot be reached, has no such file, or stops sending.
        ValueError: If an address is not of http or https, or the sum is not the expected one, of the file that has
            arrived or of one that is there; the former stays as ``<path>.part``.
    """
    path = Path(path)
    note = Path(f"{path}.sha256")
    expected = (sha256 or remote.sha256 or _noted(note) or "").lower()
    if path.exists():
        found = file_sum(path)
        if expected and found != expected:
            raise ValueError(
                f"{path} has the sum {found}, and {expected} is expected{_origin(note, sha256, remote)}; remove the "
                "file to download it again" + ("" if sha256 or remote.sha256 else f", and {note} to take another one")
            )
    else:
        found = _fetch(_address(remote, mirror), path, expected, _origin(note, sha256, remote), progress)
    note.write_text(f"{found}  {path.name}\n", "utf-8")
    return found


def _address(remote: RemoteFile, mirror: str | None) -> str:
    base = mirror or os.environ.get(MIRROR_VARIABLE) or remote.host
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise ValueError(f"a mirror must be an address of http or https, got {base!r}; a local file needs no download")
    return f"{base.rstrip('/')}/{urllib.parse.quote(remote.place)}"


def _noted(note: Path) -> str | None:
    """The sum of an earlier download."""
    if not note.is_file():
        return None
    words = note.read_text("utf-8").split()
    if not words or len(words[0]) != 64:
        raise ValueError(f"{note} must begin with a SHA-256 of 64 digits, as sha256sum writes it")
    return words[0]


def _origin(note: Path, sha256: str | None, remote: RemoteFile) -> str:
    return "" if sha256 else " as published" if remote.sha256 else f" by {note}"


def _fetch(
    address: str, path: Path, expected: str, origin: str, progress: Callable[[int, int | None], object] | None
) -> str:
    """Complete ``<path>.part``, check it, and give it its name."""
    part, tag = Path(f"{path}.part"), Path(f"{path}.part.tag")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        _receive(address, part, tag, progress)
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"{address}: the server answers {error.code} {error.reason}. {_advice(path)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{address} could not be fetched: {error or type(error).__name__}. What has arrived is kept; the same "
            f"command goes on from there. {_advice(path)}"
        ) from error
    found = file_sum(part)
    if expected and found != expected:
        tag.unlink(missing_ok=True)
        raise ValueError(
            f"{address} has the sum {found}, and {expected} is expected{origin}: it is another file, or was damaged. "
            f"It is kept as {part}, to be looked at; the same command downloads it anew"
        )
    if path.suffix == ".hdf5" and not h5py.is_hdf5(part):
        raise ValueError(f"{address} is no HDF5 file but perhaps a page that says why; it is kept as {part}")
    tag.unlink(missing_ok=True)
    part.replace(path)
    return found


def _receive(address: str, part: Path, tag: Path, progress: Callable[[int, int | None], object] | None) -> None:
    """Append what ``part`` lacks, or begin anew where the server does not go on with the same file."""
    have, version = part.stat().st_size if part.is_file() else 0, tag.read_text("utf-8") if tag.is_file() else ""
    request = urllib.request.Request(address, headers={"User-Agent": "ding-ebm"})
    if have and version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing lies behind what is here: it is complete, or not of this file
            raise
        if error.headers["Content-Range"] != f"bytes */{have}":
            tag.unlink()
            _receive(address, part, tag, progress)
        return
    with answer:
        goes_on = answer.status == 206 and (answer.headers["Content-Range"] or "").startswith(f"bytes {have}-")
        done = have if goes_on else 0
        length = answer.headers["Content-Length"]
        total = None if length is None else done + int(length)
        # What names this version of the file: without it a part cannot be trusted to belong to the rest.
        strong = answer.headers["ETag"] or ""
        weak = not strong or strong.startswith("W/")
        tag.write_text(answer.headers["Last-Modified"] or "" if weak else strong, "utf-8")
        with part.open("ab" if goes_on else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
    if total is not None and done != total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _advice(path: Path) -> str:
    return (
        f"If you have the file from elsewhere, put it at {path} (or name it where a data file is asked for: any path "
        f"will do), or name a mirror by --mirror or ${MIRROR_VARIABLE}"
    )
