"""`audit`: signs of a backdoor in a network, without data; or how often each sign is wrong on a zoo of teachers."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from abd_jax.interop.teacher import read_described
from abd_jax.report import audit as pages
from abd_jax.report.calibration import errors, write_calibration
from abd_jax.training import audit, calibration, zoo
from abd_jax.training.audit import AuditConfig
from abd_jax.training.run_directory import write_json
from experiments.commands._common import File, FileFacts
from experiments.console import PROGRAM, stderr, stdout
from experiments.parser import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """Options of `audit`."""

    out: Path
    """Directory of the page and of audit.json; with --calibrate of calibration.json."""
    teacher: Path | None = None
    """Directory that `teacher`, `distill` or `reproduce` made; or a file of weights."""
    file: File = FileFacts()
    student: Path | None = None
    """Directory of a student of this teacher: which signs are gone in it?"""
    calibrate: Path | None = None
    """Instead of one teacher: a folder of clean and poisoned ones, on which every sign is measured."""
    calibration: Path | None = None
    """What --calibrate made; none: the one that comes with the package, of digits teachers."""
    settings: Annotated[AuditConfig, tyro.conf.arg(name="")] = AuditConfig()
    json: bool = False
    """Print one JSON object instead of a table."""
    overwrite: bool = False
    """Replace what is in --out."""

    def __post_init__(self) -> None:
        if (self.teacher is None) == (self.calibrate is None):
            raise ValueError("one of --teacher FILE and --calibrate ZOO must be given, and not both")
        if self.calibrate is not None and (self.student is not None or self.calibration is not None):
            raise ValueError("--calibrate goes without --student and --calibration")


def main(argv: list[str]) -> None:
    """Parses, examines and prints."""
    options = parse(Audit, argv, prog="audit", description="Signs of a backdoor, without data.")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out}: is a file; allowed is a directory")
    done = options.out / (pages.JSON_FILE if options.teacher else calibration.ROWS_FILE)
    if done.exists() and not options.overwrite:
        raise ValueError(f"--out {options.out}: holds an audit already; use --overwrite to replace it")
    started = time.perf_counter()
    if options.calibrate is not None:
        _calibrate(options, options.calibrate, started)
    elif options.teacher is not None:
        _audit(options, options.teacher, started)


def _origin(options: Audit, started: float) -> dict[str, Any]:
    command = " ".join([PROGRAM, *sys.argv[1:]])
    return pages.origin(command, dataclasses.asdict(options.settings), round(time.perf_counter() - started, 1))


def _audit(options: Audit, path: Path, started: float) -> None:
    rows = calibration.read_rows(options.calibration)
    teacher, notes = read_described(path, options.file.description)
    if options.calibration is None and options.settings != AuditConfig():
        _tell("the package's thresholds were measured at the default settings, and these are others")
    _tell(f"examining {path}")
    found = audit.examine(teacher, options.settings)
    student = None
    if options.student is not None:
        other, other_notes = read_described(options.student, FileFacts().description)
        comparison = audit.compare(teacher, found, other, options.settings)
        _tell(f"examining {options.student}")
        student = (options.student.name, other_notes, audit.examine(other, options.settings), comparison)
    content = pages.write(
        options.out,
        names=pages.class_names(notes, teacher.module.num_classes),
        notes=notes,
        teacher=(path.name, found),
        student=student,
        rows=rows,
        deviations=options.settings.vaccine.deviations,
        bar=options.settings.inversion.anomaly,
        origin=_origin(options, started),
    )
    if content["caveat"]:
        _tell(content["caveat"])
    if options.json:
        print(json.dumps(content))
        return
    sides = [side for side in ("teacher", "student") if side in content]
    table = Table("sign", *sides, "threshold", "wrong on the zoo")
    known = calibration.calibrate(rows)
    for name in audit.SIGNS:
        values = (content[side]["signs"][name] for side in sides)
        bar = known[name].threshold if name in known else None
        shown = ("–" if value is None else f"{value:.3g}" for value in (*values, bar))
        table.add_row(name, *shown, errors(known.get(name)))
    stdout.print(table)
    stdout.print(f"{content['headline']}\n{options.out / pages.PAGE_FILE}", highlight=False)


def _calibrate(options: Audit, top: Path, started: float) -> None:
    """Examines every teacher once: what is known by digest and settings stays in OUT/teachers."""
    rows = []
    settings = json.loads(json.dumps(dataclasses.asdict(options.settings)))
    for facts in zoo.teachers(top):
        kept = options.out / "teachers" / f"{facts['digest']}.json"
        stored = json.loads(kept.read_text()) if kept.is_file() else {}
        if stored.get("settings") != settings:
            _tell(f"examining {facts['path']}")
            network, _ = read_described(top / facts["path"], FileFacts().description)
            row = calibration.row_of(facts, audit.examine(network, options.settings))
            stored = {"settings": settings, "row": dataclasses.asdict(row) if row else None}
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, stored)
        if stored["row"] is None:
            _tell(f"left out: {facts['path']}, attacked, but its ASR is below 50 %")
        else:
            rows.append(calibration.Row(**stored["row"]))
    known = write_calibration(options.out, rows, _origin(options, started))
    if options.json:
        print(json.dumps({name: dataclasses.asdict(sign) for name, sign in known.items()}))
        return
    table = Table("sign", "AUC", "threshold", "wrong, held out")
    for name, sign in known.items():
        bar = "–" if sign.threshold is None else f"{sign.threshold:.3g}"
        table.add_row(name, f"{sign.auc:.2f}", bar, errors(sign))
    stdout.print(table)
    stdout.print(f"{options.out / calibration.ROWS_FILE}, {options.out / pages.PAGE_FILE}", highlight=False)


def _tell(text: str) -> None:
    stderr.print(text, highlight=False)
