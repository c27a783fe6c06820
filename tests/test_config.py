"""The config check: every kind of rule at its edges, and every problem named at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ding_ebm.config import (
    ConfigError,
    Rule,
    check_config,
    choice,
    either,
    flag,
    integer,
    number,
    optional,
    sequence,
    text,
)

NAN, INF = math.nan, math.inf
RULES = [
    (integer(0), [0, 7, np.int64(3)], [-1, 0.0, 1.5, True, "1", None, [1], NAN]),
    (integer(1, 3), [1, 2, 3], [0, 4, False]),
    (number(0.0), [0, 0.5, 1e300, np.float32(2.0)], [-1e-9, NAN, INF, -INF, True, "0.5", None, (1.0,)]),
    (number(0.0, above=True), [1e-300, 1], [0, 0.0, -1.0]),
    (number(0.0, 1.0), [0, 1, 0.5], [1.0001, -0.1]),
    (choice("min", "mean"), ["min", "mean"], ["max", "", None, ["min"], {"min": 1}, 0]),
    (choice(1, 2, 3), [1, 3], [0, 4, "1", None]),
    (flag(), [True, False], [0, 1, "True", None, "no"]),
    (text(), ["abc"], ["", " ", "a\0", None, 1, ["a"], b"abc"]),
    (text(empty=True), ["", "abc"], ["\n", None, 1, ["a"], b"abc"]),
    (optional(integer(1)), [None, 1], [0, "None", False]),
    (sequence(integer(1)), [[1], (1, 2), [3, 3]], [[], (), 1, [0], [1, "2"], "12", None, {1: 2}, [[1]]]),
    (sequence(number(0.0), length=2), [(0.0, 1), [2, 1]], [(1.0,), (1.0, 2.0, 3.0), [], (0.0, -1.0), (0.0, NAN)]),
    (either(number(0.0), sequence(number(0.0))), [1.0, [0.0, 2.0]], ["1.0", [-1.0], [], None, [[1.0]]]),
]


@pytest.mark.parametrize(("rule", "good", "bad"), RULES, ids=[rule.text for rule, _, _ in RULES])
def test_a_rule_holds_for_what_it_says_and_for_nothing_else(rule, good, bad):
    assert [value for value in good if not rule.holds(value)] == []
    assert [value for value in bad if rule.holds(value)] == []


def test_the_words_of_rules_are_made_of_their_parts():
    assert optional(integer(1, 5)).text == "None or an integer in [1, 5]"
    assert sequence(number(0.0, above=True), length=2).text == "a list of 2, each a number > 0.0"
    assert either(text(empty=True), flag()).text == "a string, or True or False"
    assert "('a', 'b')" in choice("a", "b").text


DECLARED = dict(learn=dict(batch_size=1, learning_rate=0.1, hook=dict(freq=1)), model=dict(widths=(1,)), cuda=False)


def problems(cfg: dict, rules: dict[str, Rule] | None = None, **options) -> list[str]:
    """Lines of the error, less its title; none if there is no error."""
    try:
        check_config(cfg, DECLARED, rules or {}, path="policy", **options)
    except ConfigError as error:
        title, *lines = str(error).splitlines()
        assert title == "the config cannot be used:"
        return [line.strip() for line in lines]
    return []


def test_a_config_of_known_keys_passes():
    assert problems(dict(learn=dict(batch_size=3), cuda=True)) == []
    assert problems({}) == []


@pytest.mark.parametrize(
    ("cfg", "key", "meant"),
    [
        (dict(cudda=True), "policy.cudda", "cuda"),
        (dict(learn=dict(batchsize=3)), "policy.learn.batchsize", "batch_size"),
        (dict(learn=dict(lerning_rate=3)), "policy.learn.lerning_rate", "learning_rate"),
        (dict(learn=dict(hook=dict(frequ=3))), "policy.learn.hook.frequ", "freq"),
        (dict(modle=dict(widths=(3,))), "policy.modle", "model"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(cfg, key, meant):
    (line,) = problems(cfg)
    assert line == f"{key} is not a known key; did you mean {meant!r}?"


def test_a_key_that_is_like_no_other_is_answered_with_all_known_ones():
    (line,) = problems(dict(learn=dict(xyz=1)))
    assert line == "policy.learn.xyz is not a known key; known keys: batch_size, hook, learning_rate"


def test_a_key_that_is_no_string_is_named():
    (line,) = problems({3: 1})
    assert line.startswith("policy.3 is not a known key")


def test_every_problem_is_named_at_once():
    rules = {"learn.batch_size": integer(1), "learn.learning_rate": number(0.0), "learn.gamma": number(0.0)}
    lines = problems(dict(learn=dict(batch_size=0, learning_rate="x"), cuba=1, model=3), rules)
    assert [line.split()[0] for line in lines] == [
        "policy.cuba", "policy.model", "policy.learn.batch_size", "policy.learn.learning_rate", "policy.learn.gamma",
    ]  # fmt: skip
    assert lines[1] == "policy.model must be a dict with keys widths, got 3"
    assert lines[2] == "policy.learn.batch_size must be an integer >= 1, got 0"
    assert lines[4] == "policy.learn.gamma is missing; it must be a number >= 0.0"


def test_a_rule_below_what_is_no_dict_says_that_the_key_is_missing():
    lines = problems(dict(learn=5), {"learn.batch_size": integer(1)})
    assert lines == [
        "policy.learn must be a dict with keys batch_size, learning_rate, hook, got 5",
        "policy.learn.batch_size is missing; it must be an integer >= 1",
    ]


def test_what_belongs_to_the_host_is_open_and_only_that():
    cfg = dict(learn=dict(hook=dict(anything=1), nothing=2))
    assert [line.split()[0] for line in problems(cfg, open_keys=["learn.hook"])] == ["policy.learn.nothing"]
    assert len(problems(cfg)) == 2


def test_the_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)
