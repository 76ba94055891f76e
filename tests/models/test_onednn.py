"""Convolutions by oneDNN against float64 NumPy and against XLA's, and when they are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.models import create, layers, onednn
from abd_jax.models.layers import convolution
from abd_jax.training import speed
from tests import reference
from tests.models.test_layers import SHAPES, gradients, normal, relative_error, xla_convolution

CALLBACK = "xla_buffer_python_cpu_callback"


@pytest.fixture
def chosen(monkeypatch):
    """As in a process with `ABD_JAX_CONVOLUTIONS=onednn` and one device."""
    pytest.importorskip("torch")
    monkeypatch.setattr(onednn, "chosen", lambda: True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


def calls(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text().count(CALLBACK)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_numpy(chosen, shape):
    batch, height, width, inputs, outputs, stride, size = shape
    images, kernel = normal(0, batch, height, width, inputs), normal(1, size, size, inputs, outputs)
    assert calls(lambda x, w: convolution(x, w, stride), images, kernel) == (size > 1)
    expected = reference.convolve(np.asarray(images, np.float64), np.asarray(kernel, np.float64), stride)
    assert relative_error(convolution(images, kernel, stride), expected) < 1e-6


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_xlas(chosen, shape):
    """First order, and second order in every direction; under a `scan` too, and under `vmap` over kernels."""
    batch, height, width, inputs, outputs, stride, size = shape
    images, kernel = normal(0, batch, height, width, inputs), normal(1, size, size, inputs, outputs)
    directions = normal(2, *images.shape), normal(3, *kernel.shape)

    def derivatives(convolve):
        first, second = gradients(convolve, stride, directions)

        def step(total, factor):
            return jax.tree.map(jnp.add, total, first((images, kernel * factor))), None

        start = jax.tree.map(jnp.zeros_like, (images, kernel))
        several = jnp.stack([kernel, 2 * kernel])
        return jax.jit(
            lambda both: (
                first(both),
                second(both),
                jax.lax.scan(step, start, jnp.array([1.0, 0.5]))[0],
                jax.vmap(lambda w: first((images, w)))(several),
            )
        )((images, kernel))

    ours, xlas = jax.tree.leaves(derivatives(convolution)), jax.tree.leaves(derivatives(xla_convolution))
    assert len(ours) == 8
    assert max(map(relative_error, ours, xlas)) < 1e-5


@pytest.mark.torch
def test_a_network_is_the_same(chosen, monkeypatch):
    """Logits and gradients of a Wide ResNet; its arithmetic is still counted."""
    facts = {"num_classes": 4, "input_shape": (8, 8, 3), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    network = create(jax.random.key(0), "wrn-10-1", **facts)
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))

    def loss(params, images):
        return jnp.sum(jnp.square(network.with_params(params)(images, norm="batch").logits))

    def both():
        jax.clear_caches()
        program = jax.jit(jax.value_and_grad(loss))
        lowered = program.lower(network.params, images).as_text()
        return program(network.params, images), speed.flops(jax.make_jaxpr(loss)(network.params, images)), lowered

    ours, our_flops, text = both()
    assert text.count(CALLBACK) > 15
    monkeypatch.setattr(onednn, "chosen", lambda: False)
    xlas, flops, text = both()
    assert CALLBACK not in text and flops == our_flops > 0
    for value, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(xlas), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.torch
def test_what_stays_with_xla(chosen, monkeypatch):
    images, kernel = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 4)
    assert calls(convolution, images, kernel) == 1
    assert calls(convolution, images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 0
    assert calls(convolution, images, kernel[:1, :1]) == 0
    several = jax.export.symbolic_shape("batch, 8, 8, 3")
    program = jax.export.export(jax.jit(convolution), platforms=("cpu", "cuda", "tpu"))
    assert CALLBACK not in program(jax.ShapeDtypeStruct(several, jnp.float32), kernel).mlir_module()
    for platform in ("cuda", "tpu"):
        program = jax.export.export(jax.jit(convolution), platforms=(platform,))
        assert CALLBACK not in program(images, kernel).mlir_module()
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not onednn.takes(images, 3)


@pytest.mark.parametrize(
    ("value", "torch_is_there", "says"),
    [
        ("mkl", True, "'mkl': allowed are xla, onednn"),
        ("onednn", False, "onednn: needs PyTorch: pip install 'abd-jax.torch.'"),
    ],
)
def test_a_bad_choice(monkeypatch, value, torch_is_there, says):
    monkeypatch.setenv(onednn.VARIABLE, value)
    monkeypatch.setattr(onednn.importlib.util, "find_spec", lambda name: torch_is_there or None)
    onednn.chosen.cache_clear()
    try:
        with pytest.raises(ValueError, match=f"{onednn.VARIABLE} {says}"):
            layers.convolution(normal(0, 1, 8, 8, 3), normal(1, 3, 3, 3, 4))
    finally:
        onednn.chosen.cache_clear()
