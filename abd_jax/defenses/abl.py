"""Filtering by loss, after anti-backdoor learning (Li et al., NeurIPS 2021, arXiv 2110.11571).

What is learned fastest is suspicious. After a warm-up, the `share` of every synthesized batch on which the student's
distillation loss is lowest is left out (`ascent` 0) or unlearned: counted with the weight −`ascent`.

The paper isolates images of a fixed set once, by their loss after training with a floor under it; synthesized images
are new in every batch and a distillation loss tends to 0 on all of them, so neither the set nor the floor carries over.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abd_jax.defenses.base import Rival
from abd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class ABL(Rival):
    """Settings.

    Attributes:
        share: of a batch that is isolated; the paper isolates 0.01 of a training set of which 0.1 is poisoned.
        start: share of the run before anything is isolated; published: 0.2.
        ascent: weight with which the isolated images are unlearned.
    """

    share: float = 0.1
    start: float = 0.2
    ascent: float = 0.0

    def __post_init__(self) -> None:
        check("rivals.abl", self, shares=("share", "start", "ascent"))

    def weigh(
        self, apart: Float[Array, " batch"], weights: Float[Array, " batch"], progress: Array
    ) -> Float[Array, " batch"]:
        return jnp.where(progress >= self.start, weights * isolation(apart, self.share, self.ascent), weights)


def isolation(apart: Float[Array, " batch"], share: float, ascent: float) -> Float[Array, " batch"]:
    """−ascent for the round(share · batch) images of the lowest loss, 1 for the others; no gradient."""
    apart = jax.lax.stop_gradient(apart)
    rank = jnp.argsort(jnp.argsort(apart))
    return jnp.where(rank < round(share * apart.shape[0]), -ascent, 1.0)
