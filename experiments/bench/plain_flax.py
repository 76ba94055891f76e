"""Wide residual networks and their updates as one writes them in Flax with nothing of this library: for comparison.

`nn.Conv`, `nn.BatchNorm`, `jax.value_and_grad`, optax. The mathematics is that of `models.wide_resnet`,
`training.distill.study` (with Adam, and KL at T = 1 summed over classes, whatever the preset says: next to the rest
these cost nothing) and `training.supervised.train_step`, and the variables have the same names, so that a network's
variables serve both. `compile --functions plain_student_update` compiles it beside ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from abd_jax import data, models
from abd_jax.attacks.objectives import hard_labels
from abd_jax.models import Leaf, Network
from abd_jax.training import ahead, sharding
from abd_jax.training.config import Preset
from abd_jax.training.supervised import Supervised, train_step


class Block(nn.Module):
    """BN, ReLU, 3×3, BN, ReLU, 3×3, plus the input."""

    features: int
    stride: int
    project: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        conv = functools.partial(nn.Conv, self.features, use_bias=False, dtype=self.dtype)
        stride = (self.stride, self.stride)
        h = nn.relu(norm(name="bn1")(x))
        shortcut = conv((1, 1), stride, padding=0, name="convShortcut")(h) if self.project else x
        h = nn.relu(norm(name="bn2")(conv((3, 3), stride, padding=1, name="conv1")(h)))
        return conv((3, 3), padding=1, name="conv2")(h) + shortcut


class WideResNet(nn.Module):
    """WRN-`depth`-`width`; returns logits and the activation after each of the three stages."""

    depth: int
    width: int
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, list[Array]]:
        h = nn.Conv(16, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name="conv1")(images)
        stages, blocks = [], (self.depth - 4) // 6
        for stage in range(3):
            for index in range(blocks):
                first = index == 0
                stride, project = (2 if stage and first else 1), first and (stage > 0 or self.width > 1)
                name = f"block{stage + 1}_layer_{index}"
                h = Block(16 * self.width * 2**stage, stride, project, self.dtype, name=name)(h, train)
            stages.append(h)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, name="bn1")
        embedding = nn.relu(norm(h)).astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="fc")(embedding), stages


def named(architecture: str, num_classes: int, dtype: str) -> WideResNet:
    """The module of that name.

    Raises:
        ValueError: no wide residual network.
    """
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", architecture)
    if not match:
        raise ValueError(f"plain Flax: {architecture} is not written that way; it has wrn-DEPTH-WIDTH")
    return WideResNet(int(match[1]), int(match[2]), num_classes, jnp.dtype(dtype))


@struct.dataclass
class TrainState:
    """Variables and the optimizer's state."""

    params: Any
    batch_stats: Any
    optimizer: Any


@struct.dataclass
class Batch:
    """Images with what a teacher said of them; see `training.distill.Lesson`."""

    images: Leaf
    logits: Leaf
    attention: tuple[Leaf, ...]
    weights: Leaf


def attention_map(activation: Array) -> Array:
    """Mean of squares over channels, flattened, of unit norm."""
    energy = jnp.mean(jnp.square(activation.astype(jnp.float32)), axis=-1).reshape(activation.shape[0], -1)
    return energy * jax.lax.rsqrt(jnp.sum(jnp.square(energy), axis=-1, keepdims=True) + 1e-12)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def student_update(
    module: WideResNet,
    rule: optax.GradientTransformation,
    beta: float,
    state: TrainState,
    batch: Batch,
    mean: Array,
    std: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """One update on KL(T ‖ S) + β · attention transfer.

    Args:
        module, rule, beta: network, optimizer, weight of attention transfer.
        state: donated.
        batch: what is learned from.
        mean, std: per channel.
    """

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        images = (batch.images - mean) / std
        (logits, stages), new = module.apply(variables, images, True, mutable=["batch_stats"])
        log_p, log_q = jax.nn.log_softmax(batch.logits), jax.nn.log_softmax(logits)
        kl = jnp.mean(batch.weights * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
        apart = sum(jnp.square(attention_map(s) - t).mean(-1) for s, t in zip(stages, batch.attention, strict=True))
        attention = jnp.mean(batch.weights * apart)
        return kl + beta * attention, (new["batch_stats"], {"kl": kl, "attention": attention})

    (_, (batch_stats, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    updates, optimizer = rule.update(gradient, state.optimizer, state.params)
    return TrainState(optax.apply_updates(state.params, updates), batch_stats, optimizer), metrics


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def training_step(
    module: WideResNet,
    rule: optax.GradientTransformation,
    state: TrainState,
    images: Array,
    labels: Array,
    mean: Array,
    std: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """One update on the cross entropy of `[batch, height, width, channels]` bytes, not augmented."""

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        pixels = (images.astype(jnp.float32) / 255 - mean) / std
        (logits, _), new = module.apply(variables, pixels, True, mutable=["batch_stats"])
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return value, (new["batch_stats"], {"loss": value, "train_accuracy": accuracy})

    (_, (batch_stats, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, optimizer = rule.update(gradient, state.optimizer, state.params)
    return TrainState(optax.apply_updates(state.params, updates), batch_stats, optimizer), metrics


def functions(preset: Preset, mesh: Mesh) -> Iterator[ahead.Part]:
    """What to compare with the functions of `ahead.functions`.

    `plain student update` is of the preset's student. `training step` and `plain training step` are of its teacher's
    network at the student's batch, without augmentation: ours and plain Flax's.
    """
    info = data.info(preset.dataset)
    everywhere, split = NamedSharding(mesh, PartitionSpec()), sharding.batch_sharding(mesh)
    batch, channels, classes = preset.student.batch, info.image_shape[-1], len(info.classes)
    mean, std = info.mean or (0.5,) * channels, info.std or (0.25,) * channels

    def placed(tree: Any, place: NamedSharding = everywhere) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    def shaped(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    def network(architecture: str) -> Network:
        return models.create(
            jax.random.key(0),
            architecture,
            num_classes=classes,
            input_shape=info.image_shape,
            mean=mean,
            std=std,
            dtype=preset.dtype,
        )

    def state(network: Network, rule: optax.GradientTransformation) -> Any:
        params, stats = network.variables["params"], network.variables["batch_stats"]
        return placed(TrainState(params, stats, jax.eval_shape(rule.init, params)))

    statistics = placed((jnp.asarray(mean), jnp.asarray(std)))
    settings, student = preset.student, network(preset.student.architecture)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.cycles * settings.updates)
    adam = optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(schedule))
    module = named(settings.architecture, classes, preset.dtype)
    stages = jax.eval_shape(lambda network, images: network(images).stages, student, shaped((batch, *info.image_shape)))
    lesson = Batch(
        shaped((batch, *info.image_shape)),
        shaped((batch, classes)),
        tuple(shaped((batch, stage.shape[1] * stage.shape[2])) for stage in stages),
        shaped((batch,)),
    )
    traced = student_update.trace(module, adam, settings.attention, state(student, adam), lesson, *statistics)
    yield ahead.Part("plain student update", settings.updates, batch, traced)
    recipe = preset.teacher
    config = Supervised(100_000, batch, recipe.learning_rate, recipe.momentum, recipe.weight_decay, crop=0, flip=False)
    teacher, module = network(recipe.architecture), named(recipe.architecture, classes, preset.dtype)
    images, labels = shaped((batch, *info.image_shape), jnp.uint8), shaped((batch,), jnp.int32)
    key, ours = placed(jax.random.key(0)), placed(config.init(teacher))
    traced = train_step.trace(config, hard_labels, key, ours, None, images, labels, shaped((batch,), jnp.int32))
    yield ahead.Part("training step", 1, batch, traced)
    traced = training_step.trace(module, config.rule, state(teacher, config.rule), images, labels, *statistics)
    yield ahead.Part("plain training step", 1, batch, traced)
