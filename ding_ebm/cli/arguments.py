"""What the subcommands share."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """A subcommand that ``run`` carries out, with the one line that says what it does."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def printable(text: str) -> str:
    """A text without what a terminal would obey: names in files that somebody else wrote may hold anything."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


def quiet_import():
    """Import what loads the host, without the notices on optional packages that its modules print meanwhile."""
    with contextlib.redirect_stderr(io.StringIO()):
        from ding_ebm.evaluation import checkpoint
    return checkpoint
