"""Data sets by name, as uint8 arrays with what a teacher needs to know of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, UInt8

from abd_jax.data import catalog, prepared

TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labeled data set in memory.

    Attributes:
        name: registry name.
        train_images, test_images: `[n, height, width, channels]`, uint8.
        train_labels, test_labels: `[n]`, in 0 … classes − 1.
        classes: class names, in label order.
        mean, std: per channel, of the training images in [0, 1].
        flip: whether a mirrored image keeps its class.
    """

    name: str
    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int[np.ndarray, " test"]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def _digits() -> Dataset:
    """The 1 797 scanned digits inside scikit-learn (8×8, 17 grey levels), resized to 16×16; 1 437 train, 360 test."""
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    grey = np.round(raw.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) for image in grey]
    )
    train_x, test_x, train_y, test_y = train_test_split(
        images[..., None], raw.target.astype(np.int32), test_size=TEST_SHARE, random_state=0, stratify=raw.target
    )
    scaled = train_x / 255.0
    return Dataset(
        name="digits",
        train_images=train_x,
        train_labels=train_y,
        test_images=test_x,
        test_labels=test_y,
        classes=tuple("0123456789"),
        mean=(round(float(scaled.mean()), 4),),
        std=(round(float(scaled.std()), 4),),
        flip=False,
    )


def _prepared(name: str) -> Dataset:
    """A data set from the cache of prepared arrays."""
    info = catalog.info(name)
    found = prepared.load(info)
    return Dataset(
        name=name,
        **found.arrays._asdict(),
        classes=info.classes,
        mean=info.mean or found.mean,
        std=info.std or found.std,
        flip=info.flip,
    )


LOADERS: dict[str, Callable[[], Dataset]] = {
    name: functools.partial(_prepared, name) for name in catalog.CATALOG if name != "digits"
} | {"digits": _digits}
"""Name → loader. What the network or a disk has is a line in the catalog; what a package has, a function here."""


def load(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ValueError: unknown name, or damaged.
        FileNotFoundError: not prepared.
    """
    return LOADERS[catalog.info(name).name]()
