"""One page of a directory of `matrix`: heat maps, what each defense is worth, a sortable table, and what failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from abd_jax.report.files import read_json
from abd_jax.report.names import short_name
from abd_jax.report.page import PAGE_FILE, fill
from abd_jax.report.rows import Row, parse_row
from abd_jax.report.summary import Statistic, summarize
from abd_jax.writing import write_whole

RAISED = 0.02
"""An ASR that rises by more counts as raised."""
_LINES = 30
_FIELDS = {"name": str, "role": str, "method": str, "trigger": str, "defense": str, "seed": int, "state": str}
_NO_METHOD = "clean_kd"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A cell of `grid.json`."""

    name: str
    role: str
    method: str
    trigger: str
    defense: str
    seed: int
    state: str
    error: str | None
    log: str | None


@dataclasses.dataclass(frozen=True)
class HeatCell:
    """A rate over seeds; None where no cell is done; how many of them failed or are waiting."""

    statistic: Statistic | None
    seeds: int
    failed: int
    waiting: int


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Methods × (trigger, defense) for one rate."""

    rate: str
    triggers: list[str]
    defenses: list[str]
    rows: list[tuple[str, list[HeatCell]]]


@dataclasses.dataclass(frozen=True)
class Worth:
    """A defense beside no defense, over the (method, trigger, seed) at which both are done.

    Attributes:
        method: one method; None for all of them together.
        pairs: how many there are.
        asr_before, asr: means without and with the defense.
        cut: 1 − asr / asr_before; None where nothing was inherited at all.
        cost: mean of ACC without minus ACC with it.
        raised: pairs in which the ASR rises by more than `RAISED`.
        highest: largest ASR with the defense.
    """

    method: str | None
    defense: str
    pairs: int
    asr_before: float
    asr: float
    cut: float | None
    cost: float
    raised: int
    highest: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """A cell that failed, with the end of its log."""

    entry: Entry
    tail: str


def write_matrix_page(directory: Path) -> Path:
    """Writes `directory/report.html` from `grid.json`, `results.json`, `config.json` and the failed cells' logs.

    Raises:
        ValueError: a malformed file in the directory.
    """
    entries = read_entries(directory)
    listed = read_json(directory / "results.json")
    rows = [parse_row(raw, f"{directory / 'results.json'}: row {index}") for index, raw in enumerate(listed)]
    config = read_json(directory / "config.json")
    summaries = summarize(rows)
    text = fill(
        "matrix.html.j2",
        name=directory.name,
        config=config,
        entries=entries,
        done=sum(entry.state == "done" for entry in entries),
        maps=[heat_map(rate, rows, entries) for rate in ("asr", "acc")],
        worth=[*worth(rows), *worth(rows, by_method=True)],
        summaries=summaries,
        several=any(len(summary.seeds) > 1 for summary in summaries),
        failures=[Failure(entry, _tail(directory, entry)) for entry in entries if entry.state == "failed"],
        total_seconds=sum(row.seconds for row in rows),
        raised=RAISED,
    )
    path = directory / PAGE_FILE
    write_whole(path, text)
    return path


def read_entries(directory: Path) -> list[Entry]:
    """The cells of `grid.json`.

    Raises:
        ValueError: it is malformed.
    """
    path = directory / "grid.json"
    listed, entries = read_json(path), []
    if not isinstance(listed, list):
        raise ValueError(f"{path}: expected a list of cells, found {type(listed).__name__}")
    for index, raw in enumerate(listed):
        fits = isinstance(raw, Mapping) and all(type(raw.get(name)) is kind for name, kind in _FIELDS.items())
        if not fits or not all(isinstance(raw.get(name), str | None) for name in ("error", "log")):
            raise ValueError(f"{path}: cell {index}: expected {', '.join(_FIELDS)}, error and log")
        entries.append(Entry(**{field.name: raw.get(field.name) for field in dataclasses.fields(Entry)}))
    return entries


def heat_map(rate: str, rows: Sequence[Row], entries: Sequence[Entry]) -> HeatMap:
    """A rate over seeds at every cell; the teachers in the first row; in the order of the grid."""
    students = [entry for entry in entries if entry.role == "student"]
    triggers = list(dict.fromkeys(entry.trigger for entry in entries))
    defenses = list(dict.fromkeys(entry.defense for entry in students if entry.defense != _NO_METHOD))
    methods = list(dict.fromkeys(entry.method for entry in students))

    def cell(fits: Callable[[Any], bool]) -> HeatCell:
        values = [getattr(row, rate) for row in rows if fits(row)]
        states = [entry.state for entry in entries if fits(entry)]
        return HeatCell(
            Statistic.of(values) if values else None, len(values), states.count("failed"), states.count("waiting")
        )

    def student(method: str, trigger: str, defense: str) -> HeatCell:
        key = ("student", method, trigger, defense)
        return cell(lambda one: (one.role, one.method, one.trigger, one.defense) == key)

    def reference(role: str, trigger: str, defense: str) -> HeatCell:
        return cell(lambda one: (one.role, one.trigger, one.defense) == (role, trigger, defense))

    table = [(method, [student(method, t, d) for t in triggers for d in defenses]) for method in methods]
    table.append(("teacher", [reference("teacher", trigger, "none") for trigger in triggers]))
    if any(entry.defense == _NO_METHOD for entry in students):
        table.append((short_name(_NO_METHOD), [reference("student", trigger, _NO_METHOD) for trigger in triggers]))
    return HeatMap(rate, triggers, defenses, table)


def worth(rows: Iterable[Row], by_method: bool = False) -> list[Worth]:
    """What every defense is worth, over all methods or for each of them."""
    students = [row for row in rows if row.role == "student" and row.defense != _NO_METHOD]
    vanilla = {(row.method, row.trigger, row.seed): row for row in students if row.defense == "none"}
    groups: dict[tuple[str | None, str], list[tuple[Row, Row]]] = {}
    for row in students:
        before = vanilla.get((row.method, row.trigger, row.seed))
        if row.defense != "none" and before is not None:
            groups.setdefault((row.method if by_method else None, row.defense), []).append((before, row))
    found = []
    for (method, defense), pairs in groups.items():
        asr_before, asr = (Statistic.of(pair[side].asr for pair in pairs).mean for side in (0, 1))
        found.append(
            Worth(
                method=method,
                defense=defense,
                pairs=len(pairs),
                asr_before=asr_before,
                asr=asr,
                cut=1 - asr / asr_before if asr_before > 0 else None,
                cost=Statistic.of(before.acc - row.acc for before, row in pairs).mean,
                raised=sum(row.asr > before.asr + RAISED for before, row in pairs),
                highest=max(row.asr for _, row in pairs),
            )
        )
    return found


def _tail(directory: Path, entry: Entry) -> str:
    """The last lines of a cell's log, if it lies in the directory."""
    path = (directory / (entry.log or "")).resolve()
    if not path.is_file() or not path.is_relative_to(directory.resolve()):
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:])
