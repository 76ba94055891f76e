"""The report's first sentences: what came out, computed from the rows, whichever way it came out."""

from __future__ import annotations

from collections.abc import Sequence, Set

from abd_jax.report.formats import percent
from abd_jax.report.names import short_name
from abd_jax.report.rows import Row
from abd_jax.report.summary import Statistic

_INHERITED, _PARTLY = 0.5, 0.1
_COST = 0.03
_SAME = 0.005
_PREFERRED = ("abd", "sv", "sr")


def headline(rows: Sequence[Row], target: str | None) -> str:
    """Teacher, vanilla student and defended student in two or three plain sentences.

    With several triggers or seeds: means, over the (trigger, seed) pairs that all the named networks have.

    Args:
        rows: all rows of one directory.
        target: name of the attacker's class; None if unknown.
    """
    if not rows:
        return "No network has finished training yet, so there is no result to tell."
    teachers = {(row.trigger, row.seed): row for row in rows if row.role == "teacher"}
    students: dict[str, dict[tuple[str, int], Row]] = {}
    for row in rows:
        if row.role == "student":
            students.setdefault(row.defense, {})[row.trigger, row.seed] = row
    vanilla = students.get("none", {})
    defenses = [*_PREFERRED, *(name for name in students if name not in (*_PREFERRED, "none", "clean_kd"))]
    defense = next((name for name in defenses if name in students), None)
    defended = students.get(defense, {}) if defense else {}

    if vanilla and defended:
        common = vanilla.keys() & defended.keys()
        defended = _at(defended, common)
        vanilla = _at(vanilla, common) or vanilla
    teachers = _at(teachers, vanilla.keys() | defended.keys()) or teachers
    sentences = [_teacher_sentence(teachers, target)] if teachers else []
    if not vanilla and not defended:
        return " ".join([*sentences, "No student has finished yet."])
    if vanilla:
        sentences.append(_vanilla_sentence(vanilla, bool(teachers)))
    else:
        sentences.append("No undefended student has finished, so there is nothing to compare a defense with.")
    if defended and defense:
        sentences.append(_defended_sentence(short_name(defense), defended, vanilla))
    else:
        sentences.append(f"No defended student has finished{' on the same trigger and seed' if defense else ''} yet.")
    return " ".join([*sentences, *_basis(defended or vanilla or teachers)])


def _at(runs: dict[tuple[str, int], Row], keys: Set[tuple[str, int]]) -> dict[tuple[str, int], Row]:
    return {key: row for key, row in runs.items() if key in keys}


def _rates(runs: dict[tuple[str, int], Row]) -> tuple[float, float]:
    """Mean ACC and ASR."""
    return Statistic.of(row.acc for row in runs.values()).mean, Statistic.of(row.asr for row in runs.values()).mean


def _teacher_sentence(teachers: dict[tuple[str, int], Row], target: str | None) -> str:
    acc, asr = _rates(teachers)
    only = "only " if asr < _INHERITED else ""
    aim = f"class {target}" if target is not None else "the attacker’s class"
    subject = "The teacher answers" if len(teachers) == 1 else "The teachers answer"
    sentence = f"{subject} {aim} on {only}{percent(asr)} of triggered images (ACC {percent(acc)})"
    return sentence + (": there is hardly a backdoor to inherit." if asr < _PARTLY else ".")


def _vanilla_sentence(vanilla: dict[tuple[str, int], Row], with_teacher: bool) -> str:
    _, asr = _rates(vanilla)
    how = (
        "inherited this"
        if asr >= _INHERITED
        else "inherited part of this"
        if asr >= _PARTLY
        else "hardly inherited this"
    )
    if not with_teacher:
        how = how.replace("this", "a backdoor")
    subject = "A student" if len(vanilla) == 1 else "Students"
    source = ("it" if len(vanilla) == 1 else "them") if with_teacher else "a teacher"
    return f"{subject} distilled from {source} without data {how} (ASR {percent(asr)})."


def _defended_sentence(name: str, defended: dict[tuple[str, int], Row], vanilla: dict[tuple[str, int], Row]) -> str:
    acc, asr = _rates(defended)
    if not vanilla:
        return f"With {name}: ASR {percent(asr)}, ACC {percent(acc)}."
    acc_before, asr_before = _rates(vanilla)
    accuracy = f"ACC {percent(acc)} against {percent(acc_before)}"
    if asr_before - asr < _SAME:
        change = "did not lower it" if asr - asr_before < _SAME else "raised it"
        sentence = f"{name} {change}: {percent(asr)}, {accuracy}"
    elif asr > asr_before / 2:
        sentence = f"With {name} it is still {percent(asr)}, {accuracy}"
    else:
        sentence = f"With {name}: {percent(asr)}, {accuracy}"
    lost = acc_before - acc
    return sentence + (f", a cost of {100 * lost:.1f} points." if lost > _COST else ".")


def _basis(runs: dict[tuple[str, int], Row]) -> list[str]:
    """What the numbers are means of, if of more than one run."""
    triggers, seeds = {trigger for trigger, _ in runs}, {seed for _, seed in runs}
    parts = [f"{len(values)} {name}s" for name, values in (("trigger", triggers), ("seed", seeds)) if len(values) > 1]
    return [f"(Means over {' and '.join(parts)}.)"] if parts else []
