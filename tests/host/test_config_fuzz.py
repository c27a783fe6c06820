"""Every key of every config mistyped, every value of a wrong type and out of range: all are refused, and at once.

A changed config goes the way of a user's: through the check that the builders of ``dizoo_configs`` and ``ding-ebm``
make of what a file states, DI-engine's compilation, and the check before a run. The long version is of every shipped
config; the short one is of one a policy.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ding.config import compile_config
from easydict import EasyDict

from ding_ebm.config import ConfigError
from ding_ebm.host.checks import check_files, check_run
from ding_ebm.host.host_rules import RULES, UNCHECKED

ROOT = Path(__file__).parents[2]
ALL = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "dizoo_configs").rglob("*_config.py"))
POLICIES = ("diffusion_bc", "gaussian_bc", "gmm_bc", "energy", "dppo", "dppo_ebm")
SHORT = [f"dizoo_configs/avoid/avoid_m1_{name}_config.py" for name in POLICIES]
SHORT.append("dizoo_configs/avoid/avoid_qgpo_config.py")
SECONDS = 5.0
Place = tuple[str, ...]


def load(path: str) -> tuple[EasyDict, EasyDict]:
    module = importlib.import_module(path[:-3].replace("/", "."))
    return copy.deepcopy(module.main_config), copy.deepcopy(module.create_config)


def compiled(main: EasyDict, create: EasyDict) -> EasyDict:
    create = copy.deepcopy(create)
    create.policy.type += "_command"
    return compile_config(main, seed=0, auto=True, create_cfg=create, save_cfg=False)


def places(cfg: Mapping[str, Any], above: Place = ()) -> Iterator[tuple[Place, Any]]:
    for key, value in cfg.items():
        yield (*above, key), value
        if isinstance(value, Mapping):
            yield from places(value, (*above, key))


def mistyped(key: str) -> str:
    """The key without a letter of its middle; a letter too much where it has only two."""
    return key[: len(key) // 2] + key[len(key) // 2 + 1 :] if len(key) > 2 else key + key[-1]


def of_wrong_type(value: Any) -> Any:
    if value is None:
        return object()
    wrong: dict[type, Any] = {bool: "yes", str: 3.5, list: {"a": 1}, tuple: {"a": 1}}
    return 7 if isinstance(value, dict) else wrong.get(type(value), ["1"])


def out_of_range(value: Any) -> Any:
    wrong: dict[type, Any] = {bool: 2, str: "\0", list: [object()], tuple: [object()], type(None): [object()]}
    return None if isinstance(value, dict) else wrong.get(type(value), float("nan"))


CHANGES = ("mistyped", "of a wrong type", "out of range")


def changed(cfg: EasyDict, place: Place, change: str) -> EasyDict:
    cfg = copy.deepcopy(cfg)
    inner = cfg
    for key in place[:-1]:
        inner = inner[key]
    key, value = place[-1], inner[place[-1]]
    if change == "mistyped":
        inner[mistyped(key)] = inner.pop(key)
    else:
        inner[key] = of_wrong_type(value) if change == "of a wrong type" else out_of_range(value)
    return cfg


def run(main: EasyDict, create: EasyDict) -> None:
    check_files(main, create)
    check_run(compiled(main, create))


def wrong(action: Any, place: Place, change: str) -> str | None:
    """What is wrong with how a changed config is refused; None if it is as it should be."""
    start = time.process_time()
    try:
        action()
    except (ConfigError, ValueError) as error:
        message = str(error)
        if time.process_time() - start > SECONDS:
            return f"{'.'.join(place)} {change}: refused too late"
        # Of a key that must be there, the message is that it is missing; of an unknown task, it is the known ones.
        if change == "mistyped" and mistyped(place[-1]) not in message and place[-1] not in message:
            return f"{'.'.join(place)} {change}: not named in {message}"
        named = place[-1] in message or "unknown task" in message
        return None if named or change == "mistyped" else f"{'.'.join(place)} {change}: not named in {message}"
    return f"{'.'.join(place)} {change}: not refused"


def check_as_files(path: str) -> tuple[int, list[str]]:
    """Changes of what a config file states; how many there were, and what was wrong."""
    main, create = load(path)
    run(main, create)
    found = []
    for is_main, cfg in ((True, main), (False, create)):
        for place, _ in places(cfg):
            for change in CHANGES:
                other = changed(cfg, place, change)
                files = (other, create) if is_main else (main, other)
                found.append(wrong(lambda files=files: run(*files), place, change))
    return len(found), [line for line in found if line]


def check_as_compiled(path: str) -> tuple[int, list[str]]:
    """Changes of all that a run would use, the host's own keys among them."""
    cfg = compiled(*load(path))
    check_run(cfg)
    found = []
    for place, _ in places(cfg):
        for change in CHANGES:
            if change == "mistyped":  # the compilation fills in what is missing, and the mistyped key stays
                other, inner = copy.deepcopy(cfg), None
                inner = other
                for key in place[:-1]:
                    inner = inner[key]
                if mistyped(place[-1]) in inner:
                    continue
                inner[mistyped(place[-1])] = copy.deepcopy(inner[place[-1]])
            else:
                other = changed(cfg, place, change)
            found.append(wrong(lambda other=other: check_run(other), place, change))
    return len(found), [line for line in found if line]


@pytest.mark.parametrize("path", SHORT)
def test_what_a_file_states_is_refused_when_it_is_wrong(path):
    count, problems = check_as_files(path)
    assert problems == [] and count > 80


@pytest.mark.parametrize("path", [SHORT[0], SHORT[-2], SHORT[-1]])
def test_all_that_a_run_would_use_is_refused_when_it_is_wrong(path):
    count, problems = check_as_compiled(path)
    assert problems == [] and count > 250


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL)
def test_every_shipped_config_is_refused_when_it_is_wrong(path):
    for count, problems in (check_as_files(path), check_as_compiled(path)):
        assert problems == [] and count > 80


@pytest.mark.parametrize("path", SHORT[-3:])
def test_the_hosts_compilation_alone_accepts_no_broken_part(path):
    """Where no builder has looked: DI-engine stops by itself, in its own words, or the check before the run does."""
    main, create = load(path)
    broken = [(changed(main, (key,), change), create) for key in ("policy", "env") for change in CHANGES]
    broken += [(main, changed(create, (key,), change)) for key in create for change in CHANGES]
    broken += [(main, changed(create, (key, "type"), change)) for key in create for change in CHANGES]
    for files in broken:
        with pytest.raises(Exception):  # noqa: B017, PT011 (of any kind: it is the host's)
            check_run(compiled(*files))


def test_what_is_not_checked_is_listed_with_the_reason():
    assert len(UNCHECKED) == 2 and all(UNCHECKED.values())
    assert all(rule.text for rule in RULES.values())


@pytest.mark.parametrize(
    ("key", "words"),
    [("type", "did you mean 'ebm_vector'?"), ("import_names", "No module named 'ding_ebm.hosst'")],
)
def test_an_unknown_type_or_module_is_named(key, words):
    main, create = load(SHORT[0])
    create.env_manager[key] = "ebm_vectr" if key == "type" else ["ding_ebm.hosst"]
    with pytest.raises(ConfigError, match=f"create_config.env_manager.{key}") as error:
        check_files(main, create)
    assert words in str(error.value)
