"""The page of a directory of `reproduce`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from abd_jax.report.formats import nested
from abd_jax.report.headline import headline
from abd_jax.report.names import MEANINGS, short_name
from abd_jax.report.page import PAGE_FILE, fill
from abd_jax.report.reading import Reproduction, read
from abd_jax.report.sections.curves import curve_pairs
from abd_jax.report.sections.examples import example_sets
from abd_jax.report.sections.galleries import gallery_sets
from abd_jax.report.sections.inversion import inversion_views
from abd_jax.report.sections.vaccine import vaccine_views
from abd_jax.report.summary import Summary, summarize, varying
from abd_jax.writing import write_whole


def write_page(directory: Path) -> Path:
    """Writes `directory/report.html`, whole or not at all.

    Args:
        directory: of `reproduce`, finished or not.

    Returns:
        The page's path.

    Raises:
        ValueError: a malformed file in the directory.
    """
    directory = Path(directory)
    path = directory / PAGE_FILE
    write_whole(path, render(read(directory)))
    return path


def render(run: Reproduction) -> str:
    """The page as text."""
    target = None if run.target is None else run.class_name(run.target)
    summaries, examples = summarize(run.rows), example_sets(run)
    expected = len(run.triggers) * len(run.seeds) * (1 + len(run.defenses))
    defenses = dict.fromkeys((*run.defenses, *(row.defense for row in run.rows if row.role == "student")))
    return fill(
        "reproduction.html.j2",
        run=run,
        headline=headline(run.rows, target),
        target=target,
        finished=len(run.rows),
        expected=max(expected, len(run.rows)),
        datasets=", ".join(dict.fromkeys(row.dataset for row in run.rows)) or run.preset.get("dataset", ""),
        methods=", ".join(dict.fromkeys(row.method for row in run.rows)) or run.preset.get("method", ""),
        columns=varying(run.rows),
        summaries=summaries,
        several=any(len(summary.seeds) > 1 for summary in summaries),
        meanings=[(short_name(name), MEANINGS[name]) for name in defenses if name in MEANINGS],
        general={name: value for name, value in run.preset.items() if not nested(value)}
        | {"triggers": list(run.triggers), "seeds": list(run.seeds), "defenses": list(run.defenses)},
        curves=curve_pairs(run),
        examples=examples,
        galleries=gallery_sets(run),
        vaccines=vaccine_views(run),
        inversions=inversion_views(run, examples),
        vaccinated=[student for student in run.students if student.vaccine is not None],
        total_seconds=math.fsum(row.seconds for row in run.rows),
        speeds=speeds(run, summaries),
        origins=[student for student in run.students if student.teacher_digest],
    )


def speeds(run: Reproduction, summaries: Iterable[Summary]) -> list[tuple[Summary, int | None]]:
    """Every network with the number of steps that its runs logged, None where nothing was logged or runs differ."""
    steps: dict[tuple[str, str, str], set[int]] = {}
    for teacher in run.teachers:
        steps.setdefault((teacher.trigger, "teacher", "none"), set()).add(teacher.curve.last_step)
    for student in run.students:
        steps.setdefault((student.trigger, "student", student.defense), set()).add(student.curve.last_step)
    found = []
    for summary in summaries:
        logged = steps.get((summary.trigger, summary.role, summary.defense), set())
        found.append((summary, next(iter(logged)) if len(logged) == 1 and 0 not in logged else None))
    return found
