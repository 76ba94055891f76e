"""Named random streams: every key is folded from (root, stream, step), so none is state."""

from __future__ import annotations

import jax
from jaxtyping import Array, PRNGKeyArray

STREAMS = ("init", "shuffle", "augment", "synthesis", "vaccine", "retrospection", "calibration")


def stream(root: PRNGKeyArray, name: str, step: int | Array = 0) -> PRNGKeyArray:
    """The key of one stream at one step."""
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS.index(name)), step)
