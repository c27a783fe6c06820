"""Strict check of a config against the keys and rules that a policy declares.

DI-engine merges configs with new keys allowed, so a mistyped key leaves its default in force without a word. Here it is
an error that names the nearest known key, together with every value that breaks a rule.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


class ConfigError(ValueError):
    """A config has unknown keys or values out of range; the message lists all of them."""


@dataclass(frozen=True)
class Rule:
    """What a value must be: a predicate, and the words for it."""

    holds: Callable[[Any], bool]
    text: str


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == value


def integer(low: int, high: int | None = None) -> Rule:
    """An integer of at least ``low`` and at most ``high``."""
    text = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    return Rule(lambda v: _is_int(v) and v >= low and (high is None or v <= high), text)


def number(low: float, high: float = float("inf"), *, above: bool = False, below: bool = False) -> Rule:
    """A finite number in [low, high]; with ``above`` greater than ``low``, with ``below`` less than ``high``."""
    text = f"a number {'>' if above else '>='} {low}"
    if high != float("inf"):
        text += f" and {'<' if below else '<='} {high}"

    def holds(value: Any) -> bool:
        finite = _is_number(value) and abs(value) != float("inf")
        return finite and (value > low if above else value >= low) and (value < high if below else value <= high)

    return Rule(holds, text)


def choice(*options: Any) -> Rule:
    """One of a few values."""
    return Rule(lambda v: not isinstance(v, (list, tuple, dict)) and v in options, f"one of {options}")


def flag() -> Rule:
    """True or False."""
    return Rule(lambda v: isinstance(v, bool), "True or False")


def mapping() -> Rule:
    """A dictionary."""
    return Rule(lambda v: isinstance(v, Mapping), "a dict")


def text(*, empty: bool = False) -> Rule:
    """A string of printable signs that is not empty, or with ``empty`` may be."""
    words = "a string" if empty else "a string that is not empty"
    return Rule(lambda v: isinstance(v, str) and v.isprintable() and (empty or v.strip() != ""), words)


def optional(rule: Rule) -> Rule:
    """None, or what another rule says."""
    return Rule(lambda v: v is None or rule.holds(v), f"None or {rule.text}")


def sequence(rule: Rule, length: int | None = None) -> Rule:
    """A non-empty list or tuple of what another rule says."""
    size = "" if length is None else f" of {length}"
    return Rule(
        lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and length in (None, len(v)) and all(map(rule.holds, v)),
        f"a list{size}, each {rule.text}",
    )


def either(first: Rule, second: Rule) -> Rule:
    """What one of two rules says."""
    return Rule(lambda v: first.holds(v) or second.holds(v), f"{first.text}, or {second.text}")


def check_config(
    cfg: Mapping[str, Any],
    declared: Mapping[str, Any],
    rules: Mapping[str, Rule],
    *,
    path: str,
    open_keys: Iterable[str] = (),
) -> None:
    """Refuse unknown keys and values that break a rule.

    Args:
        cfg: The config that a run would use.
        declared: Every known key, nested as in ``cfg``; values are not compared.
        rules: Dotted key to the rule that its value must satisfy.
        path: Name of ``cfg`` in messages, such as ``policy``.
        open_keys: Dotted keys whose inside is not checked, since it is the host's.

    Raises:
        ConfigError: Names each unknown key with the nearest known one, and each bad value with its rule.
    """
    problems = _unknown_keys(cfg, declared, path, {f"{path}.{key}" for key in open_keys})
    for key, rule in rules.items():
        found, value = _lookup(cfg, key)
        if not found:
            problems.append(f"{path}.{key} is missing; it must be {rule.text}")
        elif not rule.holds(value):
            problems.append(f"{path}.{key} must be {rule.text}, got {value!r}")
    if problems:
        raise ConfigError("the config cannot be used:\n  " + "\n  ".join(problems))


def _unknown_keys(cfg: Mapping[str, Any], declared: Mapping[str, Any], path: str, open_paths: set[str]) -> list[str]:
    problems = []
    for key, value in cfg.items():
        here = f"{path}.{key}"
        if key not in declared:
            near = difflib.get_close_matches(str(key), [str(k) for k in declared], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(map(str, declared)))}"
            problems.append(f"{here} is not a known key; {hint}")
        elif here not in open_paths and isinstance(declared[key], Mapping):
            if not isinstance(value, Mapping):
                problems.append(f"{here} must be a dict with keys {', '.join(declared[key])}, got {value!r}")
            else:
                problems += _unknown_keys(value, declared[key], here, open_paths)
    return problems


def _lookup(cfg: Mapping[str, Any], dotted: str) -> tuple[bool, Any]:
    value: Any = cfg
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False, None
        value = value[key]
    return True, value
