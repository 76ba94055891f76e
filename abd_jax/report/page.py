"""One self-contained HTML page from a directory of `reproduce`: no network, no second file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from abd_jax.defenses.trigger_inversion import anomalies
from abd_jax.report import images, plots
from abd_jax.report.headline import headline, percent
from abd_jax.report.reading import Inversion, Reproduction, Row, Samples, Student, Vaccine, read
from abd_jax.report.tables import Statistic, Summary, network_name, short_name, summarize, varying

_EXAMPLES = 8
_SYNTHESIZED = 64
_CLASSES = 10
_ANOMALY = 2.0  # Neural Cleanse's bar
_MEANINGS = {
    "none": "distilled without data and without a defense",
    "sv": "with the vaccine: triggers are kept out of what the teacher teaches, as the settings of `vaccine` say",
    "sr": "with Self-Retrospection: the student unlearns what can flip it, as the settings of `retrospection` say",
    "abd": "with both, the vaccine and Self-Retrospection",
    "clp": "with channel Lipschitz pruning: channels of the teacher that react too strongly are switched off",
    "fine_pruning": "fine-pruned: features of the student that synthesized images leave asleep are switched off",
    "nad": "with neural attention distillation on synthesized images after distillation",
    "i_bau": "with I-BAU on synthesized images after distillation",
    "dhbe": "with DHBE’s regularizer: a generator of patches plays against the student",
    "abl": "with ABL-style filtering: the images of lowest loss are left out",
    "clean_kd": "a reference that has real data: distilled on a share of the clean training set",
}


@dataclasses.dataclass(frozen=True)
class CurvePair:
    """ACC and ASR over training of all students of a trigger."""

    trigger: str
    acc: Markup
    asr: Markup
    seeds: int


@dataclasses.dataclass(frozen=True)
class ExampleCard:
    """One test image without and with the trigger, their difference, and what the teacher says."""

    clean: str
    triggered: str
    difference: str
    label: str
    clean_prediction: str
    triggered_prediction: str
    fooled: bool


@dataclasses.dataclass(frozen=True)
class ExampleSet:
    """Cards of one teacher."""

    trigger: str
    seed: int
    factor: float
    width: int
    fooled: int
    cards: list[ExampleCard]


@dataclasses.dataclass(frozen=True)
class ClassShare:
    """Share of synthesized images that the teacher gives one class."""

    name: str
    share: float
    is_target: bool


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Synthesized images of one run, sorted by the teacher's class."""

    network: str
    uri: str
    shown: int
    total: int
    shares: list[ClassShare]


@dataclasses.dataclass(frozen=True)
class Galleries:
    """One trigger's and seed's runs side by side."""

    trigger: str
    seed: int
    galleries: list[Gallery]


@dataclasses.dataclass(frozen=True)
class VaccineTrial:
    """One draw of T~ in numbers."""

    mean: float
    std: float
    tail: float


@dataclasses.dataclass(frozen=True)
class VaccineView:
    """A vaccine with its plots."""

    trigger: str
    seed: int
    network: str
    vaccine: Vaccine
    verdict: str
    histogram: Markup
    diagnosis: Markup | None
    separation: float | None
    trials: list[VaccineTrial]


@dataclasses.dataclass(frozen=True)
class InvertedTrigger:
    """The trigger that was found for one class; `uri` is its picture if it is shown."""

    name: str
    size: float
    flip: float
    anomaly: float
    is_suspect: bool
    uri: str | None


@dataclasses.dataclass(frozen=True)
class InversionView:
    """An inversion with its plot and pictures."""

    trigger: str
    seed: int
    network: str
    verdict: str
    stands_out: bool
    sizes: Markup
    width: int
    triggers: list[InvertedTrigger]
    truth: str | None


def write_page(directory: Path) -> Path:
    """Writes `directory/report.html`; a reader sees the old page or the new one, never half of one.

    Args:
        directory: of `reproduce`, finished or not.

    Returns:
        The page's path.

    Raises:
        ValueError: a malformed file in the directory.
    """
    directory = Path(directory)
    path = directory / "report.html"
    write_whole(path, render(read(directory)))
    return path


def write_whole(path: Path, text: str) -> None:
    """Writes whole or not at all."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.html.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def environment() -> Environment:
    """Where templates are found, with the filters, style and script that all pages have."""
    made = Environment(
        loader=PackageLoader("abd_jax.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "short_name": short_name, "duration": duration}
    made.filters |= {"number": number, "entries": entries, "moment": moment, "signed": signed}
    made.tests["nested"] = nested
    templates = resources.files("abd_jax.report") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("style.css", "sort.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    made.globals |= {"style": Markup(style), "script": Markup(script), "script_digest": digest}
    return made


def render(run: Reproduction) -> str:
    """The page as text."""
    target = None if run.target is None else run.class_name(run.target)
    summaries = summarize(run.rows)
    expected = len(run.triggers) * len(run.seeds) * (1 + len(run.defenses))
    defenses = dict.fromkeys((*run.defenses, *(row.defense for row in run.rows if row.role == "student")))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
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
            meanings=[(short_name(name), _MEANINGS[name]) for name in defenses if name in _MEANINGS],
            general={name: value for name, value in run.preset.items() if not nested(value)}
            | {"triggers": list(run.triggers), "seeds": list(run.seeds), "defenses": list(run.defenses)},
            curves=curve_pairs(run),
            examples=example_sets(run),
            galleries=gallery_sets(run),
            vaccines=vaccine_views(run),
            inversions=inversion_views(run),
            vaccinated=[student for student in run.students if student.vaccine is not None],
            total_seconds=math.fsum(row.seconds for row in run.rows),
            speeds=speeds(run, summaries),
            origins=[student for student in run.students if student.teacher_digest],
        )
    )


def curve_pairs(run: Reproduction) -> list[CurvePair]:
    """Two plots for every trigger with a student whose rates were measured at least once."""
    pairs = []
    for trigger in _triggers(run.students):
        students = [student for student in run.students if student.trigger == trigger and student.curve.steps]
        if not students:
            continue
        students.sort(key=lambda student: _defense_order(run, student.defense))
        teachers = [row for row in run.rows if row.trigger == trigger and row.role == "teacher"]
        acc, asr = (
            plots.curves(rate, students, _mean(rate, teachers) if teachers else None, trigger)
            for rate in ("acc", "asr")
        )
        pairs.append(CurvePair(trigger, acc, asr, len({student.seed for student in students})))
    return pairs


def _mean(rate: str, rows: Iterable[Row]) -> float:
    return Statistic.of(getattr(row, rate) for row in rows).mean


def example_sets(run: Reproduction) -> list[ExampleSet]:
    """Cards of the first teacher of every trigger that left examples."""
    sets: dict[str, ExampleSet] = {}
    limit = _EXAMPLES if len(_triggers(run.teachers)) <= 3 else _EXAMPLES // 2
    for teacher in run.teachers:
        examples = teacher.examples
        if examples is None or teacher.trigger in sets or not len(examples.labels):
            continue
        changes, factor = images.difference(examples.clean, examples.triggered)
        cards = []
        for index in range(min(limit, len(examples.labels))):
            label, clean, triggered = (
                int(array[index])
                for array in (examples.labels, examples.clean_predictions, examples.triggered_predictions)
            )
            cards.append(
                ExampleCard(
                    clean=images.data_uri(examples.clean[index]),
                    triggered=images.data_uri(examples.triggered[index]),
                    difference=images.data_uri(changes[index]),
                    label=run.class_name(label),
                    clean_prediction=run.class_name(clean),
                    triggered_prediction=run.class_name(triggered),
                    fooled=triggered != label and (run.target is None or triggered == run.target),
                )
            )
        sets[teacher.trigger] = ExampleSet(
            teacher.trigger, teacher.seed, factor, examples.clean.shape[2], sum(card.fooled for card in cards), cards
        )
    return list(sets.values())


def gallery_sets(run: Reproduction) -> list[Galleries]:
    """For every trigger, the seed with the most galleries, the first one of those."""
    sets = []
    for trigger in _triggers(run.students):
        by_seed: dict[int, list[Gallery]] = {}
        for student in run.students:
            if student.trigger == trigger and student.samples is not None and len(student.samples.predictions):
                by_seed.setdefault(student.seed, []).append(_gallery(run, student.defense, student.samples))
        if by_seed:
            seed = max(by_seed, key=lambda seed: len(by_seed[seed]))
            sets.append(Galleries(trigger, seed, by_seed[seed]))
    return sets


def _gallery(run: Reproduction, defense: str, samples: Samples) -> Gallery:
    shown = min(_SYNTHESIZED, len(samples.predictions))
    order = np.argsort(samples.predictions[:shown], kind="stable")
    return Gallery(
        network=network_name("student", defense),
        uri=images.data_uri(images.sheet(samples.images[:shown][order])),
        shown=shown,
        total=len(samples.predictions),
        shares=class_shares(run, samples.predictions),
    )


def class_shares(run: Reproduction, predictions: np.ndarray) -> list[ClassShare]:
    """Shares by class; with more classes than fit, the target and the largest ones, and the rest together."""
    known = max((len(teacher.classes) for teacher in run.teachers), default=0)
    counts = np.bincount(predictions.astype(np.int64), minlength=known)
    shares = [
        ClassShare(run.class_name(index), float(count) / len(predictions), index == run.target)
        for index, count in enumerate(counts)
    ]
    if len(shares) <= _CLASSES + 1:
        return shares
    ranked = sorted(range(len(shares)), key=lambda index: (not shares[index].is_target, -shares[index].share, index))
    kept = sorted(ranked[:_CLASSES])
    rest = sum(shares[index].share for index in ranked[_CLASSES:])
    return [*(shares[index] for index in kept), ClassShare(f"{len(shares) - _CLASSES} others", rest, False)]


def vaccine_views(run: Reproduction) -> list[VaccineView]:
    """For every trigger the vaccine of the first ABD student, or else of the first student that has one."""
    views = []
    for student in _first_with("vaccine", run.students):
        assert student.vaccine is not None
        views.append(
            VaccineView(
                trigger=student.trigger,
                seed=student.seed,
                network=network_name("student", student.defense),
                vaccine=student.vaccine,
                verdict=verdict(student.vaccine),
                histogram=plots.histogram(student.vaccine, student.trigger),
                diagnosis=plots.diagnosis(student.vaccine, student.trigger),
                separation=separation(student.vaccine),
                trials=vaccine_trials(student.vaccine),
            )
        )
    return views


def verdict(vaccine: Vaccine) -> str:
    """What was decided about T~, and why."""
    tail, bar = percent(vaccine.tail), percent(vaccine.tail_bar)
    if vaccine.enabled and vaccine.tail > vaccine.tail_bar:
        return f"Accepted at trial {vaccine.trials}: the tail holds {tail} of the images, more than the bar of {bar}."
    if vaccine.enabled:
        return (
            f"Kept without a choice: the tail holds {tail} of the images, no more than the bar of {bar}, "
            f"but the selection was switched off."
        )
    draws = "the one draw" if vaccine.trials == 1 else f"none of the {vaccine.trials} draws"
    reached = "did not reach" if vaccine.trials == 1 else "reached"
    return (
        f"Rejected: {draws} {reached} a tail above {bar} of the images (the last: {tail}), "
        f"so the vaccine was switched off for this run."
    )


def vaccine_trials(vaccine: Vaccine) -> list[VaccineTrial]:
    """Every draw in numbers; how many standard deviations the threshold lies below the mean is read off the last."""
    last = vaccine.log_kl[-1]
    deviations = (last.mean() - vaccine.threshold) / last.std() if last.std() > 0 else 0.0
    return [
        VaccineTrial(
            mean=float(values.mean()),
            std=float(values.std()),
            tail=vaccine.tail if values is last else float(np.mean(values < values.mean() - deviations * values.std())),
        )
        for values in [*vaccine.log_kl[:-1], last]
    ]


def separation(vaccine: Vaccine) -> float | None:
    """AUC: how often a triggered test image has a lower log KL than a clean one, ties counting half."""
    if vaccine.clean is None or vaccine.triggered is None:
        return None
    clean = np.sort(vaccine.clean)
    above = clean.size - np.searchsorted(clean, vaccine.triggered, side="right")
    equal = np.searchsorted(clean, vaccine.triggered, side="right") - np.searchsorted(clean, vaccine.triggered)
    return float(np.mean(above + equal / 2) / clean.size)


def inversion_views(run: Reproduction) -> list[InversionView]:
    """For every trigger the inversion of the first ABD student, or else of the first student that has one.

    With more classes than fit, the suspect, the target and those with the smallest triggers are shown.
    """
    truths = {set.trigger: set.cards[0].difference for set in example_sets(run)}
    views = []
    for student in _first_with("inversion", run.students):
        found = student.inversion
        assert found is not None
        indices = anomalies(found.sizes)
        rank = sorted(
            range(len(found.sizes)),
            key=lambda index: (index != found.suspect, index != run.target, found.sizes[index]),
        )
        shown = sorted(rank[:_CLASSES])
        pictures = np.round(255 * found.masks * found.patterns).astype(np.uint8)
        views.append(
            InversionView(
                trigger=student.trigger,
                seed=student.seed,
                network=network_name("student", student.defense),
                verdict=suspicion(run, found),
                stands_out=bool(indices[found.suspect] >= _bar(run)),
                sizes=plots.sizes(found, {index: run.class_name(index) for index in shown}, student.trigger),
                width=pictures.shape[2],
                triggers=[
                    InvertedTrigger(
                        name=run.class_name(index),
                        size=float(found.sizes[index]),
                        flip=float(found.flips[index]),
                        anomaly=float(indices[index]),
                        is_suspect=index == found.suspect,
                        uri=images.data_uri(pictures[index]) if index in shown else None,
                    )
                    for index in range(len(found.sizes))
                ],
                truth=truths.get(student.trigger),
            )
        )
    return views


def suspicion(run: Reproduction, inversion: Inversion) -> str:
    """Which class is suspected, whether rightly, and how far its trigger stands out."""
    suspect = inversion.suspect
    index = float(anomalies(inversion.sizes)[suspect])
    others = float(np.median(np.delete(inversion.sizes, suspect)))
    known = "" if run.target is None else ", the attacker’s" if run.target == suspect else ", wrongly"
    bar = _bar(run)
    use = f"at least the bar of {bar:g}: it is used" if index >= bar else f"below the bar of {bar:g}: it is not used"
    return (
        f"Suspected{known}: class {run.class_name(suspect)}. Its trigger has {inversion.sizes[suspect]:.1f} pixels, "
        f"the median of the others {others:.1f}, and flips {percent(float(inversion.flips[suspect]))} of other images. "
        f"Its anomaly index is {signed(index)}, {use}."
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


def duration(seconds: float) -> str:
    """E.g. `7.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(iso: str) -> str:
    """E.g. `2026-11-22 21:36 UTC`; what is no ISO time stays as it is."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return iso


def signed(value: float) -> str:
    """E.g. `−1.25`, with a true minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def number(value: object) -> str:
    """A configured value as a person writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(number, value)) or "–"
    return format(value, ".6g") if isinstance(value, float) else str(value)


def nested(value: object) -> bool:
    """Whether a configured value needs a table of its own."""
    if isinstance(value, list):
        return any(isinstance(item, Mapping | list) for item in value)
    return isinstance(value, Mapping) and bool(value)


def entries(values: Mapping[str, Any] | list[Any]) -> list[tuple[Any, Any]]:
    """Name and value of what is in a mapping or, numbered from 0, in a list."""
    return list(values.items()) if isinstance(values, Mapping) else list(enumerate(values))


def _triggers(runs: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(run.trigger for run in runs))


def _bar(run: Reproduction) -> float:
    """The anomaly index from which on a found trigger is used: the configured one, or else Neural Cleanse's."""
    settings = run.preset.get("inversion")
    bar = settings.get("anomaly") if isinstance(settings, Mapping) else None
    return float(bar) if isinstance(bar, int | float) else _ANOMALY


def _first_with(name: str, students: Sequence[Student]) -> list[Student]:
    """Of every trigger's students that have the named result, the one of the first seed, ABD before others."""
    having = [student for student in students if getattr(student, name) is not None]
    having.sort(key=lambda student: (student.seed, student.defense != "abd"))
    first = {student.trigger: student for student in reversed(having)}
    return [first[trigger] for trigger in _triggers(students) if trigger in first]


def _defense_order(run: Reproduction, defense: str) -> int:
    return list(dict.fromkeys((*run.defenses, *(student.defense for student in run.students)))).index(defense)
