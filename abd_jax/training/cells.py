"""One cell of a matrix, or a lot of them: what it is, and what a worker does with it.

A cell writes into its own directory and its log alone, so it may run anywhere that sees them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import itertools
import json
import os
import sys
import traceback
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import jax

from abd_jax import data
from abd_jax.training import checkpoint, config, dispatch, runs, stage
from abd_jax.training.lockstep import Lockstep
from abd_jax.training.run_directory import RESULT_FILE, RunDirectory


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network to train; everything that a worker needs to know, and nothing that cannot be pickled.

    Attributes:
        top: the matrix's directory.
        preset: of the cell's method.
        trigger, seed: of the teacher, and of the student.
        defense: the student's; None for a teacher.
    """

    top: Path
    preset: config.Preset
    trigger: str
    seed: int
    defense: str | None = None

    @property
    def name(self) -> str:
        """Unique in the matrix, and a path below its directory."""
        pair = f"{self.trigger}-seed{self.seed}"
        if self.defense is None:
            return f"teachers/{pair}"
        return f"students/{self.preset.method}/{pair}-{self.defense}"

    @property
    def title(self) -> str:
        parts = ["teacher"] if self.defense is None else [self.preset.method, self.defense]
        return " · ".join([*parts, self.trigger, f"seed {self.seed}"])

    @property
    def path(self) -> Path:
        return self.top / self.name

    @property
    def log(self) -> Path:
        return self.top / "logs" / f"{self.name.replace('/', '-')}.log"

    @property
    def teacher(self) -> Cell:
        """The cell whose network this one distils."""
        return dataclasses.replace(self, defense=None)

    @property
    def done(self) -> bool:
        return (self.path / RESULT_FILE).is_file()

    @property
    def row(self) -> stage.Row:
        """Of a cell that is done."""
        row: stage.Row = json.loads((self.path / RESULT_FILE).read_text())
        return row

    @property
    def notes(self) -> dict[str, Any]:
        """What stands beside the network of a cell that is done."""
        notes: dict[str, Any] = json.loads((self.path / "network" / checkpoint.NETWORK_FILE).read_text())
        return notes

    def facts(self, classes: Sequence[str]) -> dict[str, Any]:
        """What the cell's directory is started with: the settings that its network depends on, and no others."""
        settings = dataclasses.asdict(self.preset)
        facts: dict[str, Any] = {"trigger": self.trigger, "seed": self.seed, "classes": classes}
        if self.defense is None:
            kept = {name: settings[name] for name in ("dataset", "dtype", "teacher")}
            return {"preset": kept, "role": "teacher", **facts}
        del settings["trigger"]  # the preset's default: not this cell's
        for group in config.unread(self.preset, self.defense):
            owner, _, name = group.rpartition(".")
            del (settings[owner] if owner else settings)[name]
        teacher = {"path": self.teacher.name, "digest": self.teacher.notes["digest"]}
        return {"preset": settings, "role": "student", "defense": self.defense, "teacher": teacher, **facts}


@functools.cache
def load_dataset(name: str) -> data.Dataset:
    return data.load(name)


class _Lines:
    """An observer that writes every evaluation as a line."""

    def __init__(self, log: TextIO) -> None:
        self._write = functools.partial(print, file=log, flush=True)

    def begin(self, title: str, total: int, done: int) -> None:
        self._total = total
        self._write(f"{title}: {done} of {total} steps are done")

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        if "acc" in metrics:
            rates = ", ".join(f"{name.upper()} {100 * metrics[name]:.1f} %" for name in ("acc", "asr", "ra"))
            self._write(f"before step {done} of {self._total}: {rates}")

    def end(self) -> None: ...


def train(cell: Cell, log: TextIO, compile_rounds: dispatch.CompileRounds = dispatch.compile_rounds) -> stage.Row:
    """Trains a cell's network, or goes on with it, and returns its row.

    Args:
        cell: the cell.
        log: gets a line for every evaluation.
        compile_rounds: of a student.

    Raises:
        Interrupted: SIGTERM came; the state is saved.
        ValueError: as the stages of `runs`; or the directory was started with other settings.
    """
    dataset, preset = load_dataset(cell.preset.dataset), cell.preset
    directory = RunDirectory.open(cell.path, cell.facts(dataset.classes), "resume")
    if cell.defense is None:
        return runs.train_teacher(directory, preset, dataset, cell.trigger, cell.seed, _Lines(log))
    teacher, _ = checkpoint.load_network(cell.teacher.path / "network")
    return runs.make_student(
        directory,
        preset,
        dataset,
        teacher,
        cell.trigger,
        cell.defense,
        cell.seed,
        _Lines(log),
        compile_rounds=compile_rounds,
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a cell: its row, or an error of one line; neither, if it was told to stop."""

    row: stage.Row | None = None
    error: str | None = None


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Appends all that this process prints, native code included, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        faulthandler.enable(file)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            faulthandler.disable()
            for descriptor, old in enumerate(kept, start=1):
                os.dup2(old, descriptor)
                os.close(old)


Lot = tuple[Cell, ...]
"""Cells that a worker gets at once."""


def lots(cells: Sequence[Cell], size: int) -> list[Lot]:
    """Students of one method and defense by at most so many, since these can be computed together; all others alone."""

    def kind(cell: Cell) -> Hashable:
        return (cell.preset, cell.defense) if cell.defense not in (None, "clean_kd") else cell

    found: list[Lot] = []
    for group in (tuple(group) for _, group in itertools.groupby(cells, kind)):
        parts = -(-len(group) // size)
        found += [group[len(group) * part // parts : len(group) * (part + 1) // parts] for part in range(parts)]
    return found


def attempt(lot: Lot) -> tuple[Outcome, ...]:
    """`train` for each of a lot, with its output in its log and its failure as a value: what executors run.

    Where it pays, which it does not on CPU, the cells of a lot are computed together.
    """
    if len(lot) > 1 and jax.default_backend() != "cpu":
        return together(lot)
    outcomes: list[Outcome] = []
    for cell in lot:
        told_to_stop = outcomes and outcomes[-1] == Outcome()
        with _output_to(cell.log):
            outcomes.append(Outcome() if told_to_stop else _attempt(cell))
    return tuple(outcomes)


def together(lot: Lot) -> tuple[Outcome, ...]:
    """Trains a lot's students in lockstep, each in a thread of its own.

    What native code prints, which does not tell for whom, goes to the first one's log.
    """
    load_dataset(lot[0].preset.dataset)  # once, not in each thread
    meeting = Lockstep(len(lot))

    def member(cell: Cell) -> Outcome:
        with meeting.member():
            return _attempt(cell, meeting.compile_rounds)

    with _output_to(lot[0].log), stage.termination(), ThreadPoolExecutor(len(lot)) as threads:
        return tuple(threads.map(member, lot))


def _attempt(cell: Cell, compile_rounds: dispatch.CompileRounds = dispatch.compile_rounds) -> Outcome:
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("a", buffering=1) as log:
        try:
            return Outcome(row=train(cell, log, compile_rounds))
        except stage.Interrupted as interruption:
            print(interruption, file=log)
            return Outcome()
        except Exception as error:
            traceback.print_exc(file=log)
            return Outcome(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
