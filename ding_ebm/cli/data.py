"""``ding-ebm data``: make, fetch, describe, check and convert data sets."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ding_ebm.cli.arguments import add_command, positive, printable, quiet_import

if TYPE_CHECKING:
    from ding_ebm.data.formats import Transitions

# The table is in ding_ebm.data.formats, which takes longer to import than help may.
FORMAT_NAMES = ("d4rl", "dppo", "robomimic", "minari", "episodes")


def add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand and its actions."""
    text = "make, fetch, describe, check or convert a data set"
    actions = commands.add_parser("data", help=text).add_subparsers(metavar="ACTION", required=True)
    _add_collect(actions)
    _add_download(actions)

    check = add_command(actions, "check", _check, "describe a data set and refuse one that would train into nonsense")
    _add_reading(check)
    check.add_argument("--task", help="task that the data should be of; dimensions, range and limits are compared")
    check.add_argument("-c", "--config", metavar="FILE", help="of a task of your own: a config that registers it")
    check.add_argument("--strict", action="store_true", help="end with status 1 if there are warnings")

    info = add_command(actions, "info", _info, "describe a data set: episodes, returns, ranges of columns, sum")
    _add_reading(info)

    convert = add_command(actions, "convert", _convert, "write a data set in another format")
    _add_reading(convert)
    convert.add_argument("target", metavar="TARGET", help="new file or folder")
    _add_writing(convert)


def _add_collect(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    collect = add_command(actions, "collect", _collect, "make a data set of a task by a policy")
    collect.add_argument("task", metavar="TASK", help="name of a task, see `ding-ebm tasks`")
    collect.add_argument("--out", required=True, metavar="FILE", help="new file or folder to write")
    collect.add_argument(
        "--policy",
        default="scripted",
        metavar="POLICY",
        help="scripted (of the avoid tasks, lift and can), random, or a checkpoint, <exp_name>/ckpt/*.pth.tar; "
        "default: %(default)s",
    )
    collect.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="of a checkpoint: config that the run was made with; of a task of your own: one that registers it",
    )
    collect.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="SIGMA",
        help="std of Gaussian noise on actions, as a share of half their range; default: %(default)s",
    )
    collect.add_argument("--episodes", type=positive, default=500, metavar="N", help="default: %(default)s")
    collect.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    collect.add_argument(
        "--num-envs", type=positive, default=50, metavar="E", help="environments at a time; default: %(default)s"
    )
    _add_writing(collect)


def _add_download(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fetch = add_command(actions, "download", _download, "fetch a published data set, or list those that are known")
    fetch.add_argument("set", nargs="?", metavar="NAME", help="as hopper-medium-v2; without one, the known are listed")
    fetch.add_argument("--out", metavar="FILE", help="default: as configs look for it, in DING_EBM_DATA's folder")
    fetch.add_argument("--mirror", metavar="URL", help="stands in for the host's address; default: DING_EBM_MIRROR")
    fetch.add_argument("--sha256", metavar="SUM", help="sum that it must have; default: that of the first download")


def _add_writing(parser: argparse.ArgumentParser) -> None:
    """What says in which format to write."""
    text = "format to write; default: .hdf5 is d4rl, .npz is dppo, a folder has none"
    parser.add_argument("--to", choices=FORMAT_NAMES, help=text)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """What says how to read a data set of any format."""
    parser.add_argument("file", metavar="FILE", help="file or folder, here or in the folder that DING_EBM_DATA names")
    parser.add_argument(
        "--from", dest="name", choices=FORMAT_NAMES, help="format to read; default: as the content says"
    )
    parser.add_argument(
        "--obs-keys",
        nargs="+",
        metavar="KEY",
        help="of robomimic and minari: arrays that make an observation, in this order",
    )
    parser.add_argument(
        "--leave-out-images", action="store_true", help="of robomimic and dppo: read the states of a set with images"
    )
    parser.add_argument("--split", metavar="NAME", help="of robomimic: demonstrations of a list in mask/, as train")
    parser.add_argument(
        "--normalization",
        metavar="FILE.npz",
        help="of dppo: ranges to map rows back by, or none; default: normalization.npz beside the rows",
    )


def read(options: argparse.Namespace) -> Transitions:
    """The data set that the options of a subcommand name."""
    from ding_ebm.data.formats import find_data_file, read_data

    names = ("obs_keys", "leave_out_images", "split", "normalization")
    given: dict[str, Any] = {name: getattr(options, name) for name in names}
    return read_data(find_data_file(options.file), options.name, **given)


def _collect(options: argparse.Namespace) -> int:
    from ding_ebm.data.formats import check_target, write_data
    from ding_ebm.evaluation.collect import collect

    check_target(options.out, options.to)
    if options.config:
        quiet_import().read_run_config(options.config)
    elif options.policy not in ("scripted", "random"):
        quiet_import()
    transitions = collect(
        options.task,
        options.policy,
        episodes=options.episodes,
        seed=options.seed,
        noise=options.noise,
        config=options.config,
        num_envs=options.num_envs,
        description=options.task,
    )
    write_data(options.out, transitions, options.to)
    returns = transitions.episode_returns()
    print(f"{options.out}: {transitions.source}, {len(transitions)} rows, mean return {returns.mean():g}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from ding_ebm.data.checks import check_transitions
    from ding_ebm.data.doubts import doubts
    from ding_ebm.envs.registry import get_task
    from ding_ebm.evaluation.results import describe

    if options.config:
        quiet_import().read_run_config(options.config)
    task = get_task(options.task) if options.task else None
    transitions = read(options)
    is_of_task = task is not None and (transitions.obs.shape[1], transitions.action.shape[1]) == (
        task.obs_dim,
        task.action_dim,
    )
    print(describe(transitions, task.name if is_of_task else None), end="")
    if task is None:
        check_transitions(transitions, action_range=None)
    else:
        check_transitions(transitions, task.obs_dim, task.action_dim, task.action_bounds, task.max_episode_steps)
    found = doubts(transitions, **(task.expectations if task else {}))
    for doubt in found:
        print(f"warning: {doubt}")
    print("problems: none" if task else "problems: none (dimensions, range and time limit not compared: no --task)")
    return 1 if found and options.strict else 0


def _info(options: argparse.Namespace) -> int:
    from ding_ebm.data.formats import find_data_file, find_format, get_format
    from ding_ebm.evaluation.results import describe

    entry = get_format(options.name) if options.name else find_format(find_data_file(options.file))
    transitions = read(options)
    print(describe(transitions), end="")
    print(f"format    {entry.name}, {entry.what}")
    print(f"sum       {transitions.checksum()}")
    for key, text in transitions.metadata.items():
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        print(f"noted     {key}: {printable(' '.join(shown.split()))}")
    print(f"\n{_columns(transitions)}", end="")
    return 0


def _download(options: argparse.Namespace) -> int:
    from ding_ebm.data.download import REMOTE_FILES, download
    from ding_ebm.data.formats import DATA_FOLDER_VARIABLE

    if options.set is None:
        for name, remote in REMOTE_FILES.items():
            print(f"{name:28s} {remote.host}/{remote.place}")
        return 0
    if options.set not in REMOTE_FILES:
        near = difflib.get_close_matches(options.set, REMOTE_FILES, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown data set {options.set!r}{hint} `ding-ebm data download` lists those that are known")
    remote = REMOTE_FILES[options.set]
    path = Path(options.out or Path(os.environ.get(DATA_FOLDER_VARIABLE, ".")).expanduser() / remote.name)
    there = path.exists()
    found = download(remote, path, mirror=options.mirror, sha256=options.sha256, progress=_Progress(str(path)))
    print(f"{path}: {'already there' if there else 'complete'}, sha256 {found}, noted in {path}.sha256")
    return 0


class _Progress:
    """Says on standard error how much of a file has arrived, once every ten percent or 100 MB."""

    def __init__(self, name: str) -> None:
        self._name, self._next = name, 0

    def __call__(self, done: int, total: int | None) -> None:
        if done < self._next:
            return
        self._next = done + (total // 10 if total else 100_000_000)
        of = f" of {total / 1e6:.0f}" if total else ""
        print(f"{self._name}: {done / 1e6:.0f}{of} MB", file=sys.stderr, flush=True)


def _columns(transitions: Transitions) -> str:
    """Least, mean and largest value and standard deviation of each column of observations and actions."""
    from ding_ebm.evaluation.results import format_table

    lines = []
    for name, array in (("obs", transitions.obs), ("action", transitions.action)):
        moments = zip(array.min(axis=0), array.mean(axis=0, dtype="f8"), array.max(axis=0), array.std(axis=0))
        lines += [[f"{name} {i}", *(f"{value:g}" for value in row)] for i, row in enumerate(moments)]
    return format_table(["column", "min", "mean", "max", "std"], lines)


def _convert(options: argparse.Namespace) -> int:
    from ding_ebm.data.formats import read_data, write_data

    transitions = read(options)
    entry = write_data(options.target, transitions, options.to)
    again = read_data(options.target, entry.name)
    same = again.checksum() == transitions.checksum()
    print(f"{options.target}: {len(transitions)} rows of {transitions.source} as {entry.name}, {entry.what}")
    print(f"sum       {again.checksum()}" + (", as read" if same else f"; {transitions.checksum()} as read"))
    if not same:
        print("The rows differ by rounding: the format stores an observation once, or mapped to [-1, 1].")
    return 0
