"""Downloads from a server on this machine: one that resumes, one that cannot, one that lies, one that is down."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from ding_ebm.cli import main
from ding_ebm.data.download import REMOTE_FILES, RemoteFile, download, file_sum

REMOTE = RemoteFile("gym/some set.hdf5", "set.hdf5", host="http://nowhere.invalid")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``content`` under every path below /sets; the test says by attributes of the server how."""

    def do_GET(self) -> None:
        shop = self.server
        shop.asked.append((self.path, self.headers["Range"]))
        if not self.path.startswith("/sets/"):
            self.send_error(404, "Not Found")
            return
        first = 0
        known = self.headers["If-Range"] == shop.tag
        if shop.ranges and self.headers["Range"] and known:
            first = int(self.headers["Range"][len("bytes=") : -1])
            if first >= len(shop.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(shop.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(shop.content) - 1}/{len(shop.content)}")
        else:
            self.send_response(200)
        body = shop.content[first:]
        if shop.says_length:
            self.send_header("Content-Length", str(len(body)))
        if shop.tag:
            self.send_header("ETag" if shop.tag.startswith('"') else "Last-Modified", shop.tag)
        self.end_headers()
        self.wfile.write(body if shop.stops_after is None else body[: shop.stops_after])

    def log_message(self, *args: object) -> None:
        pass


class Shop(http.server.ThreadingHTTPServer):
    content = b""
    tag = '"one"'
    ranges = says_length = True
    stops_after: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/sets"


def hdf5_bytes(seed: int) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["observations"] = np.random.default_rng(seed).normal(size=(5000, 3))
    return buffer.getvalue()


@pytest.fixture
def shop() -> Iterator[Shop]:
    server = Shop(("127.0.0.1", 0), Handler)
    server.asked = []
    server.content = hdf5_bytes(0)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(shop: Shop, tmp_path: Path) -> Callable[..., str]:
    return lambda **options: download(REMOTE, tmp_path / "set.hdf5", mirror=shop.address, **options)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_arrives_whole_with_its_sum_noted(shop: Shop, fetch: Callable[..., str], tmp_path: Path) -> None:
    said: list[tuple[int, int | None]] = []
    assert fetch(progress=lambda *counts: said.append(counts)) == sha256(shop.content)
    assert (tmp_path / "set.hdf5").read_bytes() == shop.content
    assert names(tmp_path) == {"set.hdf5", "set.hdf5.sha256"}
    assert (tmp_path / "set.hdf5.sha256").read_text() == f"{sha256(shop.content)}  set.hdf5\n"
    assert shop.asked == [("/sets/gym/some%20set.hdf5", None)]
    assert said[-1] == (len(shop.content),) * 2
    assert file_sum(tmp_path / "set.hdf5") == sha256(shop.content)


def test_a_file_that_is_there_is_checked_and_not_fetched(shop: Shop, fetch: Callable[..., str], tmp_path: Path) -> None:
    fetch()
    assert fetch() == sha256(shop.content) and len(shop.asked) == 1
    (tmp_path / "set.hdf5").write_bytes(shop.content[:-1])
    with pytest.raises(ValueError, match=r"set.hdf5 has the sum .* is expected by .*set.hdf5.sha256; remove the file"):
        fetch()


@pytest.mark.parametrize("tag", ['"one"', "Fri, 21 Nov 2025 21:20:00 GMT"])
def test_a_download_goes_on_where_it_stopped(shop: Shop, fetch: Callable[..., str], tmp_path: Path, tag: str) -> None:
    shop.tag, shop.stops_after = tag, 70_000
    with pytest.raises(ConnectionError, match=r"What has arrived is kept; the same command goes on from there"):
        fetch()
    assert (tmp_path / "set.hdf5.part").stat().st_size == 70_000 and not (tmp_path / "set.hdf5").exists()
    shop.stops_after = None
    assert fetch() == sha256(shop.content)
    assert [requested for _, requested in shop.asked] == [None, "bytes=70000-"]
    assert names(tmp_path) == {"set.hdf5", "set.hdf5.sha256"}


def test_a_server_that_cannot_resume_sends_the_whole_again(
    shop: Shop, fetch: Callable[..., str], tmp_path: Path
) -> None:
    shop.ranges, shop.stops_after = False, 70_000
    with pytest.raises(ConnectionError):
        fetch()
    shop.stops_after = None
    assert fetch() == sha256(shop.content)
    assert (tmp_path / "set.hdf5").read_bytes() == shop.content


def test_parts_of_two_versions_of_a_file_are_never_joined(
    shop: Shop, fetch: Callable[..., str], tmp_path: Path
) -> None:
    shop.stops_after = 70_000
    with pytest.raises(ConnectionError):
        fetch()
    shop.stops_after, shop.tag, shop.content = None, '"two"', hdf5_bytes(1)
    assert fetch() == sha256(shop.content)


def test_without_a_version_a_part_is_not_trusted(shop: Shop, fetch: Callable[..., str]) -> None:
    shop.stops_after, shop.tag = 70_000, ""
    with pytest.raises(ConnectionError):
        fetch()
    shop.stops_after = None
    assert fetch() == sha256(shop.content)
    assert [requested for _, requested in shop.asked] == [None, None]


@pytest.mark.parametrize("extra", [b"", b"more than there is"])
def test_a_part_that_is_complete_or_too_long(
    shop: Shop, fetch: Callable[..., str], tmp_path: Path, extra: bytes
) -> None:
    (tmp_path / "set.hdf5.part").write_bytes(shop.content + extra)
    (tmp_path / "set.hdf5.part.tag").write_text(shop.tag)
    assert fetch() == sha256(shop.content)
    assert len(shop.asked) == (2 if extra else 1)


def test_a_server_that_does_not_say_the_length_is_believed(shop: Shop, fetch: Callable[..., str]) -> None:
    shop.says_length = False
    assert fetch() == sha256(shop.content)


def test_a_wrong_sum_is_refused_and_the_file_does_not_appear(
    shop: Shop, fetch: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"has the sum {sha256(shop.content)}, and {'0' * 64} is expected: it is"):
        fetch(sha256="0" * 64)
    assert not (tmp_path / "set.hdf5").exists() and not (tmp_path / "set.hdf5.sha256").exists()
    assert fetch(sha256=sha256(shop.content).upper()) == sha256(shop.content)


def test_the_sum_of_the_first_download_binds_the_next(shop: Shop, fetch: Callable[..., str], tmp_path: Path) -> None:
    fetch()
    (tmp_path / "set.hdf5").unlink()
    shop.content = hdf5_bytes(1)
    with pytest.raises(ValueError, match=r"is expected by .*set.hdf5.sha256: it is another file, or was damaged"):
        fetch()
    assert not (tmp_path / "set.hdf5").exists()
    (tmp_path / "set.hdf5.sha256").write_text("no sum\n")
    with pytest.raises(ValueError, match="must begin with a SHA-256 of 64 digits"):
        fetch()


def test_a_published_sum_is_asked_for(shop: Shop, tmp_path: Path) -> None:
    remote = RemoteFile("set.hdf5", "set.hdf5", sha256="1" * 64, host=shop.address)
    with pytest.raises(ValueError, match=f"{'1' * 64} is expected as published"):
        download(remote, tmp_path / "set.hdf5")


def test_a_page_in_the_place_of_a_file_is_refused(shop: Shop, fetch: Callable[..., str], tmp_path: Path) -> None:
    shop.content = b"<html>moved</html>"
    with pytest.raises(ValueError, match="is no HDF5 file but perhaps a page that says why; it is kept as"):
        fetch()
    assert not (tmp_path / "set.hdf5").exists()


def test_a_file_that_the_server_does_not_have_names_the_local_option(shop: Shop, tmp_path: Path) -> None:
    mirror = shop.address.replace("sets", "others")
    with pytest.raises(ConnectionError, match="the server answers 404 Not Found. If you have the file from elsewhere"):
        download(REMOTE, tmp_path / "set.hdf5", mirror=mirror)


def test_a_host_that_is_down_names_the_local_option_and_the_mirror(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionError, match=rf"put it at {tmp_path}/set.hdf5 .*mirror by --mirror or \$DING_EBM_M"):
        download(REMOTE, tmp_path / "set.hdf5", mirror=f"http://127.0.0.1:{port}")


def test_a_mirror_may_be_named_by_the_environment(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DING_EBM_MIRROR", f"{shop.address}/")
    assert download(REMOTE, tmp_path / "set.hdf5") == sha256(shop.content)
    with pytest.raises(ValueError, match="an address of http or https, got 'file:///tmp'"):
        download(REMOTE, tmp_path / "other.hdf5", mirror="file:///tmp")


def test_the_command_saves_under_the_name_that_configs_look_for(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DING_EBM_DATA", str(tmp_path))
    arguments = ["data", "download", "hopper-medium-replay-v2", "--mirror", shop.address]
    assert main(arguments) == 0
    assert shop.asked == [("/sets/gym_mujoco_v2/hopper_medium_replay-v2.hdf5", None)]
    assert (tmp_path / "hopper_medium_replay.hdf5").read_bytes() == shop.content
    assert f"complete, sha256 {sha256(shop.content)}, noted in" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert main(["data", "download", "hopper-medium-replay", "--mirror", shop.address]) == 2
    assert "did you mean 'hopper-medium-replay-v2'?" in capsys.readouterr().err
    shop.stops_after = 10
    assert main(["data", "download", "kitchen-mixed-v0", "--mirror", shop.address]) == 2
    assert "ding-ebm: error: " in capsys.readouterr().err
    assert main(["data", "download"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(REMOTE_FILES)


def test_the_known_files_have_the_names_that_tasks_look_for() -> None:
    from ding_ebm.envs.registry import TASKS

    saved = [remote.name for remote in REMOTE_FILES.values()]
    assert len(set(saved)) == len(saved) == 24 + 6 + 3 + 3
    wanted = {file for task in TASKS.values() for files in task.data_sets.values() for file in files}
    not_of_d4rl = ("avoid", "humanoid", "lift", "can", "square", "transport", "one_leg", "lamp", "round_table")
    own = {file for file in wanted if file.startswith(not_of_d4rl)}
    assert wanted - own <= set(saved)
    maze = REMOTE_FILES["antmaze-large-play-v2"].place
    assert maze == "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"
    first = REMOTE_FILES["antmaze-umaze-v2"].place
    assert first == "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
