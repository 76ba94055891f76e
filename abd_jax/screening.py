"""`Screening`: what a defense says of a batch of synthesized images, to whoever makes or uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from abd_jax.models import Forward


@struct.dataclass
class Screening:
    """A verdict on a batch.

    Attributes:
        weights: per image, for whoever averages over images, `[batch]`.
        penalty: a scalar to add to the loss of whoever generates the images.
        metrics: scalars to log.
    """

    weights: Float[Array, " batch"]
    penalty: Float[Array, ""]
    metrics: Mapping[str, Array]


Screen = Callable[[Float[Array, "batch height width channels"], Forward], Screening]
"""(images, the teacher's forward pass on them) → Screening; differentiable in both."""


def accept_all(images: Float[Array, "batch height width channels"], teacher_forward: Forward) -> Screening:
    """No defense: all weights 1, no penalty."""
    del teacher_forward
    return Screening(jnp.ones(images.shape[0]), jnp.zeros(()), {})
