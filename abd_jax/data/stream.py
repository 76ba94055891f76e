"""Batches read ahead from disk by threads: for sets that do not fit on the device (extra: stream)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from abd_jax.data.datasets import Dataset


def batches(
    dataset: Dataset,
    part: Literal["train", "test"] = "train",
    *,
    batch: int,
    seed: int,
    epochs: int | None = 1,
    threads: int = 4,
) -> Iterator[Any]:
    """Shuffled batches of a data set of any size, the same for the same seed; every epoch has its own order.

    Args:
        dataset: as `load` gives it: prepared arrays stay on disk until a batch asks for them.
        part: which images.
        batch: images per batch; what is left at the end of all epochs makes no batch.
        seed: of the order.
        epochs: passes over the part; None: without end.
        threads: that read ahead.

    Returns:
        A Grain iterator of (images `[batch, height, width, channels]` uint8, labels `[batch]`); its `get_state` and
        `set_state` resume it.

    Raises:
        ValueError: the extra `stream` is not installed, or a batch is larger than the part.
    """
    try:
        import grain
    except ImportError as error:
        raise ValueError("streaming needs Grain: pip install 'abd-jax[stream]'") from error
    images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
    if not 1 <= batch <= len(labels):
        raise ValueError(f"batch {batch}: allowed are 1 … {len(labels)}, the {part} images of {dataset.name}")
    # Only row numbers are shuffled and gathered one by one; pixels are read a batch at a time.
    rows = grain.MapDataset.range(len(labels)).shuffle(seed=seed).repeat(epochs).batch(batch, drop_remainder=True)
    read = rows.map(lambda rows: (np.asarray(images[rows]), np.asarray(labels[rows])))
    return iter(read.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))
