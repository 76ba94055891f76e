"""The matrix: data-free methods × triggers × defenses × seeds, cell by cell, resumable.

A directory holds `teachers/TRIGGER-seedN/` (one for all methods), `students/METHOD/TRIGGER-seedN-DEFENSE/`, a log of
every cell in `logs/`, and `grid.json`: which cells there are, and how each one stands. `run` is the only writer of
`grid.json` and `results.json`; cells write into their own directories alone, so they may run anywhere that sees them.
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
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TextIO

import jax

from abd_jax import data
from abd_jax.training import checkpoint, config, dispatch, runs, stage
from abd_jax.training.executors import Died, Execute
from abd_jax.training.lockstep import Lockstep
from abd_jax.training.run_directory import CONFIG_FILE, RESULT_FILE, RunDirectory, write_json

GRID_FILE, RESULTS_FILE = "grid.json", "results.json"
State = Literal["done", "failed", "waiting"]


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


def cells(
    top: Path,
    presets: Sequence[config.Preset],
    triggers: Sequence[str],
    defenses: Sequence[str],
    seeds: Sequence[int],
) -> tuple[list[Cell], list[Cell]]:
    """Teachers, and students in an order in which those that share compiled code follow each other.

    The baseline that has data reads no synthesis settings: it is trained once, under the first method.

    Args:
        top: the matrix's directory.
        presets: one per method.
        triggers, defenses, seeds: what is crossed with them.

    Raises:
        ValueError: the presets differ in what makes a teacher.
    """
    first = presets[0]
    for preset in presets[1:]:
        for name in ("dataset", "dtype", "teacher"):
            if getattr(preset, name) != getattr(first, name):
                raise ValueError(
                    f"--methods: the methods {first.method} and {preset.method} need one teacher, but their presets "
                    f"{first.name} and {preset.name} differ in {name}"
                )
    pairs = [(trigger, seed) for trigger in triggers for seed in seeds]
    teachers = [Cell(top, first, trigger, seed) for trigger, seed in pairs]
    students = [
        Cell(top, preset, trigger, seed, defense)
        for preset in presets
        for defense in defenses
        if defense != "clean_kd" or preset is first
        for trigger, seed in pairs
    ]
    return teachers, students


@functools.cache
def _dataset(name: str) -> data.Dataset:
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
    dataset, preset = _dataset(cell.preset.dataset), cell.preset
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
    _dataset(lot[0].preset.dataset)  # once, not in each thread
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


Told = Callable[[Cell, Outcome, int, int], None]
"""(cell, what became of it, cells that are finished, cells in all)"""


class Matrix:
    """The grid in its directory: how every cell stands.

    Cells of earlier calls that are not asked for now are kept, and stand in the results.
    """

    def __init__(self, top: Path, asked: Iterable[Cell]) -> None:
        self.top, path = top, top / GRID_FILE
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            for entry in json.loads(path.read_text()) if path.is_file() else []:
                state: State = "failed" if entry["state"] == "failed" else "waiting"
                done = (top / entry["name"] / RESULT_FILE).is_file()
                self._entries[entry["name"]] = {**entry, "state": "done" if done else state}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it and use --resume") from error
        for cell in asked:
            state = "done" if cell.done else "waiting"
            self._entries[cell.name] = {
                "name": cell.name,
                "role": "teacher" if cell.defense is None else "student",
                "method": cell.preset.method,
                "trigger": cell.trigger,
                "defense": cell.defense or "none",
                "seed": cell.seed,
                "state": state,
                "error": None,
                "log": str(cell.log.relative_to(top)),
            }
        self.write()

    def mark(self, cell: Cell, outcome: Outcome) -> None:
        """Takes down what became of a cell."""
        state = "done" if outcome.row else "failed" if outcome.error else "waiting"
        self._entries[cell.name] |= {"state": state, "error": outcome.error}
        self.write()

    def write(self) -> None:
        """Writes `grid.json` and `results.json`: the rows of all cells that are done."""
        write_json(self.top / GRID_FILE, self.entries)
        write_json(self.top / RESULTS_FILE, self.rows())

    @property
    def entries(self) -> list[dict[str, Any]]:
        """One per cell, as in `grid.json`."""
        return list(self._entries.values())

    def state(self, cell: Cell) -> State:
        """What became of a cell so far."""
        return self._entries[cell.name]["state"]  # type: ignore[no-any-return]

    def rows(self) -> list[stage.Row]:
        places = (self.top / name / RESULT_FILE for name, entry in self._entries.items() if entry["state"] == "done")
        return [json.loads(place.read_text()) for place in places]


def check(asked: Iterable[Cell]) -> None:
    """Opens every directory that there is already, so that one with other settings is told before anything runs.

    Raises:
        ValueError: a directory was started with other settings.
    """
    for cell in asked:
        if (cell.path / CONFIG_FILE).is_file():
            RunDirectory.open(cell.path, cell.facts(_dataset(cell.preset.dataset).classes), "resume")


def run(
    top: Path,
    teachers: Sequence[Cell],
    students: Sequence[Cell],
    execute: Execute,
    tell: Told = lambda *_: None,
    size: int = 1,
) -> Matrix:
    """Trains all cells that are not done: the teachers, then the students of those that are.

    Args:
        top: an open run directory.
        teachers, students: as `cells` gives them.
        execute: an executor.
        tell: is told of every cell that ends.
        size: of a lot.

    Raises:
        ValueError: a directory of a cell was started with other settings.
    """
    asked = [*teachers, *students]
    check(asked)
    matrix = Matrix(top, asked)
    finished = sum(cell.done for cell in asked)

    def end(cell: Cell, outcome: Outcome) -> None:
        nonlocal finished
        finished += outcome.row is not None or outcome.error is not None
        matrix.mark(cell, outcome)
        tell(cell, outcome, finished, len(asked))

    for cells in (teachers, students):
        waiting = [cell for cell in cells if not cell.done]
        for cell in [cell for cell in waiting if cell.defense is not None and not cell.teacher.done]:
            waiting.remove(cell)
            failed = matrix.state(cell.teacher) == "failed"
            end(cell, Outcome(error=f"no teacher: {cell.teacher.name} failed" if failed else None))
        given = lots(waiting, size)
        while given:
            again: list[Lot] = []
            for lot, result in execute(attempt, given):
                if isinstance(result, Died) and len(lot) > 1:  # it may have been the doing of one of them alone
                    for cell in lot:
                        if cell.done:
                            end(cell, Outcome(row=cell.row))
                        else:
                            again.append((cell,))
                    continue
                outcomes = (Outcome(error=str(result)),) if isinstance(result, Died) else result
                for cell, outcome in zip(lot, outcomes, strict=True):
                    end(cell, outcome)
            given = again
    return matrix
