"""Trigger inversion (Wang et al., Neural Cleanse, IEEE S&P 2019), without data: what must be pasted to flip an answer?

min_{m,p} E CE(T(x ∘ (1 − m) + m ∘ p), c) + λ·Σ m for each class c, on synthesized images x: the class that a backdoor
leads to needs far fewer pixels than any other, and (m, p) lies on the pixels of the true trigger.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from abd_jax import losses
from abd_jax.models import Leaf, Network
from abd_jax.settings import check

TWO_CLASSES = 1 / 1.4826
"""The anomaly of the smaller of two triggers, whatever their sizes: both lie one MAD from the median."""


@dataclasses.dataclass(frozen=True)
class InversionConfig:
    """Settings of the inversion.

    Attributes:
        images: synthesized images on which the triggers are found.
        steps: Adam's, for each class.
        learning_rate: its learning rate, on the logits of mask and pattern.
        sparsity: λ, the cost of a whole pixel of mask.
        drop: share of the trigger's pixels that are left out, drawn anew for each image and step: what is found is then
            every pixel that helps, and not just as many as suffice.
        start: the mask's logit at the start; −2 is a mask of 0.12 everywhere.
        anomaly: a trigger is used if its size lies so many robust standard deviations under the median of all classes.
    """

    images: int = 64
    steps: int = 60
    learning_rate: float = 0.2
    sparsity: float = 0.05
    drop: float = 0.0
    start: float = -2.0
    anomaly: float = 2.0

    def __post_init__(self) -> None:
        check(
            "inversion",
            self,
            positive=("images", "steps", "learning_rate"),
            nonnegative=("sparsity",),
            shares=("drop",),
        )


@struct.dataclass
class Trigger:
    """What is pasted: `x ∘ (1 − mask) + mask ∘ pattern`.

    Attributes:
        mask: in [0, 1], the same for all channels, `[height, width, 1]`.
        pattern: a picture in [0, 1], `[height, width, channels]`.
    """

    mask: Leaf
    pattern: Leaf


@struct.dataclass
class Inversion:
    """The triggers found, one per class, and how good they are.

    Attributes:
        triggers: with a leading axis of classes.
        sizes: Σ mask, in pixels, `[classes]`.
        flips: share of the other classes' images that the trigger turns into the class, `[classes]`.
    """

    triggers: Trigger
    sizes: Leaf
    flips: Leaf


@struct.dataclass
class Search:
    """An inversion on its way: logits of mask and pattern, and Adam's state."""

    logits: Trigger
    optimizer: optax.OptState


@struct.dataclass
class Backdoor:
    """What is known of a teacher's backdoor.

    Attributes:
        target: the class it leads to; −1 if none is suspected.
        trigger: inverted from the teacher; of no pixel if none is suspected.
        hunt: the search for a trigger that the student follows.
    """

    target: Leaf
    trigger: Trigger
    hunt: Search


def paste(
    trigger: Trigger, images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch height width channels"]:
    """`x ∘ (1 − mask) + mask ∘ pattern`."""
    return images * (1 - trigger.mask) + trigger.mask * trigger.pattern


def thin(key: PRNGKeyArray, trigger: Trigger, count: int, drop: float) -> Trigger:
    """`count` masks for one pattern, each without a random share `drop` of the pixels."""
    kept = jax.random.bernoulli(key, 1 - drop, (count, *trigger.mask.shape))
    return Trigger(jnp.where(kept, trigger.mask, 0.0), trigger.pattern)


def erase(
    trigger: Trigger, fill: tuple[float, ...], images: Float[Array, "batch height width channels"]
) -> Float[Array, "batch height width channels"]:
    """The images with `fill` where the trigger's mask, or that of one of the four neighbors, is above a tenth.

    The search finds as many of a patch's pixels as suffice; those that it left out lie beside them.
    """
    mask = jnp.pad(trigger.mask, ((1, 1), (1, 1), (0, 0)))
    neighbors = (mask[:-2, 1:-1], mask[2:, 1:-1], mask[1:-1, :-2], mask[1:-1, 2:])
    widened = functools.reduce(jnp.maximum, neighbors, trigger.mask)
    return jnp.where(widened > 0.1, jnp.asarray(fill), images)


def unknown(config: InversionConfig, shape: tuple[int, int, int]) -> Backdoor:
    """No class suspected, a trigger of no pixel."""
    return Backdoor(jnp.int32(-1), Trigger(jnp.zeros((*shape[:2], 1)), jnp.zeros(shape)), begin(config, shape))


def begin(config: InversionConfig, shape: tuple[int, int, int]) -> Search:
    """A faint gray square over the whole image."""
    logits = Trigger(jnp.full((*shape[:2], 1), config.start), jnp.zeros(shape))
    return Search(logits, optax.adam(config.learning_rate).init(logits))


def advance(
    config: InversionConfig,
    search: Search,
    teacher: Network,
    images: Float[Array, "batch height width channels"],
    target: Int[Array, ""],
    key: PRNGKeyArray,
) -> Search:
    """One step of Adam towards a trigger for class `target`."""

    def loss(logits: Trigger) -> Array:
        trigger = jax.tree.map(jax.nn.sigmoid, logits)
        answers = teacher(paste(thin(key, trigger, images.shape[0], config.drop), images)).logits
        return losses.cross_entropy(answers, jnp.full(images.shape[0], target)).mean() + config.sparsity * jnp.sum(
            trigger.mask
        )

    updates, optimizer = optax.adam(config.learning_rate).update(jax.grad(loss)(search.logits), search.optimizer)
    return Search(optax.apply_updates(search.logits, updates), optimizer)  # type: ignore[arg-type]


def judge(
    search: Search, teacher: Network, images: Float[Array, "batch height width channels"], target: Int[Array, ""]
) -> tuple[Trigger, Float[Array, ""], Float[Array, ""]]:
    """The trigger, its size in pixels, and the share of the other classes' images that it turns into `target`."""
    trigger = jax.tree.map(jax.nn.sigmoid, search.logits)
    others = jnp.argmax(teacher(images).logits, -1) != target
    flipped = others & (jnp.argmax(teacher(paste(trigger, images)).logits, -1) == target)
    return trigger, trigger.mask.sum(), flipped.sum() / jnp.maximum(others.sum(), 1)


def suspect(inversion: Inversion) -> Int[Array, ""]:
    """The class whose trigger is smallest, of those whose trigger works as well as any (within a tenth)."""
    works = inversion.flips >= inversion.flips.max() - 0.1
    return jnp.argmin(jnp.where(works, inversion.sizes, jnp.inf))


def anomalies(sizes: Float[Array | np.ndarray, " classes"]) -> Float[Array, " classes"]:
    """How far each class's log size lies under the classes' median, in robust standard deviations, 1.4826 · MAD.

    Neural Cleanse takes sizes themselves; these spread over the classes by factors, not by differences.
    """
    logs = jnp.log(jnp.maximum(jnp.asarray(sizes), 1e-6))
    below = jnp.median(logs) - logs
    return below / jnp.maximum(1.4826 * jnp.median(jnp.abs(below)), 1e-6)


def anomaly(inversion: Inversion) -> Float[Array, ""]:
    """The suspect's."""
    return anomalies(inversion.sizes)[suspect(inversion)]


def suspected(config: InversionConfig, inversion: Inversion, backdoor: Backdoor) -> Backdoor:
    """The backdoor of the suspected class; what was known before if its anomaly is below the bar."""
    target = suspect(inversion)
    trigger = jax.tree.map(lambda leaf: leaf[target], inversion.triggers)
    found = dataclasses.replace(backdoor, target=target.astype(jnp.int32), trigger=trigger)
    return jax.tree.map(functools.partial(jnp.where, anomaly(inversion) >= config.anomaly), found, backdoor)
