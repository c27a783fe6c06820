"""Commands in processes of their own: bars to the terminal, the rest to the log, failures told."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from ding_ebm.evaluation.process import run_logged

SCRIPT = """
import os, sys
from tqdm import tqdm
print("begun in", os.getcwd(), "with", os.environ["MARK"], flush=True)
for i in tqdm(range(40), desc="train", mininterval=0):
    if i == 20:
        print("a line of the log", file=sys.stderr)
print("end")
"""


def run(code: str, tmp_path: Path) -> str:
    log = tmp_path / "out.log"
    command = [sys.executable, "-c", code]
    run_logged(command, folder=tmp_path, environment=dict(os.environ, MARK="5"), log=log)
    return log.read_text("utf-8")


def test_bars_are_shown_and_the_rest_is_logged(tmp_path, capsys):
    log = run(SCRIPT, tmp_path)
    shown = capsys.readouterr().err
    assert log.splitlines() == [f"begun in {tmp_path} with 5", "a line of the log", "end"]
    assert "train: 100%" in shown
    assert "40/40" in shown
    assert "a line of the log" not in shown


def test_a_failure_is_told_with_the_end_of_the_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with status 3; the end of \S+out\.log:\nlast words"):
        run("print('last words'); raise SystemExit(3)", tmp_path)


def test_on_a_terminal_the_process_sees_one_too(tmp_path, monkeypatch):
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        log = run("import os, sys; print(sys.stderr.isatty(), os.get_terminal_size().columns > 0)", tmp_path)
    os.close(reader)
    assert log == "True True\n"


def test_a_process_is_ended_when_we_are_interrupted(tmp_path, monkeypatch):
    class Interrupted:
        @staticmethod
        def isatty() -> bool:
            return False

        @staticmethod
        def write(text: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", Interrupted)
    bar = "train:  0%|  | 0/3 [00:00<?, ?it/s]\\r"
    code = f"import sys, time; sys.stderr.write('{bar}'); sys.stderr.flush(); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run(code, tmp_path)
