"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): the tar of pickles made for Python, or the tar of plain records.

The pickles are read by a machine that can build dicts, lists, numbers, strings and descriptions of uint8 arrays, and
can call nothing.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from abd_jax.data.readers.common import MAX_BYTES, Arrays, damage, find

_PIXELS = 3 * 32 * 32
_PARTS = {
    10: (tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)),
    100: (("train",), ("test",)),
}


def read_cifar(source: Path, classes: int) -> Arrays:
    """One of the two data sets.

    Args:
        source: cifar-N-python.tar.gz or cifar-N-binary.tar.gz, or a directory that holds one of them.
        classes: 10, or 100 (with the fine labels).

    Raises:
        FileNotFoundError: neither is there.
        ValueError: damaged.
    """
    path = find(source, f"cifar-{classes}-python.tar.gz", f"cifar-{classes}-binary.tar.gz")
    train, test = _PARTS[classes]
    with damage(path):
        files = _members(path, {name + suffix for name in (*train, *test) for suffix in ("", ".bin")})
        parts = [[_batch(files, name, classes) for name in names] for names in (train, test)]
    (train_x, train_y), (test_x, test_y) = (
        (np.concatenate([images for images, _ in part]), np.concatenate([labels for _, labels in part]))
        for part in parts
    )
    return Arrays(train_x, train_y, test_x, test_y)


def _members(path: Path, names: set[str]) -> dict[str, bytes]:
    """The tar's regular files of these names, in one pass."""
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:*") as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            if name in names and member.isfile():
                if member.size > MAX_BYTES:
                    raise ValueError(f"{member.name} has {member.size} bytes")
                file = tar.extractfile(member)
                assert file is not None  # it is a regular file
                found[name] = file.read()
    return found


def _batch(
    files: dict[str, bytes], name: str, classes: int
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]:
    if name in files:
        pixels, labels = _pickled(files[name], b"labels" if classes == 10 else b"fine_labels")
    elif f"{name}.bin" in files:
        head = 1 if classes == 10 else 2  # CIFAR-100 has the coarse label first
        records = np.frombuffer(files[f"{name}.bin"], np.uint8).reshape(-1, head + _PIXELS)
        pixels, labels = records[:, head:], records[:, head - 1].astype(np.int32)
    else:
        raise ValueError(f"no {name} in it")
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _pickled(content: bytes, label_key: bytes) -> tuple[UInt8[np.ndarray, "n pixels"], Int[np.ndarray, " n"]]:
    batch = _DataUnpickler(io.BytesIO(content), encoding="bytes").load()
    labels = batch[label_key]
    if not all(type(label) is int for label in labels):
        raise ValueError("its labels are no whole numbers")
    return batch[b"data"].array().reshape(-1, _PIXELS), np.asarray(labels, np.int32)


class _PickledArray:
    """What a pickle says of an array, kept until it is checked; NumPy's own code never sees it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> UInt8[np.ndarray, ...]:
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _PickledType) or dtype.code not in ("u1", b"u1") or not isinstance(content, bytes):
            raise ValueError("its array is not of unsigned bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _PickledType:
    """What a pickle says of an array's dtype."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code

    def __setstate__(self, _: Any) -> None:
        """Byte order and alignment, which single bytes do not have."""


def _reconstruct(*_: Any) -> _PickledArray:
    return _PickledArray()


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # its name since NumPy 2
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
}


class _DataUnpickler(pickle._Unpickler):
    """Knows four names, and has a harmless stand-in of its own for each.

    The version in Python, since the one in C reserves as much memory as a hostile file asks for.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data needs")
        return _STAND_INS[module, name]
