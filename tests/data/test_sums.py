"""Damage of a data set with noted sums is found in every one of its files, wherever it is."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ding_ebm.data.formats import read_data, write_data
from ding_ebm.data.sums import check_sums, note_of, write_sums
from ding_ebm.data.transitions import Transitions

KINDS = {"d4rl": "set.hdf5", "dppo": "set.npz", "robomimic": "robomimic.hdf5", "minari": "minari", "episodes": "folder"}


@pytest.fixture
def rows() -> Transitions:
    """Two episodes of twelve rows."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((2, 13, 3)).astype(np.float32)
    last = np.arange(24) % 12 == 11
    return Transitions(
        obs=obs[:, :-1].reshape(24, 3),
        action=rng.uniform(-1, 1, (24, 2)).astype(np.float32),
        reward=rng.standard_normal(24).astype(np.float32),
        next_obs=obs[:, 1:].reshape(24, 3),
        terminated=last & (np.arange(24) < 12),
        truncated=last & (np.arange(24) >= 12),
        source="test",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_and_every_changed_byte_of_every_file_is_found(kind, rows, tmp_path):
    path, rng = tmp_path / KINDS[kind], random.Random(kind)
    write_data(path, rows, kind)
    beside = [tmp_path / "normalization.npz"] if kind == "dppo" else []
    np.testing.assert_array_equal(read_data(path, kind).action, rows.action)
    files = sorted(one for one in tmp_path.rglob("*") if one.is_file())
    assert note_of(path) in files and len(files) >= 2
    for file in files:
        whole = file.read_bytes()
        damaged = [whole[: len(whole) * percent // 100] for percent in range(100)]
        for _ in range(500 // len(files) + 1):
            one = bytearray(whole)
            one[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            damaged.append(bytes(one))
        for content in damaged:
            file.write_bytes(content)
            with pytest.raises(ValueError, match=re.escape(file.name) + "|" + re.escape(note_of(path).name)) as refused:
                check_sums(path, beside)
            if file != note_of(path):
                assert len(re.findall(r"\b[0-9a-f]{64}\b", str(refused.value))) == 2
        with pytest.raises(ValueError, match="damaged|missing|no sum"):
            read_data(path, kind)
        file.write_bytes(whole)
    check_sums(path, beside)


def test_the_note_is_what_sha256sum_checks(rows, tmp_path):
    write_data(tmp_path / "set.npz", rows)
    done = subprocess.run(
        ["sha256sum", "-c", "set.npz.sha256"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["set.npz: OK", "normalization.npz: OK"]


def test_files_that_come_or_go_are_found(rows, tmp_path):
    folder = tmp_path / "folder"
    write_data(folder, rows, "episodes")
    extra = folder / "episode_9.npz"
    extra.write_bytes(next(folder.glob("*.npz")).read_bytes())
    with pytest.raises(ValueError, match=r"SHA256SUMS has no sum of episode_9\.npz"):
        read_data(folder)
    extra.unlink()
    next(folder.glob("*.npz")).unlink()
    with pytest.raises(ValueError, match="is missing, which .*SHA256SUMS has a sum of"):
        read_data(folder)


def test_data_without_sums_are_read_as_they_are(rows, tmp_path):
    write_data(tmp_path / "set.hdf5", rows)
    note_of(tmp_path / "set.hdf5").unlink()
    assert len(read_data(tmp_path / "set.hdf5")) == 24


def test_a_note_cannot_lead_elsewhere(tmp_path):
    (tmp_path / "inside").mkdir()
    for name in ("secret", "inside/set.hdf5"):
        (tmp_path / name).write_text("x")
    write_sums(tmp_path / "inside" / "set.hdf5")
    note = Path(f"{tmp_path}/inside/set.hdf5.sha256")
    note.write_text(note.read_text() + f"{'0' * 64}  ../secret\n")
    with pytest.raises(ValueError, match=r"names '\.\./secret', which lies outside of its folder"):
        check_sums(tmp_path / "inside" / "set.hdf5")
