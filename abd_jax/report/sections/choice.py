"""How much of many runs a section shows: triggers in order, of each the run that stands for the others, classes."""

from __future__ import annotations

from collections.abc import Sequence

from abd_jax.report.reading import Student, Teacher

CLASSES = 10
"""So many classes are shown one by one."""


def triggers(runs: Sequence[Teacher | Student]) -> list[str]:
    """Those of the runs, each once, in their order."""
    return list(dict.fromkeys(run.trigger for run in runs))


def first_with(name: str, students: Sequence[Student]) -> list[Student]:
    """Of every trigger's students that have the named result, the one of the first seed, ABD before others."""
    having = [student for student in students if getattr(student, name) is not None]
    having.sort(key=lambda student: (student.seed, student.defense != "abd"))
    first = {student.trigger: student for student in reversed(having)}
    return [first[trigger] for trigger in triggers(students) if trigger in first]
