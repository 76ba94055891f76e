"""Named random streams: every key is folded from (root, stream, step), so none is state."""

from __future__ import annotations

import jax
from jaxtyping import Array, Int, PRNGKeyArray

STAGES = ("teacher", "distill", "clean_kd")
STREAMS = (
    "init",
    "shuffle",
    "augment",
    "synthesis",
    "vaccine",
    "perturbation",
    "portion",
    "samples",
    "inversion",
    "lessons",
    "hunt",
    "rival",
)


def root(seed: int, stage: str) -> PRNGKeyArray:
    """The root key of one stage of a run."""
    return jax.random.fold_in(jax.random.key(seed), STAGES.index(stage))


def stream(root: PRNGKeyArray, name: str, step: int | Int[Array, ""] = 0) -> PRNGKeyArray:
    """The key of one stream at one step."""
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS.index(name)), step)
