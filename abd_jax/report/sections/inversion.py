"""Trigger inversion: the trigger of each class, whose is the smallest, and whether that class is suspected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from abd_jax.report import images, plots
from abd_jax.report.artifacts import Inversion
from abd_jax.report.formats import percent, signed
from abd_jax.report.names import network_name
from abd_jax.report.reading import Reproduction
from abd_jax.report.sections.choice import CLASSES, first_with
from abd_jax.report.sections.examples import ExampleSet

_ANOMALY = 2.0  # Neural Cleanse's bar


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


def inversion_views(run: Reproduction, examples: Sequence[ExampleSet] = ()) -> list[InversionView]:
    """For every trigger the inversion of the first ABD student, or else of the first student that has one.

    With more classes than fit, the suspect, the target and those with the smallest triggers are shown. Beside them
    stands what the true trigger changes in the first of its examples, if there are any.
    """
    truths = {set.trigger: set.cards[0].difference for set in examples}
    views = []
    for student in first_with("inversion", run.students):
        found = student.inversion
        assert found is not None
        rank = sorted(
            range(len(found.sizes)),
            key=lambda index: (index != found.suspect, index != run.target, found.sizes[index]),
        )
        shown = sorted(rank[:CLASSES])
        pictures = images.patches(found.masks, found.patterns)
        views.append(
            InversionView(
                trigger=student.trigger,
                seed=student.seed,
                network=network_name("student", student.defense),
                verdict=suspicion(run, found),
                stands_out=bool(found.anomalies[found.suspect] >= _bar(run)),
                sizes=plots.sizes(found, {index: run.class_name(index) for index in shown}, student.trigger),
                width=pictures.shape[2],
                triggers=[
                    InvertedTrigger(
                        name=run.class_name(index),
                        size=float(found.sizes[index]),
                        flip=float(found.flips[index]),
                        anomaly=float(found.anomalies[index]),
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
    """Whose trigger is the smallest, whether rightly, and whether it stands out enough to suspect the class."""
    suspect = inversion.suspect
    index = float(inversion.anomalies[suspect])
    others = float(np.median(np.delete(inversion.sizes, suspect)))
    known = "" if run.target is None else ", the attacker’s" if run.target == suspect else ", not the attacker’s"
    bar = _bar(run)
    if index >= bar:
        use = f"at least the bar of {bar:g}: the class is suspected, and the trigger is used"
    else:
        use = f"below the bar of {bar:g}: no class is suspected, and the trigger is not used"
    return (
        f"Smallest trigger: class {run.class_name(suspect)}{known}. It has {inversion.sizes[suspect]:.1f} pixels, "
        f"the median of the others {others:.1f}, and flips {percent(float(inversion.flips[suspect]))} of other images. "
        f"Its anomaly index is {signed(index)}, {use}."
    )


def _bar(run: Reproduction) -> float:
    """The anomaly index from which on a found trigger is used: the configured one, or else Neural Cleanse's."""
    settings = run.preset.get("inversion")
    bar = settings.get("anomaly") if isinstance(settings, Mapping) else None
    return float(bar) if isinstance(bar, int | float) else _ANOMALY
