"""NAYER (Tran et al., CVPR 2024, arXiv 2310.00258): noisy layers on label-text embeddings.

What enters the generator is no noise but what each class is called; the noise sits in the weights of a layer that is
drawn anew for every batch and then trained with the generator.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from abd_jax.models import Generator, Leaf, Norm, drawn
from abd_jax.screening import Screen
from abd_jax.synthesis import bank as banks
from abd_jax.synthesis import label_embeddings
from abd_jax.synthesis.bank import Bank, BankConfig
from abd_jax.synthesis.base import Classifier, Metrics, SynthesisConfig, Task, apply, batch_moments, check, no_moments
from abd_jax.synthesis.inversion import Best, average_moments, either, inversion_loss, select


@dataclasses.dataclass(frozen=True)
class NAYERConfig(SynthesisConfig):
    """Settings; the defaults are the published ones for CIFAR-10.

    Attributes:
        noise: outputs of a noisy layer.
        features: channels of the generator's inner layers.
        updates: updates per batch.
        batch: images per batch, classes in turn: a batch begins where the one before it left off.
        learning_rate: Adam's, β (0.5, 0.999), begun anew with every batch.
        batch_norm: weight of the distance from the teacher's batch normalization statistics, see `inversion_loss`.
        one_hot: weight of the cross-entropy to the batch's classes.
        adversarial: weight of −KL(T ‖ S) where both agree.
        momentum: weight of past batches in the moments that are compared with the teacher's.
        warm_up: batches before the student takes part in the loss.
        rebuild: batches after which the whole generator is drawn anew.
        embedding: what stands for a class: `text` (see `label_embeddings`), `orthogonal` random directions, or `auto`:
            text where all classes have one.
        bank: see `BankConfig`.
    """

    noise: int = 1000
    features: int = 128
    updates: int = 30
    batch: int = 400
    learning_rate: float = 4e-3
    batch_norm: float = 10.0
    one_hot: float = 0.5
    adversarial: float = 1.33
    momentum: float = 0.9
    warm_up: int = 200
    rebuild: int = 20
    embedding: Literal["auto", "text", "orthogonal"] = "auto"
    bank: BankConfig = BankConfig(capacity=160_000)

    def __post_init__(self) -> None:
        check(
            self,
            positive=("noise", "features", "updates", "batch", "learning_rate", "rebuild"),
            nonnegative=("batch_norm", "one_hot", "adversarial", "warm_up"),
            below_one=("momentum",),
        )


@struct.dataclass
class NAYERState:
    """The generator and the episode under way.

    Attributes:
        bank: finished images.
        variables: noisy layers, `[blocks, embedding, noise]`, and decoder.
        optimizer: Adam's state.
        moments: average of the moments that past batches ended with.
        episode: finished episodes.
        position: updates done in this one.
        best: images of the lowest loss so far.
    """

    bank: Bank
    variables: PyTree
    optimizer: optax.OptState
    moments: PyTree
    episode: Leaf
    position: Leaf
    best: Best


@dataclasses.dataclass(frozen=True)
class NAYER:
    """The synthesizer: three pure functions, bound to their settings; see `base.Synthesizer`."""

    config: NAYERConfig
    task: Task
    fresh: bool = True
    student_norm: Norm = "running"

    def __post_init__(self) -> None:
        self.task.require("nayer", quarters=True, batch_norm=self.config.batch_norm)
        label_embeddings.table(self.config.embedding, self.task.classes, self.task.num_classes)

    def init(self, key: PRNGKeyArray) -> NAYERState:
        """An empty bank and an episode that has not begun."""
        bank_key, own = jax.random.split(key)
        variables = drawn(NAYER._draw, self, own)
        return NAYERState(
            bank=banks.empty(bank_key, self.config.bank, self.task.image_shape),
            variables=variables,
            optimizer=self._optimizer.init(variables),
            moments=no_moments(self.task.channels),
            episode=jnp.zeros((), jnp.int32),
            position=jnp.zeros((), jnp.int32),
            best=self._no_best(),
        )

    def update(
        self, key: PRNGKeyArray, state: NAYERState, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[NAYERState, Metrics]:
        """One update of noisy layers and decoder on `inversion_loss`.

        R_BN compares `(1 − m) · batch + m · average` with the teacher's moments. Images are those before the update.
        """
        config = self.config

        def begin():
            drawn = self._draw(key)
            kept = select(state.episode % config.rebuild == 0, drawn["decoder"], state.variables["decoder"])
            variables = {"noisy": drawn["noisy"], "decoder": kept}
            return variables, self._optimizer.init(variables), self._no_best()

        variables, optimizer, best = either(state.position == 0, begin, (state.variables, state.optimizer, state.best))
        momentum = jnp.where(state.episode > 0, config.momentum, 0.0)
        first = state.episode * (config.batch % self.task.num_classes) % self.task.num_classes
        opposed = (state.episode >= config.warm_up).astype(jnp.float32)

        def loss(variables):
            images = self._generate(variables, first)
            value, (forward, metrics) = inversion_loss(
                config,
                images,
                (first + jnp.arange(config.batch, dtype=jnp.int32)) % self.task.num_classes,
                teacher,
                student,
                screen,
                opposed=opposed,
                mixed=lambda moments: average_moments(state.moments, moments, momentum),
            )
            return value, (images, batch_moments(forward), metrics)

        (value, (images, moments, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(variables)
        best = best.or_better(value, images=images)
        updates, optimizer = self._optimizer.update(gradient, optimizer)
        last = state.position == config.updates - 1
        return (
            NAYERState(
                bank=banks.add(state.bank, best.kept["images"], last),
                variables=optax.apply_updates(variables, updates),
                optimizer=optimizer,
                moments=select(last, average_moments(state.moments, moments, momentum), state.moments),
                episode=state.episode + last,
                position=(state.position + 1) % config.updates,
                best=best,
            ),
            metrics,
        )

    def sample(self, key: PRNGKeyArray, state: NAYERState, count: int) -> Float[Array, "count height width channels"]:
        """`count` images of the bank, augmented."""
        return self.task.shard(banks.sample(key, state.bank, count, self.config.bank))

    def _generate(self, variables: PyTree, first: Array) -> Array:
        """Each block of classes, from class `first` on, has a noisy layer of its own; the decoder is for all images."""
        mixed = jnp.einsum("ce,ben->bcn", jnp.roll(self._embeddings, -first, axis=0), variables["noisy"])
        latent = mixed.reshape(-1, self.config.noise)[: self.config.batch]
        return apply(self._generator, variables["decoder"], self.task.shard(latent))

    def _draw(self, key: PRNGKeyArray) -> PyTree:
        noisy, decoder = jax.random.split(key)
        blocks = -(-self.config.batch // self.task.num_classes)
        return {
            "noisy": jax.random.normal(noisy, (blocks, self._embeddings.shape[1], self.config.noise)),
            "decoder": self._generator.init(decoder, jnp.zeros((2, self.config.noise)))["params"],
        }

    def _no_best(self) -> Best:
        return Best.none(images=jnp.zeros((self.config.batch, *self.task.image_shape)))

    @property
    def _embeddings(self) -> Array:
        """`[classes, embedding]`, each feature standardized over the classes.

        That is what the published code's batch normalization does to a batch in which all classes are as frequent; its
        scale and offset are left to the noisy layer.
        """
        return jnp.asarray(label_embeddings.table(self.config.embedding, self.task.classes, self.task.num_classes))

    @property
    def _generator(self) -> Generator:
        return self.task.generator(self.config.features, "sigmoid")

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.learning_rate, b1=0.5)
