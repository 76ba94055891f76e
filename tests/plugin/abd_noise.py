"""A method that teaches with uniform noise, and a defense that trusts no bright image: both from outside abd_jax."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from abd_jax.screening import Screening
from abd_jax.synthesis import Method, SynthesisConfig


@dataclasses.dataclass(frozen=True)
class NoiseConfig(SynthesisConfig):
    """Settings: noise of [0, `brightness`]."""

    updates: int = 1
    brightness: float = 1.0


@dataclasses.dataclass(frozen=True)
class Noise:
    """See `abd_jax.synthesis.Synthesizer`: nothing is learned, so the state counts updates alone."""

    config: NoiseConfig
    task: object
    fresh: bool = False
    student_norm: str = "batch"

    def init(self, key):
        return jnp.zeros((), jnp.int32)

    def update(self, key, state, teacher, student, screen):
        return state + 1, {"noise/updates": state + 1}

    def sample(self, key, state, count):
        return self.config.brightness * jax.random.uniform(key, (count, *self.task.image_shape))


METHOD = Method(NoiseConfig, Noise)


def trust_the_dark(teacher):
    """Screens that give images above 0.5 in the mean a weight of 0."""

    def screen(images, forward):
        dark = images.mean(axis=(1, 2, 3)) < 0.5
        return Screening(dark.astype(jnp.float32), jnp.zeros(()), {"trusted": dark.mean()})

    return screen, screen
