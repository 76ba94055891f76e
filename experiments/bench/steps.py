"""The library's own steps at the bench's sizes, with random weights: time does not depend on what a network knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from abd_jax import models
from abd_jax.attacks.objectives import hard_labels
from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.models import Network
from abd_jax.synthesis.zskt import ZSKTConfig
from abd_jax.training import ahead, dispatch, sharding
from abd_jax.training.config import Preset, StudentConfig, TeacherConfig
from abd_jax.training.distill import Distillation, DistillState, Phase
from abd_jax.training.supervised import Supervised, train_step

Step = Callable[[], object]
CLASSES = 10


def _network(architecture: str, side: int) -> Network:
    return models.create(
        jax.random.key(0),
        architecture,
        num_classes=CLASSES,
        input_shape=(side, side, 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def training_step(architecture: str, batch: int, side: int, devices: int = 1) -> Step:
    """`train_step` of the poisoned teacher without augmentation: one call is one update."""
    config = Supervised(
        steps=10_000, batch=batch, learning_rate=0.1, momentum=0.9, weight_decay=5e-4, crop=0, flip=False
    )
    state = config.init(_network(architecture, side))
    key, labels, order = jax.random.key(1), jnp.arange(batch) % CLASSES, jnp.arange(batch)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8))
    if devices > 1:
        mesh = sharding.data_mesh(devices)
        key, state, images, labels = sharding.replicate((key, state, images, labels), mesh)
        order = jax.device_put(order, sharding.batch_sharding(mesh))

    def step() -> None:
        nonlocal state
        state, metrics = train_step(config, hard_labels, key, state, None, images, labels, order)
        jax.block_until_ready((state, metrics))

    return step


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a distillation's step is timed at; `defense` as in the commands.

    The vaccine is the paper's: three copies, five kernels, a penalty in the generator's loss. Self-Retrospection has
    the options of the published sweeps: δ is found on the teacher in 10 steps of Adam, K = 5.
    """

    teacher: str
    student: str
    batch: int
    side: int
    updates: int = 10
    defense: str = "none"
    method: str = "zskt"

    def begin(self) -> tuple[Distillation, jax.Array, Network]:
        preset = Preset(
            name="bench",
            dataset="digits",  # not loaded: a preset must name one
            teacher=TeacherConfig(architecture=self.teacher),
            student=StudentConfig(architecture=self.student, batch=self.batch, updates=self.updates),
            synthesis=ZSKTConfig(),
            vaccine=VaccineConfig(),
            retrospection=RetrospectionConfig(perturb="teacher", start_fraction=0.0),
        ).with_method(self.method)
        network = _network(self.teacher, self.side)
        run = Distillation.make(ahead.with_batch(preset, self.batch), self.defense, network)
        return run, jax.random.key(2), network


def _fresh(run: Distillation, key: jax.Array, network: Network) -> DistillState:
    """The first state, with a vaccine that is on."""
    state = run.init(key, network)
    if state.vaccine is None:
        return state
    vaccine = dataclasses.replace(state.vaccine, enabled=jnp.ones((), jnp.float32))
    return dataclasses.replace(state, vaccine=vaccine)


def cycle(setting: Setting) -> Step:
    """A whole round as training dispatches it."""
    run, key, network = setting.begin()
    state = _fresh(run, key, network)
    whole = dispatch.compile_rounds(run, key, state, network)[run.phase(0)]

    def step() -> None:
        nonlocal state
        state, metrics = whole(key, state, network)
        jax.block_until_ready((state, metrics))

    return step


def synthesis_update(setting: Setting) -> Step:
    """One update of the synthesizer."""
    run, key, network = setting.begin()
    state = _fresh(run, key, network)
    update = 0

    def step() -> None:
        nonlocal state, update
        state, metrics = dispatch.synthesize(run, Phase(), key, state, network, np.int32(update))
        update += 1
        jax.block_until_ready((state, metrics))

    return step


def _cache_in(directory: Path | str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", None if directory is None else str(directory))
    compilation_cache.reset_cache()


def compilation(setting: Setting, cache: Path | None = None) -> Step:
    """Traces and compiles a whole round as if for the first time, with JAX's compilation cache in `cache` or without.

    A cache holds small programs too, as those of all commands (`process.tune`).
    """
    run, key, network = setting.begin()
    state = _fresh(run, key, network)

    def step() -> None:
        jax.clear_caches()
        before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        try:
            _cache_in(cache)
            dispatch.compile_rounds(run, key, state, network)
        finally:
            _cache_in(before)

    return step
