"""The command ``ding-ebm``: tasks, data sets, evaluation, reports, pictures of episodes and energies, and the demo.

Nothing heavier than argparse is imported before a subcommand needs it. What the user got wrong ends with exit status 2
and a message; anything else is a bug and raises.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ding_ebm import __version__
from ding_ebm.cli.arguments import add_command, positive, printable, quiet_import
from ding_ebm.cli.data import add_data
from ding_ebm.cli.trajectories import add_trajectories


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    options.command_line = f"ding-ebm {shlex.join(arguments)}"
    try:
        status: int = options.run(options)
    except (ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError, ConnectionError) as error:
        print(f"ding-ebm: error: {printable(str(error))}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ding-ebm", description="Tasks, data sets, evaluation and the demo.")
    parser.add_argument("--version", action="version", version=f"ding-ebm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add_command(commands, "tasks", _tasks, "list the tasks, whether they run here, and which data sets are found")

    add_data(commands)

    evaluate = add_command(
        commands, "eval", _eval, "evaluate a checkpoint with fixed seeds, a guided one at several scales"
    )
    evaluate.add_argument("-c", "--config", required=True, metavar="FILE", help="config that the run was made with")
    evaluate.add_argument("--load-path", required=True, metavar="PATH", help="checkpoint, or folder of a run")
    evaluate.add_argument(
        "--guidance-scale",
        type=float,
        nargs="+",
        metavar="S",
        help="of guided policies only; default: eval.guidance_scale of the config",
    )
    evaluate.add_argument("--episodes", type=positive, default=50, metavar="N", help="default: %(default)s")
    evaluate.add_argument(
        "--seed", type=int, default=1000, help="episode i runs in an environment of seed SEED + i; default: %(default)s"
    )
    evaluate.add_argument(
        "--num-envs", type=positive, default=50, metavar="E", help="environments at a time; default: %(default)s"
    )
    evaluate.add_argument(
        "--train-seed", type=int, metavar="S", help="seed of the training run; default: as its folder says"
    )
    evaluate.add_argument("--out", metavar="FILE.csv", help="append the results to this file")
    evaluate.add_argument("--video", metavar="FOLDER", help="film the first episodes at each scale into this folder")
    evaluate.add_argument(
        "--video-episodes", type=positive, default=1, metavar="N", help="how many of them; default: %(default)s"
    )

    report = add_command(commands, "report", _report, "summarize results over runs (seeds), with intervals")
    report.add_argument("files", nargs="+", metavar="FILE.csv", help="what `ding-ebm eval --out` wrote")

    add_trajectories(commands)
    _add_energy(commands)
    _add_convert(commands)

    demo = add_command(commands, "demo", _demo, "train on built-in tasks, print a table, write pictures")
    demo.add_argument("--out", default="demo", metavar="FOLDER", help="default: %(default)s")
    demo.add_argument("--quick", action="store_true", help="a few iterations, to see that it runs; learns nothing")
    return parser


def _add_energy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    energy = add_command(commands, "energy", _energy, "show what a trained energy knows, by pictures and tables")
    energy.add_argument(
        "--load-path",
        required=True,
        metavar="PATH",
        help="checkpoint of an energy, or folder of a run that trained one, by itself or beside a policy",
    )
    energy.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="data set of the energy's task, in any format; best of episodes that it was not trained on",
    )
    energy.add_argument("--out", required=True, metavar="FOLDER", help="where energy_*.png and .csv are (over)written")
    energy.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of the rows that are drawn, and the noise; default: %(default)s",
    )
    energy.add_argument(
        "--rows", type=positive, default=512, metavar="B", help="chunks that are drawn; default: %(default)s"
    )
    energy.add_argument(
        "--log", metavar="FOLDER", help="run whose logs show the training; default: that of the checkpoint"
    )


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    formats = commands.add_parser("convert", help="read another project's checkpoint").add_subparsers(
        metavar="FORMAT", required=True
    )
    dppo = add_command(
        formats, "dppo", _convert_dppo, "read a policy that the reference implementation of DPPO trained"
    )
    dppo.add_argument(
        "--checkpoint", required=True, metavar="state_N.pt", help="MLP or U-Net, pre-trained or fine-tuned"
    )
    dppo.add_argument("--normalization", required=True, metavar="normalization.npz", help="of the policy's data set")
    dppo.add_argument("--out", required=True, metavar="FILE.pt", help="file to write: tensors and plain values")
    dppo.add_argument(
        "--weights",
        choices=["ema", "model"],
        default="ema",
        help="fine-tuned policies have no ema; default: %(default)s",
    )
    dppo.add_argument(
        "--activation", choices=["relu", "mish"], help="of an MLP: its activation_type, which no weight tells"
    )
    dppo.add_argument(
        "--horizon", type=positive, metavar="TP", help="of a U-Net: its horizon_steps, which no weight tells"
    )
    dppo.add_argument(
        "--denoising-steps", type=positive, metavar="K", help="its denoising_steps, kept beside the weights"
    )
    dppo.add_argument(
        "--ft-denoising-steps",
        type=positive,
        metavar="F",
        help="of a fine-tuned policy: its ft_denoising_steps, kept in the same way",
    )
    dppo.add_argument("--ddim-steps", type=positive, metavar="S", help="of a policy fine-tuned by DDIM: its ddim_steps")
    dppo.add_argument(
        "--norm-eps", type=float, default=1e-5, help="of a U-Net: its groupnorm_eps; default: %(default)s"
    )


def _tasks(options: argparse.Namespace) -> int:
    from ding_ebm.data.formats import DATA_FOLDER_VARIABLE
    from ding_ebm.envs.registry import TASKS
    from ding_ebm.envs.task import NEEDED
    from ding_ebm.evaluation.results import format_table

    lines = []
    for task in TASKS.values():
        found = [name for name in task.data_sets if all(_is_found(file) for file in task.data_sets[name])]
        sizes = [str(n) for n in (task.obs_dim, task.action_dim, task.max_episode_steps)]
        runs = task.note or (f"with ding_ebm[{task.extra}]" if task.missing_modules else "yes")
        references = "{:g} to {:g}".format(*task.reference_returns) if task.reference_returns else "none published"
        needs = ", ".join(NEEDED[task.extra]) or "nothing"
        lines.append([task.name, task.extra, needs, runs, *sizes, references, ", ".join(found) or "none"])
    header = ["task", "extra", "needs", "runs here", "obs", "act", "limit"]
    header += ["returns that score 0 to 100", "data sets found"]
    print(format_table(header, lines), end="")
    print(f"\nData files are looked for here and in the folder that {DATA_FOLDER_VARIABLE} names.")
    return 0


def _is_found(name: str) -> bool:
    from ding_ebm.data.formats import find_data_file

    try:
        find_data_file(name)
    except FileNotFoundError:
        return False
    return True


def _eval(options: argparse.Namespace) -> int:
    evaluate = quiet_import().evaluate_checkpoint
    from ding_ebm.evaluation.results import append_results, read_results, result_table

    if options.out and Path(options.out).exists():
        read_results(options.out)  # a file of another layout is refused before the work
    results = evaluate(
        options.config,
        options.load_path,
        scales=options.guidance_scale,
        episodes=options.episodes,
        first_seed=options.seed,
        num_envs=options.num_envs,
        train_seed=options.train_seed,
        command=options.command_line,
        say=print,
        video=options.video,
        video_episodes=options.video_episodes,
    )
    if options.out:
        append_results(options.out, results)
    print(result_table(results), end="")
    return 0


def _report(options: argparse.Namespace) -> int:
    from ding_ebm.evaluation.results import read_results, report

    print(report([row for path in options.files for row in read_results(path)]), end="")
    return 0


def _energy(options: argparse.Namespace) -> int:
    quiet_import()
    from ding_ebm.evaluation.energy_pictures import write_energy_pictures

    write_energy_pictures(
        options.load_path,
        options.data,
        options.out,
        seed=options.seed,
        log=options.log,
        count=options.rows,
        say=print,
    )
    return 0


def _convert_dppo(options: argparse.Namespace) -> int:
    from ding_ebm.data.dppo_checkpoints import read_dppo_checkpoint, write_policy

    if Path(options.out).exists():
        raise FileExistsError(f"{options.out} exists; remove it or choose another --out")
    checkpoint = read_dppo_checkpoint(
        options.checkpoint,
        options.normalization,
        options.weights,
        activation=options.activation,
        horizon=options.horizon,
        norm_eps=options.norm_eps,
    )
    steps = (options.denoising_steps, options.ft_denoising_steps, options.ddim_steps)
    write_policy(checkpoint, options.out, *steps)
    stage = "pre-trained" if checkpoint.fine_tuned is None else "fine-tuned"
    sizes = ", ".join(f"{key} {value}" for key, value in checkpoint.arguments.items())
    print(f"{options.out}: {stage} {checkpoint.kind} policy, weights {checkpoint.weights}; {sizes}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    quiet_import()
    from ding_ebm.evaluation.demo import run_demo

    return run_demo(Path(options.out), quick=options.quick, say=lambda text: print(text, flush=True))
