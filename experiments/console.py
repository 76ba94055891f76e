"""What commands share at the screen: dispatch, one-line errors, exit codes, progress."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import itertools
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Config = TypeVar("Config")

OK, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 2, 130, 143
PROGRAM = "python -m experiments"
stdout, stderr = Console(), Console(stderr=True)


def run(commands: Mapping[str, str], argv: list[str]) -> int:
    """Runs the command that `argv` names and returns its exit code.

    Bad input (ValueError, OSError) is one line on stderr and exit code 2; set ABD_JAX_TRACEBACK=1 to see where from.
    """
    if not argv or argv[0] in ("-h", "--help"):
        stdout.print(f"usage: {PROGRAM} COMMAND PRESET [--options]\n\ncommands:", highlight=False)
        listed = Table.grid(padding=(0, 2))
        for name, summary in commands.items():
            listed.add_row(f"  {name}", summary)
        stdout.print(listed)
        stdout.print(
            f"\nstart with: {PROGRAM} reproduce digits --out runs/demo\n"
            f"every command explains itself: {PROGRAM} COMMAND --help",
            highlight=False,
        )
        return OK if argv else BAD_INPUT
    try:
        command = choose("command", argv[0], commands)
        logging.basicConfig(level=logging.WARNING, handlers=[_Lines()])
        from abd_jax.models import onednn
        from abd_jax.training.stage import Interrupted

        onednn.chosen()  # a bad choice stops here, before anything is written
        try:
            importlib.import_module(f"experiments.commands.{command}").main(argv[1:])
        except Interrupted as interruption:
            return fail(str(interruption), TERMINATED)
        return OK
    except (ValueError, OSError) as error:
        if os.environ.get("ABD_JAX_TRACEBACK"):
            raise
        return fail(str(error), BAD_INPUT)
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("ABD_JAX_TRACEBACK") or not _out_of_memory(error):
            raise
        return fail(f"not enough memory; a smaller --student.batch needs less ({error})", BAD_INPUT)
    except KeyboardInterrupt:
        return fail("interrupted; go on with --resume", INTERRUPTED)


class _Lines(logging.Handler):
    """Each record as one line, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {self.format(record)}"
        stderr.print(line, highlight=False, markup=False, soft_wrap=True)


def _out_of_memory(error: Exception) -> bool:
    """NumPy's error, or XLA's, which is told from its others by its text alone."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def fail(message: str, code: int) -> int:
    """One line on stderr."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return code


def choose(option: str, value: str, allowed: Mapping[str, Any]) -> str:
    """The value, if it is allowed.

    Raises:
        ValueError: it is not; names the option, what is allowed, and the nearest name.
    """
    if value not in allowed:
        close = difflib.get_close_matches(value, allowed, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{option} {value!r}{hint}: allowed are {', '.join(allowed)}")
    return value


def parse(
    config: type[Config], argv: list[str], *, prog: str, description: str, default: Config | None = None
) -> Config:
    """tyro's parser, with its errors as one-line ValueErrors.

    Raises:
        ValueError: an unknown option, a missing one, or a value that is not allowed.
    """
    for option, value in itertools.pairwise([prog, *argv]):
        if not value:
            raise ValueError(f"{option}: its value is empty")
        if re.fullmatch(r"--[^=]+=", value):
            raise ValueError(f"{value[:-1]}: its value is empty")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(  # type: ignore[return-value]
                config, args=argv, prog=f"{PROGRAM} {prog}", description=description, default=default
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_unboxed(said.getvalue())) from None


def _unboxed(text: str) -> str:
    """The message of tyro's boxed error, without the box (of ASCII, where the screen has no other), title and hint."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    rule = re.compile(r"[╰─╯-]{5,}").fullmatch
    body = itertools.takewhile(lambda line: not rule(line), itertools.dropwhile(rule, filter(None, lines[1:])))
    said = re.sub(r"preset\.", "", " ".join(body))
    return re.sub(r"^Error parsing (?!--)\S+: |^Error parsing ", "", said) or "the options cannot be parsed"


class ProgressBar:
    """A title, and under it a bar with time left, cycles/s and the running ACC/ASR: an `Observer` of `training.runs`.

    The bar takes no more than 80 columns, lest rich cut its numbers short.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def begin(self, title: str, total: int, done: int) -> None:
        if stderr.is_terminal:
            stderr.print(title, highlight=False)
        self._progress = Progress(
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rates]}"),
            console=stderr,
            speed_estimate_period=120,
        )
        self._rates, self._title = {}, title
        self._task = self._progress.add_task("", total=total, completed=done, speed="", rates="")
        self._progress.start()

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        self._rates |= {name: metrics[name] for name in ("acc", "asr") if name in metrics}
        shown = " ".join(f"{name.upper()} {100 * value:.1f} %" for name, value in self._rates.items())
        task = self._progress.tasks[self._task]
        speed = f"{task.speed:.1f}/s" if task.speed else ""
        self._progress.update(self._task, completed=done, rates=shown, speed=speed)

    def end(self) -> None:
        self._progress.stop()
        if not stderr.is_terminal and self._rates:
            shown = " ".join(f"{name.upper()} {100 * value:.1f} %" for name, value in self._rates.items())
            stderr.print(f"{self._title}: {shown}", highlight=False)
