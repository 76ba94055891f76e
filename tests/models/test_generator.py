"""The generator against float64 NumPy, and what its images are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.models import Generator
from tests import networks, reference

LATENT = 5


def make(shape, seed=0, **options):
    channels = shape[2]
    module = Generator(shape, networks.MEAN[channels], networks.STD[channels], features=8, **options)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, LATENT)))
    return module, networks.randomized(variables, seed)


def latents(batch=4):
    return jnp.asarray(np.random.default_rng(7).normal(size=(batch, LATENT)), jnp.float32)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 12, 3)])
def test_against_numpy(shape):
    module, variables = make(shape)
    images = jax.jit(module.apply)(variables, latents())
    assert images.shape == (4, *shape) and images.dtype == jnp.float32
    mean, std = networks.MEAN[shape[2]], networks.STD[shape[2]]
    expected = reference.generator(variables["params"], latents(), shape, mean, std)
    np.testing.assert_allclose(images, expected, rtol=1e-3, atol=1e-4)


def test_a_fresh_generator_is_standardized_as_the_teacher_wants_it():
    module, _ = make((8, 8, 3))
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((2, LATENT)))
    images = np.asarray(jax.jit(module.apply)(variables, latents(16)), np.float64)
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), networks.MEAN[3], atol=1e-4)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), networks.STD[3], rtol=1e-3)


def test_there_are_no_running_statistics():
    _, variables = make((8, 8, 1))
    assert set(variables) == {"params"}


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3)])
def test_parameter_count(shape):
    _, variables = make(shape)
    height, width, channels = shape
    linear = (LATENT + 1) * (height // 4) * (width // 4) * 8
    convolutions = 9 * (8 * 8 + 8 * 4 + 4 * channels)
    normalizations = 2 * (8 + 8 + 4 + channels)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert counted == linear + convolutions + normalizations


def test_half_precision_returns_float32_images_close_to_single_precision():
    module, variables = make((8, 8, 1))
    half, _ = make((8, 8, 1), dtype=jnp.bfloat16)
    single, images = (np.asarray(jax.jit(m.apply)(variables, latents())) for m in (module, half))
    assert images.dtype == np.float32
    assert 0 < np.abs(images - single).max() < 0.15


@pytest.mark.parametrize("shape", [(10, 8, 1), (8, 9, 1)])
def test_a_size_that_does_not_divide_by_four_is_refused(shape):
    with pytest.raises(ValueError, match="height and width divisible by 4"):
        make(shape)
