"""Commands in processes of their own: bars to the terminal, the rest to the log, failures told."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import sys
import time
from pathlib import Path

import pytest

from ding_ebm.evaluation.process import Job, run_logged

SCRIPT = """
import os, sys
from tqdm import tqdm
print("begun in", os.getcwd(), "with", os.environ["MARK"], flush=True)
for i in tqdm(range(40), desc="train", mininterval=0):
    if i == 20:
        print("a line of the log", file=sys.stderr)
print("end")
"""
FOREVER = "import time; time.sleep(60)"


def job(code: str, tmp_path: Path, name: str = "job", total: int | None = None) -> Job:
    environment = dict(os.environ, MARK="5")
    return Job(name, [sys.executable, "-c", code], tmp_path, environment, tmp_path / f"{name}.log", total)


def run(code: str, tmp_path: Path) -> str:
    one = job(code, tmp_path)
    run_logged([one])
    return one.log.read_text("utf-8")


def test_bars_are_shown_with_their_name_and_the_rest_is_logged(tmp_path, capsys):
    log = run(SCRIPT, tmp_path)
    shown = capsys.readouterr().err
    assert log.splitlines() == [f"begun in {tmp_path} with 5", "a line of the log", "end"]
    assert "job train: 100%" in shown
    assert "40/40" in shown
    assert "a line of the log" not in shown


def test_a_bar_that_does_not_know_its_end_is_shown_with_the_total_and_the_time_left(tmp_path, capsys):
    lines = r"train: 0it [00:00, ?it/s]\rtrain: 5it [01:10,  14.0s/it]said\rtrain: 20it [1:00:00,  180.0s/it]\n"
    code = f"import sys; sys.stderr.write('{lines}')"
    one = job(code, tmp_path, total=20)
    run_logged([one])
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.match(r"job train: +0%\|.*\| 0/20 \[00:00<\?", first)
    # five in 70 seconds: fifteen in 210
    assert re.match(r"job train: +25%\|.*\| 5/20 \[01:10<03:30, 14\.00s/it\]$", second)
    assert re.match(r"job train: 100%\|.*\| 20/20 \[1:00:00<00:00", third)
    assert one.log.read_text("utf-8") == "said\n"
    # without a total there is no bar in it
    assert run(code, tmp_path).startswith("train: 0it")


def test_chains_run_side_by_side_and_the_jobs_of_a_chain_one_after_another(tmp_path):
    # each waits for a file that the other writes; only side by side both come to an end
    wait = "import pathlib, time\nwhile not pathlib.Path('{}').exists(): time.sleep(0.01)\n"
    write = "import pathlib; pathlib.Path('{}').touch()\n"
    one = [job(write.format("a") + wait.format("b"), tmp_path, "one"), job(write.format("c"), tmp_path, "two")]
    other = [job(wait.format("a") + "assert not pathlib.Path('c').exists()\n" + write.format("b"), tmp_path, "three")]
    run_logged(one, [*other, job(wait.format("c"), tmp_path, "four")])


def test_a_failure_is_told_with_the_end_of_the_log_and_ends_the_others(tmp_path):
    began = time.monotonic()
    after = job("import pathlib; pathlib.Path('after').touch()", tmp_path, "after")
    with pytest.raises(RuntimeError, match=r"ended with status 3; the end of \S+fails\.log:\nlast words"):
        run_logged(
            [job(FOREVER, tmp_path, "other")],
            [job("print('last words'); raise SystemExit(3)", tmp_path, "fails"), after],
        )
    assert time.monotonic() - began < 30.0
    assert not (tmp_path / "after").exists()


def on_terminal(monkeypatch: pytest.MonkeyPatch, *chains: list[Job]) -> str:
    """What is written to a terminal of 80 columns."""
    reader, writer = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        run_logged(*chains)
        terminal.flush()
        os.set_blocking(reader, False)
        written = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(reader, 65536):
                written += chunk
    os.close(reader)
    return written.decode()


def test_on_a_terminal_the_process_sees_one_too(tmp_path, monkeypatch):
    one = job("import os, sys; print(sys.stderr.isatty(), os.get_terminal_size().columns)", tmp_path)
    on_terminal(monkeypatch, [one])
    assert one.log.read_text("utf-8") == "True 76\n"  # room for the name


def drawn(written: str) -> list[str]:
    """The lines of a terminal after control sequences: carriage return, line feed, up, erase to the end."""
    lines, row = [""], 0
    for text in re.split(r"(\r|\n|\x1b\[\d*[A-Z])", written):
        if text == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif text == "\x1b[J":
            lines[row:] = [""]
        elif text.startswith("\x1b[") and text.endswith("A"):
            row -= int(text[2:-1])
        elif text and text[0] not in "\r\x1b":
            lines[row] = text  # every line is written whole, from its begin
    return lines


def test_on_a_terminal_each_chain_has_its_line_and_completed_bars_stay(tmp_path, monkeypatch):
    line = "    sys.stderr.write(f'{name}:  {{n}}0%|#| [x]{end}'); time.sleep(0.05)\n"
    bar = f"import sys, time\nfor n in range(3):\n{line}"
    running = [job(bar.format(name=name, end="\\r"), tmp_path, name) for name in ("a", "b")]
    last = [job(bar.format(name="c", end="\\r") + "sys.stderr.write('c: 100%|#| [x]\\n')", tmp_path, "c")]
    written = on_terminal(monkeypatch, [running[0]], [running[1], *last])
    screens = [drawn(written[:end]) for end in (match.end() for match in re.finditer(r"A\r", written))]
    assert any("a a:" in screen[0] and "b b:" in screen[1] for screen in screens if len(screen) == 2)
    assert drawn(written) == ["c c: 100%|#| [x]", ""]


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
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(code, tmp_path)
    assert time.monotonic() - began < 30.0
