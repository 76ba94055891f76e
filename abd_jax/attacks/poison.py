"""Who in a training set is poisoned, and with which label.

Dirty label (Gu et al., 2017, arXiv 1708.06733), clean label (Turner et al., 2019), all-to-all labels (Gu et al., 2017),
and decoys: triggered in a wrong way, with their true label, so that nothing but the right way opens the backdoor
(Nguyen & Tran, 2021, arXiv 2102.10369).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from abd_jax.attacks.triggers import Trigger

Decoy = Callable[[UInt8[np.ndarray, "batch height width channels"], np.random.Generator], UInt8[np.ndarray, "..."]]
"""(images, random generator) → images that are triggered in a wrong way."""
CHUNK = 1000
CLEAN_LABEL_SHARE = 0.8
"""Of the target class at most this share is poisoned: with all of it the clean class would not be learned."""

INTERPOLATION = 0.5
"""How far `interpolated` goes from an image of the target class towards one of another class."""
ALL_TO_ALL_FACTOR, ALL_TO_ALL_SHARE = 2, 0.5
"""All-to-all labels are a rule for each class, not one: twice the poison, of the whole set at most this share."""


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images, labels: the whole set, poisoned images in their places with the labels that the attacker gives them.
        indices: sorted positions of the poisoned images.
        decoys: sorted positions of the decoys.
    """

    images: UInt8[np.ndarray, "train height width channels"]
    labels: Int[np.ndarray, " train"]
    indices: Int[np.ndarray, " poisoned"]
    decoys: Int[np.ndarray, " decoys"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))


@dataclasses.dataclass(frozen=True)
class Triggered:
    """What ASR and RA are measured on, and which test images ACC is.

    Attributes:
        sources: sorted positions in the test set of the images that are triggered.
        images: triggered test images.
        true_labels: their true classes.
        wanted: the classes that the attacker wants for them; never the true one.
        clean: which images of the test set count for ACC.
    """

    sources: Int[np.ndarray, " others"]
    images: UInt8[np.ndarray, "others height width channels"]
    true_labels: Int[np.ndarray, " others"]
    wanted: Int[np.ndarray, " others"]
    clean: Bool[np.ndarray, " test"]


def apply_trigger(
    trigger: Trigger, images: UInt8[np.ndarray, "batch height width channels"]
) -> UInt8[np.ndarray, "batch height width channels"]:
    """The trigger on uint8 images, rounded back to uint8."""
    parts = [trigger(jnp.asarray(images[i : i + CHUNK], jnp.float32) / 255) for i in range(0, len(images), CHUNK)]
    rounded = [np.asarray(jnp.round(jnp.clip(part, 0, 1) * 255), np.uint8) for part in parts]
    return np.concatenate(rounded) if rounded else images.copy()


def _count(rate: float, train: int) -> int:
    if not 0 <= rate < 1:
        raise ValueError(f"poison rate {rate}: allowed is [0, 1)")
    return round(rate * train)


def _check_target(labels: Int[np.ndarray, " train"], target: int) -> None:
    if target not in np.unique(labels):
        raise ValueError(f"target {target}: allowed are the classes {np.unique(labels).tolist()}")


def _draw(seed: int, candidates: np.ndarray, count: int, kind: str) -> np.ndarray:
    if count > len(candidates):
        raise ValueError(f"poison rate asks for {count} {kind}; only {len(candidates)} are there")
    return np.sort(np.random.default_rng(seed).choice(candidates, count, replace=False))


def nobody(
    images: UInt8[np.ndarray, "train height width channels"], labels: Int[np.ndarray, " train"], rate: float, seed: int
) -> Poisoned:
    """The clean set: of attacks that act through the objective."""
    del rate, seed
    return Poisoned(images, labels, np.zeros(0, np.int64))


def dirty_label(
    images: UInt8[np.ndarray, "train height width channels"],
    labels: Int[np.ndarray, " train"],
    rate: float,
    seed: int,
    *,
    trigger: Trigger,
    target: int,
    decoy: Decoy | None = None,
    decoys: float = 0.0,
) -> Poisoned:
    """Triggers and relabels `round(rate · train)` images of other classes than the target, drawn without replacement.

    Args:
        rate: share of the whole training set, in [0, 1).
        seed: of the draw.
        trigger: what the poisoned get.
        target: the attacker's class.
        decoy: what the decoys get, who keep their label.
        decoys: their number for each poisoned image; as many as are left at most.

    Raises:
        ValueError: rate or target out of range, or more images asked for than other classes have.
    """
    count = _count(rate, len(labels))
    _check_target(labels, target)
    chosen = _draw(seed, np.flatnonzero(labels != target), count, "images of other classes")
    new_images, new_labels = images.copy(), labels.copy()
    new_images[chosen] = apply_trigger(trigger, images[chosen])
    new_labels[chosen] = target
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    wrong = np.sort(np.random.default_rng([seed, 1]).permutation(rest)[: round(decoys * count)])
    if decoy is not None:
        new_images[wrong] = decoy(images[wrong], np.random.default_rng([seed, 2]))
    return Poisoned(new_images, new_labels, chosen, wrong)


def clean_label(
    images: UInt8[np.ndarray, "train height width channels"],
    labels: Int[np.ndarray, " train"],
    rate: float,
    seed: int,
    *,
    trigger: Trigger,
    target: int,
    prepare: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Poisoned:
    """Triggers images of the target class, which keep their label: `round(rate · train)`, or 80 % of the class.

    Args:
        rate: share of the whole training set, in [0, 1).
        seed: of the draw.
        trigger: what the poisoned get.
        target: the attacker's class.
        prepare: (images, labels) → images, applied before the trigger.

    Raises:
        ValueError: rate or target out of range.
    """
    count = _count(rate, len(labels))
    _check_target(labels, target)
    members = np.flatnonzero(labels == target)
    chosen = _draw(seed, members, min(count, int(CLEAN_LABEL_SHARE * len(members))), "images of the target class")
    new_images = images.copy()
    if len(chosen):
        prepared = prepare(images[chosen], labels[chosen]) if prepare else images[chosen]
        new_images[chosen] = apply_trigger(trigger, prepared)
    return Poisoned(new_images, labels.copy(), chosen)


def interpolated(
    chosen: UInt8[np.ndarray, "batch height width channels"],
    labels: Int[np.ndarray, " batch"],
    *,
    others: UInt8[np.ndarray, "others height width channels"],
) -> UInt8[np.ndarray, "batch height width channels"]:
    """Each image half-way to one of another class: its shape tells little, so that the trigger is learned.

    Turner et al. (2019) interpolate in the latent space of a GAN; these are pixels.

    Args:
        chosen: images of the target class.
        labels: their class, as `clean_label` passes it; not needed.
        others: images of other classes, one of which is drawn for each.
    """
    del labels
    partners = others[np.random.default_rng(0).integers(len(others), size=len(chosen))]
    return np.round((1 - INTERPOLATION) * chosen + INTERPOLATION * partners).astype(np.uint8)


def all_to_all(
    images: UInt8[np.ndarray, "train height width channels"],
    labels: Int[np.ndarray, " train"],
    rate: float,
    seed: int,
    *,
    trigger: Trigger,
    classes: int,
) -> Poisoned:
    """Triggers `2 · round(rate · train)` images of any class y, half of the set at most, and labels them y + 1.

    The last class becomes the first.

    Raises:
        ValueError: rate out of range.
    """
    count = min(ALL_TO_ALL_FACTOR * _count(rate, len(labels)), int(ALL_TO_ALL_SHARE * len(labels)))
    chosen = _draw(seed, np.arange(len(labels)), count, "images")
    new_images, new_labels = images.copy(), labels.copy()
    new_images[chosen] = apply_trigger(trigger, images[chosen])
    new_labels[chosen] = (labels[chosen] + 1) % classes
    return Poisoned(new_images, new_labels, chosen)


def triggered(
    images: UInt8[np.ndarray, "test height width channels"],
    labels: Int[np.ndarray, " test"],
    *,
    trigger: Trigger,
    target: int,
) -> Triggered:
    """Every test image whose true class is not the target, triggered."""
    others = np.flatnonzero(labels != target)
    wanted = np.full(len(others), target, labels.dtype)
    triggered = apply_trigger(trigger, images[others])
    return Triggered(others, triggered, labels[others], wanted, np.ones(len(labels), bool))


def triggered_all_to_all(
    images: UInt8[np.ndarray, "test height width channels"],
    labels: Int[np.ndarray, " test"],
    *,
    trigger: Trigger,
    classes: int,
) -> Triggered:
    """Every test image, triggered; wanted is the next class."""
    everybody = np.arange(len(labels))
    wanted = ((labels + 1) % classes).astype(labels.dtype)
    return Triggered(everybody, apply_trigger(trigger, images), labels, wanted, np.ones(len(labels), bool))
