"""Supervised training: the poisoned teacher, and the clean-KD baseline, which has data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Int, PRNGKeyArray, UInt8

from abd_jax import losses
from abd_jax.attacks.objectives import Objective, hard_labels
from abd_jax.data.augment import crop_and_flip
from abd_jax.models import Forward, Leaf, Network
from abd_jax.training import keys
from abd_jax.training.config import CleanKDConfig, TeacherConfig


@struct.dataclass
class SupervisedState:
    """Network and optimizer; the step counts updates."""

    step: Leaf
    network: Network
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Settings of supervised SGD with a cosine to 0; see `TeacherConfig` and `CleanKDConfig`."""

    steps: int
    batch: int
    learning_rate: float
    momentum: float
    weight_decay: float
    crop: int
    flip: bool

    @classmethod
    def of(cls, settings: TeacherConfig | CleanKDConfig, count: int, crop: int, flip: bool) -> Supervised:
        """Whole epochs over `count` images, which are one batch where they are fewer than that."""
        batch = min(settings.batch, count)
        return cls(
            steps=settings.epochs * (count // batch),
            batch=batch,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            crop=crop,
            flip=flip,
        )

    @property
    def rule(self) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay), optax.sgd(schedule, self.momentum, nesterov=False)
        )

    def init(self, network: Network) -> SupervisedState:
        return SupervisedState(jnp.zeros((), jnp.int32), network, self.rule.init(network.params))


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """`soft`·T²·KL(teacher ‖ student at T) + (1 − `soft`)·cross entropy (Hinton et al., 2015)."""

    temperature: float
    soft: float

    def __call__(
        self, network: Network, key: PRNGKeyArray, images: Array, labels: Array, reference: Network | None
    ) -> tuple[Array, Forward]:
        if reference is None:
            raise ValueError("soft labels need a teacher")
        hard, forward = hard_labels(network, key, images, labels, None)
        kl = losses.kl_divergence(reference(images).logits, forward.logits, self.temperature) * self.temperature**2
        return self.soft * kl.mean() + (1 - self.soft) * hard, forward


@functools.partial(jax.jit, static_argnames=("config", "objective"), donate_argnames="state")
def train_step(
    config: Supervised,
    objective: Objective,
    key: PRNGKeyArray,
    state: SupervisedState,
    reference: Network | None,
    images: UInt8[Array, "train height width channels"],
    labels: Int[Array, " train"],
    order: Int[Array, " batch"],
) -> tuple[SupervisedState, dict[str, Array]]:
    """One update on the images at `order`, augmented on the device; the reference is the objective's."""
    batch = images[order].astype(jnp.float32) / 255
    batch = crop_and_flip(key, batch, pad=config.crop, flip=config.flip)

    def loss(params):
        return objective(state.network.with_params(params), jax.random.fold_in(key, 0), batch, labels[order], reference)

    (value, forward), gradient = jax.value_and_grad(loss, has_aux=True)(state.network.params)
    updates, optimizer = config.rule.update(gradient, state.optimizer, state.network.params)
    network = state.network.absorb(forward).with_params(optax.apply_updates(state.network.params, updates))
    accuracy = jnp.mean(jnp.argmax(forward.logits[: len(order)], -1) == labels[order])
    return SupervisedState(state.step + 1, network, optimizer), {"loss": value, "train_accuracy": accuracy}


def epochs(
    config: Supervised,
    objective: Objective,
    root: PRNGKeyArray,
    state: SupervisedState,
    images: UInt8[Array | np.ndarray, "train height width channels"],
    labels: Int[Array | np.ndarray, " train"],
    reference: Network | None = None,
) -> Iterator[tuple[SupervisedState, dict[str, Array]]]:
    """Trains to the end, one epoch per iteration; starts at `state.step`, which must lie between two epochs."""
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    batch = min(config.batch, len(labels))
    per_epoch = len(labels) // batch
    for epoch in range(int(state.step) // per_epoch, config.steps // per_epoch):
        order = jax.random.permutation(keys.stream(root, "shuffle", epoch), len(labels))
        for index in range(per_epoch):
            step = epoch * per_epoch + index
            rows = order[index * batch : (index + 1) * batch]
            state, metrics = train_step(
                config, objective, keys.stream(root, "augment", step), state, reference, images, labels, rows
            )
        yield state, metrics
