"""The library's own steps at the bench's sizes, with random weights: time does not depend on what a network knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from abd_jax import models
from abd_jax.attacks.objectives import hard_labels
from abd_jax.models import Network
from abd_jax.training import dispatch, sharding
from abd_jax.training.config import Preset, StudentConfig, TeacherConfig
from abd_jax.training.distill import Distillation
from abd_jax.training.teacher import Supervised, train_step

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


def zskt_steps(defense: str, teacher: str, student: str, batch: int, side: int, updates: int) -> tuple[Step, Step]:
    """One generator update alone, and one whole cycle: the update, the lesson, and the student's updates.

    The vaccine is the paper's: three copies, five kernels, a penalty in the generator's loss.
    """
    preset = Preset(
        name="bench",
        dataset="digits",  # not loaded: a preset must name one
        teacher=TeacherConfig(architecture=teacher),
        student=StudentConfig(architecture=student, batch=batch, updates=updates),
    )
    key, network = jax.random.key(2), _network(teacher, side)
    run = Distillation.make(preset, defense, network)

    def fresh():
        state = run.init(key, network)
        if state.vaccine is None:
            return state
        vaccine = dataclasses.replace(state.vaccine, enabled=jnp.ones((), jnp.float32))
        return dataclasses.replace(state, vaccine=vaccine)

    cycle_state, update_state = fresh(), fresh()
    whole = dispatch.compile_rounds(run, key, cycle_state, network)[run.phase(0)]

    @jax.jit
    def update(synthesizer, student, vaccine, teacher):
        generator_screen, _ = run.screens(vaccine, teacher)
        return run.synthesizer.update(key, synthesizer, teacher, student, generator_screen)

    synthesizer = update_state.synthesizer

    def generator_step() -> None:
        nonlocal synthesizer
        synthesizer, metrics = update(synthesizer, update_state.student, update_state.vaccine, network)
        jax.block_until_ready((synthesizer, metrics))

    def cycle() -> None:
        nonlocal cycle_state
        cycle_state, metrics = whole(key, cycle_state, network)
        jax.block_until_ready((cycle_state, metrics))

    return generator_step, cycle
