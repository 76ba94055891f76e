"""The matrix: data-free methods × triggers × defenses × seeds, cell by cell, resumable.

A directory holds `teachers/TRIGGER-seedN/` (one for all methods), `students/METHOD/TRIGGER-seedN-DEFENSE/`, a log of
every cell in `logs/`, and `grid.json`: which cells there are, and how each one stands. `run` is the only writer of
`grid.json` and `results.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from abd_jax.training import config, stage
from abd_jax.training.cells import Cell, Lot, Outcome, attempt, load_dataset, lots
from abd_jax.training.executors import Died, Execute
from abd_jax.training.run_directory import CONFIG_FILE, RESULT_FILE, RunDirectory, write_json

GRID_FILE, RESULTS_FILE = "grid.json", "results.json"
State = Literal["done", "failed", "waiting"]


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
            RunDirectory.open(cell.path, cell.facts(load_dataset(cell.preset.dataset).classes), "resume")


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
