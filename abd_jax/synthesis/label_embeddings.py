"""What a class is called, as a vector: NAYER's input.

`label_embeddings.npz` beside this file holds sentence embeddings of "an image of …" for the classes of digits, MNIST,
Fashion-MNIST, CIFAR-10 and CIFAR-100, computed by `experiments/label_embeddings.py` with all-MiniLM-L6-v2. The
published code has CLIP's, which no package index offers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from abd_jax.models.layers import BATCH_NORM_EPSILON

DIMENSION = 384
_FILE = Path(__file__).with_name("label_embeddings.npz")


@functools.cache
def known() -> Mapping[str, Float[np.ndarray, " embedding"]]:
    """Class name in lower case → its embedding, of unit length."""
    with np.load(_FILE) as content:
        return dict(zip(content["names"].tolist(), content["embeddings"].astype(np.float32), strict=True))


def orthogonal(count: int) -> Float[np.ndarray, "count embedding"]:
    """Random directions, the same in every run: orthogonal up to 384 of them, independent beyond."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(count, DIMENSION))
    if count <= DIMENSION:
        drawn = np.linalg.qr(drawn.T)[0].T
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def table(kind: str, classes: tuple[str, ...], count: int) -> Float[np.ndarray, "count embedding"]:
    """An embedding per class, each feature standardized over the classes as batch normalization does.

    Args:
        kind: `text`, `orthogonal`, or `auto`: text where all classes have one.
        classes: their names in label order; may be empty.
        count: number of classes.

    Raises:
        ValueError: `text`, and a class has none.
    """
    names = [name.lower() for name in classes]
    missing = [name for name in names if name not in known()] if len(names) == count else ["(no class names given)"]
    if kind == "text" and missing:
        raise ValueError(
            f"synthesis.embedding 'text': no embedding for {', '.join(missing[:5])}; allowed are auto, orthogonal"
        )
    rows = orthogonal(count) if kind == "orthogonal" or missing else np.stack([known()[name] for name in names])
    return ((rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + BATCH_NORM_EPSILON)).astype(np.float32)
