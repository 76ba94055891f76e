"""The health report of a network, and of a student beside it: one self-contained page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from abd_jax import data
from abd_jax.report import images, plots
from abd_jax.report.artifacts import Vaccine
from abd_jax.report.calibration import errors, zoo_view
from abd_jax.report.page import PAGE_FILE, fill
from abd_jax.training.audit import SIGNS, Comparison, Examination
from abd_jax.training.calibration import Calibrated, Row, calibrate
from abd_jax.training.run_directory import device, versions
from abd_jax.writing import write_whole

JSON_FILE = "audit.json"
_PICTURES = 20


@dataclasses.dataclass(frozen=True)
class SignRow:
    """One sign in words and numbers.

    Attributes:
        name, meaning: see `audit.SIGNS`.
        value, student: in the network, and in the student if there is one; None: not measured.
        threshold: from which on it speaks for a backdoor.
        verdict, student_verdict: `speaks for a backdoor`, `does not`, or why nothing can be said.
        errors: how often it was wrong on the zoo.
    """

    name: str
    meaning: str
    value: float | None
    student: float | None
    threshold: float | None
    verdict: str
    student_verdict: str
    errors: str


def class_names(notes: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the classes as the notes tell them, or their numbers."""
    named = tuple(map(str, notes.get("classes") or ()))
    return named if len(named) == count else tuple(map(str, range(count)))


def origin(command: str, settings: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """Where a page comes from."""
    return {
        "command": command,
        "device": device(),
        "versions": versions(),
        "seconds": seconds,
        "settings": dict(settings),
    }


def verdict(value: float | None, sign: Calibrated | None, reason: str = "") -> str:
    """What a sign's value says."""
    if value is None:
        return f"not measured: {reason}"
    if sign is None:
        return "not calibrated"
    if sign.threshold is None:
        return "says nothing: no better than chance on the zoo"
    return "speaks for a backdoor" if value > sign.threshold else "does not speak for one"


def sign_rows(found: Examination, student: Examination | None, known: Mapping[str, Calibrated]) -> list[SignRow]:
    """A row for every sign."""
    rows = []
    for name, meaning in SIGNS.items():
        sign, value = known.get(name), found.signs[name]
        other = student.signs[name] if student is not None else None
        rows.append(
            SignRow(
                name=name,
                meaning=meaning,
                value=value,
                student=other,
                threshold=sign.threshold if sign else None,
                verdict=verdict(value, sign, found.reasons.get(name, "")),
                student_verdict="" if student is None else verdict(other, sign, student.reasons.get(name, "")),
                errors=errors(sign),
            )
        )
    return rows


def caveat(notes: Mapping[str, Any], found: Examination, rows: Sequence[Row]) -> str:
    """Why a calibration's thresholds are but a hint for a network; empty if they were measured on networks like it."""
    infos = [data.CATALOG[row.dataset] for row in rows if row.dataset in data.CATALOG]
    there = {
        "architecture": {row.architecture for row in rows},
        "images": {_sides(info.image_shape) for info in infos},
        "classes": {str(len(info.classes)) for info in infos},
        "data set": {row.dataset for row in rows},
    }
    here = {
        "architecture": str(notes.get("architecture") or "not known"),
        "images": _sides(found.images.shape[1:]),
        "classes": str(len(found.sizes)),
        "data set": str(notes.get("dataset") or "not known"),
    }
    other = [
        f"{name} {here[name]} (there {', '.join(sorted(known))})"
        for name, known in there.items()
        if known and here[name] not in known
    ]
    if not other:
        return ""
    return f"The thresholds were measured on other networks and are but a hint for this one: {'; '.join(other)}."


def _sides(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def contradiction(row: SignRow, bar: float, suspect: str) -> str:
    """A sentence if the zoo says of the anomaly otherwise than the defense, which has a bar of its own; else empty.

    Args:
        row: of the anomaly.
        bar: from which on the defense acts, see `InversionConfig`.
        suspect: name of the class with the smallest trigger.
    """
    speaks = row.verdict == "speaks for a backdoor"
    if row.value is None or speaks == (row.value >= bar):
        return ""
    if speaks:
        return f" The anomaly {row.value:.3g} is below {bar:g}: the defense would suspect no class."
    return f" The anomaly {row.value:.3g} reaches {bar:g}: the defense would suspect class {suspect}; it {row.verdict}."


def headline(rows: Sequence[SignRow], student: bool) -> str:
    """How many signs speak for a backdoor, and how many of those are gone in the student."""
    judged = [row for row in rows if row.threshold is not None and row.value is not None]
    loud = [row for row in judged if row.verdict == "speaks for a backdoor"]
    text = f"{len(loud)} of {len(judged)} calibrated signs speak for a backdoor in this network"
    text += f": {', '.join(row.name for row in loud)}." if loud else "."
    if student and loud:
        gone = [row.name for row in loud if row.student_verdict == "does not speak for one"]
        text += f" In the student {len(gone)} of these {'is' if len(gone) == 1 else 'are'} gone"
        text += f": {', '.join(gone)}." if gone else "."
    return text


def facts(
    name: str, notes: Mapping[str, Any], found: Examination, known: Mapping[str, Calibrated], rows: Sequence[SignRow]
) -> dict[str, Any]:
    """A network's part of `audit.json`."""
    return {
        "name": name,
        "architecture": notes.get("architecture"),
        "digest": notes.get("digest"),
        "signs": found.signs,
        "reasons": found.reasons,
        "thresholds": {sign: known[sign].threshold for sign in known},
        "verdicts": {row.name: row.verdict for row in rows},
        "suspect": found.suspect,
        "trigger_sizes": found.sizes.tolist(),
        "trigger_flips": found.flips.tolist(),
        "vaccine_accepted": found.enabled if found.log_kl is not None else None,
    }


def signs_of(content: Mapping[str, Any], digest: str) -> dict[str, str]:
    """Each sign's value, verdict and errors on the zoo, for a model card.

    Args:
        content: of `audit.json`.
        digest: of the network, which may be the audit's teacher or its student.

    Raises:
        ValueError: it is neither.
    """
    for side in ("teacher", "student"):
        found = content.get(side)
        if isinstance(found, dict) and found.get("digest") == digest:
            known = {name: Calibrated(**sign) for name, sign in content.get("calibration", {}).items()}
            return {
                name: f"{'–' if value is None else f'{value:.3g}'}, {found['verdicts'][name]}; "
                f"on the zoo: {errors(known.get(name))}"
                for name, value in found["signs"].items()
            }
    raise ValueError("no audit of this network")


@dataclasses.dataclass(frozen=True)
class NetworkView:
    """One network's plots and pictures."""

    title: str
    where: str
    suspect: str
    size: float
    median: float
    flip: float
    anomaly: float
    sizes: Markup
    patches: list[tuple[str, str, bool]]
    classes: list[tuple[str, float, float, bool]]
    histogram: Markup | None
    vaccine: str
    channels: list[tuple[str, int, float, int]]


def view(title: str, where: str, found: Examination, names: Sequence[str], deviations: float) -> NetworkView:
    """The plots and pictures of one network."""
    order = sorted(range(len(found.sizes)), key=lambda index: (index != found.suspect, found.sizes[index]))
    shown = sorted(order[:_PICTURES])
    pictures = images.patches(found.masks, found.patterns)
    histogram, told = None, found.reasons.get("tail", "")
    if found.log_kl is not None:
        tail = float(np.mean(found.log_kl[-1] < found.threshold))
        vaccine = Vaccine(found.log_kl, found.threshold, tail, len(found.log_kl), found.enabled, 0.0)
        histogram = plots.histogram(vaccine, where)
        told = (
            f"{'Accepted' if found.enabled else 'Rejected'} after {len(found.log_kl)} draw(s): "
            f"{100 * tail:.1f} % of the images lie more than {deviations:g} deviations under the mean."
        )
    channels = [
        (path, int(np.argmax(values)), float(values.max()), int(np.sum(values > 3)))
        for path, values in found.channels.items()
    ]
    return NetworkView(
        title=title,
        where=where,
        suspect=names[found.suspect],
        size=float(found.sizes[found.suspect]),
        median=float(np.median(found.sizes)),
        flip=float(found.flips[found.suspect]),
        anomaly=found.signs["anomaly"] or 0.0,
        sizes=plots.sizes(found, {index: names[index] for index in shown}, where),
        patches=[(names[index], images.data_uri(pictures[index]), index == found.suspect) for index in shown],
        classes=[
            (names[index], float(found.sizes[index]), float(found.flips[index]), index == found.suspect)
            for index in range(len(found.sizes))
        ],
        histogram=histogram,
        vaccine=told,
        channels=sorted(channels, key=lambda channel: -channel[2]),
    )


def write(
    directory: Path | None,
    *,
    names: Sequence[str],
    notes: Mapping[str, Any],
    teacher: tuple[str, Examination],
    student: tuple[str, Mapping[str, Any], Examination, Comparison] | None,
    rows: Sequence[Row],
    deviations: float,
    bar: float,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes `report.html` and `audit.json`, and returns the latter's content; without a directory it is only returned.

    Args:
        directory: made if it is not there; None: nothing is written.
        names: of the classes, in label order.
        notes: of the teacher.
        teacher: its name and examination.
        student: its name, notes, examination, and how it compares; None without one.
        rows: the calibration; none: the signs' values stand there without a verdict.
        deviations: of the vaccine's threshold.
        bar: the anomaly from which on the defense acts.
        origin: command, versions, seconds and settings.
    """
    known = calibrate(rows) if rows else {}
    table = sign_rows(teacher[1], student[2] if student else None, known)
    said = contradiction(next(row for row in table if row.name == "anomaly"), bar, names[teacher[1].suspect])
    content: dict[str, Any] = {
        "teacher": facts(teacher[0], notes, teacher[1], known, table),
        "calibration": {name: dataclasses.asdict(sign) for name, sign in known.items()},
        "caveat": caveat(notes, teacher[1], rows),
        "headline": headline(table, student is not None) + (said if rows else ""),
        **origin,
    }
    if student:
        own = sign_rows(student[2], None, known)
        content["student"] = facts(student[0], student[1], student[2], known, own)
        content["comparison"] = dataclasses.asdict(student[3])
    if directory is None:
        return content
    views = [view("Teacher" if student else "Network", "teacher", teacher[1], names, deviations)]
    if student:
        views.append(view("Student", "student", student[2], names, deviations))
    text = fill(
        "audit.html.j2",
        title=teacher[0],
        headline=content["headline"],
        caveat=content["caveat"],
        notes=notes,
        rows=table,
        has_student=student is not None,
        comparison=student[3] if student else None,
        suspect=names[teacher[1].suspect],
        views=views,
        sheet=images.data_uri(images.sheet(teacher[1].images)),
        count=len(teacher[1].images),
        shares=[
            (names[index], count / len(teacher[1].predictions))
            for index, count in enumerate(np.bincount(teacher[1].predictions))
            if count
        ],
        names=names,
        origin=origin,
        **zoo_view(rows, known),
    )  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / PAGE_FILE, text)
    write_whole(directory / JSON_FILE, json.dumps(content, indent=2) + "\n")
    return content
