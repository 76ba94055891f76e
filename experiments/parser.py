"""tyro's parser, whose errors are one line each here."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import re
from typing import TypeVar

import tyro

from abd_jax.settings import one_of
from experiments.console import PROGRAM

Config = TypeVar("Config")
_SHOWN = 2
_OPTION = re.compile(r".?\s{5}(--\w[\w.-]*)", re.MULTILINE)
"""An option in tyro's box, which its help follows farther in."""
_KINDS = {"INT": "whole numbers", "FLOAT": "numbers"}


def parse(
    config: type[Config], argv: list[str], *, prog: str, description: str, default: Config | None = None
) -> Config:
    """tyro's parser, with its errors as one-line ValueErrors.

    Raises:
        ValueError: an unknown option, a missing one, one given twice, or a value that is not allowed.
    """
    for option, value in itertools.pairwise([prog, *argv]):
        if not value:
            raise ValueError(f"{option}: its value is empty")
        if re.fullmatch(r"--[^=]+=", value):
            raise ValueError(f"{value[:-1]}: its value is empty")
    named = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    for option in named:
        if (times := named.count(option)) > 1:  # tyro would take the last
            raise ValueError(f"{option}: given {times} times; allowed is once, with all of its values behind it")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(  # type: ignore[return-value]
                config, args=argv, prog=f"{PROGRAM} {prog}", description=description, default=default
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    raise ValueError(_explained(text, argv, prog))


def _explained(text: str, argv: list[str], prog: str) -> str:
    """tyro's error in a line, in the words of this package where it is one of the common ones.

    Raises:
        ValueError: a value is none of several names.
    """
    said = _unboxed(text)
    if match := re.match("Unrecognized options: (.*)", said):
        unknown = match[1].split(", ")
        return _unknown([word for word in argv if word in unknown] or unknown, text, prog)
    if match := re.fullmatch(r"invalid choice '.*' for argument '(--\S+)'\s?\. Expected one of \((.*)\)\s?\.", said):
        option, allowed = match[1], re.findall("'([^']*)'", match[2])
        for value in _values(option, argv):
            one_of(option, value, allowed)
    if said.startswith("Missing from"):
        lacking, _, unknown = text.partition("Unrecognized options")
        missing = _OPTION.findall(lacking)
        typed = [word.partition("=")[0] for word in argv if word.startswith("--")]
        for option in missing:
            for near in difflib.get_close_matches(option, typed, 1, 0.8):
                return f"unknown option {near} (did you mean {option}?)"
        others = [word for word in typed if re.search(rf"(?<!\S){re.escape(word)}(?!\S)", unknown)]
        also = f"; unknown option {', '.join(others)}" if others else ""
        words = [*missing, *re.findall(r"^.?\s{5}([A-Z]+)\b", lacking, re.MULTILINE)]
        if words:
            return f"{' and '.join(words)}: missing{also}"
    if match := re.fullmatch(r"Missing value for argument '(--\S+)'\..*", said):
        return f"{match[1]}: its value is missing"
    if match := re.match(r"(--\S+): (Could not find valid parse|invalid literal|could not convert)", said):
        option, values = match[1], _values(match[1], argv)
        kind = re.search(rf"^\W+{re.escape(option)} \W*({'|'.join(_KINDS)})", text, re.MULTILINE)
        what = _KINDS[kind[1]] if kind else "values"
        several = " separated by spaces" if "Could not" in match[2] else ""
        return f"{option} {' '.join(values)}: allowed are {what}{several}"
    return said


def _unknown(words: list[str], text: str, prog: str) -> str:
    """Names the options that do not exist, each with the nearest ones; or else the values that belong to none."""
    options = list(dict.fromkeys(word.partition("=")[0] for word in words if word.startswith("-")))
    where = f"{PROGRAM} {prog} --help lists the options"
    if not options:
        return f"{' '.join(words)}: belongs to no option; {where}"
    near: dict[str, list[str]] = {option: [] for option in options}
    current = near[options[0]]
    for line in text.splitlines():
        if match := re.search(r"Arguments similar to (\S+):", line):
            current = near.get(match[1].partition("=")[0], [])
        elif (match := _OPTION.match(line)) and match[1] not in current:
            current.append(match[1])
    shown = (
        f"{option} (did you mean {' or '.join(found[:_SHOWN])}?)" if found else option for option, found in near.items()
    )
    return f"unknown option {', '.join(shown)}: {where}"


def _values(option: str, argv: list[str]) -> list[str]:
    """What follows an option, the last time that it stands there."""
    spelled = [word.partition("=")[0].replace("_", "-") for word in argv]
    if option not in spelled:
        return []
    at = len(argv) - 1 - spelled[::-1].index(option)
    following = itertools.takewhile(lambda word: not word.startswith("--"), argv[at + 1 :])
    return [*argv[at].split("=", 1)[1:], *following]


def _unboxed(text: str) -> str:
    """The message of tyro's boxed error, without the box (of ASCII, where the screen has no other), title and hint."""
    lines = [line.strip("│ ") for line in text.splitlines()]
    rule = re.compile(r"[╰─╯-]{5,}").fullmatch
    body = itertools.takewhile(lambda line: not rule(line), itertools.dropwhile(rule, filter(None, lines[1:])))
    said = re.sub(r"preset\.", "", " ".join(body))
    return re.sub(r"^Error parsing (?!--)\S+: |^Error parsing ", "", said) or "the options cannot be parsed"
