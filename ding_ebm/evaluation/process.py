"""Commands in processes of their own, side by side: progress bars on the terminal, everything else in log files."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import selectors
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

# A bar of tqdm, of which the total is known or not, and what another writer put behind it on the same line.
_BAR = re.compile(r"^\s*([\w .-]+:\s+\d+%\|[^\[]*\[[^\]]*\])(.*)$")
_COUNT = re.compile(r"^\s*([\w .-]+): (\d+)(\w+) \[([\d:]+)[^\]]*\](.*)$")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LAST_LINES = 15


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: What its bars are marked with.
        command: It and its arguments.
        folder: Where it runs.
        environment: Its environment variables.
        log: File for what it writes beside bars.
        total: Steps that it makes, if it does not know them itself; None: it does.
    """

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    log: Path
    total: int | None = None


def run_logged(*chains: Sequence[Job]) -> None:
    """Run chains of commands side by side, those of a chain one after another.

    Both outputs of a command go to its log, but for the progress bars, which are shown.

    Raises:
        RuntimeError: If a command fails; the others are ended, and the message has the end of its log.
    """
    screen = _Screen(len(chains))
    left = [list(chain) for chain in chains]
    running: list[_Process] = []
    with selectors.DefaultSelector() as selector:

        def start(row: int) -> None:
            if left[row]:
                running.append(_Process(left[row].pop(0), row))
                selector.register(running[-1].reader, selectors.EVENT_READ, running[-1])

        try:
            for row in range(len(chains)):
                start(row)
            while running:
                for key, _ in selector.select():
                    process: _Process = key.data
                    if process.forward(screen):
                        continue
                    selector.unregister(process.reader)
                    running.remove(process)
                    process.finish()
                    start(process.row)
        finally:
            for process in running:
                process.end()
            screen.close()


class _Process:
    """A command that runs; ``row`` is the number of its chain."""

    def __init__(self, job: Job, row: int) -> None:
        self._job, self.row = job, row
        self._rest, self._decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        self._file = job.log.open("w", encoding="utf-8")
        self.reader, writer = _terminal(len(job.name) + 1) if sys.stderr.isatty() else os.pipe()
        self._process = subprocess.Popen(
            job.command,
            cwd=job.folder,
            env=dict(job.environment),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
        )
        os.close(writer)

    def forward(self, screen: _Screen) -> bool:
        """Pass on what the command has written; False if it writes no more."""
        try:
            chunk = os.read(self.reader, 65536)
        except OSError:  # how Linux says that a pseudo-terminal has no writer left
            chunk = b""
        # Lines end in a line feed, or are rewritten after a carriage return.
        *pairs, self._rest = re.split(r"(\r?\n|\r)", self._rest + self._decoder.decode(chunk, final=not chunk))
        if not chunk and self._rest:
            pairs, self._rest = [*pairs, self._rest, "\n"], ""
        for line, end in zip(pairs[::2], pairs[1::2]):
            bar, rest = _split(_CONTROL.sub("", line), self._job.total)
            if bar:
                screen.show(self.row, f"{self._job.name} {bar}", "\n" in end)
            if rest.strip():
                self._file.write(f"{rest}\n")
        return bool(chunk)

    def finish(self) -> None:
        """Wait for the end; raises RuntimeError if the command failed."""
        self._close()
        if self._process.returncode:
            log = self._job.log
            end = "\n".join(log.read_text("utf-8").splitlines()[-_LAST_LINES:])
            status = self._process.returncode
            raise RuntimeError(f"{' '.join(self._job.command)} ended with status {status}; the end of {log}:\n{end}")

    def end(self) -> None:
        """End it now."""
        self._process.kill()
        self._close()

    def _close(self) -> None:
        self._process.wait()
        os.close(self.reader)
        self._file.close()


class _Screen:
    """Bars on our standard error: on a terminal a line a chain, below the completed ones; elsewhere line after line."""

    def __init__(self, rows: int) -> None:
        self._live = [""] * rows

    def show(self, row: int, line: str, is_final: bool) -> None:
        """Show a bar in a row; a final one stays above."""
        if not sys.stderr.isatty():
            sys.stderr.write(f"{line}\n")
        else:
            self._live[row] = "" if is_final else line
            above = f"{line}\x1b[K\n" if is_final else ""
            back = f"\x1b[{len(self._live) - 1}A" if len(self._live) > 1 else ""
            sys.stderr.write("\r" + above + "\n".join(f"{text}\x1b[K" for text in self._live) + back + "\r")
        sys.stderr.flush()

    def close(self) -> None:
        """Take the bars that are not complete away."""
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[J")
            sys.stderr.flush()


def _split(line: str, total: int | None) -> tuple[str, str]:
    """The bar of a line and the rest of it; a bar without an end is drawn anew where its total is known."""
    known, counting = _BAR.match(line), _COUNT.match(line)
    if known:
        return known[1], known[2]
    if counting is None or total is None:
        return "", line
    name, count, unit, clock, rest = counting.groups()
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60.0 * seconds + float(part)
    width = shutil.get_terminal_size().columns - len(name) if sys.stderr.isatty() else None
    return tqdm.format_meter(int(count), total, seconds, ncols=width, prefix=name, unit=unit), rest


def _terminal(margin: int) -> tuple[int, int]:
    """A pseudo-terminal like ours but for a margin, so that the process draws its bars as often as it would for us."""
    reader, writer = pty.openpty()
    size = shutil.get_terminal_size()
    columns = max(size.columns - margin, 1)
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, columns, 0, 0))
    return reader, writer
