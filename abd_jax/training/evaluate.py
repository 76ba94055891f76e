"""ACC, ASR and RA of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from abd_jax.attacks.poison import Triggered
from abd_jax.data import Dataset
from abd_jax.models import Network
from abd_jax.training import attacks, checkpoint

BATCH = 500


class Rates(NamedTuple):
    """Shares in [0, 1].

    Attributes:
        acc: accuracy on the clean test set.
        asr: share of triggered test images that are given the class that the attacker wants: the target, on images of
            other classes, if the attack has no rule of its own.
        ra: share of those same images that are still given their true class.
    """

    acc: float
    asr: float
    ra: float


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The clean test set and its triggered part, on the device.

    Attributes:
        images, labels: what ACC is measured on.
        triggered, true_labels: what ASR and RA are measured on.
        wanted: the class that the attacker wants for each triggered image.
        target: the attacker's class.
    """

    __test__ = False  # not a test case, whatever pytest thinks of its name

    images: UInt8[Array, "test height width channels"]
    labels: Int[Array, " test"]
    triggered: UInt8[Array, "others height width channels"]
    true_labels: Int[Array, " others"]
    wanted: Int[Array, " others"]
    target: int

    @classmethod
    def make(cls, dataset: Dataset, trigger: str, target: int) -> TestSet:
        """The test set of a data set under one attack."""
        attack = attacks.prepare(trigger, dataset, target)
        return cls.of(dataset, attack.test(dataset.test_images, dataset.test_labels), target)

    @classmethod
    def of(cls, dataset: Dataset, found: Triggered, target: int) -> TestSet:
        """The test set with what an attack made of it."""
        return cls(
            images=jnp.asarray(dataset.test_images[found.clean]),
            labels=jnp.asarray(dataset.test_labels[found.clean]),
            triggered=jnp.asarray(found.images),
            true_labels=jnp.asarray(found.true_labels),
            wanted=jnp.asarray(found.wanted),
            target=target,
        )


@jax.jit
def _predict(
    network: Network, images: UInt8[Array | np.ndarray, "batch height width channels"]
) -> Int[Array, " batch"]:
    return jnp.argmax(network(jnp.asarray(images, jnp.float32) / 255).logits, axis=-1)


def predict(network: Network, images: UInt8[Array | np.ndarray, "test height width channels"]) -> Int[Array, " test"]:
    """Predicted classes of uint8 images, in batches; nothing waits for the device."""
    return jnp.concatenate([_predict(network, images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


@jax.jit
def _rates(clean: Array, labels: Array, triggered: Array, true_labels: Array, wanted: Array) -> Array:
    return jnp.stack([jnp.mean(clean == labels), jnp.mean(triggered == wanted), jnp.mean(triggered == true_labels)])


def rates(network: Network, test: TestSet) -> Array:
    """(ACC, ASR, RA) as a device array."""
    clean, triggered = predict(network, test.images), predict(network, test.triggered)
    return _rates(clean, test.labels, triggered, test.true_labels, test.wanted)


def evaluate(network: Network, test: TestSet) -> Rates:
    """ACC, ASR and RA; waits for the device."""
    return Rates(*np.asarray(rates(network, test)).astype(float).tolist())


def named_rates(network: Network, test: TestSet) -> dict[str, Array]:
    """`rates` under the names that metrics and rows have them by."""
    return dict(zip(Rates._fields, rates(network, test), strict=True))


def kind(shape: tuple[int, ...], classes: int) -> str:
    """Images of that height, width and channels, and their classes, in words."""
    return f"{'×'.join(map(str, shape))} images of {classes} classes"


def evaluate_directory(
    path: Path,
    load: Callable[[str], Dataset],
    trigger: str | None = None,
    target: int | None = None,
    dataset: str | None = None,
) -> tuple[Rates, dict[str, Any]]:
    """ACC, ASR and RA of the network saved in a run's directory (or in a network's own), with its notes.

    Args:
        path: the directory.
        load: name of a data set → the data set.
        trigger, target, dataset: measured with in place of what the notes say, which a student of a stranger's file
            may leave open.

    Raises:
        CheckpointError: nothing there, or damaged.
        ValueError: an unknown data set or trigger, one that nothing tells, or a data set of other images or classes.
    """
    inner = path / "network"
    network, notes = checkpoint.load_network(inner if inner.is_dir() else path)
    said = {"dataset": dataset, "trigger": trigger, "target": target}
    notes |= {name: notes.get(name) if value is None else value for name, value in said.items()}
    missing = [name for name in said if notes[name] is None]
    if missing:
        options = " ".join(f"--{name} {name.upper()}" for name in missing)
        raise ValueError(f"{path}: its {checkpoint.NETWORK_FILE} does not tell {', '.join(missing)}; say {options}")
    found = load(notes["dataset"])
    here, there = kind(network.input_shape, network.module.num_classes), kind(found.image_shape, found.num_classes)
    if here != there:
        raise ValueError(f"{path}: is for {here}, data set {notes['dataset']} has {there}")
    return evaluate(network, TestSet.make(found, notes["trigger"], notes["target"])), notes
