"""Results as rows of a CSV file: made from a policy, appended, read back, and summarized over runs."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ding_ebm import __version__
from ding_ebm.data.formats import Transitions
from ding_ebm.envs.registry import TASKS, normalized_score
from ding_ebm.evaluation.statistics import episode_interval, iqm, mean, run_interval, success_interval

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """One policy of one run, evaluated at one guidance scale; the columns of the CSV files, None as an empty cell.

    Attributes:
        task: Name of the task.
        data: Names of the data files, joined by '+'; empty of a policy that learns by collecting.
        policy: Registered name of the policy, and the correction of its actions by an energy, if there is one.
        guidance_scale: Factor of the energy's gradient; None of a policy without guidance.
        episodes: Number of episodes.
        mean: Mean undiscounted return.
        low: Lower end of its 95 % interval over episodes.
        high: Upper end.
        normalized: Mean return on the scale of the task's reference returns, 0 to 100; None where it has none.
        success: Share of the episodes that succeeded; None, as its ends, where the task has no notion of success.
        success_low: Lower end of its 95 % interval over episodes.
        success_high: Upper end.
        seed: Seed that the run was trained with.
        train_iter: Training iterations of the checkpoint.
        commit: Version of the code.
        command: What to type to make the row again.
    """

    task: str
    data: str
    policy: str
    guidance_scale: float | None
    episodes: int
    mean: float
    low: float
    high: float
    normalized: float | None
    success: float | None
    success_low: float | None
    success_high: float | None
    seed: int
    train_iter: int
    commit: str
    command: str


COLUMNS = tuple(field.name for field in fields(Result))
_PARSERS = {"int": int, "float": float, "str": str, "float | None": lambda text: float(text) if text else None}


def make_result(returns: NDArray[np.float64], success: NDArray[np.bool_] | None, **facts: Any) -> Result:
    """The row of a policy.

    Args:
        returns: Of its episodes, (n,).
        success: Whether they succeeded, (n,); None where the task has no notion of success.
        facts: The columns that are not computed here.
    """
    interval = episode_interval(returns)
    share = None if success is None else success_interval(success)
    score = normalized_score(facts["task"], interval.estimate)
    return Result(
        episodes=len(returns),
        mean=round(interval.estimate, 4),
        low=round(interval.low, 4),
        high=round(interval.high, 4),
        normalized=None if score is None else round(float(score), 2),
        success=None if share is None else round(share.estimate, 4),
        success_low=None if share is None else round(share.low, 4),
        success_high=None if share is None else round(share.high, 4),
        commit=code_version(),
        **facts,
    )


def append_results(path: str | Path, results: Iterable[Result]) -> None:
    """Add rows to a CSV file, which is begun with a header if it is not there.

    Raises:
        ValueError: If the file has other columns.
    """
    path = Path(path)
    is_new = not path.exists() or path.stat().st_size == 0
    if not is_new:
        read_results(path)  # rows under another header would be read as something else
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerows(astuple(result) for result in results)


def read_results(path: str | Path) -> list[Result]:
    """Rows of a CSV file that :func:`append_results` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its columns or a value are not as expected.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no results at {str(path)!r}; `ding-ebm eval --out FILE.csv` makes them")
    try:
        return _read_rows(Path(path))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file of results: {error}") from error


def _read_rows(path: Path) -> list[Result]:
    results = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise ValueError(f"{path}: the columns must be {','.join(COLUMNS)}, got {','.join(header)[:200]}")
        for line in reader:
            try:
                if len(line) != len(COLUMNS):
                    raise ValueError(f"{len(line)} cells instead of {len(COLUMNS)}")
                values = [_PARSERS[str(field.type)](text) for field, text in zip(fields(Result), line)]
                results.append(Result(*values))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: not a row of results: {error}") from error
    return results


def result_table(results: Sequence[Result]) -> str:
    """Rows for people, without what is too long to read."""
    header = ["task", "data", "policy", "scale", "episodes", "return", "95 % interval", "normalized"]
    lines = [
        [
            r.task,
            r.data or "-",
            r.policy,
            _scale(r.guidance_scale),
            str(r.episodes),
            _number(r.mean),
            f"{_number(r.low)} to {_number(r.high)}",
            _score(r.normalized),
        ]
        for r in results
    ]
    if any(r.success is not None for r in results):
        header += ["success", "95 % interval"]
        lines = [line + _success_cells(r) for line, r in zip(lines, results)]
    return format_table(header, lines)


def _success_cells(result: Result) -> list[str]:
    if result.success is None:
        return ["-", "-"]
    return [f"{result.success:.3f}", f"{result.success_low:.3f} to {result.success_high:.3f}"]


def _score(normalized: float | None) -> str:
    return "-" if normalized is None else f"{normalized:.1f}"


def _scale(guidance_scale: float | None) -> str:
    return "-" if guidance_scale is None else f"{guidance_scale:g}"


def describe(transitions: Transitions, task: str | None = None) -> str:
    """Counts, returns and ranges of a data set, for people; normalized scores where the task is known."""
    returns, lengths = transitions.episode_returns(), transitions.episode_lengths()
    unfinished = len(transitions) - int(lengths.sum())
    ended, cut = int(transitions.terminated.sum()), int((transitions.truncated & ~transitions.terminated).sum())
    action = transitions.action
    lines = [
        f"{transitions.source}",
        f"rows      {len(transitions)}, obs {transitions.obs.shape[1]}, action {action.shape[1]} "
        f"in [{action.min():g}, {action.max():g}]",
        f"episodes  {len(returns)}: {ended} terminated, {cut} truncated; {unfinished} rows behind the last one",
    ]
    if len(returns):
        quartiles = ", ".join(_number(value) for value in np.quantile(returns, [0.0, 0.25, 0.5, 0.75, 1.0]))
        normalized = None if task is None else normalized_score(task, returns.mean())
        score = "" if normalized is None else f", normalized {float(normalized):.1f}"
        lines.append(f"returns   mean {_number(returns.mean())}{score}; quartiles {quartiles}")
        lines.append(f"lengths   mean {lengths.mean():.0f}, {lengths.min()} to {lengths.max()}")
    return "\n".join(lines) + "\n"


def report(results: Sequence[Result]) -> str:
    """Mean and interquartile mean over runs, by task, data, policy and guidance scale.

    A run is one seed. Where a group has a single run, its interval is the one over episodes, and the table says so.
    Policies with several groups of at least two runs each get a line over all of them, in normalized scores.

    Raises:
        ValueError: If there are no rows, or a run is given twice.
    """
    if not results:
        raise ValueError("there are no rows to report on")
    groups: dict[tuple[str, str, str, float | None], list[Result]] = defaultdict(list)
    for result in results:
        group = groups[result.task, result.data, result.policy, result.guidance_scale]
        if any(other.seed == result.seed for other in group):
            raise ValueError(
                f"seed {result.seed} of {result.policy} on {result.data or result.task} at scale "
                f"{_scale(result.guidance_scale)} is given twice; a run is one number, keep the row of one of its "
                "evaluations"
            )
        group.append(result)
    header = [
        "task",
        "data",
        "policy",
        "scale",
        "runs",
        "mean",
        "95 % interval",
        "IQM",
        "95 % interval",
        "interval over",
    ]
    ordered = sorted(groups, key=lambda key: (*key[:3], _rank(key[3])))
    lines = [[key[0], key[1] or "-", key[2], _scale(key[3]), *_summary(groups[key])] for key in ordered]
    return format_table(header, lines + _over_tasks(groups)) + (
        "\nmean and IQM are of normalized scores; an interval over episodes knows one run only.\n"
    )


def _summary(group: list[Result]) -> list[str]:
    """Cells of one group: number of runs, mean, IQM, and what the intervals are over."""
    scores = [result.normalized for result in group if result.normalized is not None]
    only = group[0]
    if not scores:  # the task has no reference returns
        return [str(len(group)), "-", "-", "-", "-", "-"]
    if len(group) > 1:
        return [str(len(group)), *_interval_cells([scores]), "runs"]
    over = f"{only.episodes} episodes"
    if only.task.partition("-")[0] not in TASKS:  # a task of one's own, which no config has registered here
        return ["1", _score(only.normalized), "-", "-", "-", over]
    low, high = (float(normalized_score(only.task, value)) for value in (only.low, only.high))
    return ["1", _score(only.normalized), f"{low:.1f} to {high:.1f}", "-", "-", over]


def _rank(guidance_scale: float | None) -> float:
    """Where a group stands among those of the same names: without guidance first."""
    return float("-inf") if guidance_scale is None else guidance_scale


def _over_tasks(groups: dict[tuple[str, str, str, float | None], list[Result]]) -> list[list[str]]:
    """One line a policy and scale with several tasks or data sets, runs resampled within each."""
    strata: dict[tuple[str, float | None], list[list[float]]] = defaultdict(list)
    for (_, _, policy, scale), group in groups.items():
        scores = [result.normalized for result in group if result.normalized is not None]
        if scores:
            strata[policy, scale].append(scores)
    return [
        ["all", f"{len(runs)} sets", policy, _scale(scale), str(sum(map(len, runs))), *_interval_cells(runs), "runs"]
        for (policy, scale), runs in sorted(strata.items(), key=lambda item: (item[0][0], _rank(item[0][1])))
        if len(runs) > 1 and min(map(len, runs)) > 1
    ]


def _interval_cells(runs: Sequence[Sequence[float]]) -> list[str]:
    intervals = [run_interval(runs, statistic) for statistic in (mean, iqm)]
    return [cell for i in intervals for cell in (f"{i.estimate:.1f}", f"{i.low:.1f} to {i.high:.1f}")]


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, numbers flush right."""
    table = [list(header), *map(list, lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    right = [all(_is_numeric(line[i]) for line in lines) for i in range(len(header))]
    aligned = [
        "  ".join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(line, widths, right))
        for line in table
    ]
    aligned.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in aligned) + "\n"


def _is_numeric(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in ("-", "+")


def _number(value: float) -> str:
    """A return with the digits that its size leaves of interest."""
    return f"{value:.2f}" if abs(value) < 100.0 else f"{value:.0f}"


@cache
def code_version() -> str:
    """Commit of the checkout that runs, '-dirty' if it has changes; the package's version where it is no checkout."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        return f"v{__version__}"
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else f"v{__version__}"
