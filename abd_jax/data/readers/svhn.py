"""SVHN, cropped digits (Netzer et al., 2011): MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from abd_jax.data.readers.common import Arrays, damage, find


def read_svhn(source: Path) -> Arrays:
    """`train_32x32.mat` and `test_32x32.mat` (the 531 131 extra images are left out).

    Args:
        source: directory that holds both.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is damaged.
    """
    return Arrays(*_read(find(source, "train_32x32.mat")), *_read(find(source, "test_32x32.mat")))


def _read(path: Path) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]:
    from scipy.io import loadmat

    with damage(path):
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"]
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"X is {images.dtype} of rank {images.ndim}")
        # The file's last axis counts images, and its class 10 is the digit 0.
        return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.reshape(-1).astype(np.int32) % 10
