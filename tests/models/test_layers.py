"""The convolution against XLA's and float64 NumPy, batch normalization against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from abd_jax.models import layers
from abd_jax.models.layers import BatchNorm, Conv, convolution
from tests import reference

SHAPES = [
    # batch, height, width, inputs, outputs, stride, size
    (3, 8, 8, 3, 4, 1, 3),
    (5, 8, 10, 4, 6, 2, 3),
    (2, 9, 7, 2, 3, 2, 3),
    (7, 8, 8, 3, 5, 1, 1),
    (5, 9, 8, 3, 2, 2, 1),
    (1, 8, 8, 1, 16, 1, 3),
    (2, 9, 8, 3, 4, 2, 5),
]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def xla_convolution(images, kernel, stride):
    pad = kernel.shape[0] // 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=numbers)


def relative_error(value, expected):
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    return np.abs(value - expected).max() / np.abs(expected).max()


def gradients(convolve, stride, directions):
    """Of a loss in (images, kernel), and of that gradient's product with the directions."""

    def loss(arguments):
        return jnp.sum(jnp.sin(convolve(*arguments, stride)))

    def slope(arguments):
        return sum(jnp.vdot(g, d) for g, d in zip(jax.grad(loss)(arguments), directions, strict=True))

    return jax.grad(loss), jax.grad(slope)


@pytest.fixture(params=["small", "large"])
def form(request, monkeypatch):
    """Both forms of the kernel gradient at sizes that tests can afford; large images are taken in slices of a batch."""
    monkeypatch.setattr(layers, "_WORTH_A_LOOP", 0 if request.param == "large" else 2**62)
    monkeypatch.setattr(layers, "_ROWS_PER_PRODUCT", 160)
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_equals_numpy(shape):
    batch, height, width, inputs, outputs, stride, size = shape
    images, kernel = normal(0, batch, height, width, inputs), normal(1, size, size, inputs, outputs)
    expected = reference.convolve(np.asarray(images, np.float64), np.asarray(kernel, np.float64), stride)
    assert relative_error(convolution(images, kernel, stride), expected) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_xlas(form, shape):
    """First order, and second order in every direction, mixed ones too."""
    batch, height, width, inputs, outputs, stride, size = shape
    images, kernel = normal(0, batch, height, width, inputs), normal(1, size, size, inputs, outputs)
    arguments, directions = (images, kernel), (normal(2, *images.shape), normal(3, *kernel.shape))

    def derivatives(convolve):
        first, second = gradients(convolve, stride, directions)
        return jax.jit(lambda arguments: (first(arguments), second(arguments)))(arguments)

    ours, xlas = jax.tree.leaves(derivatives(convolution)), jax.tree.leaves(derivatives(xla_convolution))
    assert len(ours) == 4
    assert max(map(relative_error, ours, xlas)) < 1e-5


def kernel_gradient(images, kernel, cotangent):
    return jax.vjp(lambda kernel: convolution(images, kernel, 1), kernel)[1](cotangent)[0]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 13])
def test_any_batch_size(form, batch):
    images, kernel, cotangent = normal(0, batch, 8, 8, 3), normal(1, 3, 3, 3, 4), normal(2, batch, 8, 8, 4)
    expected = np.zeros(kernel.shape)
    padded = np.pad(np.asarray(images, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row in range(3):
        for column in range(3):
            view = padded[:, row : row + 8, column : column + 8]
            expected[row, column] = np.einsum("nhwi,nhwo->io", view, np.asarray(cotangent, np.float64))
    assert relative_error(jax.jit(kernel_gradient)(images, kernel, cotangent), expected) < 1e-5


def test_vmap(form):
    images, kernel, cotangent = normal(0, 2, 3, 8, 8, 3), normal(1, 3, 3, 3, 4), normal(2, 2, 3, 8, 8, 4)
    mapped = jax.jit(jax.vmap(kernel_gradient, in_axes=(0, None, 0)))(images, kernel, cotangent)
    each = [kernel_gradient(images[copy], kernel, cotangent[copy]) for copy in range(2)]
    assert relative_error(mapped, jnp.stack(each)) < 1e-5


def test_bfloat16(form):
    """The gradient has the kernel's dtype and is as near as that dtype allows."""
    images, kernel, cotangent = normal(0, 4, 8, 8, 3), normal(1, 3, 3, 3, 4), normal(2, 4, 8, 8, 4)
    small = [x.astype(jnp.bfloat16) for x in (images, kernel, cotangent)]
    gradient = jax.jit(kernel_gradient)(*small)
    assert gradient.dtype == jnp.bfloat16
    assert relative_error(gradient.astype(jnp.float32), kernel_gradient(images, kernel, cotangent)) < 2e-2


def test_sharded_equals_unsharded(form):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    images, kernel, cotangent = normal(0, 16, 8, 8, 3), normal(1, 3, 3, 3, 4), normal(2, 16, 8, 8, 4)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    sharded = jax.device_put((images, kernel, cotangent), (split, whole, split))
    assert relative_error(jax.jit(kernel_gradient)(*sharded), kernel_gradient(images, kernel, cotangent)) < 1e-5


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_xlas_convolutions(form, platform):
    """Second order too: nothing but convolutions, and none of the CPU's loop."""
    images, kernel = jnp.zeros((8, 16, 16, 8)), jnp.zeros((3, 3, 8, 8))

    def second_order(images, kernel):
        def slope(kernel):
            return jnp.sum(jax.grad(lambda kernel: jnp.sum(convolution(images, kernel, 1) ** 2))(kernel) ** 2)

        return jax.grad(slope)(kernel)

    text = jax.jit(second_order).trace(images, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") >= 3  # one in the function of each map, however often it is called
    assert not any(operation in text for operation in ("stablehlo.while", "stablehlo.dot", "stablehlo.concatenate"))


def test_the_cpu_gets_the_loop_for_large_images_only():
    """The threshold as shipped: at batch 128 it lies between the second and the third stage of WRN-16-1."""

    def has_loop(batch, side, inputs, outputs):
        shapes = (batch, side, side, inputs), (3, 3, inputs, outputs), (batch, side, side, outputs)
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return "stablehlo.while" in jax.jit(kernel_gradient).lower(*arguments).as_text()

    assert has_loop(128, 16, 128, 128)
    assert has_loop(128, 32, 32, 32)
    assert has_loop(128, 32, 16, 16)
    assert has_loop(128, 16, 32, 32)
    assert not has_loop(128, 8, 64, 64)
    assert not has_loop(128, 32, 3, 16)


def test_conv_module():
    """No bias, He initialization (normal, variance 2 / fan-in), PyTorch's padding at stride 2."""
    module = Conv(64, 3, 2)
    images = normal(0, 2, 8, 8, 16)
    variables = module.init(jax.random.key(0), images)
    kernel = variables["params"]["kernel"]
    assert list(variables["params"]) == ["kernel"] and kernel.shape == (3, 3, 16, 64)
    assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.03)
    expected = reference.convolve(np.asarray(images, np.float64), np.asarray(kernel, np.float64), 2)
    assert relative_error(module.apply(variables, images), expected) < 1e-6


def variables_of(channels):
    rng = np.random.default_rng(5)
    params = {"scale": rng.uniform(0.5, 1.5, channels), "bias": rng.normal(size=channels)}
    stats = {"mean": rng.normal(size=channels), "var": rng.uniform(0.5, 1.5, channels)}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"params": params, "batch_stats": stats})


@functools.partial(jax.jit, static_argnums=2)
def normalize(variables, x, norm):
    return BatchNorm().apply(variables, x, norm)


def numpy_batch_norm(variables, x, norm):
    named = {f"{kind}/bn/{name}": value for kind, leaves in variables.items() for name, value in leaves.items()}
    named = {name: np.asarray(value, np.float64) for name, value in named.items()}
    return reference.batch_norm(np.asarray(x, np.float64), named, "bn", norm)


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (1, 8, 8, 2), (16, 7)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_batch_norm_equals_numpy(shape, norm, offset):
    """Output and statistics, with channels far from zero too: the variance is a mean of squared deviations."""
    variables, x = variables_of(shape[-1]), normal(0, *shape) + offset
    y, tap = normalize(variables, x, norm)
    expected, seen = numpy_batch_norm(variables, x, norm)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5 * max(offset, 1))
    np.testing.assert_allclose(tap.mean, seen.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tap.variance, seen.variance, rtol=1e-5)
    np.testing.assert_allclose(tap.image_mean, seen.image_mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_batch_norm_gradients_equal_finite_differences(norm):
    """First and second order of a loss on the output and all statistics, along one direction, by float64 NumPy."""
    shape = (3, 4, 4, 2)
    variables, x, weights = variables_of(2), normal(0, *shape), np.asarray(normal(1, *shape))
    arguments = (variables["params"], x)
    direction = jax.tree.map(lambda leaf: normal(leaf.size, *leaf.shape), arguments)

    def loss(normalize, arguments):
        params, x = arguments
        y, tap = normalize({**variables, "params": params}, x, norm)
        cubes = (weights * y**3).sum(), (tap.mean**3).sum(), (tap.variance**2).sum(), (tap.image_mean**3).sum()
        return cubes[0] + cubes[1] + cubes[2] + cubes[3]

    def slope(arguments):
        gradient = jax.grad(lambda arguments: loss(normalize, arguments))(arguments)
        return sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))

    def along(step):
        start, way = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (arguments, direction))
        return float(loss(numpy_batch_norm, jax.tree.map(lambda a, b: a + step * b, start, way)))

    first, gradient = jax.jit(jax.value_and_grad(slope))(arguments)
    second = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    h = 1e-4
    assert float(first) == pytest.approx((along(h) - along(-h)) / (2 * h), rel=1e-4)
    assert float(second) == pytest.approx((along(h) - 2 * along(0) + along(-h)) / h**2, rel=1e-3)


def test_batch_norm_of_a_constant_is_finite():
    variables = variables_of(2)
    gradient = jax.grad(lambda x: jnp.sum(normalize(variables, x, "batch")[0] ** 2))(jnp.full((4, 3, 3, 2), 7.0))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("far, rtol", [(3, 1e-5), (100, 1e-3)])
def test_batch_norm_in_bfloat16_keeps_float32_statistics(far, rtol):
    """Far from zero too, where bfloat16 has rounded x itself to steps of a half."""
    x = normal(0, 8, 6, 6, 4) + far
    y, tap = normalize(variables_of(4), x.astype(jnp.bfloat16), "batch")
    assert y.dtype == jnp.bfloat16 and tap.mean.dtype == tap.variance.dtype == tap.image_mean.dtype == jnp.float32
    seen = reference.statistics(np.asarray(x.astype(jnp.bfloat16), np.float64))
    np.testing.assert_allclose(tap.variance, seen.variance, rtol=rtol)


def test_batch_norm_in_bfloat16_has_the_gradient_of_float32():
    x, weights = (normal(0, 8, 6, 6, 4) + 3).astype(jnp.bfloat16), normal(1, 8, 6, 6, 4)

    def loss(x):
        y, tap = normalize(variables_of(4), x, "batch")
        return (weights * y.astype(jnp.float32)).sum() + (tap.variance**2).sum()

    narrow, wide = jax.grad(loss)(x), jax.grad(loss)(x.astype(jnp.float32))
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.02 * np.abs(wide).max())


def test_batch_norm_without_running_statistics():
    variables = BatchNorm(track=False).init(jax.random.key(0), normal(0, 4, 3), "batch")
    assert list(variables) == ["params"]


def test_batch_norm_statistics_are_global_over_a_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    variables, x = variables_of(3), normal(0, 16, 4, 4, 3)
    x += jnp.arange(16.0).reshape(16, 1, 1, 1)  # every shard has statistics of its own
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    sharded, single = normalize(everywhere, split, "batch"), normalize(variables, x, "batch")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), sharded, single)
