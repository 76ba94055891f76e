"""What the methods have in common that optimize one batch at a time and put its best state into an image bank.

A batch's optimization, an episode, is `config.updates` calls of the method's `update`. The first call of an episode
starts it, the last one adds the best batch to the bank; both are selections by `position`, so all calls are the same
function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from abd_jax import losses
from abd_jax.losses import Moments
from abd_jax.models import Forward, Leaf
from abd_jax.screening import Screen
from abd_jax.synthesis.base import Classifier, Metrics, batch_moments, confidence, running_moments, screened

Opposition = Callable[[Array, Array], Array]
"""(the teacher's logits, the student's) → what adversarial inversion maximizes, per image."""


@struct.dataclass
class Best:
    """What had the lowest loss in an episode.

    Attributes:
        loss: that loss, `[]`.
        kept: the arrays that belong to it; `images` among them.
    """

    loss: Leaf
    kept: dict[str, Leaf]

    @classmethod
    def none(cls, **kept: Array) -> Best:
        """Nothing yet: any finite loss is lower."""
        return cls(jnp.full((), jnp.inf, jnp.float32), kept)

    def or_better(self, loss: Float[Array, ""], **kept: Array) -> Best:
        """Whichever has the lower loss; a copy, so nothing that changes later is aliased."""
        better = loss < self.loss
        return Best(
            jnp.where(better, loss, self.loss),
            jax.tree.map(lambda new, old: jnp.where(better, new, old), kept, self.kept),
        )


def either(first: bool | Bool[Array, ""], make: Callable[[], PyTree], otherwise: PyTree) -> PyTree:
    """`make()` if `first`, else what there is; computes only the one."""
    return jax.lax.cond(first, make, lambda: otherwise)


def select(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Leaf by leaf `new` if the condition holds, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def average_moments(
    average: tuple[Moments, ...], latest: tuple[Moments, ...], momentum: float | Float[Array, ""]
) -> tuple[Moments, ...]:
    """`momentum · average + (1 − momentum) · latest`, leaf by leaf."""
    return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, average, latest)


def inversion_loss(
    weights: Any,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    teacher: Classifier,
    student: Classifier,
    screen: Screen,
    *,
    opposition: Opposition = losses.agreed_divergence,
    opposed: float | Float[Array, ""] = 1.0,
    mixed: Callable[[tuple[Moments, ...]], tuple[Moments, ...]] = lambda moments: moments,
) -> tuple[Float[Array, ""], tuple[Forward, Metrics]]:
    """`batch_norm · R_BN + one_hot · Σ w·CE / Σ w − adversarial · Σ w·D(T, S) / Σ w + penalty`.

    R_BN is `losses.batch_norm_distance` of the batch's moments and the teacher's; w and the penalty are the screen's.

    Args:
        weights: has `batch_norm`, `one_hot` and `adversarial`; with `adversarial` 0 the student is not called.
        images: in the units of [0, 1].
        labels: the classes that the teacher shall see.
        opposition: D.
        opposed: a factor of D: 0 while a warm-up lasts.
        mixed: what the batch's moments are before they are compared.

    Returns:
        The loss; the teacher's forward pass and metrics.
    """
    forward = teacher(images)
    screening = screen(images, forward)
    distance = losses.batch_norm_distance(mixed(batch_moments(forward)), running_moments(forward))
    one_hot = losses.weighted_mean(losses.cross_entropy(forward.logits, labels), screening.weights)
    loss = weights.batch_norm * distance + weights.one_hot * one_hot + screening.penalty
    metrics = {"batch_norm": distance, "one_hot": one_hot, "confidence": confidence(forward.logits)}
    if weights.adversarial:
        values = opposition(forward.logits, student(images).logits)
        metrics["opposition"] = losses.weighted_mean(values, screening.weights)
        loss -= weights.adversarial * opposed * metrics["opposition"]
    return loss, (forward, screened({**metrics, "loss": loss}, screening))
