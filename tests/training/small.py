"""A run so small that every round compiles in seconds."""

import dataclasses

import jax
import numpy as np

from abd_jax.data import Dataset
from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.defenses.trigger_inversion import InversionConfig
from abd_jax.models import Network
from abd_jax.synthesis.zskt import ZSKTConfig
from abd_jax.training.config import CleanKDConfig, Preset, StudentConfig, TeacherConfig
from tests.networks import network

PRESET = Preset(
    name="small",
    dataset="digits",
    teacher=TeacherConfig(architecture="wrn-10-1", epochs=2, batch=16, crop=1),
    student=StudentConfig(architecture="wrn-10-1", cycles=6, updates=2, batch=8, evaluate_every=2, checkpoint_every=2),
    synthesis=ZSKTConfig(latent=4, features=4),
    vaccine=VaccineConfig(kernels=2, student_weights="paper", generator_weights=True, class_balance=0.1),
    retrospection=RetrospectionConfig(start_fraction=0.5, ascent_steps=2, iterations=1, portion=0.5),
    clean_kd=CleanKDConfig(epochs=2, batch=8, share=0.5),
)
INVERTED = dataclasses.replace(
    PRESET,
    name="inverted",
    vaccine=dataclasses.replace(PRESET.vaccine, censor=True),
    retrospection=dataclasses.replace(PRESET.retrospection, perturb="inverted", hunt=2, restart=2),
    inversion=InversionConfig(images=4, steps=2, anomaly=-100.0),
)


def preset(**student) -> Preset:
    return dataclasses.replace(PRESET, student=dataclasses.replace(PRESET.student, **student))


def teacher() -> Network:
    return network(classes=10)


def dataset(size: int = 8, train: int = 48, test: int = 24) -> Dataset:
    """Random images under the name of the registered data set."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.integers(0, 256, (count, size, size, 1), dtype=np.uint8)
        return images, (np.arange(count) % 10).astype(np.int32)

    train_images, train_labels = draw(train)
    test_images, test_labels = draw(test)
    return Dataset(
        name="digits",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=tuple("0123456789"),
        mean=(0.45,),
        std=(0.3,),
        flip=False,
    )


def key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed)
