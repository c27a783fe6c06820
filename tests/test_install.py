"""Packaging as facts: extras, version, content of the wheel, Makefile, and the commands that the documents show."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ding_ebm

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"help", "install", "demo", "test", "test-slow", "lint", "format", "docs", "check", "clean"}
EXTRAS = {"mujoco", "robomimic", "kitchen", "docs", "test", "all"}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Arguments that name what a command makes, or a folder of the reader's own.
OUTPUT_OPTIONS = {"--load-path", "--out", "--output", "-o"}


@pytest.fixture(scope="module")
def distribution():
    """What setup.py declares, without building anything."""
    pytest.importorskip("setuptools")
    from distutils.core import run_setup  # setuptools provides it where Python has none

    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return run_setup("setup.py", stop_after="init")
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Names in the wheel that a copy of the sources builds into; nothing is downloaded."""
    pytest.importorskip("setuptools.command.bdist_wheel")
    copy = tmp_path_factory.mktemp("sources")
    for name in ("ding_ebm", "dizoo_configs", "tests", "benchmarks", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(copy / "dist")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def package_files() -> set[str]:
    """Every Python file below the two packages."""
    found = (path for name in ("ding_ebm", "dizoo_configs") for path in (ROOT / name).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in found}


def commands(document: Path) -> list[str]:
    """Lines of a document's shell blocks, continued lines joined, comments dropped."""
    text = document.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for block in blocks for line in block.splitlines())
    return [line.removeprefix("$ ") for line in lines if line]


def files_made(document: Path) -> set[str]:
    """Python files that the reader is told to write: code blocks that begin with their name, and redirections."""
    text = document.read_text("utf-8")
    return {
        *re.findall(r"^```python\n# (\w+\.py)$", text, re.MULTILINE),
        *re.findall(r"> (\w+\.py)$", text, re.MULTILINE),
    }


ALL_COMMANDS = [(document.relative_to(ROOT).as_posix(), line) for document in DOCUMENTS for line in commands(document)]


def test_the_extras_are_those_that_the_documents_name(distribution):
    assert set(distribution.extras_require) == EXTRAS
    parts = [distribution.extras_require[name] for name in EXTRAS - {"all"}]
    assert set(distribution.extras_require["all"]) == {requirement for part in parts for requirement in part}


def test_the_host_is_required_only_where_it_runs(distribution):
    host = [line for line in distribution.install_requires if line.startswith("DI-engine")]
    assert host == ['DI-engine==0.5.3; python_version < "3.13"']


def test_the_version_is_the_same_everywhere(distribution):
    newest = re.search(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert distribution.get_version() == ding_ebm.__version__
    assert newest
    assert newest[1] in ("Unreleased", ding_ebm.__version__)


def test_the_command_line_tool_is_declared(distribution):
    assert distribution.entry_points == {"console_scripts": ["ding-ebm = ding_ebm.cli:main"]}
    assert (ROOT / "ding_ebm" / "cli" / "__main__.py").is_file()


def test_every_folder_of_the_packages_is_a_package(distribution):
    folders = {str(Path(name).parent).replace(os.sep, ".") for name in package_files()}
    assert set(distribution.packages) == folders, "a folder without __init__.py would be missing from the wheel"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel_names):
    content = {name for name in wheel_names if ".dist-info/" not in name}
    assert content == package_files() | {"ding_ebm/py.typed"}


def test_make_help_lists_every_target():
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    shown = subprocess.run([make, "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines() if line.startswith("  make ")} == TARGETS


def test_continuous_integration_calls_make():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"^make (\S+)$", script.read_text("utf-8"), re.MULTILINE) == ["lint", "test"]


def test_readme_shows_commands():
    assert {"README.md"} <= {document for document, _ in ALL_COMMANDS}


@pytest.mark.parametrize(("document", "line"), ALL_COMMANDS)
def test_commands_in_documents_name_what_exists(document: str, line: str):
    words = line.split()
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS
    if words[0] == "ding-ebm":
        subcommand = [word for word in words[1:3] if re.fullmatch(r"[a-z]+", word)][
            : 2 if words[1] in ("convert", "data") else 1
        ]
        command = [sys.executable, "-m", "ding_ebm.cli", *subcommand, "--help"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
        assert all(option in shown for option in words if option.startswith("-"))
    for before, word in zip(["", *words], words):
        bare = word.strip("\"'")
        extras = re.search(r"\[([\w,]+)\]", bare)
        if extras and "install" in words:
            assert set(extras.group(1).split(",")) <= EXTRAS
        if bare.endswith(".py") and before not in OUTPUT_OPTIONS:
            assert (ROOT / bare).is_file() or bare in files_made(ROOT / document), (
                f"{document}: {bare} is neither in the repository nor written on the page"
            )
