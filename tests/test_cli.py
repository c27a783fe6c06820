"""The command ``ding-ebm``: what it prints and writes, and how it ends where the user was wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ding_ebm import __version__
from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.cli import main
from ding_ebm.cli.data import FORMAT_NAMES
from ding_ebm.data.formats import FORMATS, read_d4rl_hdf5, read_data, write_d4rl_hdf5
from ding_ebm.envs import registry
from ding_ebm.envs.avoid_demos import make_demonstrations
from ding_ebm.envs.registry import TASKS
from ding_ebm.evaluation.results import COLUMNS, Result, append_results, make_result, read_results

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
from dizoo_configs.builder import offline

main_config, create_config = offline(
    "qgpo", "ebm_qgpo", "avoid", "demonstrations",
    dict(
        policy=dict(
            model=dict(behavior_widths=(16, 8), qgpo_critic=dict(critic_widths=(8,), guidance_widths=(8,))),
            learn=dict(train_epoch=3, iterations_per_epoch=10, behavior_policy_stop_training_iter=10),
            eval=dict(diffusion_steps=2, evaluator=dict(eval_freq=30)),
        ),
    ),
)
"""
CLONING = """
from dizoo_configs.builder import imitation

tiny = dict(
    model=dict(denoising_steps=3, mlp=dict(mlp_dims=[8, 8, 8])),
    learn=dict(train_epoch=3, iterations_per_epoch=10),
    eval=dict(evaluator=dict(eval_freq=30)),
)
main_config, create_config = imitation("diffusion_bc", "diffusion_bc", "avoid_m1", "demonstrations", dict(policy=tiny))
"""


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "demonstrations.hdf5"
    write_d4rl_hdf5(path, make_demonstrations(12, seed=1))
    return path


def make_run(tmp_path: Path, text: str) -> list[str]:
    """Options of ``ding-ebm eval`` for a tiny policy that has learned nothing, in a run folder of seed 4."""
    from ding.policy import create_policy

    from ding_ebm.evaluation.checkpoint import read_run_config

    config, folder = tmp_path / "tiny_config.py", tmp_path / "run"
    config.write_text(text, "utf-8")
    policy = create_policy(read_run_config(config).policy, enable_field=["learn"])
    (folder / "ckpt").mkdir(parents=True)
    write_checkpoint({**policy.learn_mode.state_dict(), "train_iter": 30}, folder / "ckpt" / "last.pth.tar")
    (folder / "total_config.py").write_text("exp_config = {\n    'seed': 4\n}\n", "utf-8")
    return ["eval", "-c", str(config), "--load-path", str(folder / "ckpt" / "last.pth.tar")]


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    """Of a guided policy over single actions."""
    return make_run(tmp_path, CONFIG)


@pytest.fixture
def chunk_run(tmp_path: Path) -> list[str]:
    """Of a policy over chunks of actions."""
    return make_run(tmp_path, CLONING)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said when a command ends with status 2, on one line and without a traceback."""
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert not [line for line in said if "Traceback" in line]
    assert said[-1].startswith("ding-ebm: error: ")
    return said[-1]


def test_help_is_quick_and_loads_neither_torch_nor_numpy():
    code = (
        "import json, sys, time; start = time.process_time()\n"
        "from ding_ebm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: print(json.dumps([end.code, time.process_time() - start, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    status, seconds, modules = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    assert seconds < 1.0
    assert not {"torch", "numpy", "ding", "gymnasium", "matplotlib"} & set(modules)
    assert all(
        command in done.stdout for command in ("tasks", "data", "eval", "report", "trajectories", "energy", "demo")
    )


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"ding-ebm {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["data"], ["eval"], ["energy"], ["data", "collect", "hopper"]])
def test_a_wrong_call_ends_with_status_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_every_task_is_listed_with_the_data_that_is_found(capsys, monkeypatch, tmp_path):
    (tmp_path / "walker2d_expert.hdf5").touch()
    monkeypatch.setenv("DING_EBM_DATA", str(tmp_path))
    assert main(["tasks"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:] if line}
    assert set(TASKS) <= set(lines)
    # of medium_expert one of two files is there, which is not enough
    assert lines["walker2d"].endswith("  expert")
    assert lines["hopper"].endswith("  none")
    assert lines["avoid"].split()[1:7] == ["core", "nothing", "yes", "4", "2", "150"]
    assert "  gymnasium_robotics, mujoco  " in lines["kitchen_mixed"]
    assert re.split("  +", lines["lamp_med"])[2:4] == ["isaacgym, furniture_bench", "needs IsaacGym, not run here"]


def test_listing_the_tasks_imports_no_simulator_and_not_the_host():
    code = "import sys; from ding_ebm.cli import main; main(['tasks']); print([m for m in {} if m in sys.modules])"
    heavy = ("mujoco", "gymnasium_robotics", "robosuite", "isaacgym", "ding")
    done = subprocess.run([sys.executable, "-c", code.format(heavy)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


OWN_TASK = """
import gymnasium
from ding_ebm.envs.registry import register_gymnasium
from dizoo_configs.avoid.builder import diffusion_bc

def make():
    return gymnasium.make("Pendulum-v1")

register_gymnasium("own_pendulum", make, 30)
main_config, create_config = diffusion_bc("own_pendulum")
"""


def test_a_task_of_ones_own_is_known_by_the_config_that_registers_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))
    config, path = tmp_path / "own_pendulum_diffusion_bc_config.py", tmp_path / "own.hdf5"
    config.write_text(OWN_TASK, "utf-8")
    collect = ["data", "collect", "own_pendulum", "--policy", "random", "--episodes", "2", "--out", str(path)]
    assert main(collect) == 2
    assert "unknown task 'own_pendulum'" in (error := capsys.readouterr().err)
    assert "a task of your own is known once the config that registers it has been read" in error
    assert main([*collect, "-c", str(config)]) == 0
    del registry.TASKS["own_pendulum"]
    assert main(["data", "check", str(path), "--task", "own_pendulum"]) == 2
    assert main(["data", "check", str(path), "--task", "own_pendulum", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "rows      60, obs 3, action 1 in [-" in said and said.endswith("problems: none\n")


def test_the_report_of_a_task_of_ones_own_has_its_score_without_an_interval(capsys, tmp_path):
    facts = dict(task="own_pendulum", data="", policy="dppo", guidance_scale=None, seed=0, train_iter=1, command="-")
    facts |= dict(episodes=5, mean=-3.0, low=-4.0, high=-2.0, success=None, success_low=None, success_high=None)
    append_results(tmp_path / "own.csv", [Result(**facts, normalized=62.5, commit="-")])
    assert main(["report", str(tmp_path / "own.csv")]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split() == ["own_pendulum", "-", "dppo", "-", "1", "62.5", "-", "-", "-", "5", "episodes"]


def test_warnings_of_a_data_set_are_shown_and_fail_a_strict_check(capsys, tmp_path):
    path = tmp_path / "file.hdf5"
    write_d4rl_hdf5(path, make_demonstrations(3, seed=1))
    assert main(["data", "check", str(path), "--task", "avoid", "--strict"]) == 0
    assert "warning:" not in capsys.readouterr().out
    demonstrations = make_demonstrations(3, seed=1)
    doubtful = dataclasses.replace(demonstrations, reward=np.ones_like(demonstrations.reward))
    path.unlink()
    write_d4rl_hdf5(path, doubtful)
    for options, status in (((), 0), (("--strict",), 1)):
        assert main(["data", "check", str(path), *options]) == status
        assert f"warning: reward is 1 in all {len(doubtful)} rows" in capsys.readouterr().out


def test_collected_demonstrations_are_those_of_the_seed(capsys, tmp_path):
    path = tmp_path / "new" / "file.hdf5"
    assert main(["data", "collect", "avoid", "--out", str(path), "--episodes", "9", "--seed", "5"]) == 0
    expected, written = make_demonstrations(9, seed=5), read_d4rl_hdf5(path)
    np.testing.assert_array_equal(written.action, expected.action)
    assert str(path) in capsys.readouterr().out


def test_a_random_policy_is_collected_in_any_format(capsys, tmp_path):
    arguments = ["data", "collect", "avoid_m1", "--policy", "random", "--episodes", "7", "--num-envs", "3"]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--to", "minari"]) == 0
    assert main([*arguments, "--out", str(tmp_path / "b.hdf5")]) == 0
    assert "7 episodes of avoid_m1 by random, noise 0, seed 0, " in capsys.readouterr().out
    one, other = read_data(tmp_path / "a"), read_data(tmp_path / "b.hdf5")
    assert one.checksum() == other.checksum() and len(one.episode_returns()) == 7
    assert one.metadata == dict(task="avoid_m1", policy="random", seed="0", noise="0")


def test_a_checkpoint_is_collected(capsys, chunk_run, tmp_path):
    _, _, config, _, checkpoint = chunk_run
    out = str(tmp_path / "a.hdf5")
    arguments = ["data", "collect", "avoid_m1", "--policy", checkpoint, "--episodes", "3", "--out", out]
    assert "give it (--config)" in refused(capsys, *arguments)
    assert main([*arguments, "-c", config, "--noise", "0.1"]) == 0
    assert len(read_d4rl_hdf5(out).episode_returns()) == 3
    elsewhere = ["data", "collect", "avoid", *arguments[3:-1], str(tmp_path / "b.hdf5"), "-c", config]
    assert "is of the task avoid_m1, and data of avoid are asked for" in refused(capsys, *elsewhere)


def test_what_cannot_be_collected_is_refused(capsys, tmp_path):
    collect = ["data", "collect", "--out", str(tmp_path / "a.hdf5")]
    assert "hopper has no scripted demonstrator, only avoid, avoid_m1" in refused(capsys, *collect, "hopper")
    assert "did you mean 'hopper'" in refused(capsys, *collect, "hoper", "--policy", "random")
    assert "noise must not be negative" in refused(capsys, *collect, "avoid", "--noise", "-1")
    assert "no checkpoint at 'none.pth.tar'" in refused(capsys, *collect, "avoid", "--policy", "none.pth.tar")


def test_collecting_does_not_overwrite(capsys, data_file):
    before = data_file.read_bytes()
    assert "exists" in refused(capsys, "data", "collect", "avoid", "--out", str(data_file))
    assert data_file.read_bytes() == before


def test_a_good_file_is_described_and_passes(capsys, data_file):
    assert main(["data", "check", str(data_file), "--task", "avoid"]) == 0
    out = capsys.readouterr().out
    assert "episodes  12" in out
    assert "normalized" in out
    assert out.endswith("problems: none\n")


def test_a_file_is_found_in_the_data_folder(monkeypatch, data_file):
    monkeypatch.setenv("DING_EBM_DATA", str(data_file.parent))
    assert main(["data", "check", data_file.name]) == 0


def test_a_file_of_another_task_is_refused(capsys, data_file):
    message = refused(capsys, "data", "check", str(data_file), "--task", "hopper")
    assert "obs has 4 dimensions, the environment has 11" in message


def test_a_task_that_is_not_there_is_refused_with_the_nearest(capsys, data_file):
    assert "did you mean 'avoid'" in refused(capsys, "data", "check", str(data_file), "--task", "avoyd")


def test_a_missing_file_is_refused(capsys, tmp_path):
    assert "nothing.hdf5" in refused(capsys, "data", "check", str(tmp_path / "nothing.hdf5"))


def test_a_data_set_is_converted_and_described_wherever_it_lies(capsys, data_file, tmp_path, monkeypatch):
    rows = read_d4rl_hdf5(data_file)
    targets = {"dppo": "new/rows.npz", "robomimic": "robot.hdf5", "minari": "avoid-v0", "episodes": "folder"}
    monkeypatch.setenv("DING_EBM_DATA", str(tmp_path))
    for name, target in targets.items():
        assert main(["data", "convert", str(data_file), str(tmp_path / target), "--to", name]) == 0
        said = capsys.readouterr().out
        assert f"as {name}, " in said and f"sum       {rows.checksum()}, as read\n" in said
        assert main(["data", "info", target]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert f"sum       {rows.checksum()}" in lines
        assert any(line.startswith(f"format    {name}, ") for line in lines)
        column = rows.action[:, 1]
        shown = [float(cell) for cell in lines[-1].split()[2:]]
        np.testing.assert_allclose(shown, [f(column) for f in (np.min, np.mean, np.max, np.std)], rtol=1e-4)
        assert main(["data", "check", target, "--task", "avoid"]) == 0
        capsys.readouterr()


def test_a_conversion_that_moves_values_says_so(capsys, data_file, tmp_path):
    rows = read_d4rl_hdf5(data_file)
    next_obs = rows.next_obs.copy()
    next_obs[3] = np.nextafter(next_obs[3], np.float32(9))
    write_d4rl_hdf5(tmp_path / "moved.hdf5", dataclasses.replace(rows, next_obs=next_obs))
    assert main(["data", "convert", str(tmp_path / "moved.hdf5"), str(tmp_path / "f"), "--to", "episodes"]) == 0
    said = capsys.readouterr().out
    assert f"sum       {rows.checksum()}; " in said and "The rows differ by rounding" in said


def test_options_of_reading_reach_the_reader(capsys, data_file, tmp_path):
    assert main(["data", "convert", str(data_file), str(tmp_path / "robot.hdf5"), "--to", "robomimic"]) == 0
    arguments = ["data", "info", str(tmp_path / "robot.hdf5")]
    assert main([*arguments, "--obs-keys", "state"]) == 0
    assert "no observation 'object'; found state" in refused(capsys, *arguments, "--obs-keys", "object")
    assert "there is no split 'train'" in refused(capsys, *arguments, "--split", "train")
    assert "'observations' is missing" in refused(capsys, *arguments, "--from", "d4rl")
    assert "has no option normalization" in refused(capsys, *arguments, "--normalization", "none")
    assert "--to" in refused(capsys, "data", "convert", str(data_file), str(tmp_path / "folder"))
    assert "exists" in refused(capsys, "data", "convert", str(data_file), str(data_file))


def test_the_formats_of_the_command_line_are_those_of_the_table():
    assert tuple(FORMATS) == FORMAT_NAMES


def test_an_evaluation_prints_a_table_and_appends_rows(capsys, run, tmp_path):
    out = tmp_path / "results.csv"
    arguments = [*run, "--guidance-scale", "0", "1.5", "--episodes", "3", "--seed", "9", "--out", str(out)]
    assert main(arguments) == 0
    assert main([*arguments[:-2], "--train-seed", "6", "--out", str(out)]) == 0
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    facts = [[row[i] for i in (0, 1, 2, 3, 4, 12, 13)] for row in rows]
    first = [["avoid", "avoid_demonstrations", "ebm_qgpo", scale, "3", "4", "30"] for scale in ("0.0", "1.5")]
    assert facts == first + [[*row[:5], "6", "30"] for row in first]
    # the same checkpoint, the same episodes
    assert [row[5:12] for row in rows[:2]] == [row[5:12] for row in rows[2:]]
    assert rows[0][-1] == f"ding-ebm {' '.join(arguments)}"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 12  # of each evaluation: the ways at each scale, and the table
    assert [line.split(" of 3 episodes")[0][:-2] for line in said[:2]] == ["scale 0:", "scale 1.5:"]

    assert main(["report", str(out)]) == 0
    assert [line.split()[3:5] for line in capsys.readouterr().out.splitlines()[2:4]] == [["0", "2"], ["1.5", "2"]]


def test_an_evaluation_with_a_correction_says_what_it_did(capsys, run, tmp_path):
    config, out = Path(run[run.index("-c") + 1]), tmp_path / "results.csv"
    settings = "eval=dict(energy_checkpoint='critic', energy_correction_steps=2, "
    config.write_text(config.read_text("utf-8").replace("eval=dict(", settings), "utf-8")
    assert main([*run, "--guidance-scale", "0", "1", "--episodes", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": energy ")[0] for line in said[:4:2]] == ["scale 0, 2 steps", "scale 1, 2 steps"]
    assert {row.policy for row in read_results(out)} == {"ebm_qgpo + 2 steps"}


def test_an_evaluation_of_a_policy_without_guidance_has_no_scale_and_takes_none(capsys, chunk_run, tmp_path):
    out = tmp_path / "results.csv"
    arguments = [*chunk_run, "--episodes", "3", "--out", str(out)]
    assert main(arguments) == 0
    ways, header, _, line = capsys.readouterr().out.splitlines()
    assert ways.startswith("diffusion_bc: ") and " of 3 episodes got through" in ways
    assert header.split()[-4:] == ["success", "95", "%", "interval"]
    (row,) = read_results(out)
    assert (row.policy, row.guidance_scale) == ("diffusion_bc", None)
    assert line.split()[-4] == f"{row.success:.3f}"
    assert "diffusion_bc has no guidance" in refused(capsys, *arguments, "--guidance-scale", "1")
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:5] == [
        "avoid_m1", "avoid_m1_demonstrations", "diffusion_bc", "-", "1",
    ]  # fmt: skip


def test_an_evaluation_refuses_a_foreign_file_before_the_work(capsys, run, tmp_path):
    out = tmp_path / "notes.csv"
    out.write_text("a,b\n")
    assert "the columns must be" in refused(capsys, *run, "--out", str(out))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("-c", "none.py", "no config at"), ("--load-path", "none.pth.tar", "no checkpoint at")],
)
def test_an_evaluation_of_what_is_not_there_is_refused(capsys, run, option, value, message):
    run[run.index(option) + 1] = value
    assert message in refused(capsys, *run)


def test_trajectories_are_drawn_in_the_order_of_the_options(capsys, chunk_run, data_file, tmp_path):
    _, _, config, _, checkpoint = chunk_run
    out, policy = tmp_path / "a.png", ["--policy", config, checkpoint]
    arguments = ["trajectories", "avoid_m1", "--out", str(out), "--episodes", "3"]
    assert main([*arguments, *policy, "--data", str(data_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["diffusion_bc", "3"], ["data", "3"]]
    assert out.read_bytes()[:4] == b"\x89PNG" and lines[-1] == f"written to {out}"
    assert main([*arguments, "--data", str(data_file), *policy, "--titles", "A", "B"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:4]] == ["A", "B"]
    assert "one for each of the 1 panels, got 2" in refused(capsys, *arguments, *policy, "--titles", "A", "B")
    assert "does not fine-tune a cloned policy" in refused(capsys, *arguments, "--collecting", config)
    assert "nothing to draw" in refused(capsys, *arguments)
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--collecting", "a", "b", "c"])


def test_a_report_joins_files_and_refuses_a_run_given_twice(capsys, tmp_path):
    facts = dict(task="avoid", data="d", policy="p", guidance_scale=1.0, train_iter=1, command="c")
    for seed in range(2):
        append_results(tmp_path / f"{seed}.csv", [make_result(np.arange(3.0) + seed, None, seed=seed, **facts)])
    files = [str(tmp_path / f"{seed}.csv") for seed in range(2)]
    assert main(["report", *files]) == 0
    mean = np.mean([row.normalized for file in files for row in read_results(file)])
    assert f"{mean:.1f}" in capsys.readouterr().out
    assert "is given twice" in refused(capsys, "report", files[0], files[0])


def test_a_bug_is_not_hidden(monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ding_ebm.evaluation.results.report", broken)
    monkeypatch.setattr("ding_ebm.evaluation.results.read_results", lambda path: [])
    with pytest.raises(ZeroDivisionError):
        main(["report", "file.csv"])
