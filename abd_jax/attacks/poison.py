"""Who is poisoned: dirty-label poisoning of a training set (Gu et al., 2017, arXiv 1708.06733)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from abd_jax.attacks import triggers


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """A poisoned training set.

    Attributes:
        images, labels: the whole set, poisoned images in their places with the target label.
        indices: sorted positions of the poisoned images.
    """

    images: UInt8[np.ndarray, "train height width channels"]
    labels: Int[np.ndarray, " train"]
    indices: Int[np.ndarray, " poisoned"]


def apply_trigger(name: str, images: UInt8[np.ndarray, "batch height width channels"]) -> UInt8[np.ndarray, ...]:
    """The trigger on uint8 images, rounded back to uint8."""
    scaled = triggers.get(name)(jnp.asarray(images, jnp.float32) / 255)
    return np.asarray(jnp.round(jnp.clip(scaled, 0, 1) * 255), np.uint8)


def dirty_label(
    images: UInt8[np.ndarray, "train height width channels"],
    labels: Int[np.ndarray, " train"],
    *,
    trigger: str,
    target: int,
    rate: float,
    seed: int,
) -> Poisoned:
    """Triggers and relabels `round(rate · train)` images of other classes than the target, drawn without replacement.

    Args:
        trigger: name of the trigger.
        target: the attacker's class.
        rate: share of the whole training set, in [0, 1).
        seed: of the draw.

    Raises:
        ValueError: rate or target out of range, or more images asked for than other classes have.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"poison rate {rate}: allowed is [0, 1)")
    if target not in np.unique(labels):
        raise ValueError(f"target {target}: allowed are the classes {np.unique(labels).tolist()}")
    candidates = np.flatnonzero(labels != target)
    count = round(rate * len(labels))
    if count > len(candidates):
        raise ValueError(f"poison rate {rate} asks for {count} images; only {len(candidates)} are of other classes")
    chosen = np.sort(np.random.default_rng(seed).choice(candidates, count, replace=False))
    new_images, new_labels = images.copy(), labels.copy()
    if count:
        new_images[chosen] = apply_trigger(trigger, images[chosen])
        new_labels[chosen] = target
    return Poisoned(new_images, new_labels, chosen)


def triggered_test_set(
    images: UInt8[np.ndarray, "test height width channels"],
    labels: Int[np.ndarray, " test"],
    *,
    trigger: str,
    target: int,
) -> tuple[UInt8[np.ndarray, "others height width channels"], Int[np.ndarray, " others"]]:
    """Every test image whose true class is not the target, triggered, with its true class: what ASR and RA are on."""
    others = labels != target
    return apply_trigger(trigger, images[others]), labels[others]
