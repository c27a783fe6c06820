"""The tutorials do what they say: their files are written, their commands run, in order, with short trainings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ding_ebm.data.formats import read_data
from ding_ebm.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Lengths of the trainings of avoid's configs, of what is evaluated, and what they are here.
SHORTER = {"20000": "100", "10000": "50", "2000": "10", "=1000,": "=5,", "=200)": "=4)"}
FEWER = {"--episodes 200": "--episodes 3"}
# The same of what only the page on one's own environment has.
OWN_SHORTER = {"15000": "75", "5000": "25", "3000": "10", "range(500)": "range(20)"}
OWN_FEWER = {"--episodes 500": "--episodes 10", "--episodes 100": "--episodes 3", "--train-iter 30": "--train-iter 1"}


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block that can be executed, in order."""
    return BLOCK.findall((PAGES / page).read_text("utf-8"))


def name_of(block: str) -> str:
    """A file's name is in its first line."""
    found = re.match(r"# (\w+\.py)\n", block)
    assert found, f"the first line must be a comment with the name of the file: {block.splitlines()[0]}"
    return found[1]


def run_page(page: str, folder: Path, shorter: dict[str, str], fewer: dict[str, str]) -> str:
    """What the commands of a page say, executed in a folder that has the configs' packages beside the page's files."""
    shutil.copytree(ROOT / "dizoo_configs", folder / "dizoo_configs", ignore=shutil.ignore_patterns("__pycache__"))
    builder = folder / "dizoo_configs" / "avoid" / "builder.py"
    builder.write_text(replaced(builder.read_text("utf-8"), SHORTER), "utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]), PATH=path)
    environment.pop("DING_EBM_DATA", None)
    said = ""
    for language, text in blocks(page):
        if language == "python":
            (folder / name_of(text)).write_text(replaced(text, shorter), "utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euc", replaced(text, fewer)], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        said += done.stdout
    return said


@pytest.mark.slow
def test_the_tutorial_on_energies_runs_as_it_is_written(tmp_path):
    said = run_page("energy.md", tmp_path, SHORTER, FEWER)
    assert "written to energy_pictures: energy_alpha.csv, energy_alpha.png, energy_error.csv" in said
    assert "diffusion_bc + best of 16" in said
    assert len(list(tmp_path.glob("*_pictures/energy_training.png"))) >= 2


@pytest.mark.slow
def test_the_tutorial_on_ones_own_environment_runs_as_it_is_written(tmp_path):
    said = run_page("own_environment.md", tmp_path, {**OWN_SHORTER, **SHORTER}, {**OWN_FEWER, **FEWER})
    assert "problems: none\n" in said
    rows = [(row.task, row.policy, row.success is None) for row in read_results(tmp_path / "results.csv")]
    assert rows == [("point", "diffusion_bc", False), ("point", "dppo", False)]
    better = read_data(tmp_path / "point_better.hdf5")
    assert (better.episode_lengths() == 20).all() and better.truncated.any() and not better.terminated.any()
    assert (np.abs(better.action) <= np.float32([0.2, 0.1])).all()
    assert sum(line.startswith("pendulum  pendulum_random  ebm_qgpo") for line in said.splitlines()) == 3


def test_to_register_an_environment_and_to_say_what_runs_takes_at_most_20_lines():
    files = {name_of(text): text for language, text in blocks("own_environment.md") if language == "python"}
    ours = files["point_task.py"].split("register_gymnasium(", 1)[1] + files["point_diffusion_bc_config.py"]
    assert len(ours.splitlines()) <= 20
    assert len(files["point_task.py"].splitlines()) <= 30, "the environment itself is tiny"
