"""Fast data-free distillation (Fang et al., AAAI 2022, arXiv 2112.15278): a generator that learns to be adapted.

A meta-generator is kept over the whole run. For every batch a copy of it is adapted in a few steps together with fresh
latent vectors; the meta-generator then moves so that the next adaptation starts better (first-order MAML, or Reptile).
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
from abd_jax.synthesis.bank import Bank, BankConfig
from abd_jax.synthesis.base import Classifier, Metrics, SynthesisConfig, Task, apply, batch_moments, check, no_moments
from abd_jax.synthesis.inversion import Best, average_moments, either, inversion_loss, select

REPTILE_FACTOR = 67.0
"""Of θ − θ′ in the Reptile form, as in the published code; Adam's step hardly depends on it."""


@dataclasses.dataclass(frozen=True)
class FastConfig(SynthesisConfig):
    """Settings; the defaults are the published ones for 5 steps and WRN-40-2.

    Published besides: 2 steps with learning rates 0.005 and 0.015; 10 steps with 0.002 and 0.01.

    Attributes:
        latent: dimension of the latent vectors.
        features: channels of the generator's inner layers.
        updates: adaptation steps per batch, k.
        batch: images per batch.
        learning_rate: Adam's for the adapted copy, β (0.5, 0.999); the meta-generator's is k times that.
        latent_learning_rate: Adam's for the latent vectors.
        batch_norm: weight of the distance from the teacher's batch normalization statistics, see `inversion_loss`.
        one_hot: weight of the cross-entropy to the batch's classes.
        adversarial: weight of −KL(T ‖ S) where both agree.
        momentum: weight of past batches in the moments that are compared with the teacher's.
        meta: how the meta-generator learns: `fomaml` by the sum of the copy's gradients, `reptile` by its way.
        warm_up: batches before the student takes part in the loss.
        reset: batches after the warm-up at which the meta-generator's first layer is drawn anew; 0: never.
        bank: see `BankConfig`.
    """

    latent: int = 256
    features: int = 128
    updates: int = 5
    batch: int = 256
    learning_rate: float = 3e-3
    latent_learning_rate: float = 0.01
    batch_norm: float = 10.0
    one_hot: float = 0.4
    adversarial: float = 1.1
    momentum: float = 0.9
    meta: Literal["fomaml", "reptile"] = "fomaml"
    warm_up: int = 20
    reset: int = 120
    bank: BankConfig = BankConfig(capacity=56_320)

    def __post_init__(self) -> None:
        check(
            self,
            positive=("latent", "features", "updates", "batch", "learning_rate", "latent_learning_rate"),
            nonnegative=("batch_norm", "one_hot", "adversarial", "warm_up", "reset"),
            below_one=("momentum",),
        )


@struct.dataclass
class FastState:
    """The meta-generator and the episode under way.

    Attributes:
        bank: finished images.
        meta, meta_optimizer: the meta-generator and its Adam.
        moments: average of the moments that past batches ended with.
        episode: finished episodes.
        position: updates done in this one.
        variables: the adapted copy and the latent vectors.
        optimizer: an Adam for each.
        gradient: sum of the copy's gradients so far.
        labels: classes of the batch.
        best: images of the lowest loss so far.
    """

    bank: Bank
    meta: PyTree
    meta_optimizer: optax.OptState
    moments: PyTree
    episode: Leaf
    position: Leaf
    variables: PyTree
    optimizer: PyTree
    gradient: PyTree
    labels: Leaf
    best: Best


@dataclasses.dataclass(frozen=True)
class Fast:
    """The synthesizer: three pure functions, bound to their settings; see `base.Synthesizer`."""

    config: FastConfig
    task: Task
    fresh: bool = True
    student_norm: Norm = "running"

    def __post_init__(self) -> None:
        self.task.require("fast", quarters=True, batch_norm=self.config.batch_norm)

    def init(self, key: PRNGKeyArray) -> FastState:
        """A fresh meta-generator, an empty bank, and an episode that has not begun."""
        bank_key, own = jax.random.split(key)
        meta = drawn(Fast._draw, self, own)
        variables = {"generator": jax.tree.map(jnp.copy, meta), "latent": jnp.zeros(self._latent_shape)}
        return FastState(
            bank=banks.empty(bank_key, self.config.bank, self.task.image_shape),
            meta=meta,
            meta_optimizer=self._meta_optimizer.init(meta),
            moments=no_moments(self.task.channels),
            episode=jnp.zeros((), jnp.int32),
            position=jnp.zeros((), jnp.int32),
            variables=variables,
            optimizer=self._begin(variables),
            gradient=jax.tree.map(jnp.zeros_like, meta),
            labels=jnp.zeros(self.config.batch, jnp.int32),
            best=self._no_best(),
        )

    def update(
        self, key: PRNGKeyArray, state: FastState, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[FastState, Metrics]:
        """One adaptation step of copy and latent vectors on `inversion_loss`; the last also moves the meta-generator.

        R_BN compares `(1 − m) · batch + m · average` with the teacher's moments. Images are those before the step.
        """
        config = self.config

        def begin():
            classes, latent = jax.random.split(key)
            labels = jax.random.randint(classes, (config.batch,), 0, self.task.num_classes, jnp.int32)
            variables = {"generator": state.meta, "latent": jax.random.normal(latent, self._latent_shape)}
            zeros = jax.tree.map(jnp.zeros_like, state.meta)
            return variables, self._begin(variables), zeros, jnp.sort(labels), self._no_best()

        variables, optimizer, total, labels, best = either(
            state.position == 0, begin, (state.variables, state.optimizer, state.gradient, state.labels, state.best)
        )
        momentum = jnp.where(state.episode > 0, config.momentum, 0.0)
        opposed = (state.episode >= config.warm_up).astype(jnp.float32)

        def loss(variables):
            images = apply(self._generator, variables["generator"], self.task.shard(variables["latent"]))
            value, (forward, metrics) = inversion_loss(
                config,
                images,
                labels,
                teacher,
                student,
                screen,
                opposed=opposed,
                mixed=lambda moments: average_moments(state.moments, moments, momentum),
            )
            return value, (images, batch_moments(forward), metrics)

        (value, (images, moments, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(variables)
        best = best.or_better(value, images=images)
        total = jax.tree.map(jnp.add, total, gradient["generator"])
        variables, optimizer = self._adapt(gradient, optimizer, variables)
        last = state.position == config.updates - 1
        meta, meta_optimizer = self._learn(state, total, variables["generator"])
        meta = self._with_new_first_layer(jax.random.fold_in(key, 1), meta, state.episode)
        return (
            FastState(
                bank=banks.add(state.bank, best.kept["images"], last),
                meta=select(last, meta, state.meta),
                meta_optimizer=select(last, meta_optimizer, state.meta_optimizer),
                moments=select(last, average_moments(state.moments, moments, momentum), state.moments),
                episode=state.episode + last,
                position=(state.position + 1) % config.updates,
                variables=variables,
                optimizer=optimizer,
                gradient=total,
                labels=labels,
                best=best,
            ),
            metrics,
        )

    def sample(self, key: PRNGKeyArray, state: FastState, count: int) -> Float[Array, "count height width channels"]:
        """`count` images of the bank, augmented."""
        return self.task.shard(banks.sample(key, state.bank, count, self.config.bank))

    def _begin(self, variables: PyTree) -> PyTree:
        return {name: rule.init(variables[name]) for name, rule in self._optimizers.items()}

    def _adapt(self, gradient: PyTree, optimizer: PyTree, variables: PyTree) -> tuple[PyTree, PyTree]:
        """Copy and latent vectors after a step, each by its own Adam."""
        steps = {name: rule.update(gradient[name], optimizer[name]) for name, rule in self._optimizers.items()}
        updates, optimizer = ({name: step[part] for name, step in steps.items()} for part in (0, 1))
        return optax.apply_updates(variables, updates), optimizer

    def _learn(self, state: FastState, total: PyTree, adapted: PyTree) -> tuple[PyTree, optax.OptState]:
        """The meta-generator after an episode."""
        if self.config.meta == "reptile":
            total = jax.tree.map(lambda start, end: REPTILE_FACTOR * (start - end), state.meta, adapted)
        updates, optimizer = self._meta_optimizer.update(total, state.meta_optimizer)
        return optax.apply_updates(state.meta, updates), optimizer

    def _with_new_first_layer(self, key: PRNGKeyArray, meta: PyTree, episode: Array) -> PyTree:
        if not self.config.reset:
            return meta
        due = episode == self.config.warm_up + self.config.reset
        layer = either(due, lambda: self._draw(key)["Dense_0"], meta["Dense_0"])
        return {**meta, "Dense_0": layer}

    def _draw(self, key: PRNGKeyArray) -> PyTree:
        return self._generator.init(key, jnp.zeros((2, self.config.latent)))["params"]

    def _no_best(self) -> Best:
        return Best.none(images=jnp.zeros((self.config.batch, *self.task.image_shape)))

    @property
    def _latent_shape(self) -> tuple[int, int]:
        return self.config.batch, self.config.latent

    @property
    def _generator(self) -> Generator:
        return self.task.generator(self.config.features, "sigmoid")

    @property
    def _optimizers(self) -> dict[str, optax.GradientTransformation]:
        rates = {"generator": self.config.learning_rate, "latent": self.config.latent_learning_rate}
        return {name: optax.adam(rate, b1=0.5) for name, rate in rates.items()}

    @property
    def _meta_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.updates * self.config.learning_rate, b1=0.5)
