"""Zero-shot knowledge transfer (Micaelli & Storkey, NeurIPS 2019, arXiv 1905.09768): adversarial belief matching.

A generator is trained to find images on which the student still differs from the teacher.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from abd_jax import losses
from abd_jax.models import Generator, Norm, drawn
from abd_jax.screening import Screen
from abd_jax.synthesis.base import (
    Classifier,
    Metrics,
    SynthesisConfig,
    Task,
    apply,
    batch_moments,
    check,
    running_moments,
    screened,
)


@dataclasses.dataclass(frozen=True)
class ZSKTConfig(SynthesisConfig):
    """Settings of the generator.

    Attributes:
        latent: dimension of the latent vector.
        features: channels of the generator's inner layers.
        updates: generator updates per cycle.
        learning_rate: Adam's, decayed by a cosine to 0 over the run.
        temperature: of both softmaxes.
        clip: largest global norm of a gradient.
        batch_norm: weight of the distance between the images' statistics and the teacher's stored ones (0 in ZSKT; from
            DFQ, Choi et al., 2020): it keeps the images, and so the student's statistics, near real ones.
    """

    latent: int = 100
    features: int = 128
    updates: int = 1
    learning_rate: float = 1e-3
    temperature: float = 1.0
    clip: float = 5.0
    batch_norm: float = 0.0

    def __post_init__(self) -> None:
        numbers = ("latent", "features", "updates", "learning_rate", "temperature", "clip")
        check(self, positive=numbers, nonnegative=("batch_norm",))


@struct.dataclass
class ZSKTState:
    """The generator and its optimizer."""

    params: PyTree
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class ZSKT:
    """The synthesizer: three pure functions, bound to their settings; see `base.Synthesizer`."""

    config: ZSKTConfig
    task: Task
    fresh: bool = False
    student_norm: Norm = "batch"

    def __post_init__(self) -> None:
        self.task.require("zskt", quarters=True, batch_norm=self.config.batch_norm)

    def init(self, key: PRNGKeyArray) -> ZSKTState:
        """A fresh generator."""
        params = drawn(Generator.init, self._generator, key, jnp.zeros((2, self.config.latent)))["params"]
        return ZSKTState(params, self._optimizer.init(params))

    def update(
        self, key: PRNGKeyArray, state: ZSKTState, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[ZSKTState, Metrics]:
        """One generator update, minimizing `−Σ w·KL(T ‖ S) / (C·Σ w) + batch_norm·R_BN + penalty` on a batch.

        The KL is averaged over images and classes, as in the published code; the batch is drawn with `key`.
        """

        def loss(params):
            images = self._generate(params, key, self.task.batch)
            teacher_forward = teacher(images)
            student_logits = student(images).logits
            screening = screen(images, teacher_forward)
            kl = losses.kl_divergence(teacher_forward.logits, student_logits, self.config.temperature)
            disagreement = losses.weighted_mean(kl, screening.weights) / student_logits.shape[-1]
            metrics = {"disagreement": disagreement}
            value = screening.penalty - disagreement
            if self.config.batch_norm:
                distance = losses.batch_norm_distance(batch_moments(teacher_forward), running_moments(teacher_forward))
                value += self.config.batch_norm * distance
                metrics["batch_norm"] = distance
            return value, screened(metrics, screening)

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        return ZSKTState(optax.apply_updates(state.params, updates), optimizer), metrics

    def sample(self, key: PRNGKeyArray, state: ZSKTState, count: int) -> Float[Array, "count height width channels"]:
        """`count` images; with the key of the last update, the images of that update seen by the updated generator."""
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
        schedule = optax.cosine_decay_schedule(self.config.learning_rate, steps)
        return optax.chain(optax.clip_by_global_norm(self.config.clip), optax.adam(schedule))
