"""Every format of data sets: what is written reads back, files of the original tools are read, others are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ding_ebm.data.checks import check_transitions
from ding_ebm.data.formats import FORMATS, Transitions, find_format, get_format, read_data, write_data
from ding_ebm.data.transitions import COLUMNS, concatenate

NAMES = {"d4rl": "a.hdf5", "dppo": "train.npz", "robomimic": "b.hdf5", "minari": "task-v0", "episodes": "folder"}
# A short and a long number, a single row, each way to end, and rows behind the last end.
ENDS = [(7, "terminated"), (5, "truncated"), (1, "truncated"), (6, "both"), (12, "terminated"), (3, "open")]


def assert_same(a: Transitions, b: Transitions) -> None:
    for name in COLUMNS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.fixture
def data(transitions_of: Callable[..., Transitions]) -> Transitions:
    return dataclasses.replace(transitions_of(ENDS), metadata={"algorithm": "SAC", "env_args": '{"env_name": "Lift"}'})


# -- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_reads_back_and_nothing_is_left_beside_it(tmp_path: Path, data: Transitions, name: str) -> None:
    path = tmp_path / "new" / NAMES[name]
    write_data(path, data, name)
    assert find_format(path).name == name
    read = read_data(path)
    assert_same(read, data)
    assert {**read.metadata, "obs_keys": ""} == {**data.metadata, "obs_keys": ""}
    assert read.source == str(path) and read.checksum() == data.checksum()
    assert {file.name for file in path.parent.iterdir()} <= {
        NAMES[name],
        f"{NAMES[name]}.sha256",
        "normalization.npz",
    }


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("other", FORMATS)
def test_a_conversion_and_back_is_the_identity(tmp_path: Path, data: Transitions, name: str, other: str) -> None:
    here, there, back = (tmp_path / folder for folder in ("here", "there", "back"))
    write_data(here / NAMES[name], data, name)
    write_data(there / NAMES[other], read_data(here / NAMES[name]), other)
    write_data(back / NAMES[name], read_data(there / NAMES[other]), name)
    assert read_data(back / NAMES[name]).checksum() == data.checksum()


@pytest.mark.parametrize("name", FORMATS)
def test_the_sum_changes_with_any_column(tmp_path: Path, data: Transitions, name: str) -> None:
    write_data(tmp_path / NAMES[name], data, name)
    sums = {read_data(tmp_path / NAMES[name]).checksum()}
    for column in COLUMNS:
        array = getattr(data, column).copy()
        array.flat[4] = 1 - array.flat[4]
        sums.add(dataclasses.replace(data, **{column: array}).checksum())
    assert len(sums) == 1 + len(COLUMNS)


def test_values_of_any_size_survive_dppos_ranges(tmp_path: Path, data: Transitions) -> None:
    """Its file holds values mapped to [-1, 1]; what is far smaller than its column's range is all that may move."""
    rng = np.random.default_rng(3)
    obs = (10.0 ** rng.uniform(-20, 4, data.obs.shape) * rng.choice([-1, 1], data.obs.shape)).astype(np.float32)
    obs[:, 1] = 0.25  # a constant column
    obs[:, 2] = 1e6 + 1e-1 * obs[:, 2]
    next_obs = np.concatenate([obs[1:], obs[-1:] * 3])
    write_data(tmp_path / "train.npz", dataclasses.replace(data, obs=obs, next_obs=next_obs), "dppo")
    read = read_data(tmp_path / "train.npz")
    np.testing.assert_array_equal(read.obs[:, 1:], obs[:, 1:])
    span = np.ptp(obs[:, 0].astype(np.float64))
    large = np.abs(obs[:, 0]) > 1e-8 * span
    assert 5 < large.sum() < len(obs) - 5
    np.testing.assert_array_equal(read.obs[large, 0], obs[large, 0])
    assert np.abs(read.obs[:, 0].astype(np.float64) - obs[:, 0]).max() < 1e-15 * span


@pytest.mark.parametrize("name", ["dppo", "minari", "episodes"])
def test_a_successor_that_differs_by_rounding_becomes_the_next_rows_observation(
    tmp_path: Path, data: Transitions, name: str
) -> None:
    next_obs = data.next_obs.copy()
    next_obs[3] = np.nextafter(next_obs[3], np.float32(9))
    write_data(tmp_path / NAMES[name], dataclasses.replace(data, next_obs=next_obs), name)
    assert_same(read_data(tmp_path / NAMES[name]), data)


@pytest.mark.parametrize("name", ["dppo", "minari", "episodes"])
def test_rows_that_are_no_episodes_are_refused(tmp_path: Path, data: Transitions, name: str) -> None:
    shuffled = dataclasses.replace(data, next_obs=data.next_obs[::-1].copy())
    with pytest.raises(ValueError, match="not the following row's obs in 28 rows inside an episode, first in row 0"):
        write_data(tmp_path / NAMES[name], shuffled, name)
    assert not list(tmp_path.iterdir())
    for other in ("d4rl", "robomimic"):
        write_data(tmp_path / NAMES[other], shuffled, other)
        assert_same(read_data(tmp_path / NAMES[other]), shuffled)


def test_nothing_is_overwritten(tmp_path: Path, data: Transitions) -> None:
    for name, path in NAMES.items():
        write_data(tmp_path / path, data, name)
        with pytest.raises(FileExistsError, match=path):
            write_data(tmp_path / path, data, name)
    with pytest.raises(FileExistsError, match="normalization.npz exists, and belongs to another file"):
        write_data(tmp_path / "validation.npz", data)


def test_a_folder_that_was_not_finished_is_begun_anew(tmp_path: Path, data: Transitions) -> None:
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "folder.part" / "episode_999999.npz").touch()
    write_data(tmp_path / "folder", data, "episodes")
    assert_same(read_data(tmp_path / "folder"), data)


def test_the_format_of_a_new_file_is_that_of_its_suffix_or_must_be_named(tmp_path: Path, data: Transitions) -> None:
    assert write_data(tmp_path / "a.hdf5", data).name == "d4rl"
    assert write_data(tmp_path / "b.npz", data).name == "dppo"
    with pytest.raises(ValueError, match=r"name one \(--to\): d4rl, dppo, robomimic, minari, episodes"):
        write_data(tmp_path / "folder", data)
    with pytest.raises(ValueError, match="unknown format 'rlds'"):
        get_format("rlds")


def test_what_is_of_no_format_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("rows")
    for name in ("empty", "notes.txt"):
        with pytest.raises(ValueError, match=f"{name} is of no known format. Known: d4rl, an HDF5 file.*minari"):
            read_data(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_data(tmp_path / "nothing")


def test_an_option_that_a_format_does_not_have_is_refused(tmp_path: Path, data: Transitions) -> None:
    write_data(tmp_path / "a.hdf5", data)
    with pytest.raises(ValueError, match="read as d4rl, which has no option obs_keys; .*: robomimic, minari"):
        read_data(tmp_path / "a.hdf5", obs_keys=["object"])
    assert_same(read_data(tmp_path / "a.hdf5", obs_keys=None, leave_out_images=False), data)


# -- DPPO ---------------------------------------------------------------------------------------------------------


def dppo_file(path: Path, data: Transitions, **changes: object) -> Path:
    """Rows as DPPO's scripts write them: float32, no next observations, nothing on what was cut."""
    ranges = {f"{k}_{end}": getattr(a, end)(axis=0) for k, a in (("obs", data.obs), ("action", data.action))
              for end in ("min", "max")}  # fmt: skip
    np.savez(path.with_name("normalization.npz"), **ranges)
    arrays: dict[str, object] = dict(
        states=2 * (data.obs - ranges["obs_min"]) / (ranges["obs_max"] - ranges["obs_min"] + 1e-6) - 1,
        actions=2 * (data.action - ranges["action_min"]) / (ranges["action_max"] - ranges["action_min"] + 1e-6) - 1,
        rewards=data.reward,
        terminals=data.terminated,
        traj_lengths=np.diff(np.append(data.episode_ends, len(data) - 1), prepend=-1),
    )
    np.savez_compressed(path, **{key: a for key, a in {**arrays, **changes}.items() if a is not None})
    return path


def test_a_file_of_dppos_own_is_read_in_the_environments_units(tmp_path: Path, data: Transitions) -> None:
    read = read_data(dppo_file(tmp_path / "train.npz", data))
    # The last row of an episode that was cut has no successor and is left out; so is the unfinished end's last row.
    kept = [i for i in range(len(data)) if i not in (11, 12, 33)]
    np.testing.assert_allclose(read.obs, data.obs[kept], atol=1e-6)
    np.testing.assert_allclose(read.action, data.action[kept], atol=1e-6)
    np.testing.assert_array_equal(read.reward, data.reward[kept])
    assert read.terminated.sum() == 3 and read.episode_lengths().tolist() == [7, 4, 6, 12, 2]
    going_on = ~read.terminated
    np.testing.assert_allclose(read.next_obs[going_on], data.next_obs[kept][going_on], atol=1e-6)
    check_transitions(dataclasses.replace(read, next_obs=np.where(going_on[:, None], read.next_obs, 0)))
    assert_same(read_data(tmp_path), read)  # the folder is as good as its train.npz


def test_without_terminals_every_episode_was_cut(tmp_path: Path, data: Transitions) -> None:
    read = read_data(dppo_file(tmp_path / "train.npz", data, terminals=None))
    assert not read.terminated.any() and read.episode_lengths().tolist() == [6, 4, 5, 11, 2]


def test_rows_that_were_never_mapped_are_read_as_they_are(tmp_path: Path, data: Transitions) -> None:
    path = dppo_file(tmp_path / "rows.npz", data)
    (tmp_path / "normalization.npz").rename(tmp_path / "ranges.npz")
    with pytest.raises(FileNotFoundError, match=r"no .*normalization.npz to map them back by; .* or say 'none'"):
        read_data(path)
    mapped, raw = read_data(path, normalization=tmp_path / "ranges.npz"), read_data(path, normalization="none")
    np.testing.assert_allclose(mapped.obs[:4], data.obs[:4], atol=1e-6)
    assert np.abs(raw.obs).max() <= 1.0 < np.abs(mapped.obs).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(states=None), "lacks states; a data set of DPPO's layout has states, actions, rewards, traj_lengths"),
        (dict(traj_lengths=np.array([3, 4])), "'traj_lengths' add up to 7 rows, and 'states' has 34"),
        (dict(traj_lengths=np.array([34.0])), "'traj_lengths' must hold whole numbers"),
        (dict(traj_lengths=np.array([34, 0])), "'traj_lengths' must hold whole numbers of at least 1"),
        (dict(actions=np.zeros((33, 2))), r"'actions' must be numbers of shape \(34, \*\), got float64 of \(33, 2\)"),
        (dict(actions=np.zeros((34, 5))), "'actions' has 5 columns and the normalization 2"),
        (dict(rewards=np.zeros((34, 1))), r"'rewards' must be numbers of shape \(34\)"),
        (dict(rewards=np.full(34, "1")), r"'rewards' must be numbers"),
        (dict(states=np.zeros((34, 3), complex)), "'states' has dtype complex128"),
        (dict(terminals=np.arange(34)), "'terminals' must hold 0 and 1 only, row 2 holds 2"),
        (dict(images=np.zeros((34, 3, 4, 4), np.uint8)), "has images, and only states are read; leave"),
        (dict(rewards=np.array([{}] * 34, dtype=object)), "not an npz file of plain arrays"),
        (dict(metadata=np.array("[1")), "'metadata' is not JSON"),
        (dict(metadata=np.array("[1]")), "'metadata' must be a JSON object"),
    ],
)
def test_a_malformed_file_of_rows_is_refused(tmp_path: Path, data: Transitions, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_data(dppo_file(tmp_path / "train.npz", data, **changes), "dppo")
    assert str(tmp_path / "train.npz") in str(error.value)


def test_images_of_dppo_are_left_out_on_request(tmp_path: Path, data: Transitions) -> None:
    path = dppo_file(tmp_path / "train.npz", data, images=np.zeros((34, 3, 4, 4), np.uint8))
    np.testing.assert_allclose(read_data(path, leave_out_images=True).obs[:7], data.obs[:7], atol=1e-6)


# -- robomimic ----------------------------------------------------------------------------------------------------


@pytest.fixture
def robot_file(tmp_path: Path) -> Path:
    """Eleven demonstrations as robomimic's are: float64, by key, and the last steps of each already solved."""
    rng = np.random.default_rng(0)
    path = tmp_path / "lift.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = '{"env_name": "Lift"}'
        for i in range(11):
            steps, demo = 5 + i, file["data"].create_group(f"demo_{i}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>"
            demo["states"], demo["actions"] = rng.normal(size=(steps, 9)), rng.uniform(-1, 1, (steps, 7))
            demo["rewards"] = demo["dones"] = (np.arange(steps) >= steps - 3).astype(np.int64)
            sizes = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "joints": 7}
            for key, size in sizes.items():
                states = rng.normal(size=(steps + 1, size))
                demo[f"obs/{key}"], demo[f"next_obs/{key}"] = states[:-1], states[1:]
        file["mask/train"] = np.array([b"demo_10", b"demo_2"])
    return path


def test_demonstrations_are_read_in_dppos_order_of_keys(robot_file: Path) -> None:
    read = read_data(robot_file)
    assert read.obs.shape == (110, 19) and read.action.shape == (110, 7)
    assert read.episode_lengths().tolist() == list(range(5, 16)), "demo_10 comes after demo_9"
    # Solved steps before the last do not end an episode; the last one does.
    assert np.flatnonzero(read.terminated).tolist() == (np.cumsum(range(5, 16)) - 1).tolist()
    assert not read.truncated.any() and read.reward.sum() == 33
    with h5py.File(robot_file, "r") as file:
        obs = file["data/demo_1/obs"]
        keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
        expected = np.concatenate([obs[key][()] for key in keys], axis=1).astype(np.float32)
    np.testing.assert_array_equal(read.obs[5:11], expected)
    check_transitions(read)
    sizes = "robot0_eef_pos 3, robot0_eef_quat 4, robot0_gripper_qpos 2, object 10"
    assert read.metadata == {"env_args": '{"env_name": "Lift"}', "obs_keys": sizes}


def test_keys_and_a_split_are_chosen_and_written_again(robot_file: Path, tmp_path: Path) -> None:
    read = read_data(robot_file, obs_keys=["object", "joints"], split="train")
    assert read.episode_lengths().tolist() == [7, 15]
    write_data(tmp_path / "again.hdf5", read, "robomimic")
    with h5py.File(tmp_path / "again.hdf5", "r") as new, h5py.File(robot_file, "r") as old:
        assert set(new["data/demo_0/obs"]) == {"joints", "object"}
        np.testing.assert_array_equal(new["data/demo_1/obs/object"], old["data/demo_10/obs/object"][()].astype("f4"))
        assert new["data"].attrs["total"] == 22 and new["data/demo_1"].attrs["num_samples"] == 15
        assert new["data"].attrs["env_args"] == old["data"].attrs["env_args"]
    assert_same(read_data(tmp_path / "again.hdf5"), read)


def test_demonstrations_without_a_done_are_cut_and_keep_their_last_step(robot_file: Path) -> None:
    with h5py.File(robot_file, "a") as file:
        for demo in file["data"].values():
            demo["dones"][...] = 0
    read = read_data(robot_file)
    assert not read.terminated.any() and read.episode_lengths().tolist() == list(range(5, 16))


def test_without_next_observations_they_are_the_following_rows(robot_file: Path) -> None:
    full = read_data(robot_file)
    with h5py.File(robot_file, "a") as file:
        for demo in file["data"].values():
            del demo["next_obs"]
    read = read_data(robot_file)
    going_on = ~read.terminated
    np.testing.assert_array_equal(read.next_obs[going_on], full.next_obs[going_on])
    np.testing.assert_array_equal(read.obs, full.obs)


def add_image(file: h5py.File) -> None:
    for demo in file["data"].values():
        demo["obs/agentview_image"] = np.zeros((len(demo["actions"]), 4, 4, 3), np.uint8)


def test_images_are_refused_or_left_out(robot_file: Path) -> None:
    full = read_data(robot_file)
    with h5py.File(robot_file, "a") as file:
        add_image(file)
    with pytest.raises(ValueError, match="agentview_image are images, and only states are read; choose keys"):
        read_data(robot_file)
    with pytest.raises(ValueError, match=r"'agentview_image' is an image of shape \(4, 4, 3\)"):
        read_data(robot_file, obs_keys=["object", "agentview_image"])
    assert_same(read_data(robot_file, leave_out_images=True), full)
    keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
    assert_same(read_data(robot_file, obs_keys=keys), full)


def change_robot_file(robot_file: Path, key: str, value: object) -> None:
    with h5py.File(robot_file, "a") as file:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value


@pytest.mark.parametrize(
    ("key", "value", "options", "message"),
    [
        ("data/demo_0/actions", None, {}, "'data/demo_0/actions' is missing"),
        ("data/demo_3/rewards", np.zeros(7), {}, "demo_3 has 8 actions and 7 rewards or dones"),
        ("data/demo_3/dones", np.full(8, 2), {}, "'data/demo_3/dones' must hold 0 and 1 only"),
        ("data/demo_3/obs/object", np.zeros((8, 9)), {}, r"demo_3/obs/object must have shape \(8, 10\)"),
        ("data/demo_3/obs/object", None, {}, "'data/demo_3/obs/object' is missing"),
        ("data/demo_0/obs", None, {}, "demo_0 has no observations; raw recordings get theirs by"),
        ("data/demo_3/obs/object", h5py.ExternalLink("other.hdf5", "/x"), {}, "soft or external link"),
        ("data/demo_3", h5py.SoftLink("/data/demo_2"), {}, "'data/demo_3' is missing or no group of the file itself"),
        ("data/demo_0/obs/object", ["a"] * 5, {}, "'data/demo_0/obs/object' has dtype object"),
        ("mask", None, dict(split="train"), "there is no split 'train'; found none"),
        ("mask/train", np.array([b"demo_77"]), dict(split="train"), "names 'demo_77', which is not there"),
        ("mask/train", np.zeros(3), dict(split="train"), "'mask/train' is no list of texts"),
        ("x", 1, dict(obs_keys=["robot0_eef"]), "no observation 'robot0_eef'; found joints, object, robot0_eef_pos"),
    ],
)
def test_a_malformed_file_of_a_robot_is_refused(
    robot_file: Path, key: str, value: object, options: dict, message: str
) -> None:
    change_robot_file(robot_file, key, value)
    with pytest.raises(ValueError, match=message) as error:
        read_data(robot_file, **options)
    assert str(robot_file) in str(error.value)


def test_a_file_without_demonstrations_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(ValueError, match="there are no demonstrations, data/demo_0 and on are expected"):
        read_data(tmp_path / "a.hdf5")


# -- Minari -------------------------------------------------------------------------------------------------------


@pytest.fixture
def maze_folder(tmp_path: Path) -> Path:
    """Twelve episodes as Minari writes them: observations by key, infos, float64."""
    folder = tmp_path / "umaze-v2"
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for i in range(12):
            steps, group = 4 + i, file.create_group(f"episode_{i}")
            group.attrs.update(id=i, seed=i, total_steps=steps)
            for key, size in {"achieved_goal": 2, "desired_goal": 2, "observation": 4}.items():
                group[f"observations/{key}"] = rng.normal(size=(steps + 1, size))
            group["actions"] = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
            group["rewards"] = rng.normal(size=steps)
            group["terminations"] = np.zeros(steps, dtype=bool)
            group["truncations"] = np.arange(steps) == steps - 1
            group["infos/qpos"] = np.zeros((steps + 1, 2))
    texts = {"dataset_id": "D4RL/umaze-v2", "env_spec": '{"id": "PointMaze_UMaze-v3"}', "total_episodes": 12}
    (folder / "data" / "metadata.json").write_text(json.dumps(texts))
    return folder


def test_a_folder_of_minari_is_read_by_chosen_keys(maze_folder: Path) -> None:
    with pytest.raises(ValueError, match="keys achieved_goal, desired_goal, observation; choose those to read"):
        read_data(maze_folder)
    read = read_data(maze_folder, obs_keys=["achieved_goal", "observation"])
    assert read.obs.shape == (sum(range(4, 16)), 6)
    assert read.episode_lengths().tolist() == list(range(4, 16)), "episode_10 comes after episode_9"
    assert read.metadata == {"env_spec": '{"id": "PointMaze_UMaze-v3"}'}
    with h5py.File(maze_folder / "data" / "main_data.hdf5", "r") as file:
        obs = file["episode_1/observations"]
        states = np.concatenate([obs["achieved_goal"], obs["observation"]], axis=1).astype(np.float32)
    np.testing.assert_array_equal(read.obs[4:9], states[:-1])
    np.testing.assert_array_equal(read.next_obs[4:9], states[1:])
    check_transitions(read)
    for place in (maze_folder / "data", maze_folder / "data" / "main_data.hdf5"):
        assert_same(read_data(place, obs_keys=["achieved_goal", "observation"]), read)


def test_what_is_written_for_minari_is_what_its_reader_expects(tmp_path: Path, data: Transitions) -> None:
    write_data(tmp_path / "test" / "random-v0", data, "minari")
    metadata = json.loads((tmp_path / "test" / "random-v0" / "data" / "metadata.json").read_text())
    assert (metadata["total_episodes"], metadata["total_steps"], metadata["data_format"]) == (6, 34, "hdf5")
    assert metadata["minari_version"] == "0.5.3"  # Minari asks for it
    assert json.loads(metadata["action_space"])["shape"] == [2]
    with h5py.File(tmp_path / "test" / "random-v0" / "data" / "main_data.hdf5", "r") as file:
        assert file["episode_0/observations"].shape == (8, 3) and file["episode_5/actions"].shape == (3, 2)
        assert file["episode_3/terminations"][-1] and file["episode_3/truncations"][-1]
        assert file["episode_4"].attrs["total_steps"] == 12


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("episode_2/rewards", np.zeros(5), "must have one observation more than actions.*got 7, 6, 5, 6, 6"),
        ("episode_2/terminations", None, "'episode_2/terminations' is missing"),
        ("episode_2/actions", np.zeros(6), "'episode_2/actions' must have 2 dimensions"),
        ("episode_2/actions", np.zeros((6, 3)), "action has 2 columns in the first episode and 3 in number 2"),
        ("episode_2/observations/observation", np.zeros((5, 4)), "observations have different lengths: 7, 5"),
        ("episode_2/observations/observation", None, "'episode_2/observations/observation' is missing; expected one"),
        ("episode_2", h5py.ExternalLink("other.hdf5", "/x"), "'episode_2' is missing or no group of the file itself"),
    ],
)
def test_a_malformed_folder_of_minari_is_refused(maze_folder: Path, key: str, value: object, message: str) -> None:
    change_robot_file(maze_folder / "data" / "main_data.hdf5", key, value)
    with pytest.raises(ValueError, match=message):
        read_data(maze_folder, obs_keys=["achieved_goal", "observation"])


def test_keys_for_observations_without_keys_are_refused(tmp_path: Path, data: Transitions) -> None:
    write_data(tmp_path / "random-v0", data, "minari")
    with pytest.raises(ValueError, match="observations are one array, there are no keys to choose"):
        read_data(tmp_path / "random-v0", obs_keys=["observation"])


# -- a folder of episodes -----------------------------------------------------------------------------------------


def write_episode(folder: Path, number: int, steps: int, **changes: object) -> None:
    arrays = dict(
        observations=np.full((steps + 1, 3), number + np.arange(steps + 1)[:, None] / 10),
        actions=np.zeros((steps, 2)),
        rewards=np.ones(steps),
        terminated=True,
    )
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"run_{number}.npz", **{key: a for key, a in {**arrays, **changes}.items() if a is not None})


def test_episodes_by_hand_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, steps in ((10, 2), (9, 3), (100, 4)):
        write_episode(tmp_path / "runs", number, steps, terminated=number != 9)
    read = read_data(tmp_path / "runs")
    assert read.obs[:, 0].tolist() == pytest.approx([9, 9.1, 9.2, 10, 10.1, 100, 100.1, 100.2, 100.3])
    assert np.flatnonzero(read.terminated).tolist() == [4, 8]
    assert np.flatnonzero(read.truncated).tolist() == [2], "what was not terminated was cut"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rewards=None), "run_4.npz lacks rewards; an episode has observations, actions, rewards, terminated"),
        (dict(observations=np.zeros((3, 3))), r"'observations' must be numbers of shape \(4, \*\), got .* \(3, 3\)"),
        (dict(terminated=np.zeros(2)), "'terminated' must hold one flag or one for each of 3 rows"),
        (dict(terminated=0.5), "'terminated' must hold 0 and 1 only"),
        (dict(actions=np.zeros((3, 1))), "action has 2 columns in the first episode and 1 in number 1"),
        (dict(actions=np.zeros((0, 2))), "'actions' must be numbers of shape"),
    ],
)
def test_a_malformed_episode_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write_episode(tmp_path / "runs", 3, 5)
    write_episode(tmp_path / "runs", 4, 3, **changes)
    with pytest.raises(ValueError, match=message):
        read_data(tmp_path / "runs")


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dppo", "robomimic", "minari", "episodes"])
def test_damaged_bytes_are_refused_with_one_kind_of_error(tmp_path: Path, data: Transitions, name: str) -> None:
    path = tmp_path / NAMES[name]
    write_data(path, data, name)
    file = {"minari": path / "data" / "main_data.hdf5", "episodes": path / "episode_000004.npz"}.get(name, path)
    whole, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    for _ in range(30):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), size=20):
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            read_data(path, name)
        except ValueError:
            refused += 1
    file.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=str(file)):
        read_data(path)
    assert refused > 10


def test_parts_of_any_format_are_one_set(tmp_path: Path, data: Transitions) -> None:
    for name, path in NAMES.items():
        write_data(tmp_path / path, data, name)
    whole = concatenate([read_data(tmp_path / path) for path in NAMES.values()])
    assert len(whole) == 5 * len(data) and whole.episode_lengths().tolist() == [7, 5, 1, 6, 12, 3] * 4 + [
        7,
        5,
        1,
        6,
        12,
    ]
