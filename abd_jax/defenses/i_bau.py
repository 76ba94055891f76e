"""I-BAU (Zeng et al., ICLR 2022, arXiv 2110.03735) of the student, on synthesized images with the teacher's decisions.

min_θ max_δ E CE(f(x + δ), y) with one universal δ, by the implicit hypergradient, as in the published code: all passes
with stored statistics; in each round δ starts at 0 and takes one SGD step on every batch; then for every batch the
outer loss has δ on a share of the images, and K substitutions of the fixed point are made on the first batch.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from abd_jax import losses
from abd_jax.defenses.base import Rival, Sample, decisions
from abd_jax.defenses.hypergradient import implicit_hypergradient
from abd_jax.models import Network
from abd_jax.settings import check

_DECAY, _FIXED_POINT_RATE = 1e-3, 0.1


@dataclasses.dataclass(frozen=True)
class IBAU(Rival):
    """Settings.

    Attributes:
        rounds: published: 3 to 5.
        batches: of images, the same in every round; published: 50 of 100 images.
        ascent_rate: of the SGD steps that find δ, in units of standardized pixels.
        portion: share of a batch on which δ is in the outer loss, at least one image; published: 0.01.
        learning_rate: Adam's, of the outer steps.
        iterations: K.
    """

    rounds: int = 5
    batches: int = 39
    ascent_rate: float = 10.0
    portion: float = 0.01
    learning_rate: float = 1e-3
    iterations: int = 5

    def __post_init__(self) -> None:
        numbers = ("rounds", "batches", "ascent_rate", "learning_rate", "iterations")
        check("rivals.i_bau", self, positive=numbers, shares=("portion",))

    def repair(
        self, key: PRNGKeyArray, student: Network, teacher: Network, sample: Sample
    ) -> tuple[Network, dict[str, float]]:
        batches = [sample(index) for index in range(self.batches)]
        labels = [decisions(teacher, images) for images in batches]
        optimizer, value, delta = optax.adam(self.learning_rate).init(student.params), jnp.zeros(()), jnp.zeros(())
        for turn in range(self.rounds):
            delta = jnp.zeros(student.input_shape)
            for images in batches:
                delta = ascend(self, delta, student, images)
            for index, (images, classes) in enumerate(zip(batches, labels, strict=True)):
                chosen = jax.random.fold_in(key, turn * self.batches + index)
                student, optimizer, value = descend(
                    self, chosen, student, optimizer, delta, images, classes, batches[0], labels[0]
                )
        return student, {"loss": float(value), "delta_norm": float(jnp.linalg.norm(delta))}


def inner_loss(
    student: Network, delta: Float[Array, "height width channels"], images: Array, labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """`−E CE(f(x + δ), y) + 0.001·‖δ‖²`: what δ descends."""
    logits = student(images + delta * jnp.asarray(student.std)).logits
    return _DECAY * jnp.sum(jnp.square(delta)) - losses.cross_entropy(logits, labels).mean()


@functools.partial(jax.jit, static_argnums=0)
def ascend(config: IBAU, delta: Array, student: Network, images: Array) -> Array:
    """One step of δ away from the student's own decisions."""
    own = jnp.argmax(student(images).logits, axis=-1)
    return delta - config.ascent_rate * jax.grad(inner_loss, argnums=1)(student, delta, images, own)


@functools.partial(jax.jit, static_argnums=0)
def hypergradient(
    config: IBAU,
    key: PRNGKeyArray,
    student: Network,
    delta: Array,
    images: Array,
    labels: Array,
    first_images: Array,
    first_labels: Array,
) -> tuple[Array, PyTree]:
    """The outer loss at δ, and its derivative by the student's parameters."""
    count = max(1, int(config.portion * images.shape[0]))
    chosen = (jax.random.permutation(key, images.shape[0]) < count).astype(jnp.float32)

    def outer(delta, params):
        moved = images + chosen[:, None, None, None] * delta * jnp.asarray(student.std)
        return losses.cross_entropy(student.with_params(params)(moved).logits, labels).mean()

    def fixed_point(delta, params):
        inner = lambda delta: inner_loss(student.with_params(params), delta, first_images, first_labels)  # noqa: E731
        return delta - _FIXED_POINT_RATE * jax.grad(inner)(delta)

    return implicit_hypergradient(outer, fixed_point, delta, student.params, config.iterations)


@functools.partial(jax.jit, static_argnums=0)
def descend(
    config: IBAU,
    key: PRNGKeyArray,
    student: Network,
    optimizer: PyTree,
    delta: Array,
    images: Array,
    labels: Array,
    first_images: Array,
    first_labels: Array,
) -> tuple[Network, PyTree, Array]:
    """One step of the student along the hypergradient."""
    value, gradient = hypergradient(config, key, student, delta, images, labels, first_images, first_labels)
    updates, optimizer = optax.adam(config.learning_rate).update(gradient, optimizer)
    return student.with_params(optax.apply_updates(student.params, updates)), optimizer, value
