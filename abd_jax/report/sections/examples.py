"""What the trigger does to the teacher: test images without and with it."""

from __future__ import annotations

import dataclasses

from abd_jax.report import images
from abd_jax.report.reading import Reproduction
from abd_jax.report.sections.choice import triggers

_SHOWN = 8


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


def example_sets(run: Reproduction) -> list[ExampleSet]:
    """Cards of the first teacher of every trigger that left examples."""
    sets: dict[str, ExampleSet] = {}
    limit = _SHOWN if len(triggers(run.teachers)) <= 3 else _SHOWN // 2
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
