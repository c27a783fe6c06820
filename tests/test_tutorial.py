"""The tutorial does what it says: its files are written, its commands run, in order, with short trainings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorials" / "energy.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Lengths of the trainings of avoid's configs, of what is evaluated, and what they are here.
SHORTER = {"20000": "100", "10000": "50", "2000": "10", "=1000,": "=5,", "=200)": "=4)"}
FEWER = {"--episodes 200": "--episodes 3"}


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block that can be executed, in order."""
    return BLOCK.findall(PAGE.read_text("utf-8"))


def name_of(block: str) -> str:
    """A file's name is in its first line."""
    found = re.match(r"# (\w+\.py)\n", block)
    assert found, f"the first line must be a comment with the name of the file: {block.splitlines()[0]}"
    return found[1]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path):
    shutil.copytree(ROOT / "dizoo_configs", tmp_path / "dizoo_configs", ignore=shutil.ignore_patterns("__pycache__"))
    builder = tmp_path / "dizoo_configs" / "avoid" / "builder.py"
    builder.write_text(replaced(builder.read_text("utf-8"), SHORTER), "utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]), PATH=path)
    environment.pop("DING_EBM_DATA", None)
    said = ""
    for language, text in blocks():
        if language == "python":
            (tmp_path / name_of(text)).write_text(replaced(text, SHORTER), "utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euc", replaced(text, FEWER)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        said += done.stdout
    assert "written to energy_pictures: energy_alpha.csv, energy_alpha.png, energy_error.csv" in said
    assert "diffusion_bc + best of 16" in said
    assert len(list(tmp_path.glob("*_pictures/energy_training.png"))) >= 2
