"""What every test gets: one thread, seeded generators, the folder of data sets, and a run without the host."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported, here and in subprocesses

import pytest
import torch

torch.set_num_threads(1)

HAS_HOST = importlib.util.find_spec("ding") is not None
# Python 3.13 has no host: the layers below ``policy`` are tested there, and nothing else.
collect_ignore = (
    []
    if HAS_HOST
    else ["policy", "host", "evaluation", "test_cli.py", "test_configs.py", "test_hostile_files.py", "test_tutorial.py"]
)


def pytest_report_header() -> str | None:
    """Say what is left out, so that a run without the host is not taken for a full one."""
    return None if HAS_HOST else f"DI-engine is not installed: left out {', '.join(collect_ignore)}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for ``data_dir`` with ``data``."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed, fresh for each test."""
    return torch.Generator().manual_seed(20)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of D4RL-layout files that $DING_EBM_DATA names; without it the test is skipped."""
    folder = os.environ.get("DING_EBM_DATA")
    if not folder:
        pytest.skip("DING_EBM_DATA does not name a folder of data sets")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"DING_EBM_DATA must name a folder, got {folder!r}")
    return path
