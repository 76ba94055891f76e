"""ACC, ASR and RA of a network."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from abd_jax.attacks import poison
from abd_jax.data import Dataset
from abd_jax.models import Network

BATCH = 500


class Rates(NamedTuple):
    """Shares in [0, 1].

    Attributes:
        acc: accuracy on the clean test set.
        asr: share of triggered test images of other classes than the target that are given the target.
        ra: share of those same images that are still given their true class.
    """

    acc: float
    asr: float
    ra: float


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The clean test set and its triggered part, on the device."""

    __test__ = False  # not a test case, whatever pytest thinks of its name

    images: UInt8[Array, "test height width channels"]
    labels: Int[Array, " test"]
    triggered: UInt8[Array, "others height width channels"]
    true_labels: Int[Array, " others"]
    target: int

    @classmethod
    def make(cls, dataset: Dataset, trigger: str, target: int) -> TestSet:
        """The test set of a data set under one trigger."""
        triggered, true_labels = poison.triggered_test_set(
            dataset.test_images, dataset.test_labels, trigger=trigger, target=target
        )
        return cls(
            images=jnp.asarray(dataset.test_images),
            labels=jnp.asarray(dataset.test_labels),
            triggered=jnp.asarray(triggered),
            true_labels=jnp.asarray(true_labels),
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
def _rates(clean: Array, labels: Array, triggered: Array, true_labels: Array, target: Array) -> Array:
    return jnp.stack([jnp.mean(clean == labels), jnp.mean(triggered == target), jnp.mean(triggered == true_labels)])


def rates(network: Network, test: TestSet) -> Array:
    """(ACC, ASR, RA) as a device array."""
    clean, triggered = predict(network, test.images), predict(network, test.triggered)
    return _rates(clean, test.labels, triggered, test.true_labels, jnp.asarray(test.target))


def evaluate(network: Network, test: TestSet) -> Rates:
    """ACC, ASR and RA; waits for the device."""
    return Rates(*np.asarray(rates(network, test)).astype(float).tolist())
