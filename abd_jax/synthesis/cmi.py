"""Contrastive model inversion (Fang et al., IJCAI 2021, arXiv 2105.08584).

For every batch a fresh generator and its latent vectors are optimized until the teacher sees given classes and its
own statistics, the student is led astray, and each image's two views are told from all images of the past.
"""

from __future__ import annotations

import dataclasses

import dm_pix as pix
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from abd_jax import losses
from abd_jax.data.augment import crop_and_flip
from abd_jax.models import Forward, Generator, Leaf, Norm, drawn
from abd_jax.screening import Screen
from abd_jax.synthesis import bank as banks
from abd_jax.synthesis.bank import Bank, BankConfig
from abd_jax.synthesis.base import Classifier, Metrics, SynthesisConfig, Task, apply, check
from abd_jax.synthesis.inversion import Best, either, inversion_loss


@dataclasses.dataclass(frozen=True)
class CMIConfig(SynthesisConfig):
    """Settings; the defaults are the published ones for CIFAR-10.

    Attributes:
        latent: dimension of the latent vectors.
        features: channels of the generator's inner layers.
        updates: updates per batch.
        batch: images per batch.
        learning_rate: Adam's, β (0.5, 0.999), of generator and latent vectors; and of the head's, β (0.9, 0.999).
        batch_norm: weight of the distance from the teacher's batch normalization statistics, see `inversion_loss`.
        one_hot: weight of the cross-entropy to the batch's classes.
        adversarial: weight of −KL(T ‖ S) where both agree.
        contrast: weight of the contrastive loss.
        temperature: τ of the contrastive loss.
        head: features of the projection.
        memory: past images whose features are kept as negatives.
        negatives: how many of them are drawn for an update.
        crop: zero padding of the global view's random crop, in pixels.
        scale: smallest share of the image that a local view shows.
        flip: whether half of the views are mirrored.
        bank: see `BankConfig`.
    """

    latent: int = 256
    features: int = 128
    updates: int = 200
    batch: int = 256
    learning_rate: float = 1e-3
    batch_norm: float = 1.0
    one_hot: float = 1.0
    adversarial: float = 0.5
    contrast: float = 0.8
    temperature: float = 0.1
    head: int = 128
    memory: int = 40_960
    negatives: int = 4_096
    crop: int = 4
    scale: float = 0.25
    flip: bool = True
    bank: BankConfig = BankConfig()

    def __post_init__(self) -> None:
        check(
            self,
            positive=("latent", "features", "updates", "batch", "learning_rate", "temperature", "head", "negatives"),
            nonnegative=("batch_norm", "one_hot", "adversarial", "contrast", "crop"),
            up_to_one=("scale",),
        )
        if not self.memory >= max(self.batch, self.negatives):
            raise ValueError(
                f"synthesis.memory {self.memory}: allowed are whole numbers from the batch's {self.batch} and the "
                f"{self.negatives} negatives"
            )


class Head(nn.Module):
    """Linear, ReLU, linear, unit L2 norm."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "items inputs"]) -> Float[Array, "items features"]:
        h = nn.relu(nn.Dense(x.shape[-1])(x))
        h = nn.Dense(self.features)(h)
        return h * jax.lax.rsqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + 1e-12)


@struct.dataclass
class CMIState:
    """Banks, head, and the episode under way.

    Attributes:
        bank: finished images.
        memory: features of finished images, `[memory, 2, features]`: local view, global view.
        remembered: features written so far, as `bank.write` counts them.
        head: the projection's variables and its optimizer's state; they outlive episodes.
        position: updates done in this episode.
        variables: generator and latent vectors.
        optimizer: theirs.
        labels: classes of the batch.
        best: images and features of the lowest loss so far.
    """

    bank: Bank
    memory: Leaf
    remembered: Leaf
    head: tuple[PyTree, optax.OptState]
    position: Leaf
    variables: PyTree
    optimizer: optax.OptState
    labels: Leaf
    best: Best


def instance_means(forward: Forward) -> Float[Array, "batch features"]:
    """Per image, the spatial means of what enters each batch normalization, concatenated."""
    return jnp.concatenate([tap.image_mean for tap in forward.batch_norm], axis=-1)


def local_view(
    key: PRNGKeyArray, images: Float[Array, "batch height width channels"], *, scale: float, flip: bool
) -> Float[Array, "batch height width channels"]:
    """Cuts a random rectangle of each image and resizes it to the whole; mirrors half of them if `flip`.

    The rectangle has `scale` … 1 of the area and a ratio of sides of 3/4 … 4/3, clipped to the image.
    """
    batch, height, width, channels = images.shape
    area_key, ratio_key, place_key, flip_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (batch,), minval=scale, maxval=1.0)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (batch,), minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)))
    share = jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)], axis=-1).clip(max=1.0)
    sides = jnp.asarray([height, width], jnp.float32)
    corner = jax.random.uniform(place_key, (batch, 2)) * (1 - share) * sides

    def cut(image: Array, share: Array, corner: Array) -> Array:
        # `scale_and_translate` maps input x to `scale · x + translation`: the corner goes to 0.
        return jax.image.scale_and_translate(
            image, (height, width, channels), (0, 1), 1 / share, -corner / share, "linear", antialias=False
        )

    views = jax.vmap(cut)(images, share, corner)
    return jax.vmap(pix.random_flip_left_right)(jax.random.split(flip_key, batch), views) if flip else views


def draw_negatives(
    key: PRNGKeyArray, memory: Float[Array, "memory 2 features"], remembered: Array, count: int
) -> tuple[Float[Array, "count 2 features"], Bool[Array, " count"]]:
    """`count` different entries of the memory drawn uniformly, and which of them hold something.

    Well defined for an empty memory, one that is exactly full, and all between.
    """
    filled = jnp.arange(memory.shape[0]) < remembered
    priority = jnp.where(filled, jax.random.uniform(key, filled.shape), -1.0)
    chosen = jax.lax.top_k(priority, count)[1]
    return memory[chosen], filled[chosen]


def contrast(
    config: CMIConfig,
    head: PyTree,
    local: Float[Array, "batch features"],
    whole: Float[Array, "batch features"],
    negatives: Float[Array, "count 2 features"],
    present: Bool[Array, " count"],
) -> Float[Array, ""]:
    """The contrastive loss: each local view shall be nearer to its own global view than to all others.

    The mean over the batch plus the mean over the negatives that are there, which train the head alone. The global
    views' projections are constants, as in the published code.
    """
    project = lambda features: apply(Head(config.head), head, features)  # noqa: E731
    queries = project(jnp.concatenate([local, negatives[:, 0]]))
    keys = jax.lax.stop_gradient(project(jnp.concatenate([whole, negatives[:, 1]])))
    present = jnp.concatenate([jnp.ones(local.shape[0], bool), present])
    values = losses.contrastive(queries, keys, present, config.temperature)
    past = jnp.sum(values[local.shape[0] :]) / jnp.maximum(jnp.sum(present[local.shape[0] :]), 1)
    return values[: local.shape[0]].mean() + past


@dataclasses.dataclass(frozen=True)
class CMI:
    """The synthesizer: three pure functions, bound to their settings; see `base.Synthesizer`."""

    config: CMIConfig
    task: Task
    fresh: bool = True
    student_norm: Norm = "running"

    def __post_init__(self) -> None:
        self.task.require("cmi", quarters=True, batch_norm="always")

    def init(self, key: PRNGKeyArray) -> CMIState:
        """Empty banks, a fresh head, and an episode that has not begun."""
        config = self.config
        bank_key, head_key, generator_key = jax.random.split(key, 3)
        head = drawn(Head.init, Head(config.head), head_key, jnp.zeros((1, self._width)))["params"]
        variables = drawn(CMI._fresh, self, generator_key)
        return CMIState(
            bank=banks.empty(bank_key, config.bank, self.task.image_shape),
            memory=jnp.zeros((config.memory, 2, self._width)),
            remembered=jnp.zeros((), jnp.int32),
            head=(head, self._head_optimizer.init(head)),
            position=jnp.zeros((), jnp.int32),
            variables=variables,
            optimizer=self._optimizer.init(variables),
            labels=jnp.zeros(config.batch, jnp.int32),
            best=self._no_best(),
        )

    def update(
        self, key: PRNGKeyArray, state: CMIState, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[CMIState, Metrics]:
        """One update of generator, latent vectors and head: `inversion_loss` of the global view + contrastive loss."""
        config = self.config
        start, crop, cut, draw = jax.random.split(key, 4)

        def begin():
            generator, classes = jax.random.split(start)
            variables = self._fresh(generator)
            labels = jnp.sort(jax.random.randint(classes, (config.batch,), 0, self.task.num_classes, jnp.int32))
            return variables, self._optimizer.init(variables), labels, self._no_best()

        variables, optimizer, labels, best = either(
            state.position == 0, begin, (state.variables, state.optimizer, state.labels, state.best)
        )
        negatives, present = draw_negatives(draw, state.memory, state.remembered, config.negatives)

        def loss(trained):
            variables, head = trained
            images = apply(self._generator, variables["generator"], self.task.shard(variables["latent"]))
            view = crop_and_flip(crop, images, pad=config.crop, flip=config.flip)
            value, (forward, metrics) = inversion_loss(config, view, labels, teacher, student, screen)
            whole = instance_means(forward)
            local = instance_means(teacher(local_view(cut, images, scale=config.scale, flip=config.flip)))
            contrastive = contrast(config, head, local, whole, negatives, present)
            value += config.contrast * contrastive
            metrics |= {"generator/contrast": contrastive, "generator/loss": value}
            return value, (images, jnp.stack([local, whole], axis=1), metrics)

        head, head_optimizer = state.head
        (value, (images, features, metrics)), (gradient, head_gradient) = jax.value_and_grad(loss, has_aux=True)(
            (variables, head)
        )
        best = best.or_better(value, images=images, features=features)
        updates, optimizer = self._optimizer.update(gradient, optimizer)
        head_updates, head_optimizer = self._head_optimizer.update(head_gradient, head_optimizer)
        last = state.position == config.updates - 1
        memory, remembered = banks.write(state.memory, state.remembered, best.kept["features"], last)
        return (
            CMIState(
                bank=banks.add(state.bank, best.kept["images"], last),
                memory=memory,
                remembered=remembered,
                head=(optax.apply_updates(head, head_updates), head_optimizer),
                position=(state.position + 1) % config.updates,
                variables=optax.apply_updates(variables, updates),
                optimizer=optimizer,
                labels=labels,
                best=best,
            ),
            metrics,
        )

    def sample(self, key: PRNGKeyArray, state: CMIState, count: int) -> Float[Array, "count height width channels"]:
        """`count` images of the bank, augmented."""
        return self.task.shard(banks.sample(key, state.bank, count, self.config.bank))

    def _fresh(self, key: PRNGKeyArray) -> PyTree:
        own, latent = jax.random.split(key)
        z = jax.random.normal(latent, (self.config.batch, self.config.latent))
        return {"generator": self._generator.init(own, z[:2])["params"], "latent": z}

    def _no_best(self) -> Best:
        batch = self.config.batch
        images, features = jnp.zeros((batch, *self.task.image_shape)), jnp.zeros((batch, 2, self._width))
        return Best.none(images=images, features=features)

    @property
    def _width(self) -> int:
        """Features of an image."""
        return sum(self.task.channels)

    @property
    def _generator(self) -> Generator:
        return self.task.generator(self.config.features, "sigmoid")

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.learning_rate, b1=0.5)

    @property
    def _head_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.learning_rate)
