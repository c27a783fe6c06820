"""Files of D4RL's layout: what is read equals what was written, and what is damaged is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.formats import Transitions, concatenate, find_data_file, read_d4rl_hdf5, write_d4rl_hdf5

COLUMNS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")


def assert_same_rows(a: Transitions, b: Transitions) -> None:
    for name in COLUMNS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right, err_msg=name)


def replace(path: Path, key: str, value: object, **options: object) -> None:
    with h5py.File(path, "a") as file:
        del file[key]
        if value is not None:
            file.create_dataset(key, data=value, **options)


# -- reading and writing ------------------------------------------------------------------------------------------


def test_written_file_reads_back_bitwise_and_leaves_nothing_beside_it(tmp_path: Path, transitions: Transitions) -> None:
    path = tmp_path / "a.hdf5"
    write_d4rl_hdf5(path, transitions)
    assert_same_rows(read_d4rl_hdf5(path), transitions)
    assert [file.name for file in tmp_path.iterdir()] == ["a.hdf5"]


def test_groups_and_attributes_of_original_files_are_passed_over(d4rl_file: Path, transitions: Transitions) -> None:
    assert_same_rows(read_d4rl_hdf5(d4rl_file), transitions)


def test_other_number_types_become_float32_and_bool(d4rl_file: Path, transitions: Transitions) -> None:
    replace(d4rl_file, "observations", transitions.obs.astype(np.float64))
    replace(d4rl_file, "rewards", np.arange(len(transitions), dtype=np.int64))
    replace(d4rl_file, "terminals", transitions.terminated.astype(np.uint8))
    replace(d4rl_file, "timeouts", transitions.truncated.astype(np.float32))
    read = read_d4rl_hdf5(d4rl_file)
    assert_same_rows(read, dataclasses.replace(transitions, reward=np.arange(len(transitions), dtype=np.float32)))


def qlearning_rows(t: Transitions) -> list[tuple[int, np.ndarray]]:
    """Rows that D4RL keeps where next observations are not recorded, and what it takes for them; a literal loop."""
    rows = []
    for i in range(len(t)):
        if t.terminated[i]:
            rows.append((i, t.obs[min(i + 1, len(t) - 1)]))
        elif i < len(t) - 1 and not t.truncated[i]:
            rows.append((i, t.obs[i + 1]))
    return rows


@pytest.mark.parametrize(
    "episodes",
    [
        [(7, "terminated"), (5, "truncated"), (1, "truncated"), (6, "both"), (4, "terminated"), (3, "open")],
        [(3, "truncated"), (3, "truncated"), (2, "terminated")],
        [(1, "truncated"), (1, "terminated"), (2, "both"), (4, "truncated"), (1, "both")],
        [(9, "open")],
    ],
)
def test_successors_by_shifting_equal_a_loop(
    tmp_path: Path, transitions_of: Callable[..., Transitions], episodes: list[tuple[int, str]]
) -> None:
    full = transitions_of(episodes)
    path = tmp_path / "a.hdf5"
    write_d4rl_hdf5(path, full)
    replace(path, "next_observations", None)
    read = read_d4rl_hdf5(path)
    rows = qlearning_rows(full)
    kept = [i for i, _ in rows]
    np.testing.assert_array_equal(read.next_obs, [successor for _, successor in rows])
    for name in ("obs", "action", "reward", "terminated"):
        np.testing.assert_array_equal(getattr(read, name), getattr(full, name)[kept])
    # Wherever something is bootstrapped the recorded and the rebuilt successor are the same.
    going_on = ~read.terminated
    np.testing.assert_array_equal(read.next_obs[going_on], full.next_obs[kept][going_on])
    check_transitions(read)


def test_episodes_stay_apart_where_their_last_row_is_dropped(
    tmp_path: Path, transitions_of: Callable[..., Transitions]
) -> None:
    path = tmp_path / "a.hdf5"
    write_d4rl_hdf5(path, transitions_of([(4, "truncated"), (3, "terminated"), (1, "truncated"), (5, "truncated")]))
    replace(path, "next_observations", None)
    read = read_d4rl_hdf5(path)
    assert read.episode_lengths().tolist() == [3, 3, 4]
    assert read.truncated.tolist() == [i in (2, 9) for i in range(10)]


def test_a_file_of_single_timeouts_has_no_successors(
    tmp_path: Path, transitions_of: Callable[..., Transitions]
) -> None:
    path = tmp_path / "a.hdf5"
    write_d4rl_hdf5(path, transitions_of([(1, "truncated"), (1, "open")]))
    replace(path, "next_observations", None)
    with pytest.raises(ValueError, match="add 'next_observations'"):
        read_d4rl_hdf5(path)


# -- refusals -----------------------------------------------------------------------------------------------------

ROWS = 26


def other_file(path: Path) -> Path:
    other = path.with_name("other.hdf5")
    with h5py.File(other, "w") as file:
        file["secret"] = np.zeros((ROWS, 3), dtype=np.float32)
    return other


def link(path: Path, value: h5py.ExternalLink | h5py.SoftLink) -> None:
    with h5py.File(path, "a") as file:
        del file["observations"]
        file["observations"] = value


def make_virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((ROWS, 3), np.float32)
    layout[:] = h5py.VirtualSource(str(other_file(path)), "secret", (ROWS, 3), np.float32)
    with h5py.File(path, "a") as file:
        del file["observations"]
        file.create_virtual_dataset("observations", layout)


def make_raw_storage(path: Path) -> None:
    outside = path.with_name("raw.bin")
    outside.write_bytes(bytes(ROWS * 3 * 4))
    with h5py.File(path, "a") as file:
        del file["observations"]
        file.create_dataset("observations", (ROWS, 3), np.float32, external=[(str(outside), 0, ROWS * 12)])


def make_group(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["actions"]
        file["actions/left"] = np.zeros((ROWS, 1))


MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no observations": (lambda p: replace(p, "observations", None), "'observations' is missing"),
    "no actions": (lambda p: replace(p, "actions", None), "'actions' is missing"),
    "no rewards": (lambda p: replace(p, "rewards", None), "'rewards' is missing"),
    "no terminals": (lambda p: replace(p, "terminals", None), "'terminals' is missing"),
    "no timeouts": (lambda p: replace(p, "timeouts", None), "'timeouts' is missing"),
    "flat observations": (lambda p: replace(p, "observations", np.zeros(ROWS)), "'observations' must have 2 dim"),
    "stacked actions": (lambda p: replace(p, "actions", np.zeros((ROWS, 2, 2))), "'actions' must have 2 dim"),
    "column of rewards": (lambda p: replace(p, "rewards", np.zeros((ROWS, 1))), "'rewards' must have 1 dimension,"),
    "a scalar": (lambda p: replace(p, "rewards", 1.0), "'rewards' must have 1 dimension,"),
    "short actions": (lambda p: replace(p, "actions", np.zeros((ROWS - 1, 2))), "'actions' has 25 rows but"),
    "long timeouts": (lambda p: replace(p, "timeouts", np.zeros(ROWS + 1, bool)), "'timeouts' has 27 rows but"),
    "narrow successors": (lambda p: replace(p, "next_observations", np.zeros((ROWS, 2))), "must have the shape of"),
    "no columns": (lambda p: replace(p, "actions", np.zeros((ROWS, 0))), "'actions' must have at least one column"),
    "text": (lambda p: replace(p, "rewards", ["1.0"] * ROWS), "'rewards' has dtype object, real numbers"),
    "bytes": (lambda p: replace(p, "rewards", np.full(ROWS, b"1")), "real numbers"),
    "complex numbers": (lambda p: replace(p, "observations", np.zeros((ROWS, 3), complex)), "dtype complex128"),
    "records": (lambda p: replace(p, "rewards", np.zeros(ROWS, [("a", "f4"), ("b", "f4")])), "real numbers"),
    "counts as flags": (lambda p: replace(p, "terminals", np.arange(ROWS)), "0 and 1 only, row 2 holds 2"),
    "NaN as a flag": (lambda p: replace(p, "timeouts", np.full(ROWS, np.nan)), "0 and 1 only, row 0 holds nan"),
    "a group": (make_group, "'actions' is a group"),
    "soft link": (lambda p: link(p, h5py.SoftLink("/next_observations")), "'observations' is a soft or external link"),
    "external link": (lambda p: link(p, h5py.ExternalLink(str(other_file(p)), "/secret")), "soft or external link"),
    "virtual array": (make_virtual, "'observations' is stored in other files"),
    "raw outside file": (make_raw_storage, "'observations' is stored in other files"),
    "empty file": (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
    "text file": (lambda p: p.write_text("<html>404</html>" * 99), "not a readable HDF5 file"),
    "cut file": (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "not a readable HDF5 file"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_by_name(d4rl_file: Path, kind: str) -> None:
    damage, message = MALFORMED[kind]
    assert len(read_d4rl_hdf5(d4rl_file)) == ROWS
    damage(d4rl_file)
    with pytest.raises(ValueError, match=message) as error:
        read_d4rl_hdf5(d4rl_file)
    assert str(d4rl_file) in str(error.value)


def test_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for key, columns in {
            "observations": (3,),
            "actions": (2,),
            "rewards": (),
            "terminals": (),
            "timeouts": (),
        }.items():
            file[key] = np.zeros((0, *columns))
    with pytest.raises(ValueError, match="'observations' has no rows"):
        read_d4rl_hdf5(path)


def test_damaged_bytes_are_refused_with_one_kind_of_error(d4rl_file: Path) -> None:
    whole = d4rl_file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), size=20):
            damaged[place] = rng.integers(256)
        d4rl_file.write_bytes(damaged)
        try:
            read_d4rl_hdf5(d4rl_file)
        except ValueError:
            refused += 1
    assert refused > 50


# -- finding ------------------------------------------------------------------------------------------------------


def test_file_is_found_by_path_and_by_name_in_the_data_folder(
    tmp_path: Path, d4rl_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DING_EBM_DATA", raising=False)
    assert find_data_file(d4rl_file) == d4rl_file
    monkeypatch.chdir(tmp_path)
    assert find_data_file("file.hdf5").resolve() == d4rl_file
    monkeypatch.chdir("/")
    monkeypatch.setenv("DING_EBM_DATA", str(tmp_path))
    assert find_data_file("file.hdf5") == d4rl_file


def test_missing_file_says_what_to_set_and_where_files_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DING_EBM_DATA", raising=False)
    message = r"\$DING_EBM_DATA is not set.*data download.*offline_rl.*data collect.*avoid"
    with pytest.raises(FileNotFoundError, match=message):
        find_data_file("hopper_medium.hdf5")
    monkeypatch.setenv("DING_EBM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"DING_EBM_DATA={tmp_path}"):
        find_data_file("hopper_medium.hdf5")
    with pytest.raises(FileNotFoundError):
        read_d4rl_hdf5(tmp_path)


# -- in memory ----------------------------------------------------------------------------------------------------


def test_episode_returns_and_lengths_equal_a_loop(transitions: Transitions) -> None:
    returns, lengths, total, length = [], [], 0.0, 0
    for i in range(len(transitions)):
        total, length = total + float(transitions.reward[i]), length + 1
        if transitions.terminated[i] or transitions.truncated[i]:
            returns, lengths, total, length = [*returns, total], [*lengths, length], 0.0, 0
    np.testing.assert_allclose(transitions.episode_returns(), returns, rtol=1e-12)
    assert transitions.episode_lengths().tolist() == lengths == [7, 5, 1, 6, 4]


def test_rows_without_an_end_are_no_episode(transitions_of: Callable[..., Transitions]) -> None:
    unfinished = transitions_of([(9, "open")])
    assert unfinished.episode_returns().shape == unfinished.episode_lengths().shape == (0,)


def test_parts_are_joined_at_a_border(transitions_of: Callable[..., Transitions]) -> None:
    ends = [[(4, "terminated"), (3, "open")], [(2, "terminated")], [(5, "truncated"), (2, "open")]]
    parts = [transitions_of(end, seed=seed) for seed, end in enumerate(ends)]
    whole = concatenate(parts)
    assert whole.episode_lengths().tolist() == [4, 3, 2, 5]
    assert np.flatnonzero(whole.terminated).tolist() == [3, 8]
    assert np.flatnonzero(whole.truncated).tolist() == [6, 13], "an episode that had ended is not truncated as well"
    np.testing.assert_array_equal(whole.obs, np.concatenate([part.obs for part in parts]))
    assert parts[0].episode_lengths().tolist() == [4], "a part must not be changed"
    check_transitions(whole)


def test_parts_of_different_tasks_do_not_join(transitions_of: Callable[..., Transitions]) -> None:
    with pytest.raises(ValueError, match="obs 3 and action 2, test has obs 4 and action 2"):
        concatenate([transitions_of([(4, "open")]), transitions_of([(4, "open")], obs_dim=4)])
    with pytest.raises(ValueError, match="got none"):
        concatenate([])


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_another_length_are_refused(transitions: Transitions, name: str) -> None:
    with pytest.raises(ValueError, match=r"must be of shape"):
        dataclasses.replace(transitions, **{name: getattr(transitions, name)[:-1]})


# -- the project's own files --------------------------------------------------------------------------------------


def test_project_files_read_check_and_have_the_returns_of_their_table(data_dir: Path) -> None:
    table = [json.loads(line) for line in (data_dir / "meta.jsonl").read_text().splitlines()]
    for row in [row for row in table if row["file"].startswith("hopper")]:
        read = read_d4rl_hdf5(data_dir / row["file"])
        check_transitions(read, 11, 3)
        returns = read.episode_returns()
        assert (len(read), len(returns)) == (row["rows"], row["episodes"])
        assert (read.terminated.sum(), read.truncated.sum()) == (row["terminals"], row["timeouts"])
        assert returns.mean() == pytest.approx(row["ret_mean"], abs=0.06)
        assert returns.std() == pytest.approx(row["ret_std"], rel=2e-3)
        assert read.episode_lengths().mean() == pytest.approx(row["len_mean"], abs=0.06)
