"""Attacks with what they compute: the surrogate is trained once per data set, and results are cached by content.

The cache is `attacks` beside the prepared data sets (`data.prepared`). A name there is the SHA-256 of everything that
the content depends on: the data set's bytes, the surrogate's recipe, the attack and its target.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from abd_jax import models
from abd_jax.attacks import attack
from abd_jax.attacks.attack import Attack, Materials
from abd_jax.attacks.objectives import hard_labels
from abd_jax.data import Dataset, prepared
from abd_jax.models import Network
from abd_jax.training import checkpoint, keys, supervised
from abd_jax.training.config import TeacherConfig
from abd_jax.training.run_directory import write_arrays

logger = logging.getLogger(__name__)

SURROGATE = "wrn-16-1"
LEAST_STEPS, LEAST_EPOCHS, BATCH = 330, 3, 128
REVISION = 1
"""To be raised when what an attack computes changes, so that what is cached is computed again."""


def cache_directory() -> Path:
    """Where what attacks compute is kept."""
    return prepared.cache_directory() / "attacks"


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of a data set's training images and labels, and of what a network takes from it."""
    total = hashlib.sha256(repr((dataset.mean, dataset.std, dataset.num_classes, dataset.flip)).encode())
    for array in (dataset.train_images, dataset.train_labels):
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _named(*facts: object) -> str:
    return hashlib.sha256(repr((REVISION, SURROGATE, LEAST_STEPS, LEAST_EPOCHS, BATCH, *facts)).encode()).hexdigest()


def train_surrogate(dataset: Dataset) -> Network:
    """A network trained on the clean data: WRN-16-1, 330 steps or 3 epochs, whichever is more; seed 0."""
    count = len(dataset.train_labels)
    epochs = max(LEAST_EPOCHS, -(-LEAST_STEPS // max(1, count // BATCH)))
    recipe = TeacherConfig(SURROGATE, epochs, BATCH, learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
    config = supervised.Supervised.of(recipe, count, crop=0, flip=dataset.flip)
    root = keys.root(0, "teacher")
    network = models.create(
        keys.stream(root, "init"),
        SURROGATE,
        num_classes=dataset.num_classes,
        input_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
    )
    state = config.init(network)
    for trained, _ in supervised.epochs(config, hard_labels, root, state, dataset.train_images, dataset.train_labels):
        state = trained
    return state.network


def surrogate(dataset: Dataset, identity: str) -> Network:
    """`train_surrogate`, or what the cache has of it; a damaged entry is trained again."""
    place = cache_directory() / f"surrogate-{_named(identity)[:32]}"
    if place.is_dir():
        try:
            return checkpoint.load_network(place)[0]
        except checkpoint.CheckpointError as error:
            logger.warning("%s; training it again", error)
    logger.warning("training the surrogate network for %s, once", dataset.name)
    network = train_surrogate(dataset)
    place.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_network(place, network, SURROGATE, {"role": "surrogate", "dataset": dataset.name})
    return network


def cached(path: Path, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the file, computed and written first if it is missing or damaged.

    The file carries the SHA-256 of its content.
    """
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if str(arrays.pop("digest")) == checkpoint.digest(arrays):
                return arrays
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        logger.warning("%s is damaged; computing it again", path)
    arrays = dict(compute())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, **arrays, digest=np.asarray(checkpoint.digest(arrays)))
    return arrays


@dataclasses.dataclass
class _Lazy:
    """A surrogate that is trained or loaded when it is first asked for."""

    dataset: Dataset
    _identity: str | None = None
    _network: Network | None = None

    @property
    def identity(self) -> str:
        self._identity = self._identity or fingerprint(self.dataset)
        return self._identity

    def __call__(self) -> Network:
        self._network = self._network or surrogate(self.dataset, self.identity)
        return self._network


def prepare(name: str, dataset: Dataset, target: int) -> Attack:
    """The attack of that name on a data set, with all that it computes.

    Raises:
        ValueError: unknown name, target out of range, or a data set that the attack cannot use.
    """
    clean = _Lazy(dataset)

    def stored(part: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return cached(cache_directory() / f"{part}-{_named(clean.identity, part, target)[:32]}.npz", compute)

    return attack.make(name, Materials(dataset, target, clean, stored))
