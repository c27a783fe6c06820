"""``ding-ebm trajectories``: where the episodes of data sets and policies go, as a picture and a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ding_ebm.cli.arguments import add_command, positive, quiet_import

if TYPE_CHECKING:
    from ding_ebm.envs.task import Task
    from ding_ebm.evaluation.trajectories import Trajectories


class _Panel(argparse.Action):
    """Keeps the panels that several options ask for in the order in which they are given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if len(values) > 2:
            parser.error(f"{option} takes at most 2 values, got {len(values)}")
        namespace.panels = [*(getattr(namespace, "panels", None) or []), (self.dest, values)]


def add_trajectories(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    text = "draw where episodes go, of data, policies and fine-tuning's beginning, on an avoid or maze task"
    parser = add_command(commands, "trajectories", _run, text)
    parser.add_argument(
        "task", metavar="TASK", help="name of a task that is about a place, as avoid_m1 or maze2d_umaze"
    )
    parser.add_argument("--out", required=True, metavar="FILE.png", help="picture to write")
    for name, number, metavar, said in (
        ("data", 1, "FILE", "a panel of the episodes of a data set, in any format"),
        ("policy", 2, ("CONFIG", "CHECKPOINT"), "a panel of a trained policy, evaluated without exploration"),
        (
            "collecting",
            "+",
            ("CONFIG", "BASE"),
            "a panel of what the first iteration of a run of fine-tuning collects, with exploration, from the cloned "
            "policy BASE (a checkpoint, or the folder of its run; default: the config's base_policy_path)",
        ),
    ):
        said += "; may be given several times"
        parser.add_argument(f"--{name}", action=_Panel, nargs=number, metavar=metavar, help=said)
    parser.add_argument(
        "--titles", nargs="+", metavar="TEXT", help="of the panels, in the order in which they are given"
    )
    parser.add_argument("--episodes", type=positive, default=50, metavar="N", help="of a panel; default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=1000, help="episode i runs in an environment of seed SEED + i; default: %(default)s"
    )


def _run(options: argparse.Namespace) -> int:
    from ding_ebm.envs.registry import get_task

    panels: Sequence[tuple[str, list[str]]] = getattr(options, "panels", None) or []
    if not panels:
        raise ValueError("nothing to draw: give --data, --policy or --collecting at least once")
    titles: list[str | None] = options.titles or [None] * len(panels)
    if len(titles) != len(panels):
        raise ValueError(f"--titles takes one for each of the {len(panels)} panels, got {len(titles)}")
    task = get_task(options.task)
    quiet_import()
    from ding_ebm.evaluation.results import format_table
    from ding_ebm.evaluation.trajectories import summary
    from ding_ebm.evaluation.trajectory_plots import plot_trajectories

    made = [_panel(task, kind, files, title, options) for (kind, files), title in zip(panels, titles)]
    plot_trajectories(options.out, [made], most=options.episodes)
    print(format_table(*summary(made)), end="")
    print(f"written to {options.out}")
    return 0


def _panel(task: Task, kind: str, files: list[str], title: str | None, options: argparse.Namespace) -> Trajectories:
    from ding_ebm.data.formats import find_data_file, read_data
    from ding_ebm.evaluation import trajectories

    seeds = range(options.seed, options.seed + options.episodes)
    if kind == "data":
        return trajectories.of_data(task, read_data(find_data_file(files[0])), title, options.episodes)
    if kind == "policy":
        return trajectories.of_policy(task, *files, title=title, seeds=seeds)
    return trajectories.of_collecting(task, *[*files, None][:2], title=title, seeds=seeds)
