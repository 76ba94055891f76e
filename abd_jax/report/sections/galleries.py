"""What the students learned from: synthesized images, and how often the teacher names each class."""

from __future__ import annotations

import dataclasses

import numpy as np

from abd_jax.report import images
from abd_jax.report.artifacts import Samples
from abd_jax.report.names import network_name
from abd_jax.report.reading import Reproduction
from abd_jax.report.sections.choice import CLASSES, triggers

_SHOWN = 64


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


def gallery_sets(run: Reproduction) -> list[Galleries]:
    """For every trigger, the seed with the most galleries, the first one of those."""
    sets = []
    for trigger in triggers(run.students):
        by_seed: dict[int, list[Gallery]] = {}
        for student in run.students:
            if student.trigger == trigger and student.samples is not None and len(student.samples.predictions):
                by_seed.setdefault(student.seed, []).append(_gallery(run, student.defense, student.samples))
        if by_seed:
            seed = max(by_seed, key=lambda seed: len(by_seed[seed]))
            sets.append(Galleries(trigger, seed, by_seed[seed]))
    return sets


def _gallery(run: Reproduction, defense: str, samples: Samples) -> Gallery:
    shown = min(_SHOWN, len(samples.predictions))
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
    if len(shares) <= CLASSES + 1:
        return shares
    ranked = sorted(range(len(shares)), key=lambda index: (not shares[index].is_target, -shares[index].share, index))
    kept = sorted(ranked[:CLASSES])
    rest = sum(shares[index].share for index in ranked[CLASSES:])
    return [*(shares[index] for index in kept), ClassShare(f"{len(shares) - CLASSES} others", rest, False)]
