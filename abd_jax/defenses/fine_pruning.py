"""Fine-pruning (Liu, Dolan-Gavitt & Garg, RAID 2018, arXiv 1805.12185) of the student, on synthesized images.

Features that sleep on clean images are where a backdoor can hide: those in front of the classifier are switched off,
the sleepiest first, as long as the share of images on which the student decides as the teacher falls by no more than
`loss`. Then the rest is fine-tuned. The synthesized images stand in for clean ones, so features that only they leave
asleep are lost, and a trigger that they contain keeps its features awake.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from abd_jax.defenses.base import Rival, Sample, Tuning, decisions, fine_tune
from abd_jax.models import Network
from abd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class FinePruning(Rival):
    """Settings.

    Attributes:
        loss: of agreement with the teacher that pruning may cost; the paper's is 4 % of accuracy.
        batches: of images on which sleep and agreement are measured.
        steps: of the fine-tuning, one batch each.
        learning_rate: of the fine-tuning.
    """

    loss: float = 0.04
    batches: int = 16
    steps: int = 200
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        check(
            "rivals.fine_pruning", self, positive=("batches", "learning_rate"), nonnegative=("steps",), shares=("loss",)
        )

    def repair(
        self, key: PRNGKeyArray, student: Network, teacher: Network, sample: Sample
    ) -> tuple[Network, dict[str, float]]:
        batches = [sample(self.steps + index) for index in range(self.batches)]
        features = np.concatenate([np.asarray(_features(student, images)) for images in batches])
        labels = np.concatenate([np.asarray(decisions(teacher, images)) for images in batches])
        kernel, bias = (np.asarray(student.params["fc"][name]) for name in ("kernel", "bias"))
        asleep = sleepers(features, labels, kernel, bias, self.loss)
        mask = jax.tree.map(jnp.ones_like, dict(student.params))
        mask["fc"] = {"kernel": mask["fc"]["kernel"] * ~asleep[:, None], "bias": mask["fc"]["bias"]}
        pruned = student.with_params(jax.tree.map(jnp.multiply, dict(student.params), mask))
        tuned, last = fine_tune(Tuning(self.steps, self.learning_rate), pruned, teacher, sample, mask=mask)
        return tuned, {"pruned": int(asleep.sum()), "features": len(asleep), "loss": last}


@jax.jit
def _features(network: Network, images: Array) -> Array:
    return network(images).embedding


def sleepers(
    features: Float[np.ndarray, "images features"],
    labels: Int[np.ndarray, " images"],
    kernel: Float[np.ndarray, "features classes"],
    bias: Float[np.ndarray, " classes"],
    loss: float,
) -> Bool[np.ndarray, " features"]:
    """Which features to switch off: the least active ones, as many as agreement with the labels allows.

    Pruning ends before the first feature whose loss takes the agreement more than `loss` below what it was; the last
    feature always stays.
    """
    order = np.argsort(np.abs(features).mean(axis=0), kind="stable")
    logits = features @ kernel + bias
    least = np.mean(logits.argmax(axis=-1) == labels) - loss
    asleep = np.zeros(len(order), bool)
    for feature in order[:-1]:
        logits = logits - features[:, feature, None] * kernel[feature]
        if np.mean(logits.argmax(axis=-1) == labels) < least:
            break
        asleep[feature] = True
    return asleep
