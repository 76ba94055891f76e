"""Layers that every network shares: the convolution and batch normalization.

The convolution computes what `lax.conv_general_dilated` computes; its kernel gradient has a second form, for large
images on CPU, where XLA's own is slow. On CPU, oneDNN can compute it and both gradients instead (see `onednn`). Batch
normalization returns the statistics that it saw, so that one forward pass serves distillation, DeepInversion and the
update of the running statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float

from abd_jax.models import onednn

Norm = Literal["batch", "running"]

BATCH_NORM_EPSILON = 1e-5
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_ROWS_PER_PRODUCT = 4096  # pixels per matrix product of the CPU kernel gradient: fits the second-level cache
_WORTH_A_LOOP = 2**20  # numbers in the images from which matrix products beat XLA's kernel gradient on CPU


def _convolve(images: Array, kernel: Array, stride: int) -> Array:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(images, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=_DIMENSIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(
    images: Float[Array, "batch height width inputs"], kernel: Float[Array, "size size inputs outputs"], stride: int = 1
) -> Float[Array, "batch height_out width_out outputs"]:
    """Convolves with zero padding of `size // 2` on every side (PyTorch's convention at any stride).

    Its derivatives of every order are built from three bilinear maps (the convolution, its input gradient and its
    kernel gradient), each the derivative of the others, so it is reverse-mode differentiable without limit.

    Args:
        images: `[batch, height, width, inputs]`.
        kernel: `[size, size, inputs, outputs]`, odd and square.
        stride: the same in both directions.
    """
    by_xla = functools.partial(_convolve, stride=stride)
    if not onednn.takes(images, kernel.shape[0]):
        return by_xla(images, kernel)
    shape = jax.eval_shape(by_xla, images, kernel).shape
    by_onednn = functools.partial(onednn.convolve, stride=stride, shape=shape)
    return lax.platform_dependent(images, kernel, cpu=by_onednn, default=by_xla)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(cotangent: Array, kernel: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """The images' cotangent: the transpose of `convolution` in its first argument."""
    by_xla = functools.partial(_input_gradient_by_xla, stride=stride, shape=shape)
    if not onednn.takes(cotangent, kernel.shape[0]):
        return by_xla(cotangent, kernel)
    by_onednn = functools.partial(onednn.input_gradient, stride=stride, shape=shape)
    return lax.platform_dependent(cotangent, kernel, cpu=by_onednn, default=by_xla)


@functools.partial(jax.jit, static_argnames=("stride", "shape"))
def _input_gradient_by_xla(cotangent: Array, kernel: Array, *, stride: int, shape: tuple[int, ...]) -> Array:
    images = jax.ShapeDtypeStruct(shape, cotangent.dtype)
    return jax.linear_transpose(lambda x: _convolve(x, kernel, stride), images)(cotangent)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(images: Array, cotangent: Array, stride: int, size: int) -> Array:
    """The kernel's cotangent: the transpose of `convolution` in its second argument.

    XLA's own form is one convolution, for which its CPU backend first turns batch and channels of images and cotangent
    around in memory: in WRN-16-1's step (batch 128) these transposes take 83 of the 398 ms that its thunks add up
    to, the convolutions behind them 129. The loop of products reads both as they lie. CPU time of one call with jaxlib
    0.10.2, YNNPACK's convolutions off: 7 ms against 13 (16 → 16 channels at 32×32), 20 against 53 (32 → 32 at 32×32),
    5.6 against 6.7 (32 → 32 at 16×16), 6.0 against 5.8 (64 → 64 at 8×8). Small images keep XLA's form.
    """
    by_xla = functools.partial(_kernel_gradient_by_xla, stride=stride, size=size)
    if onednn.takes(images, size):
        on_cpu = functools.partial(onednn.kernel_gradient, stride=stride, size=size)
    elif images.size < _WORTH_A_LOOP:
        return by_xla(images, cotangent)
    else:
        on_cpu = functools.partial(_kernel_gradient_by_products, stride=stride, size=size)
    return lax.platform_dependent(images, cotangent, cpu=on_cpu, default=by_xla)


@functools.partial(jax.jit, static_argnames=("stride", "size"))
def _kernel_gradient_by_xla(images: Array, cotangent: Array, *, stride: int, size: int) -> Array:
    kernel = jax.ShapeDtypeStruct((size, size, images.shape[-1], cotangent.shape[-1]), images.dtype)
    return jax.linear_transpose(lambda w: _convolve(images, w, stride), kernel)(cotangent)[0]


@functools.partial(jax.jit, static_argnames=("stride", "size"))
def _kernel_gradient_by_products(images: Array, cotangent: Array, *, stride: int, size: int) -> Array:
    """Accumulates one matrix product per slice of the batch.

    A tap of the kernel is a shift in rows and a shift in columns. With the images shifted in columns (`size` copies
    side by side in the channels) and the cotangent shifted in rows, the product of the two holds every tap, from
    2·`size` copies instead of `size`². A slice takes its images from all over the batch, so that over a mesh each
    device has its share of every slice (WRN-16-2 on two CPU devices: 820 ms a step, 1042 with slices of neighbors).
    """
    batch, height, _, inputs = images.shape
    _, height_out, width_out, outputs = cotangent.shape
    pad = size // 2
    spread = (height_out - 1) * stride + 1  # rows of the cotangent once they stand where their images' rows are
    chunk = max(1, min(batch, _ROWS_PER_PRODUCT // (height * width_out)))
    fill = ((0, -batch % chunk), (0, 0), (0, 0), (0, 0))  # images of zeros, which add nothing
    slices = jax.tree.map(lambda x: jnp.pad(x, fill).reshape(chunk, -1, *x.shape[1:]), (images, cotangent))

    def accumulate(total: Array, index: Array) -> tuple[Array, None]:
        pair = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 1, keepdims=False), slices)
        x = jnp.pad(pair[0], ((0, 0), (0, 0), (pad, pad), (0, 0)))
        last = (width_out - 1) * stride + 1
        columns = jnp.concatenate([x[:, :, tap : tap + last : stride] for tap in range(size)], axis=-1)
        rest = (0, 0, 0)
        apart = (pad, pad + height - spread, stride - 1)
        g = lax.pad(pair[1], jnp.zeros((), cotangent.dtype), (rest, apart, rest, rest))
        rows = jnp.concatenate([g[:, size - 1 - tap :][:, :height] for tap in range(size)], axis=-1)
        product = lax.dot_general(
            rows.reshape(-1, size * outputs),
            columns.reshape(-1, size * inputs),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    total, _ = lax.scan(
        accumulate, jnp.zeros((size * outputs, size * inputs), jnp.float32), jnp.arange(slices[0].shape[1])
    )
    return total.reshape(size, outputs, size, inputs).transpose(0, 2, 3, 1).astype(images.dtype)


def _convolution_forward(images, kernel, stride):
    return convolution(images, kernel, stride), (images, kernel)


def _convolution_backward(stride, residuals, cotangent):
    images, kernel = residuals
    return (
        _input_gradient(cotangent, kernel, stride, images.shape),
        _kernel_gradient(images, cotangent, stride, kernel.shape[0]),
    )


def _input_gradient_forward(cotangent, kernel, stride, shape):
    return _input_gradient(cotangent, kernel, stride, shape), (cotangent, kernel)


def _input_gradient_backward(stride, shape, residuals, images):
    cotangent, kernel = residuals
    return convolution(images, kernel, stride), _kernel_gradient(images, cotangent, stride, kernel.shape[0])


def _kernel_gradient_forward(images, cotangent, stride, size):
    return _kernel_gradient(images, cotangent, stride, size), (images, cotangent)


def _kernel_gradient_backward(stride, size, residuals, kernel):
    images, cotangent = residuals
    return _input_gradient(cotangent, kernel, stride, images.shape), convolution(images, kernel, stride)


convolution.defvjp(_convolution_forward, _convolution_backward)
_input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
_kernel_gradient.defvjp(_kernel_gradient_forward, _kernel_gradient_backward)


def _as_conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: object, **_: object
) -> Array:
    """`convolution` under the name and arguments that `nn.Conv` calls."""
    return convolution(lhs, rhs, window_strides[0])


def Conv(features: int, size: int = 3, stride: int = 1, **options) -> nn.Conv:
    """`nn.Conv` without bias, with He initialization and this file's `convolution`."""
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=_as_conv_general_dilated,
        **options,
    )


@jax.custom_vjp
def permute(x: Array, order: Array) -> Array:
    """Reorders the channels of each copy of an image: `x[b·n + i, …, c] → x[b·n + i, …, order[i, c]]`, n copies each.

    Each row of `order` is a permutation, so the transpose is the same gather with the inverse one; JAX's own is a
    scatter, which on CPU takes 10 to 15 times as long (43 against 3 ms for `[384, 16, 16, 64]`).
    """
    copies = x.reshape(-1, order.shape[0], *x.shape[1:])
    take = jax.vmap(lambda copy, channels: jnp.take(copy, channels, axis=-1, mode="clip"), in_axes=(1, 0), out_axes=1)
    return take(copies, order).reshape(x.shape)


permute.defvjp(
    lambda x, order: (permute(x, order), order),
    lambda order, cotangent: (permute(cotangent, jnp.argsort(order, axis=-1)), None),
)


def gather(x: Array, order: Array | None) -> Array:
    """`permute`, or nothing where there is no order: what stands in front of every kernel that can be shuffled."""
    return x if order is None else permute(x, order)


def orders_in(block: str, gathers: Mapping[str, Array]) -> dict[str, Array]:
    """The orders of a block's own kernels, by their names inside it."""
    return {path.rpartition("/")[2]: order for path, order in gathers.items() if path.rpartition("/")[0] == block}


@struct.dataclass
class BatchNormTap:
    """What one batch normalization saw: statistics of its input; and what it expects.

    Attributes:
        mean: batch mean per channel, `[channels]`.
        variance: biased batch variance per channel, `[channels]`.
        image_mean: spatial mean per image, `[batch, channels]`.
        running_mean, running_variance: the stored ones per channel, `[channels]`; None if nothing is tracked.
    """

    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]
    image_mean: Float[Array, "batch channels"]
    running_mean: Float[Array, " channels"] | None = None
    running_variance: Float[Array, " channels"] | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _variance(x: Array, image_mean: Array, mean: Array, one_pass: bool) -> Array:
    """Mean of (x − μ)² over all axes but the last, where `mean` must be μ and `image_mean` the means μᵢ of the images.

    With `one_pass` as the mean over images of E x² − μᵢ² + (μᵢ − μ)², E over an image, which a compiler takes from the
    pass that yields the means. The cancellation costs about 1e-7·μᵢ²: too much where x is float32, less than x's own
    rounding where it was bfloat16.

    Its derivative in μ, −2·mean(x − μ), is zero for every x; saying so spares a pass over the batch, and over a mesh an
    all-reduce, that would add rounding only. In x it is 2(x − μ) / count, itself differentiable in both.
    """
    if not one_pass:
        return jnp.mean(jnp.square(x - mean), axis=tuple(range(x.ndim - 1)))
    inside = jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim - 1))) - jnp.square(image_mean)
    return jnp.mean(jnp.maximum(inside, 0.0) + jnp.square(image_mean - mean), axis=0)


def _variance_backward(
    one_pass: bool, residuals: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, Array]:
    del one_pass
    x, image_mean, mean = residuals
    slope = (x - mean) * (cotangent * (2 * cotangent.size / x.size))
    return slope, jnp.zeros_like(image_mean), jnp.zeros_like(mean)


_variance.defvjp(
    lambda x, image_mean, mean, one_pass: (_variance(x, image_mean, mean, one_pass), (x, image_mean, mean)),
    _variance_backward,
)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last: `scale · (x − μ) / √(σ² + 1e-5) + bias`.

    A call never writes: with `norm="batch"` the statistics are the batch's, with `"running"` the stored ones, and in
    both cases the batch's come back as a `BatchNormTap`; `Network.absorb` moves them into the running ones. Statistics
    and parameters are float32 whatever the activations are. Under `jit` over a mesh the statistics are global.

    Attributes:
        track: whether there are running statistics at all; without them only `norm="batch"` works.
    """

    track: bool = True

    @nn.compact
    def __call__(self, x: Array, norm: Norm) -> tuple[Array, BatchNormTap]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        running_mean = running_variance = None
        if self.track:
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,)).value
            running_variance = self.variable("batch_stats", "var", jnp.ones, (channels,)).value
        wide = x.astype(jnp.float32)
        image_mean = wide.mean(axis=tuple(range(1, x.ndim - 1)))
        mean = image_mean.mean(axis=0)
        variance = _variance(wide, image_mean, mean, x.dtype != jnp.float32)
        used_mean, used_variance = mean, variance
        if norm == "running":
            if running_mean is None or running_variance is None:
                raise ValueError('norm "running": this batch normalization keeps no statistics')
            used_mean, used_variance = running_mean, running_variance
        factor = scale * lax.rsqrt(used_variance + BATCH_NORM_EPSILON)
        y = wide * factor + (bias - used_mean * factor)
        return y.astype(x.dtype), BatchNormTap(mean, variance, image_mean, running_mean, running_variance)
