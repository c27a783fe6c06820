"""A command in a process of its own: its progress bars on the terminal, everything else in a log file."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# A bar of tqdm, and what another writer put behind it on the same line.
_BAR = re.compile(r"^\s*([\w .-]+:\s+\d+%\|[^\[]*\[[^\]]*\])(.*)$")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LAST_LINES = 15


def run_logged(command: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path) -> None:
    """Run a command in ``folder``, with both outputs written to ``log`` but for the progress bars, which are shown.

    Raises:
        RuntimeError: If it fails; the message has the end of the log.
    """
    reader, writer = _terminal() if sys.stderr.isatty() else os.pipe()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
        )
        os.close(writer)
        try:
            for line, is_final in _lines(reader):
                bar = _BAR.match(line)
                if bar:
                    _show(bar[1], is_final)
                rest = bar[2] if bar else line
                if rest.strip():
                    file.write(f"{rest}\n")
        except BaseException:
            process.kill()
            raise
        finally:
            os.close(reader)
            status = process.wait()
    if status != 0:
        end = "\n".join(log.read_text("utf-8").splitlines()[-_LAST_LINES:])
        raise RuntimeError(f"{' '.join(command)} ended with status {status}; the end of {log}:\n{end}")


def _terminal() -> tuple[int, int]:
    """A pseudo-terminal as wide as ours, so that the process draws its bars as often as it would for us."""
    reader, writer = pty.openpty()
    size = shutil.get_terminal_size()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))
    return reader, writer


def _lines(reader: int) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each ended in a line feed or was only rewritten (a carriage return)."""
    rest = ""
    while chunk := _read(reader):
        *pairs, rest = re.split(r"(\r?\n|\r)", rest + chunk)
        for line, end in zip(pairs[::2], pairs[1::2]):
            yield _CONTROL.sub("", line), "\n" in end
    if rest:
        yield _CONTROL.sub("", rest), True


def _read(reader: int) -> str:
    try:
        return os.read(reader, 65536).decode("utf-8", "replace")
    except OSError:  # how Linux says that a pseudo-terminal has no writer left
        return ""


def _show(line: str, is_final: bool) -> None:
    begin, end = ("\r", "\n" if is_final else "") if sys.stderr.isatty() else ("", "\n")
    sys.stderr.write(f"{begin}{line}{end}")
    sys.stderr.flush()
