"""What ``make demo`` does: demonstrations, training by the host in a process of its own, evaluation, pictures."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ding_ebm.data.formats import DATA_FOLDER_VARIABLE, Transitions, write_d4rl_hdf5
from ding_ebm.envs.avoid_demos import make_demonstrations
from ding_ebm.envs.registry import get_task, make_batch_env
from ding_ebm.evaluation.checkpoint import load_policy, read_run_config, rollout_policy, run_facts
from ding_ebm.evaluation.demo_pictures import DECISIONS, data_ways, decision, exact_clouds, policy_ways, value_map
from ding_ebm.evaluation.plots import plot_clouds, plot_energy, plot_scales, plot_ways
from ding_ebm.evaluation.process import run_logged
from ding_ebm.evaluation.results import Result, append_results, describe, make_result, result_table
from ding_ebm.evaluation.rollout import Episodes
from ding_ebm.evaluation.statistics import Interval
from ding_ebm.policy.base import BasePolicy

Say = Callable[[str], None]

TASK, DATA_SET = "avoid", "demonstrations"
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)
FIRST_SEED = 1000
THREADS = 1  # networks this small gain nothing from more, and lose much where the cores are busy


@dataclass(frozen=True)
class Size:
    """How much the demo does: demonstrations, episodes of each policy, points of a picture in the plane."""

    demonstrations: int
    episodes: int
    points: int


FULL, QUICK = Size(500, 200, 1500), Size(40, 6, 200)
QUICK_CONFIG = '''"""The demo's config with so few iterations that it shows that all parts run, and learns nothing."""

from dizoo_configs.avoid.avoid_qgpo_config import create_config, main_config

main_config.env.update(evaluator_env_num=2, n_evaluator_episode=2)
main_config.policy.learn.update(
    train_epoch=3, iterations_per_epoch=10, batch_size=32, batch_size_q=16, M=2, diffusion_steps=2,
    behavior_policy_stop_training_iter=10, q_value_stop_training_iter=20, energy_guided_policy_begin_training_iter=None,
)
main_config.policy.learn.learner.hook.save_ckpt_after_iter = 30
main_config.policy.eval.evaluator.eval_freq = 30
'''


def run_demo(folder: Path, *, quick: bool, say: Say) -> int:
    """Run all steps, which write to ``folder``; files of an earlier demo are replaced.

    Args:
        folder: Made if it is not there.
        quick: A few iterations only, to see that every part runs.
        say: Takes each line for the user.

    Returns:
        The exit status: 0, or 1 if the guided policy does not beat the behavior policy as it should.

    Raises:
        RuntimeError: If the training process fails.
    """
    began, size = time.monotonic(), QUICK if quick else FULL
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))

    say(f"[1/4] {size.demonstrations} scripted demonstrations of {TASK}")
    data = make_demonstrations(size.demonstrations, seed=0)
    (file,) = get_task(TASK).data_files(DATA_SET)
    write_d4rl_hdf5(folder / file, data)
    say(describe(data, TASK))

    config = _config(folder, quick)
    checkpoint = _train(config, folder, say)

    say(f"\n[3/4] {size.episodes} episodes of each policy, with the same starts and the same noise")
    policy = load_policy(config, checkpoint)
    results, episodes = _evaluate(policy, config, checkpoint, size.episodes)
    (folder / "results.csv").unlink(missing_ok=True)
    append_results(folder / "results.csv", results.values())
    say(f"\n{result_table(list(results.values()))}")

    say("[4/4] pictures")
    _draw(folder, policy, data, results, episodes, size.points)
    beaten = results[1.0].low > results[0.0].high
    say(_summary(folder, results, data, beaten, time.monotonic() - began))
    if quick:
        say("(--quick trains for a few iterations, which teach nothing.)")
    return 0 if beaten or quick else 1


def _config(folder: Path, quick: bool) -> Path:
    """The config file to train with."""
    if quick:
        path = folder / "quick_config.py"
        path.write_text(QUICK_CONFIG, "utf-8")
        return path
    return _configs_folder() / TASK / f"{TASK}_qgpo_config.py"


def _configs_folder() -> Path:
    spec = importlib.util.find_spec("dizoo_configs")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package dizoo_configs, which is installed with ding_ebm, is not found")
    return Path(spec.submodule_search_locations[0])


def _train(config: Path, folder: Path, say: Say) -> Path:
    """Train in ``folder`` by the host's command; returns the last checkpoint."""
    command = [str(Path(sys.executable).with_name("ding")), "-m", "serial_offline", "-c", str(config), "-s", "0"]
    log = folder / "train.log"
    typed = shlex.join([Path(command[0]).name, *command[1:-3], _shown(config), *command[-2:]])
    say(f"[2/4] training, with the output in {_shown(log)}\n{DATA_FOLDER_VARIABLE}={_shown(folder)} {typed}")
    environment = dict(os.environ, DING_EBM_CACHE=str(folder / "cache"), PYTHONWARNINGS="ignore", TERM="dumb")
    environment[DATA_FOLDER_VARIABLE] = str(folder)
    environment.setdefault("OMP_NUM_THREADS", str(THREADS))
    # The process runs in another folder, from which an entry like '.' would not lead to the package.
    root = str(_configs_folder().parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    run = folder / read_run_config(config).exp_name
    if run.exists():  # the host would give the new run another name
        shutil.rmtree(run)
    run_logged(command, folder=folder, environment=environment, log=log)
    return max((run / "ckpt").glob("iteration_*.pth.tar"), key=lambda path: int(path.name.split("_")[1].split(".")[0]))


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path)


def _evaluate(
    policy: BasePolicy, config: Path, checkpoint: Path, count: int
) -> tuple[dict[float, Result], dict[float, Episodes]]:
    """Results and episodes by guidance scale."""
    env = make_batch_env(TASK, count)
    results, episodes = {}, {}
    for scale in SCALES:
        episodes[scale] = rollout_policy(
            policy,
            env,
            range(FIRST_SEED, FIRST_SEED + count),
            guidance_scale=scale,
            keep_trajectories=True,
            description=f"guidance scale {scale:g}",
        )
        options = f"--guidance-scale {scale:g} --episodes {count} --seed {FIRST_SEED} --num-envs {count}"
        results[scale] = make_result(
            episodes[scale].returns,
            episodes[scale].success,
            **run_facts(read_run_config(config), policy),
            guidance_scale=scale,
            seed=0,
            command=f"ding-ebm eval -c {_shown(config)} --load-path {_shown(checkpoint)} {options}",
        )
    return results, episodes


def _draw(
    folder: Path,
    policy: BasePolicy,
    data: Transitions,
    results: dict[float, Result],
    episodes: dict[float, Episodes],
    points: int,
) -> None:
    ways = [data_ways(data)]
    for scale, name in ((0.0, "behavior policy"), (1.0, "guided policy")):
        r = results[scale]
        ways.append(policy_ways(f"{name}\nreturn {r.mean:.2f} ({r.low:.2f} to {r.high:.2f})", episodes[scale]))
    plot_ways(folder / "trajectories.png", ways)
    plot_energy(folder / "energy.png", value_map(policy, data), [decision(policy, name, 1.0) for name in DECISIONS])
    intervals = {scale: Interval(r.mean, r.low, r.high) for scale, r in results.items()}
    best = get_task(TASK).reference_returns[1]
    references = {"mean of the demonstrations": float(data.episode_returns().mean()), "best lane at full speed": best}
    plot_scales(folder / "scales.png", intervals, references, fixed_scale=1.0)
    plot_clouds(folder / "exactness.png", exact_clouds(points))


def _summary(folder: Path, results: dict[float, Result], data: Transitions, beaten: bool, seconds: float) -> str:
    behavior, guided = results[0.0], results[1.0]
    verdict = "beats" if beaten else "does NOT beat"
    pictures = {
        "trajectories.png": "demonstrations, behavior policy and guided policy on the table",
        "energy.png": "the learned value over the table; Q and the learned energy where ways part",
        "scales.png": "return against guidance scale",
        "exactness.png": "exact guidance of two-dimensional sets beside the truth",
        "results.csv": "the table above, with the command of each row",
    }
    return "\n".join(
        [
            *(f"      {_shown(folder / name)}: {what}" for name, what in pictures.items()),
            "",
            f"The guided policy (scale 1, fixed beforehand) {verdict} the behavior policy by more than both intervals:",
            f"{guided.mean:.2f} ({guided.low:.2f} to {guided.high:.2f}) against "
            f"{behavior.mean:.2f} ({behavior.low:.2f} to {behavior.high:.2f}); the demonstrations have "
            f"{data.episode_returns().mean():.2f} on average. {seconds / 60.0:.1f} minutes in all.",
            "",
            "Next: `ding-ebm tasks` lists the other tasks; docs/algorithms/qgpo.md explains what was learned.",
        ]
    )
