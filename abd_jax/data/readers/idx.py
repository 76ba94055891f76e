"""MNIST's idx format (LeCun et al., 1998): big-endian header, then bytes."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from abd_jax.data.readers.common import MAX_BYTES, Arrays, damage, find

_UBYTE = 0x08


def read_idx(source: Path) -> Arrays:
    """MNIST's and Fashion-MNIST's four files, each gzipped or not.

    Args:
        source: directory that holds them.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is damaged.
    """
    images = {part: read(_file(source, f"{part}-images-idx3-ubyte"), 3)[..., None] for part in ("train", "t10k")}
    labels = {part: read(_file(source, f"{part}-labels-idx1-ubyte"), 1).astype(np.int32) for part in ("train", "t10k")}
    return Arrays(images["train"], labels["train"], images["t10k"], labels["t10k"])


def _file(source: Path, name: str) -> Path:
    return find(source, f"{name}.gz", name)


def read(path: Path, rank: int) -> UInt8[np.ndarray, ...]:
    """The array of one idx file of unsigned bytes.

    Args:
        path: gzipped if its name ends in .gz.
        rank: how many dimensions it must have.

    Raises:
        ValueError: it is damaged, longer or shorter than its header says, or of another rank or type.
    """
    with damage(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        header = file.read(4 * (1 + rank))
        magic, *shape = np.frombuffer(header, ">u4").tolist()
        if magic != (_UBYTE << 8) + rank:
            raise ValueError(f"its first four bytes are {magic:#010x}, not {(_UBYTE << 8) + rank:#010x}")
        size = math.prod(shape)
        if size > MAX_BYTES:
            raise ValueError(f"its header promises {size} bytes")
        content = file.read(size + 1)
        if len(content) != size:
            more = "more" if len(content) > size else f"only {len(content)}"
            raise ValueError(f"its header promises {size} bytes, {more} are there")
        return np.frombuffer(content, np.uint8).reshape(shape)
