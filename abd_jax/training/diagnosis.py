"""Can this data set, with this network, be poisoned, and would robust training tell?

Two measurements after Manoj & Blum (2021, arXiv 2109.00685, "Excess Capacity and Backdoor Poisoning"):

- *Robust loss.* A backdoor is a pattern that the clean data leaves free. If the pattern lies within what adversarial
  training guards against, a network cannot fit both the poison and the clean images around it: the robust training
  loss rises with the poison's share. Where it does not, robust training gives no warning.
- *Memorization capacity.* A backdoor can exist only where arbitrary labels can be fitted off the data's support
  without loss on it. The estimate: the largest number of noise images with random labels that is learned beside the
  training set while the accuracy on the clean test set stays.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from abd_jax import losses
from abd_jax.attacks.attack import BY_OBJECTIVE
from abd_jax.attacks.objectives import Adversarial, hard_labels
from abd_jax.data import Dataset
from abd_jax.models import Network
from abd_jax.training import attacks, keys, runs, stage
from abd_jax.training import config as configs
from abd_jax.training import evaluate as evaluation
from abd_jax.training.evaluate import TestSet
from abd_jax.training.metrics import began
from abd_jax.training.run_directory import RunDirectory

MEMORIZED, TOLERANCE = 0.95, 0.02
"""Share of the noise that must be given its label, and the loss of accuracy that is allowed."""


def check_trigger(name: str) -> None:
    """Raises ValueError if the attack poisons no data, so that there is nothing to diagnose."""
    if name in BY_OBJECTIVE:
        raise ValueError(f"trigger {name!r}: acts through the training loss; nothing of the data is poisoned")


def robust_loss(
    network: Network,
    robust: Adversarial,
    images: UInt8[np.ndarray, "train height width channels"],
    labels: Int[np.ndarray, " train"],
    batch: int = 500,
) -> float:
    """Mean cross entropy, in nats, on images moved by the adversary; running statistics."""

    @jax.jit
    def total(network: Network, key, images, labels):
        moved = robust.attacked(network, key, images, labels)
        return losses.cross_entropy(network(moved).logits, labels).sum()

    root = jax.random.key(0)
    parts = [
        total(
            network,
            jax.random.fold_in(root, start),
            jnp.asarray(images[start : start + batch], jnp.float32) / 255,
            jnp.asarray(labels[start : start + batch]),
        )
        for start in range(0, len(images), batch)
    ]
    return float(sum(parts)) / len(images)


def measure_robust_loss(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset,
    share: float,
    robust: Adversarial,
    seed: int,
    observer: stage.Observer | None = None,
) -> stage.Row:
    """Robust training on a set of which `share` is poisoned by the preset's attack; a finished one is not run again.

    Returns:
        `share`, `robust_loss` of the whole training set, `clean_loss` and `poison_loss` of its two parts (nats; the
        latter None if nobody is poisoned), and ACC, ASR, RA.

    Raises:
        Interrupted: SIGTERM came; the state is saved.
        ValueError: the attack acts through its objective, or cannot be made on this data set.
    """
    if directory.result is not None:
        return directory.result
    started, settings = began(directory.path), preset.teacher
    check_trigger(preset.trigger)
    attack = attacks.prepare(preset.trigger, dataset, settings.target)
    poisoned = attack.poison(dataset.train_images, dataset.train_labels, share, seed)
    test = TestSet.of(dataset, attack.test(dataset.test_images, dataset.test_labels), settings.target)
    network = runs.fit_network(
        directory.path,
        preset,
        dataset,
        (poisoned.images, poisoned.labels),
        robust,
        None,
        keys.root(seed, "teacher"),
        test,
        f"robust training · {preset.trigger} · {share:.0%} poisoned",
        observer or stage.Silent(),
    )
    rest = np.setdiff1d(np.arange(len(poisoned.labels)), poisoned.indices)

    def loss(rows: np.ndarray) -> float | None:
        return robust_loss(network, robust, poisoned.images[rows], poisoned.labels[rows]) if len(rows) else None

    row = {
        "share": share,
        "robust_loss": robust_loss(network, robust, poisoned.images, poisoned.labels),
        "clean_loss": loss(rest),
        "poison_loss": loss(poisoned.indices),
        **evaluation.evaluate(network, test)._asdict(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return directory.finish(row)


def noise_images(
    count: int, shape: tuple[int, int, int], classes: int, seed: int
) -> tuple[UInt8[np.ndarray, "count height width channels"], Int[np.ndarray, " count"]]:
    """Images of independent uniform pixels with independent uniform labels."""
    rng = np.random.default_rng([seed, 3])
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, rng.integers(0, classes, count).astype(np.int32)


def measure_memorization(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset,
    count: int,
    seed: int,
    observer: stage.Observer | None = None,
) -> stage.Row:
    """Trains on the clean set and `count` labeled noise images; a finished one is not run again.

    Returns:
        `count`, `memorized` (share of the noise that is given its label; 1 if there is none) and ACC.

    Raises:
        Interrupted: SIGTERM came; the state is saved.
    """
    if directory.result is not None:
        return directory.result
    started = began(directory.path)
    noise, given = noise_images(count, dataset.image_shape, dataset.num_classes, seed)
    images = np.concatenate([dataset.train_images, noise])
    labels = np.concatenate([dataset.train_labels, given.astype(dataset.train_labels.dtype)])
    test = TestSet.make(dataset, "badnet_grid", preset.teacher.target)
    network = runs.fit_network(
        directory.path,
        preset,
        dataset,
        (images, labels),
        hard_labels,
        None,
        keys.root(seed, "teacher"),
        test,
        f"memorization of {count} noise images",
        observer or stage.Silent(),
    )
    memorized = float(np.mean(np.asarray(evaluation.predict(network, noise)) == given)) if count else 1.0
    row = {"count": count, "memorized": memorized, "acc": evaluation.evaluate(network, test).acc}
    return directory.finish({**row, "seconds": round(time.perf_counter() - started, 1)})


def capacity(rows: Sequence[stage.Row]) -> int:
    """The largest count up to which every one was memorized without loss of accuracy.

    Args:
        rows: of `measure_memorization`; the one of count 0 is what accuracy is compared with.
    """
    ordered = sorted(rows, key=lambda row: row["count"])
    if not ordered or ordered[0]["count"] != 0:
        raise ValueError("memorization capacity: the measurement without noise is missing")
    reached = 0
    for row in ordered[1:]:
        if row["memorized"] < MEMORIZED or row["acc"] < ordered[0]["acc"] - TOLERANCE:
            break
        reached = row["count"]
    return reached
