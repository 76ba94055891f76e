"""What is known of every data set before it is there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from abd_jax.data.readers import Arrays, read_cifar, read_gtsrb, read_idx, read_svhn
from abd_jax.settings import one_of

_IDX_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"


@dataclasses.dataclass(frozen=True)
class Info:
    """A data set's facts.

    Attributes:
        name: registry name, which is also TFDS's where TFDS has it.
        train, test: how many images.
        image_shape: (height, width, channels).
        classes: class names, in label order.
        flip: whether a mirrored image keeps its class.
        read: files on disk → arrays; None for what comes inside a package.
        files: the original files; those of them that TFDS has no address of are given as addresses.
        mean, std: per channel, of images in [0, 1]; None: measured when the set is prepared.
    """

    name: str
    train: int
    test: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    flip: bool
    read: Callable[[Path], Arrays] | None = None
    files: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


_DIGITS = tuple("0123456789")
# fmt: off
_FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)
_SIGNS = (
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80",
    "end of speed limit 80", "speed limit 100", "speed limit 120", "no overtaking", "no overtaking by trucks",
    "priority at next crossing", "priority road", "yield", "stop", "no vehicles", "no trucks", "no entry", "danger",
    "curve to the left", "curve to the right", "double curve", "bumpy road", "slippery road", "road narrows",
    "road works", "traffic lights", "pedestrians", "children", "bicycles", "snow or ice", "wild animals",
    "end of all limits", "turn right ahead", "turn left ahead", "straight only", "straight or right",
    "straight or left", "keep right", "keep left", "roundabout", "end of no overtaking",
    "end of no overtaking by trucks",
)
# fmt: on

CATALOG: dict[str, Info] = {
    info.name: info
    for info in (
        Info("digits", 1437, 360, (16, 16, 1), _DIGITS, flip=False),
        Info("mnist", 60_000, 10_000, (28, 28, 1), _DIGITS, flip=False, read=read_idx, files=_IDX_FILES),
        Info("fashion_mnist", 60_000, 10_000, (28, 28, 1), _FASHION, flip=True, read=read_idx, files=_IDX_FILES),
        Info(
            "cifar10",
            50_000,
            10_000,
            (32, 32, 3),
            _CIFAR10,
            flip=True,
            read=functools.partial(read_cifar, classes=10),
            files=("cifar-10-binary.tar.gz",),
            # ABD's recipe; its std is the mean over images of each image's own, as is common.
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
        ),
        Info(
            "cifar100",
            50_000,
            10_000,
            (32, 32, 3),
            _CIFAR100,
            flip=True,
            read=functools.partial(read_cifar, classes=100),
            files=("cifar-100-binary.tar.gz",),
        ),
        Info(
            "svhn_cropped",
            73_257,
            26_032,
            (32, 32, 3),
            _DIGITS,
            flip=False,
            read=read_svhn,
            files=("train_32x32.mat", "test_32x32.mat"),
        ),
        Info(
            "gtsrb",
            39_209,
            12_630,
            (32, 32, 3),
            _SIGNS,
            flip=False,
            read=read_gtsrb,
            files=tuple(f"{_GTSRB}/GTSRB_Final_{part}.zip" for part in ("Training_Images", "Test_Images", "Test_GT")),
            mean=(0.3403, 0.3121, 0.3214),  # ABD's recipe
            std=(0.2724, 0.2608, 0.2669),
        ),
    )
}
"""Name → facts, the smallest first."""


def info(name: str) -> Info:
    """The facts of the data set of that name.

    Raises:
        ValueError: unknown name.
    """
    return CATALOG[one_of("dataset", name, sorted(CATALOG))]
