"""Checkpoint files: whole or not there, damage found wherever it is, nothing executed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from ding_ebm.checkpoint import check_sum, checkpoints_of, find_checkpoint, read_checkpoint, write_checkpoint

ROOT = Path(__file__).parents[1]
STATE = dict(model=dict(weight=torch.arange(600.0)), train_iter=7, name="seven", generator=torch.get_rng_state())
WRITER = """
import sys, torch
from ding_ebm.checkpoint import write_checkpoint

state = dict(number=0, weight=torch.zeros(1_000_000))
write_checkpoint(state, sys.argv[1])
print("begun", flush=True)
while True:
    state = dict(number=state["number"] + 1, weight=state["weight"] + 1)
    write_checkpoint(state, sys.argv[1])
"""
LIMITED = """
import os, resource, signal, sys, torch
from ding_ebm.checkpoint import write_checkpoint

if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as where a disk has no more room
elif os.getuid() == 0:
    os.setuid(65534)  # who may not write there; root may everywhere
write_checkpoint(dict(weight=torch.ones(1_000_000)), sys.argv[1])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(STATE, tmp_path / "iteration_7.pth.tar")
    return tmp_path / "iteration_7.pth.tar"


def run(script: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_what_was_written_is_read_by_us_and_by_pytorch(path):
    for state in (read_checkpoint(path), torch.load(path, weights_only=True)):
        assert state["train_iter"] == 7 and state["name"] == "seven"
        assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
        assert torch.equal(state["generator"], STATE["generator"])
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_the_sum_is_that_of_the_bytes_before_it(path):
    done = subprocess.run(f"head -c -64 {path} | sha256sum", shell=True, capture_output=True, text=True, check=True)
    assert path.read_bytes()[-64:].decode() == done.stdout.split()[0]


def test_a_file_cut_short_anywhere_is_refused(path):
    whole = path.read_bytes()
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged or cut short.* SHA-256 sum"):
            read_checkpoint(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_checkpoint(path)


def test_a_changed_byte_anywhere_is_found_with_both_sums(path):
    whole, rng = path.read_bytes(), random.Random(0)
    # Beside random places, every byte of the archive's end and of the sum.
    places = [rng.randrange(len(whole)) for _ in range(500)] + list(range(len(whole) - 100, len(whole)))
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged") as refused:
            read_checkpoint(path)
        if place < len(whole) - 72:
            written, actual = re.findall(r"\b[0-9a-f]{64}\b", str(refused.value))
            assert written == whole[-64:].decode() != actual
    path.write_bytes(whole)
    check_sum(path)


def test_pytorch_alone_would_load_most_of_that(path):
    """What the sum is for: without it a changed weight goes unseen."""
    whole = bytearray(path.read_bytes())
    place = whole.index(STATE["model"]["weight"].numpy().tobytes()) + 100
    whole[place] ^= 4
    path.write_bytes(whole)
    weight = torch.load(path, weights_only=True)["model"]["weight"]
    assert not torch.equal(weight, STATE["model"]["weight"])


def test_a_file_without_a_sum_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"or not of this package: its \d+ bytes do not end with the SHA-256 sum"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.pt")


def kill_while_saving(path: Path, moments: list[float]) -> int:
    """Kill the writer so many seconds after it has begun; returns how often a half-written file was left."""
    halves = 0
    for moment in moments:
        writer = run(WRITER, str(path))
        assert writer.stdout.readline() == "begun\n"
        time.sleep(moment)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        state = read_checkpoint(path)
        assert bool((state["weight"] == state["number"]).all())
        halves += path.with_name(f"{path.name}.partial").exists()
    return halves


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    rng = random.Random(0)
    kill_while_saving(tmp_path / "iteration_1.pth.tar", [rng.uniform(0.0, 0.05) for _ in range(2)])


@pytest.mark.slow
def test_two_hundred_kills_while_saving_leave_whole_checkpoints(tmp_path):
    rng = random.Random(1)
    halves = kill_while_saving(tmp_path / "iteration_1.pth.tar", [rng.uniform(0.0, 0.1) for _ in range(200)])
    assert halves >= 100, "most kills must have come while a file was being written"


@pytest.mark.parametrize("why", ["full", "read-only"])
def test_where_nothing_can_be_written_the_last_checkpoint_stays_and_the_run_ends(why):
    with tempfile.TemporaryDirectory() as folder:  # others may not enter pytest's
        path = Path(folder) / "iteration_7.pth.tar"
        write_checkpoint(STATE, path)
        before = path.read_bytes()
        path.parent.chmod(0o555)
        _, error = run(LIMITED, str(path), why).communicate(timeout=100)
        path.parent.chmod(0o755)
        reason = "File too large" if why == "full" else "Permission denied"
        assert re.search(f"OSError: {path} could not be written, what was there before is unchanged: .*{reason}", error)
        assert path.read_bytes() == before and [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_is_named_by_itself_its_folder_or_its_run(tmp_path):
    folder = tmp_path / "run" / "ckpt"
    folder.mkdir(parents=True)
    for number in (5, 100, 20):
        write_checkpoint(STATE, folder / f"iteration_{number}.pth.tar")
    (folder / "iteration_200.pth.tar.partial").touch()
    for place in (folder.parent, folder, folder / "iteration_100.pth.tar"):
        assert find_checkpoint(place) == folder / "iteration_100.pth.tar"
    assert [one.name for one in checkpoints_of(folder)] == [f"iteration_{n}.pth.tar" for n in (5, 20, 100)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*other.*which hold weights\.safetensors$"):
        find_checkpoint(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*missing.*no such file or folder"):
        find_checkpoint(tmp_path / "missing")
