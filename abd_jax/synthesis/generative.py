"""What DAFL, DFQ and DFAD have in common: one generator, trained all along on a weighted sum of losses."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from abd_jax import losses
from abd_jax.models import Forward, Generator, Norm, drawn
from abd_jax.screening import Screen, Screening
from abd_jax.synthesis.base import (
    Classifier,
    Metrics,
    SynthesisConfig,
    Task,
    apply,
    batch_moments,
    check,
    confidence,
    running_moments,
    screened,
)


@dataclasses.dataclass(frozen=True)
class GenerativeConfig(SynthesisConfig):
    """Settings of a generator and the weights of `objective`'s terms; a term of weight 0 is not computed.

    Each method is a subclass with its own defaults.

    Attributes:
        latent: dimension of the latent vectors.
        features: channels of the generator's inner layers.
        updates: generator updates per cycle.
        learning_rate: Adam's, β (0.5, 0.999), decayed by a cosine to 0 over the run: one that stays runs away from a
            student whose own decays.
        one_hot: weight of the cross-entropy with the teacher's own decision.
        activation: weight of the mean magnitude of the teacher's embedding.
        balance: weight of the entropy of the batch's mean softmax.
        batch_norm: weight of the batch normalization distance.
        adversarial: weight of the disagreement of teacher and student.
        divergence: of that disagreement: `kl`, or `l1` of logits.
    """

    latent: int = 256
    features: int = 128
    updates: int = 1
    learning_rate: float = 1e-3
    one_hot: float = 0.0
    activation: float = 0.0
    balance: float = 0.0
    batch_norm: float = 0.0
    adversarial: float = 0.0
    divergence: Literal["kl", "l1"] = "kl"

    def __post_init__(self) -> None:
        weights = ("one_hot", "activation", "balance", "batch_norm", "adversarial")
        check(self, positive=("latent", "features", "updates", "learning_rate"), nonnegative=weights)
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"synthesis: at least one of {', '.join(weights)} must be above 0")


def objective(
    weights: GenerativeConfig,
    forward: Forward,
    student_logits: Float[Array, "batch classes"] | None,
    screening: Screening,
) -> tuple[Float[Array, ""], Metrics]:
    """The generator's loss, to be minimized.

    `one_hot · E CE(T, argmax T) − activation · E mean|f| + balance · Σ p̄ log p̄ + batch_norm · R_BN
    − adversarial · E D(T, S) + penalty`, with f the teacher's embedding, p̄ the batch's mean softmax, E the mean over
    images by the screen's weights, and D either KL(T ‖ S) or the mean over classes of |T − S| (logits).
    """
    mean = lambda values: losses.weighted_mean(values, screening.weights)  # noqa: E731
    logits = forward.logits
    terms: Metrics = {}
    loss = screening.penalty
    if weights.one_hot:
        terms["one_hot"] = mean(losses.cross_entropy(logits, jnp.argmax(logits, -1)))
        loss += weights.one_hot * terms["one_hot"]
    if weights.activation:
        terms["activation"] = mean(jnp.abs(forward.embedding).mean(axis=-1))
        loss -= weights.activation * terms["activation"]
    if weights.balance:
        terms["imbalance"] = losses.class_imbalance(logits)
        loss += weights.balance * terms["imbalance"]
    if weights.batch_norm:
        terms["batch_norm"] = losses.batch_norm_distance(batch_moments(forward), running_moments(forward))
        loss += weights.batch_norm * terms["batch_norm"]
    if weights.adversarial:
        if student_logits is None:
            raise ValueError("an adversarial weight above 0 needs the student's logits")
        apart = (
            jnp.abs(logits - student_logits).mean(axis=-1)
            if weights.divergence == "l1"
            else losses.kl_divergence(logits, student_logits)
        )
        terms["disagreement"] = mean(apart)
        loss -= weights.adversarial * terms["disagreement"]
    return loss, {**terms, "loss": loss, "confidence": confidence(logits)}


@struct.dataclass
class GenerativeState:
    """The generator and its optimizer."""

    params: PyTree
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class Generative:
    """The synthesizer: three pure functions, bound to their settings; see `base.Synthesizer`."""

    config: GenerativeConfig
    task: Task
    fresh: bool = True
    student_norm: Norm = "batch"

    def __post_init__(self) -> None:
        name = type(self.config).__name__.removesuffix("Config").lower()
        self.task.require(name, quarters=True, batch_norm=self.config.batch_norm)

    def init(self, key: PRNGKeyArray) -> GenerativeState:
        """A fresh generator."""
        params = drawn(Generator.init, self._generator, key, jnp.zeros((2, self.config.latent)))["params"]
        return GenerativeState(params, self._optimizer.init(params))

    def update(
        self, key: PRNGKeyArray, state: GenerativeState, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[GenerativeState, Metrics]:
        """One generator update on a batch drawn with `key`, minimizing `objective`."""

        def loss(params):
            images = self._generate(params, key, self.task.batch)
            forward = teacher(images)
            screening = screen(images, forward)
            logits = student(images).logits if self.config.adversarial else None
            value, metrics = objective(self.config, forward, logits, screening)
            return value, screened(metrics, screening)

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer)
        return GenerativeState(optax.apply_updates(state.params, updates), optimizer), metrics

    def sample(
        self, key: PRNGKeyArray, state: GenerativeState, count: int
    ) -> Float[Array, "count height width channels"]:
        """`count` images of the generator."""
        return self._generate(state.params, key, count)

    def _generate(self, params: PyTree, key: PRNGKeyArray, count: int) -> Array:
        latent = self.task.shard(jax.random.normal(key, (count, self.config.latent)))
        return apply(self._generator, params, latent)

    @property
    def _generator(self) -> Generator:
        return self.task.generator(self.config.features)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        steps = self.task.cycles * self.config.updates
        return optax.adam(optax.cosine_decay_schedule(self.config.learning_rate, steps), b1=0.5)
