"""What commands share at the screen: dispatch, one-line errors, exit codes, progress."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from abd_jax.settings import one_of

OK, BAD_INPUT, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 2, 130, 141, 143
PROGRAM = "python -m experiments"
RESUMABLE = ("reproduce", "matrix", "teacher", "distill", "diagnose")
"""Commands that take --resume."""


class _Screen(Console):
    """A console that leaves it to `run` what to do when nobody reads on."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError for which rich calls this


stdout, stderr = _Screen(), _Screen(stderr=True)


def run(commands: Mapping[str, str], argv: list[str]) -> int:
    """Runs the command that `argv` names and returns its exit code.

    Bad input (ValueError, OSError) is one line on stderr and exit code 2; set ABD_JAX_TRACEBACK=1 to see where from.
    Where nobody reads on, as after `| head`, it ends silently with the exit code of what SIGPIPE kills.
    """
    try:
        return _run(commands, argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what Python flushes when it exits
        return BROKEN_PIPE


def _overview(commands: Mapping[str, str]) -> None:
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
    sys.stdout.flush()


def _run(commands: Mapping[str, str], argv: list[str]) -> int:
    try:
        if not argv or argv[0] in ("-h", "--help"):
            _overview(commands)
            return OK if argv else BAD_INPUT
        command = one_of("command", argv[0], commands)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Lines()])
        logging.getLogger("abd_jax").setLevel(logging.INFO)
        from abd_jax.models import onednn
        from abd_jax.training.stage import Interrupted

        onednn.chosen()  # a bad choice stops here, before anything is written
        try:
            importlib.import_module(f"experiments.commands.{command}").main(argv[1:])
        except Interrupted as interruption:
            return fail(f"{interruption}{_go_on(argv)}", TERMINATED)
        finally:
            sys.stdout.flush()  # an error of it is told as others are, which it is not when Python exits
        return OK
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if os.environ.get("ABD_JAX_TRACEBACK"):
            raise
        return fail(str(error), BAD_INPUT)
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("ABD_JAX_TRACEBACK") or not _out_of_memory(error):
            raise
        return fail(f"not enough memory; a smaller --student.batch needs less ({error})", BAD_INPUT)
    except KeyboardInterrupt:
        return fail(f"interrupted{_go_on(argv)}", INTERRUPTED)


def _go_on(argv: list[str]) -> str:
    """How to go on with a command that was interrupted, if it is one that can."""
    if argv[0] not in RESUMABLE:
        return ""
    again = [word for word in argv if word not in ("--resume", "--overwrite")]
    return f"; go on with: {PROGRAM} {shlex.join([*again, '--resume'])}"


class _Lines(logging.Handler):
    """Each record as one line, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "note" if record.levelno == logging.INFO else record.levelname.lower()
        line = f"{kind}: {self.format(record)}"
        stderr.print(line, highlight=False, markup=False, soft_wrap=True)


def _out_of_memory(error: Exception) -> bool:
    """NumPy's error, or XLA's, which is told from its others by its text alone."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def fail(message: str, code: int) -> int:
    """One line on stderr."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return code


class ProgressBar:
    """A title, and under it a bar with time left, cycles/s and the running ACC/ASR: an `Observer` of `training.stage`.

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
