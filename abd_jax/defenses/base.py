"""What a rival defense may do, and the fine-tuning on synthesized images that several of them share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from abd_jax import losses
from abd_jax.models import Network, Norm

Sample = Callable[[int], Float[Array, "batch height width channels"]]
"""Index → a batch of images from the synthesizer as it is at the end of the run; equal for equal indices."""
Metrics = dict[str, Array]


class Rival:
    """A defense's hooks; each does nothing unless it is overridden. Hashable, so static under `jit`."""

    def harden(self, teacher: Network) -> Network:
        """The teacher that is distilled in place of the one that was handed over."""
        return teacher

    def init(self, key: PRNGKeyArray, image_shape: tuple[int, int, int]) -> PyTree:
        """State of `regularize`, part of the run's."""
        return None

    def weigh(
        self, apart: Float[Array, " batch"], weights: Float[Array, " batch"], progress: Array
    ) -> Float[Array, " batch"]:
        """Weights of the images in the student's loss.

        Args:
            apart: the student's distillation loss on each image.
            weights: what they would be.
            progress: share of the run that is over, `[]`.
        """
        return weights

    def regularize(
        self, key: PRNGKeyArray, state: PyTree, student: Network, images: Array, norm: Norm
    ) -> tuple[PyTree, PyTree | None, Metrics]:
        """A gradient to add to the student's, if any, and the defense's own update."""
        return state, None, {}

    def repair(
        self, key: PRNGKeyArray, student: Network, teacher: Network, sample: Sample
    ) -> tuple[Network, dict[str, float]]:
        """The student after its distillation, and what is worth noting."""
        return student, {}


@jax.jit
def decisions(teacher: Network, images: Float[Array, "batch height width channels"]) -> Int[Array, " batch"]:
    """The teacher's classes."""
    return jnp.argmax(teacher(images).logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Fine-tuning on synthesized images with the teacher's decisions: SGD with momentum 0.9, weight decay 1e-4.

    Attributes:
        steps: one batch each.
        learning_rate: constant.
        attention: weight for each of the network's stages of the distance to another network's attention maps, the
            last one's for all later stages; none: plain cross-entropy.
    """

    steps: int
    learning_rate: float
    attention: tuple[float, ...] = ()

    @property
    def rule(self) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(self.learning_rate, momentum=0.9))


def tuning_loss(
    tuning: Tuning, network: Network, guide: Network, images: Array, labels: Array
) -> tuple[Float[Array, ""], Any]:
    """`E CE(f(x), y) + Σ βₗ · mean|A(fₗ) − A(gₗ)|²` with the batch's statistics in f and the stored ones in g."""
    forward = network(images, "batch")
    value = losses.cross_entropy(forward.logits, labels).mean()
    if tuning.attention:
        theirs = guide(images).stages
        for index, (own, other) in enumerate(zip(forward.stages, theirs, strict=True)):
            weight = tuning.attention[min(index, len(tuning.attention) - 1)]
            maps = losses.attention_map(own), jax.lax.stop_gradient(losses.attention_map(other))
            value += weight * jnp.mean(jnp.square(maps[0] - maps[1]))
    return value, forward


@functools.partial(jax.jit, static_argnums=0)
def _tuning_step(
    tuning: Tuning, network: Network, optimizer: Any, guide: Network, mask: PyTree, images: Array, labels: Array
) -> tuple[Network, Any, Array]:
    def loss(params):
        return tuning_loss(tuning, network.with_params(params), guide, images, labels)

    (value, forward), gradient = jax.value_and_grad(loss, has_aux=True)(network.params)
    updates, optimizer = tuning.rule.update(gradient, optimizer, network.params)
    params = jax.tree.map(jnp.multiply, optax.apply_updates(network.params, updates), mask)
    return network.absorb(forward).with_params(params), optimizer, value


def fine_tune(
    tuning: Tuning,
    network: Network,
    teacher: Network,
    sample: Sample,
    guide: Network | None = None,
    mask: PyTree | None = None,
) -> tuple[Network, float]:
    """The network after `tuning.steps` batches, and the last loss.

    Args:
        tuning: settings.
        network: to tune.
        teacher: labels the images.
        sample: gives them.
        guide: whose attention maps are approached; needed with `tuning.attention`.
        mask: factors of the parameters, kept after every step.
    """
    mask = jax.tree.map(jnp.ones_like, network.params) if mask is None else mask
    optimizer, value = tuning.rule.init(network.params), jnp.zeros(())
    for step in range(tuning.steps):
        images = sample(step)
        labels = decisions(teacher, images)
        network, optimizer, value = _tuning_step(tuning, network, optimizer, guide or network, mask, images, labels)
    return network, float(value)
