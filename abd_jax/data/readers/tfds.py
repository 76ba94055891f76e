"""What TensorFlow Datasets has prepared already, in a format that needs no TensorFlow to read (`array_record`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from abd_jax.data.readers.common import Arrays, damage

ROWS = 1000


def find_prepared(name: str, source: Path) -> Path | None:
    """The directory that TFDS wrote of this data set: `source`, or the newest version below `source/NAME`; or none."""
    versions = sorted(path.parent for path in source.glob(f"{name}/*/dataset_info.json"))
    here = [source] if (source / "dataset_info.json").is_file() else []
    return next(iter(here + versions[::-1]), None)


def read_prepared(directory: Path) -> Arrays:
    """Both splits, through TFDS's `data_source`; in TFDS's order, which is not the original files'.

    Args:
        directory: as `find_prepared` tells it.

    Raises:
        ValueError: damaged, in a format that only TensorFlow reads, or without `image`, `label`, `train` and `test`.
    """
    import tensorflow_datasets as tfds

    with damage(directory):
        builder = tfds.builder_from_directory(directory)
        kind = builder.info.file_format
        if kind is None or kind.value != "array_record":
            raise ValueError(
                f"TFDS wrote it as {kind and kind.value}, which TensorFlow alone reads; array_record is read"
            )
        return Arrays(*_split(builder, "train"), *_split(builder, "test"))


def _split(builder: Any, split: str) -> tuple[UInt8[np.ndarray, "n height width channels"], Int[np.ndarray, " n"]]:
    source = builder.as_data_source(split=split)
    images, labels = [], []
    for first in range(0, len(source), ROWS):
        rows = source.__getitems__(range(first, min(first + ROWS, len(source))))
        images.append(np.stack([row["image"] for row in rows]))
        labels.append(np.asarray([row["label"] for row in rows], np.int32))
    return np.concatenate(images), np.concatenate(labels)
