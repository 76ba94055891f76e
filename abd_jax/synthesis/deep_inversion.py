"""DeepInversion and Adaptive DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795): images optimized as pixels.

A batch of noise is moved until the teacher sees given classes in it and its batch normalizations see their own
statistics; the best state of each batch goes to an image bank, from which a student learns.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from abd_jax import losses
from abd_jax.models import Leaf, Norm
from abd_jax.screening import Screen
from abd_jax.synthesis import bank as banks
from abd_jax.synthesis.bank import Bank, BankConfig
from abd_jax.synthesis.base import Classifier, Metrics, SynthesisConfig, Task, check
from abd_jax.synthesis.inversion import Best, either, inversion_loss


@dataclasses.dataclass(frozen=True)
class DeepInversionConfig(SynthesisConfig):
    """Settings; the defaults are those of the authors' CIFAR-10 recipe for better images, with ABD's Adam.

    Attributes:
        updates: pixel updates per batch.
        batch: images per batch.
        learning_rate: Adam's, in standardized units.
        beta1: Adam's.
        beta2: Adam's.
        batch_norm: weight of the batch normalization distance.
        one_hot: weight of the cross-entropy.
        total_variation: weight of `losses.total_variation` of the standardized images.
        l2: weight of the standardized batch's L2 norm.
        adversarial: weight of the Jensen–Shannon divergence between teacher and student; above 0 this is Adaptive
            DeepInversion (1 in CMI's comparison, which takes 1 000 updates).
        jitter: largest roll in pixels, drawn for every update.
        flip: whether every other update, at random, sees the images mirrored.
        bank: see `BankConfig`.
    """

    updates: int = 2000
    batch: int = 256
    learning_rate: float = 0.1
    beta1: float = 0.5
    beta2: float = 0.99
    batch_norm: float = 10.0
    one_hot: float = 1.0
    total_variation: float = 1e-3
    l2: float = 0.0
    adversarial: float = 0.0
    jitter: int = 2
    flip: bool = True
    bank: BankConfig = BankConfig()

    def __post_init__(self) -> None:
        check(
            self,
            positive=("updates", "batch", "learning_rate"),
            nonnegative=("batch_norm", "one_hot", "total_variation", "l2", "adversarial", "jitter"),
            below_one=("beta1", "beta2"),
        )


@struct.dataclass
class DeepInversionState:
    """The bank and the episode under way.

    Attributes:
        bank: finished images.
        position: updates done in this episode, `[]`, int32.
        pixels: standardized images, `[batch, height, width, channels]`.
        labels: their classes, `[batch]`, int32.
        optimizer: Adam's state.
        best: the images of the lowest loss so far.
    """

    bank: Bank
    position: Leaf
    pixels: Leaf
    labels: Leaf
    optimizer: optax.OptState
    best: Best


@dataclasses.dataclass(frozen=True)
class DeepInversion:
    """The synthesizer: three pure functions, bound to their settings; see `base.Synthesizer`."""

    config: DeepInversionConfig
    task: Task
    fresh: bool = True
    student_norm: Norm = "running"

    def __post_init__(self) -> None:
        self.task.require("deep_inversion", batch_norm=self.config.batch_norm)

    def init(self, key: PRNGKeyArray) -> DeepInversionState:
        """An empty bank, and an episode that has not begun."""
        shape = (self.config.batch, *self.task.image_shape)
        pixels = jnp.zeros(shape)
        return DeepInversionState(
            bank=banks.empty(key, self.config.bank, self.task.image_shape),
            position=jnp.zeros((), jnp.int32),
            pixels=pixels,
            labels=jnp.zeros(shape[0], jnp.int32),
            optimizer=self._optimizer.init(pixels),
            best=Best.none(images=jnp.zeros(shape)),
        )

    def update(
        self, key: PRNGKeyArray, state: DeepInversionState, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[DeepInversionState, Metrics]:
        """One pixel update, minimizing `inversion_loss` (D = JS) + total variation + L2 on rolled, mirrored images."""
        config = self.config
        start, roll, mirror = jax.random.split(key, 3)

        def begin():
            noise, classes = jax.random.split(start)
            pixels = self._valid(jax.random.normal(noise, state.pixels.shape))
            labels = jax.random.randint(classes, (config.batch,), 0, self.task.num_classes, jnp.int32)
            return pixels, labels, self._optimizer.init(pixels), Best.none(images=jnp.zeros_like(state.pixels))

        pixels, labels, optimizer, best = either(
            state.position == 0, begin, (state.pixels, state.labels, state.optimizer, state.best)
        )
        pixels = self.task.shard(pixels)

        def loss(pixels):
            shifts = jax.random.randint(roll, (2,), -config.jitter, config.jitter + 1)
            moved = jnp.roll(pixels, shifts, axis=(1, 2))
            if config.flip:
                moved = jnp.where(jax.random.bernoulli(mirror), moved[:, :, ::-1], moved)
            value, (_, metrics) = inversion_loss(
                config, self._images(moved), labels, teacher, student, screen, opposition=losses.jensen_shannon
            )
            value += config.total_variation * losses.total_variation(moved) + config.l2 * losses.l2_norm(pixels)
            return value, {**metrics, "generator/loss": value}

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(pixels)
        best = best.or_better(value, images=self._images(pixels))
        updates, optimizer = self._optimizer.update(gradient, optimizer)
        last = state.position == config.updates - 1
        return (
            DeepInversionState(
                bank=banks.add(state.bank, best.kept["images"], last),
                position=(state.position + 1) % config.updates,
                pixels=self._valid(optax.apply_updates(pixels, updates)),
                labels=labels,
                optimizer=optimizer,
                best=best,
            ),
            metrics,
        )

    def sample(
        self, key: PRNGKeyArray, state: DeepInversionState, count: int
    ) -> Float[Array, "count height width channels"]:
        """`count` images of the bank, augmented."""
        return self.task.shard(banks.sample(key, state.bank, count, self.config.bank))

    def _images(self, pixels: Array) -> Array:
        return pixels * jnp.asarray(self.task.std) + jnp.asarray(self.task.mean)

    def _valid(self, pixels: Array) -> Array:
        """Clipped to what images in [0, 1] are when standardized."""
        mean, std = jnp.asarray(self.task.mean), jnp.asarray(self.task.std)
        return jnp.clip(pixels, -mean / std, (1 - mean) / std)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.learning_rate, self.config.beta1, self.config.beta2)
