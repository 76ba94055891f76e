"""What all readers share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

MAX_BYTES = 1 << 30
"""More than any single file of these data sets unpacks to."""


class Arrays(NamedTuple):
    """Both parts of a data set.

    Attributes:
        train_images, test_images: `[n, height, width, channels]`, uint8.
        train_labels, test_labels: `[n]`, from 0.
    """

    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int[np.ndarray, " test"]


def find(source: Path, *names: str) -> Path:
    """The first of these files that lies in the directory `source`; `source` itself if it is a file.

    Raises:
        FileNotFoundError: none of them is there.
    """
    if source.is_file():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise FileNotFoundError(f"{source}: no such directory" if not source.exists() else f"{source}: no {names[0]} there")


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Tells of whatever a decoder raises on broken input as one ValueError that names the file."""
    try:
        yield
    except Exception as error:  # decoders raise almost anything on what they were not made for
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it could not be opened: the system's word, not the content's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: damaged, or another file than its name says ({reason})") from error
