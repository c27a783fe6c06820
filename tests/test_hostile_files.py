"""Files made to harm: nothing in them runs, none fills the memory, and each is refused by name, in words and at once.

A payload that ran would leave a file, the canary. Each payload goes to every reader of its kind and to the commands
that take such a file. The time is the processor's, and the memory the most that the process ever had.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from ding_ebm.checkpoint import read_checkpoint
from ding_ebm.cli import main
from ding_ebm.data.dppo_checkpoints import read_dppo_checkpoint
from ding_ebm.data.dppo_npz import RANGES
from ding_ebm.data.formats import FORMATS, Transitions, read_data, write_data
from ding_ebm.data.hdf5 import MAX_UNPACKED
from ding_ebm.data.sums import note_of
from ding_ebm.envs.avoid_demos import make_demonstrations
from ding_ebm.evaluation import energy_pictures  # noqa: F401 (its import is not a payload's time)
from ding_ebm.evaluation.checkpoint import load_policy
from ding_ebm.evaluation.logs import scalar_names
from ding_ebm.evaluation.results import read_results
from ding_ebm.policy.support import support_actions
from ding_ebm.policy.trained_energy import load_energy

SECONDS, MEGABYTES = 1.0, 400
CONFIG = Path(__file__).parents[1] / "dizoo_configs" / "avoid" / "avoid_qgpo_config.py"
# Numbers of an array that is too large to be packed into a few bytes.
MANY = MAX_UNPACKED // 4 + 64
Build = Callable[[Path, "Bomb"], None]


class Bomb:
    """Makes the canary when it is unpickled."""

    canary: Path

    def __reduce__(self):
        return os.mkdir, (str(type(self).canary),)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Bomb]:
    Bomb.canary = tmp_path / "canary"
    yield Bomb()
    assert not Bomb.canary.exists(), "the payload ran"


def seal(path: Path) -> None:
    """Put the sum that is expected behind a file, in a zip archive as its comment."""
    content = path.read_bytes()
    if content[-22:-18] == b"PK\x05\x06":
        content = content[:-2] + (72).to_bytes(2, "little")
    content += b"sha256: "
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def write_without_sums(path: Path, transitions: Transitions, name: str) -> None:
    """A set whose files can be changed unnoticed."""
    write_data(path, transitions, name)
    note_of(path).unlink()


@contextmanager
def refused(path: Path, *words: str) -> Iterator[None]:
    """An error that names the file and is a ValueError, soon and without much memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        yield
    message = str(caught.value)
    assert path.name in message
    assert [word for word in words if word not in message] == []
    assert len(message) < 2000 and "arbitrary code execution" not in message and "weights_only=False" not in message
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


def command_refuses(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    """A command ends with status 2 and one line that names the file, soon."""
    start = time.process_time()
    assert main(arguments) == 2
    assert time.process_time() - start < SECONDS
    said = capsys.readouterr().err.splitlines()
    assert not [line for line in said if "Traceback" in line]
    assert [line for line in said if line.startswith("ding-ebm: error: ") and path.name in line]


# Torch files.


def save_bomb(path: Path, bomb: Bomb) -> None:
    torch.save(dict(model=bomb, train_iter=1), path)


def save_legacy_bomb(path: Path, bomb: Bomb) -> None:
    torch.save(dict(model=bomb), path, _use_new_zipfile_serialization=False)


def pickle_bomb(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def eval_bomb(path: Path, bomb: Bomb) -> None:
    """Of the builtins rather than of the system."""
    with_code(path, b"cbuiltins\neval\n(V__import__('os').mkdir('%s')\ntR." % str(bomb.canary).encode())


def with_code(path: Path, code: bytes) -> None:
    """A torch file whose pickle is the given one."""
    torch.save(dict(model={}), path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, code if name.endswith("data.pkl") else content)


def numpy_bomb(path: Path, bomb: Bomb) -> None:
    torch.save(dict(model=np.array([bomb], dtype=object)), path)


def module_bomb(path: Path, bomb: Bomb) -> None:
    torch.save(nn.Linear(1, 1), path)


def script(path: Path, bomb: Bomb) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)


def torch_traversal(path: Path, bomb: Bomb) -> None:
    with_code(path, b"cos\nmkdir\n.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../canary", "x")


def packed_torch(path: Path, bomb: Bomb) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/version", "3")
        archive.writestr("a/data.pkl", pickle.dumps(dict(model={})))
        archive.writestr("a/data/0", bytes(4 * MANY))


def long_pickle(path: Path, bomb: Bomb) -> None:
    with_code(path, b"N0" * (10 << 20) + b"}.")


def nested_lists(path: Path, bomb: Bomb) -> None:
    """2^60 values by 60 lists that each hold the next one twice."""
    value: list = [0]
    for _ in range(60):
        value = [value, value]
    torch.save(dict(facts=dict(task=value), model={}), path)


def circle(path: Path, bomb: Bomb) -> None:
    value: list = []
    value.append(value)
    torch.save(dict(facts=dict(task=value)), path)


def expanded_tensor(path: Path, bomb: Bomb) -> None:
    """4 TB of one number."""
    weights = {"network.mlp_mean.layers.0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}
    torch.save(dict(model=weights, ema=weights, train_iter=1), path)


def sparse_tensor(path: Path, bomb: Bomb) -> None:
    value = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (1 << 20, 1 << 20))
    torch.save(dict(model={"a": value}), path)


def other_things(path: Path, bomb: Bomb) -> None:
    torch.save(dict(model=[1, 2], ema=[1], facts=3, train_iter="x", kind="energy of action chunks"), path)


def great_facts(path: Path, bomb: Bomb) -> None:
    """An energy of 4 TB by its own word."""
    sizes = dict(obs_dim=4, action_dim=1 << 40, cond_steps=1, horizon_steps=4, denoising_steps=None)
    facts = {"task": "avoid_m1", "mlp.mlp_dims": (1 << 20, 1 << 20), "mlp.activation": "silu", **sizes}
    state = {f"network_ema.{i}": torch.zeros(1) for i in range(4)}
    torch.save(dict(kind="energy of action chunks", facts=facts, model=state, train_iter=1), path)


TORCH: dict[str, tuple[Build, tuple[str, ...]]] = {
    "reduce": (save_bomb, ("mkdir",)),
    "reduce in the old format": (save_legacy_bomb, ("no zip file",)),
    "a bare pickle": (pickle_bomb, ("no zip file",)),
    "eval": (eval_bomb, ("eval",)),
    "reduce in a NumPy array": (numpy_bomb, ("could run code",)),
    "a module": (module_bomb, ("torch.nn.modules.linear.Linear",)),
    "TorchScript": (script, ()),
    "path traversal": (torch_traversal, ()),
    "an archive bomb": (packed_torch, ("compressed",)),
    "a long pickle": (long_pickle, ("bytes",)),
    "lists of lists": (nested_lists, ("hold each other",)),
    "a circle": (circle, ("holds itself",)),
    "an expanded tensor": (expanded_tensor, ("no memory for all its elements",)),
    "a sparse tensor": (sparse_tensor, ("plain dense tensors",)),
}


def ranges(folder: Path) -> Path:
    low, high = np.full(2, -1.0), np.ones(2)
    np.savez(folder / "normalization.npz", obs_min=low, obs_max=high, action_min=low, action_max=high)
    return folder / "normalization.npz"


@pytest.mark.parametrize("kind", TORCH)
def test_a_torch_file_runs_nothing(kind, tmp_path, bomb, capsys):
    build, words = TORCH[kind]
    path, normalization = tmp_path / "x" / "state_1.pt", ranges(tmp_path)
    path.parent.mkdir()
    build(path, bomb)
    with refused(path, "SHA-256"):
        read_checkpoint(path)
    seal(path)  # as an attacker can
    with refused(path, *words):
        read_checkpoint(path)
    with refused(path, *words):
        load_energy(str(path), "cpu")
    with refused(path, *words):
        read_dppo_checkpoint(path, normalization, activation="relu")
    with refused(path, *words):
        load_policy(CONFIG, path)
    out, data = str(tmp_path / "out"), str(tmp_path / "data.hdf5")
    convert = ("convert", "dppo", "--checkpoint", str(path), "--normalization", str(normalization), "--out", out)
    command_refuses(path, capsys, *convert, "--activation", "relu")
    command_refuses(path, capsys, "energy", "--load-path", str(path), "--data", data, "--out", out)
    command_refuses(path, capsys, "eval", "-c", str(CONFIG), "--load-path", str(path), "--train-seed", "0")
    command_refuses(
        path, capsys, "data", "collect", "avoid", "--policy", str(path), "-c", str(CONFIG), "--out", f"{out}.hdf5"
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["normalization.npz", "x"]


@pytest.mark.parametrize("build", [other_things, great_facts])
def test_a_torch_file_that_lies_about_itself_is_refused(build, tmp_path, bomb):
    path = tmp_path / "state_1.pt"
    build(path, bomb)
    seal(path)
    with refused(path):
        load_energy(str(path), "cpu")
    with refused(path):
        read_dppo_checkpoint(path, ranges(tmp_path), activation="relu")


# NumPy's files.


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def headed(header: str, content: bytes = b"") -> bytes:
    """An npy file with the given text as its header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + content


def shape_header(shape: str) -> str:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"


def npy_payloads(bomb: Bomb) -> dict[str, bytes]:
    return {
        "an array of objects": npy(np.array([bomb], dtype=object)),
        "objects in fields": npy(np.array([(1, bomb)], dtype=[("a", "f4"), ("b", "O")])),
        "a pickle": pickle.dumps(bomb),
        "a header of code": headed(f"__import__('os').mkdir('{bomb.canary}')"),
        "code in a header": headed(shape_header(f"(__import__('os').mkdir('{bomb.canary}'),)")),
        "a long header": headed("{" + " " * (1 << 22) + "}"),
        "a nested header": headed("(" * 9000),
        "a great shape": headed(shape_header("(1099511627776, 2)"), bytes(64)),
        "a shape below zero": headed(shape_header("(-8, 2)"), bytes(64)),
    }


NPY = list(npy_payloads(Bomb.__new__(type("Named", (Bomb,), {"canary": Path("none")}))))


@pytest.mark.parametrize("kind", [*NPY, "an archive bomb", "an encrypted entry"])
def test_an_npz_file_runs_nothing(kind, tmp_path, bomb, capsys):
    good = dict(observations=npy(np.zeros((3, 2), np.float32)), actions=npy(np.zeros((2, 1), np.float32)))
    good.update(rewards=npy(np.zeros(2, np.float32)), terminated=npy(np.array([False, True])))
    payload = npy_payloads(bomb).get(kind, good["observations"])
    if kind == "an archive bomb":
        payload = npy(np.zeros((MANY // 2, 2), np.float32))
    rows = dict(states=payload, actions=good["actions"], rewards=good["rewards"], traj_lengths=npy(np.array([2])))
    limits = dict(dict.fromkeys(RANGES, good["rewards"]), obs_min=payload)
    folder = tmp_path / "set"
    for name, entries in (("episode_0", {**good, "observations": payload}), ("rows", rows), ("ranges", limits)):
        (folder / name).mkdir(parents=True)
        with zipfile.ZipFile(folder / name / f"{name}.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for key, content in entries.items():
                archive.writestr(f"{key}.npy", content)
        if kind == "an encrypted entry":
            content = bytearray((folder / name / f"{name}.npz").read_bytes())
            for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
                at = -1
                while (at := content.find(mark, at + 1)) >= 0:
                    content[at + offset] |= 1
            (folder / name / f"{name}.npz").write_bytes(bytes(content))
    episode, dppo, normalization = (folder / name / f"{name}.npz" for name in ("episode_0", "rows", "ranges"))
    with refused(episode):
        read_data(episode.parent, "episodes")
    with refused(dppo):
        read_data(dppo, "dppo", normalization="none")
    with refused(normalization):
        read_dppo_checkpoint(tmp_path / "none.pt", normalization)
    for action in ("check", "info"):
        command_refuses(episode, capsys, "data", action, str(episode.parent))
    command_refuses(dppo, capsys, "data", "check", str(dppo), "--normalization", "none")
    command_refuses(dppo, capsys, "data", "convert", str(dppo), str(tmp_path / "o.hdf5"), "--normalization", "none")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize("kind", [*NPY, "an npz file"])
def test_a_cache_of_actions_runs_nothing(kind, tmp_path, bomb):
    key = "0" * 64
    path = tmp_path / f"support_{key[:32]}.npy"
    path.write_bytes(npy_payloads(bomb).get(kind, b"PK\x05\x06" + bytes(18)))
    with refused(path, "delete the file"):
        support_actions(lambda obs, noise: noise, torch.zeros(4, 2), 2, 1, key=key, cache_dir=tmp_path)


def test_names_in_an_archive_lead_nowhere(tmp_path):
    write_without_sums(tmp_path / "set", make_demonstrations(1), "episodes")
    (path,) = (tmp_path / "set").glob("*.npz")
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../../canary.npy", "/canary.npy", "..\\canary.npy", "observations.npy/../canary.npy"):
            archive.writestr(name, npy(np.zeros(2)))
    found = read_data(tmp_path / "set")
    assert found.checksum() == make_demonstrations(1).checksum()
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]
    assert not (tmp_path.parent / "canary.npy").exists()


# HDF5.


def soft_link(file: h5py.File, name: str, outside: Path) -> None:
    file["elsewhere"] = file[name][()]
    del file[name]
    file[name] = h5py.SoftLink("/elsewhere")


def external_link(file: h5py.File, name: str, outside: Path) -> None:
    with h5py.File(f"{outside}.hdf5", "w") as other:
        other["secret"] = file[name][()]
    del file[name]
    file[name] = h5py.ExternalLink(f"{outside}.hdf5", "secret")


def external_storage(file: h5py.File, name: str, outside: Path) -> None:
    shape = file[name].shape
    outside.write_bytes(bytes(4 * int(np.prod(shape))))
    replace(file, name, shape=shape, dtype="f4", external=[(str(outside), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, name: str, outside: Path) -> None:
    shape = file[name].shape
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(f"{outside}.hdf5", "secret", shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def of_dtype(dtype: object) -> Callable[[h5py.File, str, Path], None]:
    return lambda file, name, outside: replace(file, name, shape=file[name].shape, dtype=dtype)


def of_time(file: h5py.File, name: str, outside: Path) -> None:
    """A type that h5py cannot name."""
    shape = file[name].shape
    del file[name]
    parent = file[name.rpartition("/")[0] or "/"]
    h5py.h5d.create(parent.id, name.rpartition("/")[2].encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple(shape))


def great_shape(file: h5py.File, name: str, outside: Path) -> None:
    replace(file, name, shape=(1 << 40, *file[name].shape[1:]), dtype="f4", chunks=(1, *file[name].shape[1:]))


def great_chunk(file: h5py.File, name: str, outside: Path) -> None:
    """64 MB in a chunk, of which the array shows its few rows."""
    shape = file[name].shape
    limits = (None, *shape[1:])
    chunk = (MANY // int(np.prod(shape[1:])), *shape[1:])
    replace(file, name, shape=shape, maxshape=limits, dtype="f4", chunks=chunk, compression="gzip")
    file[name][...] = 0.0


def packed(file: h5py.File, name: str, outside: Path) -> None:
    """64 MB of zeros."""
    tail = file[name].shape[1:]
    shape = (MANY // int(np.prod(tail)), *tail)
    replace(file, name, data=np.zeros(shape, "f4"), chunks=(shape[0] // 4, *tail), compression="gzip")


def replace(file: h5py.File, name: str, **options: object) -> None:
    del file[name]
    file.create_dataset(name, **options)


HDF5: dict[str, Callable[[h5py.File, str, Path], None]] = {
    "a soft link": soft_link,
    "an external link": external_link,
    "external storage": external_storage,
    "a virtual array": virtual,
    "object references": of_dtype(h5py.ref_dtype),
    "arrays of any length": of_dtype(h5py.vlen_dtype(np.float32)),
    "texts": of_dtype(h5py.string_dtype()),
    "opaque bytes": of_dtype(np.dtype("V8")),
    "records": of_dtype([("a", "f4"), ("b", "i4")]),
    "a type of time": of_time,
    "a great shape": great_shape,
    "a great chunk": great_chunk,
    "an archive bomb": packed,
}
PLACES = {"d4rl": "observations", "robomimic": "data/demo_0/obs/state", "minari": "episode_0/observations"}


def write_set(folder: Path, name: str) -> tuple[Path, Path]:
    """A set of demonstrations: its path, and that of its HDF5 file."""
    path = folder / ("set" if name == "minari" else "set.hdf5")
    write_without_sums(path, make_demonstrations(2), name)
    return path, path / "data" / "main_data.hdf5" if name == "minari" else path


@pytest.mark.parametrize("kind", HDF5)
@pytest.mark.parametrize("name", PLACES)
def test_an_hdf5_file_runs_nothing_and_leads_nowhere(name, kind, tmp_path, capsys):
    path, main_file = write_set(tmp_path, name)
    with h5py.File(main_file, "a") as file:
        HDF5[kind](file, PLACES[name], tmp_path / "outside")
    with refused(main_file, PLACES[name].rpartition("/")[2]):
        read_data(path, name)
    command_refuses(main_file, capsys, "data", "check", str(path), "--from", name)
    assert set(PLACES) | {"dppo", "episodes"} == set(FORMATS)


def test_attributes_of_any_type_are_passed_over_or_refused(tmp_path):
    path, _ = write_set(tmp_path, "robomimic")
    vectors = np.empty(1, dtype=object)
    vectors[0] = np.zeros(3, np.float32)
    with h5py.File(path, "a") as file:
        for group in (file["data"], file["data/demo_0"]):
            group.attrs.create("references", group.ref, dtype=h5py.ref_dtype)
            group.attrs.create("opaque", np.void(b"12345678"))
            group.attrs.create("lengths", vectors, dtype=h5py.vlen_dtype(np.float32))
            group.attrs["../../escaped"] = "x"
            space = h5py.h5s.create(h5py.h5s.SCALAR)
            h5py.h5a.create(group.id, b"time", h5py.h5t.UNIX_D32LE, space)
    found = read_data(path)
    assert found.checksum() == make_demonstrations(2).checksum()
    assert not {"references", "opaque", "lengths", "time", "../../escaped"} & set(found.metadata)
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["truncated"] = np.ones(5)
    with refused(path, "truncated"):
        read_data(path)


# Notes, results and logs.


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b"\xff\xfe", b'{"a": ' * 50_000, b" " * (5 << 20), b"[1]"],
    ids=["nested", "no text", "nested objects", "long", "a list"],
)
@pytest.mark.parametrize("name", ["minari", "episodes"])
def test_notes_beside_a_set_are_refused_in_words(name, text, tmp_path, capsys):
    write_without_sums(tmp_path / "set", make_demonstrations(1), name)
    (notes,) = (tmp_path / "set").rglob("metadata.json")
    notes.write_bytes(text)
    with refused(notes):
        read_data(tmp_path / "set")
    command_refuses(notes, capsys, "data", "check", str(tmp_path / "set"))


def test_names_in_notes_lead_nowhere_when_a_set_is_converted(tmp_path):
    write_without_sums(tmp_path / "set", make_demonstrations(1), "episodes")
    escapes = dict.fromkeys(("../observations", "/observations", "a/b", "..", "", "\x1b[2J"), "x")
    (tmp_path / "set" / "metadata.json").write_text(json.dumps({**escapes, "author": "me"}), "utf-8")
    found = read_data(tmp_path / "set")
    assert dict(found.metadata) == {"author": "me"}
    write_data(tmp_path / "set.hdf5", found)
    assert read_data(tmp_path / "set.hdf5").checksum() == found.checksum()


def test_what_a_terminal_would_obey_is_not_printed(tmp_path, capsys):
    path, _ = write_set(tmp_path, "robomimic")
    with h5py.File(path, "a") as file:
        file.move("data/demo_0/obs/state", "data/demo_0/obs/\x1b]0;owned\x07")
    assert main(["data", "check", str(path), "--obs-keys", "x"]) == 2
    said = capsys.readouterr().err
    assert "owned" in said and "\x1b" not in said and "\x07" not in said


@pytest.mark.parametrize("content", [b"x" * 200_000, b"\xff\xfe\x00", b"a,b\n\x00\x00", b""])
def test_results_of_others_are_refused_in_words(content, tmp_path, capsys):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with refused(path):
        read_results(path)
    command_refuses(path, capsys, "report", str(path))


@pytest.mark.parametrize(
    "content", [struct.pack("<Q", 1 << 60) + bytes(8), struct.pack("<Q", 3) + b"\0" * 4 + b"\xff" * 7]
)
def test_logs_of_others_are_refused_in_words(content, tmp_path):
    path = tmp_path / "log" / "serial" / "events.out.tfevents.1"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with refused(path):
        scalar_names(tmp_path)


def test_the_config_that_the_host_notes_beside_a_run_is_text(tmp_path, bomb, capsys):
    """A config file given by ``-c`` is code, as SECURITY.md says; the one in a run's folder is only searched."""
    path = tmp_path / "run" / "ckpt" / "last.pth.tar"
    path.parent.mkdir(parents=True)
    code = f"import os\nos.mkdir({str(bomb.canary)!r})\n"
    (path.parents[1] / "total_config.py").write_text(code, "utf-8")
    (path.parents[1] / "formatted_total_config.py").write_text(code, "utf-8")
    save_bomb(path, bomb)
    command_refuses(path, capsys, "eval", "-c", str(CONFIG), "--load-path", str(path))
