"""The data doctor: each kind of malformed data is found before training, as an error or as a warning, and clean is not.

What cannot be meant is an error; what can, however seldom, is a warning. Files go through the readers, as a user's do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.doubts import doubts
from ding_ebm.data.formats import read_data, write_data
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.data.transitions import Transitions
from ding_ebm.envs.registry import get_task

LIMIT, RANGE, REFERENCES = 40, (-1.0, 1.0), (0.0, 40.0)
EPISODES = 12
Arrays = dict[str, np.ndarray]


def walks(seed: int = 0) -> Arrays:
    """D4RL's arrays of smooth walks in 4 dimensions: every third ends by the task, the others by the time limit."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {}
    for episode in range(EPISODES):
        length = LIMIT if episode % 3 else int(rng.integers(10, LIMIT - 5))
        action = rng.uniform(-1.0, 1.0, (length, 2)).astype(np.float32)
        place = np.concatenate([rng.standard_normal((1, 2)), 0.05 * action]).cumsum(axis=0)
        states = np.concatenate([place, np.concatenate([np.zeros((1, 2)), action])], axis=1).astype(np.float32)
        last = np.arange(length) == length - 1
        rows = dict(observations=states[:-1], actions=action, next_observations=states[1:])
        rows.update(rewards=rng.uniform(0, 1, length).astype(np.float32))
        rows.update(terminals=last & (episode % 3 == 0), timeouts=last & (episode % 3 > 0))
        for key, values in rows.items():
            columns.setdefault(key, []).append(values)
    return {key: np.concatenate(values) for key, values in columns.items()}


def write(path: Path, arrays: Mapping[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, dtype=h5py.string_dtype() if array.dtype.kind == "O" else None)
    return path


def look(path: Path, **changes: Any) -> list[str]:
    """Errors raise; warnings come back."""
    transitions = read_data(path)
    facts = dict(max_episode_steps=LIMIT, action_range=RANGE, reference_returns=REFERENCES, **changes)
    check_transitions(transitions, 4, 2, RANGE, LIMIT)
    return doubts(transitions, **facts)


def with_(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, key: change(arrays[key])}


def at(rows: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[rows] = value
        return array

    return change


def without(*keys: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: array for key, array in arrays.items() if key not in keys}


def all_rows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: change(array) for key, array in arrays.items()}


def shuffled(array: np.ndarray) -> np.ndarray:
    return array[np.random.default_rng(1).permutation(len(array))]


def swapped(arrays: Arrays) -> Arrays:
    return {**arrays, "terminals": arrays["timeouts"], "timeouts": arrays["terminals"]}


def unmarked(arrays: Arrays) -> Arrays:
    nothing = np.zeros_like(arrays["timeouts"])
    return {**without("next_observations")(arrays), "terminals": nothing, "timeouts": nothing}


def successors_of_others(arrays: Arrays) -> Arrays:
    """A shuffled file without next_observations: nothing but the distances tells."""
    return {key: array if key == "timeouts" else shuffled(array) for key, array in unmarked(arrays).items()} | {
        "timeouts": np.arange(len(arrays["rewards"])) % LIMIT == LIMIT - 1
    }


ERRORS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "different lengths": (with_("rewards", lambda a: a[:-3]), r"'rewards' has \d+ rows but 'observations' has"),
    "NaN": (with_("observations", at([7, 30], np.nan)), "obs holds NaN or Inf in 2 rows, first in row 7"),
    "infinite rewards": (with_("rewards", at([5], -np.inf)), "reward holds NaN or Inf in 1 rows, first in row 5"),
    "empty": (all_rows(lambda a: a[:0]), "'observations' has no rows"),
    "object type": (with_("actions", lambda a: a.astype(str).astype(object)), "'actions' has dtype object"),
    "actions of one dimension": (with_("actions", lambda a: a[:, 0]), "'actions' must have 2 dimensions, got shape"),
    "another task's": (with_("actions", lambda a: a[:, :1]), "action has 1 dimensions, the environment has 2"),
    "actions out of range": (with_("actions", at([3], 1.5)), r"action leaves \[-1, 1\] in 1 rows, first in row 3"),
    "missing timeouts": (without("timeouts"), "'timeouts' is missing; expected observations, actions"),
    "timeouts never set": (with_("timeouts", np.zeros_like), r"not the following row's obs in \d+ rows"),
    "no ends at all": (unmarked, r"no row is terminated or truncated.* at most 40 rows"),
    "swapped ends": (swapped, "all 8 terminated episodes have just the 40 steps .* may be swapped"),
    "flags that are no flags": (with_("terminals", lambda a: 2 * a.astype(int)), "'terminals' must hold 0 and 1 only"),
    "unsorted rows": (all_rows(shuffled), "rows must be in episode order"),
    "next_obs of this row": (lambda a: {**a, "next_observations": a["observations"]}, "not the following row's obs"),
    "integers that are no numbers": (with_("observations", lambda a: a.astype("S4")), "'observations' has dtype"),
}
WARNINGS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "a constant observation": (
        lambda a: {key: at((slice(None), 1), 3.0)(b) if "obs" in key else b for key, b in a.items()},
        "obs does not change in 1 of 4 columns (1)",
    ),
    "a constant action": (with_("actions", at((slice(None), 0), 0.5)), "action does not change in 1 of 2 columns (0)"),
    "constant rewards": (with_("rewards", np.zeros_like), "reward is 0 in all"),
    "rewards in another scale": (with_("rewards", lambda a: 100 * a), "returns score outside -100 to 200"),
    "rewards that were changed": (with_("rewards", lambda a: a - 10), "returns score outside -100 to 200"),
    "actions in other units": (with_("actions", lambda a: 0.001 * a), "action uses 0.001 of the range [-1, 1]"),
    "a mark of missing values": (with_("rewards", at([4], -1e9)), "reward is beyond 1e+06 in 1 rows, first in row 4"),
    "duplicated episodes": (all_rows(lambda a: np.concatenate([a, a])), "12 of 24 episodes repeat an earlier one"),
    "ends with both flags": (
        lambda a: {**a, "terminals": a["terminals"] | a["timeouts"]}, "8 of 12 ends are both terminated and truncated",
    ),
    "missing terminals": (
        lambda a: {
            **a,
            "timeouts": a["timeouts"] | a["terminals"] | (np.arange(len(a["rewards"])) % 5 == 4),
            "terminals": np.zeros_like(a["terminals"]),
        },
        "episodes end before the task's 40 steps, and none is terminated",
    ),
    "flags in every row": (with_("timeouts", np.ones_like), "episodes have a single row"),
    "a missing timeout": (
        lambda a: {
            **without("next_observations")(a),
            "timeouts": at(np.flatnonzero(a["timeouts"])[0], 0)(a["timeouts"]),
        },
        "are longer than the task's 40 steps",
    ),
    "rows in no order": (successors_of_others, "next_obs is as far from obs as any other row"),
}  # fmt: skip


def test_clean_data_passes_without_a_word(tmp_path):
    assert look(write(tmp_path / "clean.hdf5", walks())) == []
    assert doubts(read_data(tmp_path / "clean.hdf5")) == []
    assert len(ERRORS) + len(WARNINGS) >= 25


@pytest.mark.parametrize("kind", ERRORS)
def test_what_cannot_be_meant_is_refused_with_counts(kind, tmp_path):
    change, words = ERRORS[kind]
    path = write(tmp_path / "bad.hdf5", change(walks()))
    with pytest.raises(ValueError, match=words) as error:
        look(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", WARNINGS)
def test_what_may_be_meant_is_warned_of_with_counts(kind, tmp_path):
    change, words = WARNINGS[kind]
    found = look(write(tmp_path / "doubtful.hdf5", change(walks())))
    assert [line for line in found if words in line], found


@pytest.mark.parametrize("percent", range(0, 100, 10))
def test_a_truncated_file_is_refused_by_name(percent, tmp_path):
    path = write(tmp_path / "cut.hdf5", walks())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * percent // 100])
    with pytest.raises(ValueError, match=r"cut\.hdf5"):
        look(path)


def test_each_warning_comes_alone(tmp_path):
    """A warning of one kind is not a warning of all kinds."""
    counts = {kind: len(look(write(tmp_path / "x.hdf5", change(walks())))) for kind, (change, _) in WARNINGS.items()}
    assert sum(count == 1 for count in counts.values()) >= 10, counts


def test_a_column_that_does_not_change_is_neither_divided_by_nor_amplified():
    """It must not end a run silently wrong: what was constant is zero, and another value there keeps its distance."""
    array = np.stack([np.linspace(0.0, 1.0, 9), np.full(9, 3.0)], axis=1).astype(np.float32)
    for mode in ("mean_std", "min_max"):
        normalizer = Normalizer.fit(array, mode)
        assert normalizer.scale[1] == 1.0 and normalizer.shift[1] == pytest.approx(3.0)


def test_a_single_row_and_halves_of_a_set_have_nothing_to_be_doubted():
    one = Transitions(
        np.zeros((1, 4), "f4"), np.zeros((1, 2), "f4"), np.zeros(1, "f4"), np.zeros((1, 4), "f4"),
        np.zeros(1, bool), np.ones(1, bool), "one",
    )  # fmt: skip
    assert doubts(one, max_episode_steps=LIMIT, action_range=RANGE, reference_returns=REFERENCES) == []


def test_the_same_is_found_in_other_formats(tmp_path):
    write(tmp_path / "x.hdf5", WARNINGS["constant rewards"][0](walks()))
    transitions = read_data(tmp_path / "x.hdf5")
    write_data(tmp_path / "set", transitions, "minari")
    assert doubts(read_data(tmp_path / "set")) == doubts(transitions)
    nan = dataclasses.replace(transitions, reward=at([3], np.nan)(transitions.reward))
    write_data(tmp_path / "nan.npz", nan)
    with pytest.raises(ValueError, match="reward holds NaN or Inf in 1 rows, first in row 3"):
        look(tmp_path / "nan.npz")


@pytest.mark.parametrize("task", ["hopper", "walker2d", "halfcheetah"])
@pytest.mark.parametrize("kind", ["expert", "medium", "medium_replay"])
def test_the_shipped_sets_pass_without_a_word(task, kind, data_dir):
    path = data_dir / f"{task}_{kind}.hdf5"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    known, transitions = get_task(task), read_data(path)
    check_transitions(transitions, known.obs_dim, known.action_dim, known.action_range, known.max_episode_steps)
    assert doubts(transitions, **known.expectations) == []
