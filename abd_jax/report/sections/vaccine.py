"""The Shuffling Vaccine: what was decided about T~, and why."""

from __future__ import annotations

import dataclasses

import numpy as np
from markupsafe import Markup

from abd_jax.report import plots
from abd_jax.report.artifacts import Vaccine
from abd_jax.report.formats import percent
from abd_jax.report.names import network_name
from abd_jax.report.reading import Reproduction
from abd_jax.report.sections.choice import first_with


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


def vaccine_views(run: Reproduction) -> list[VaccineView]:
    """For every trigger the vaccine of the first ABD student, or else of the first student that has one."""
    views = []
    for student in first_with("vaccine", run.students):
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
