"""Layers that every network shares: the convolution and batch normalization.

The convolution computes what `lax.conv_general_dilated` computes; only its kernel gradient has a second form, which is
lowered on CPU, where XLA's own is slow. Batch normalization returns the statistics that it saw, so that one forward
pass serves distillation, DeepInversion and the update of the running statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float

Norm = Literal["batch", "running"]

BATCH_NORM_EPSILON = 1e-5
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_ROWS_PER_PRODUCT = 4096  # output pixels per matrix product of the CPU kernel gradient: fits the second-level cache


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
    return _convolve(images, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _input_gradient(cotangent: Array, kernel: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """The images' cotangent: the transpose of `convolution` in its first argument."""
    images = jax.ShapeDtypeStruct(shape, cotangent.dtype)
    return jax.linear_transpose(lambda x: _convolve(x, kernel, stride), images)(cotangent)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _kernel_gradient(images: Array, cotangent: Array, stride: int, size: int) -> Array:
    """The kernel's cotangent: the transpose of `convolution` in its second argument."""
    return lax.platform_dependent(
        images,
        cotangent,
        cpu=functools.partial(_kernel_gradient_by_patches, stride=stride, size=size),
        default=functools.partial(_kernel_gradient_by_xla, stride=stride, size=size),
    )


def _kernel_gradient_by_xla(images: Array, cotangent: Array, *, stride: int, size: int) -> Array:
    kernel = jax.ShapeDtypeStruct((size, size, images.shape[-1], cotangent.shape[-1]), images.dtype)
    return jax.linear_transpose(lambda w: _convolve(images, w, stride), kernel)(cotangent)[0]


def _patches(images: Array, size: int, stride: int, height: int, width: int) -> Array:
    """The `size`² shifted views of padded images, side by side in the channel axis."""
    batch, _, _, channels = images.shape
    views = [
        lax.slice(
            images,
            (0, row, column, 0),
            (batch, row + (height - 1) * stride + 1, column + (width - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(views, axis=-1)


def _kernel_gradient_by_patches(images: Array, cotangent: Array, *, stride: int, size: int) -> Array:
    """Accumulates `cotangentᵀ · patches(images)` over slices of the batch that fit the cache."""
    batch, height, width, inputs = images.shape
    _, height_out, width_out, outputs = cotangent.shape
    if stride == 1 and size > 1 and outputs * 4 <= inputs:
        # Few outputs: the cotangent's patches are the smaller ones; the gradient comes out mirrored in space.
        mirrored = _kernel_gradient_by_patches(cotangent, images, stride=1, size=size)
        return mirrored.transpose(0, 1, 3, 2)[::-1, ::-1]
    chunk = max(1, min(batch, _ROWS_PER_PRODUCT // (height_out * width_out)))
    while batch % chunk:
        chunk -= 1
    pad = size // 2
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    chunks = (
        padded.reshape(batch // chunk, chunk, *padded.shape[1:]),
        cotangent.reshape(batch // chunk, chunk * height_out * width_out, outputs),
    )

    def accumulate(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        patches = _patches(pair[0], size, stride, height_out, width_out).reshape(-1, size * size * inputs)
        return total + lax.dot_general(pair[1], patches, (((0,), (0,)), ((), ()))), None

    total, _ = lax.scan(accumulate, jnp.zeros((outputs, size * size * inputs), images.dtype), chunks)
    return total.T.reshape(size, size, inputs, outputs)


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


def Conv(features: int, size: int = 3, stride: int = 1, **options) -> nn.Conv:  # noqa: N802 - it makes a module
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


@struct.dataclass
class BatchNormTap:
    """What one batch normalization saw: statistics of its input.

    Attributes:
        mean: batch mean per channel, `[channels]`.
        variance: biased batch variance per channel, `[channels]`.
        image_mean: spatial mean per image, `[batch, channels]`.
    """

    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]
    image_mean: Float[Array, "batch channels"]


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
        if self.track:
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
            running_variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        wide = x.astype(jnp.float32)
        image_mean = wide.mean(axis=tuple(range(1, x.ndim - 1)))
        mean = image_mean.mean(axis=0)
        variance = jnp.mean(jnp.square(wide - mean), axis=tuple(range(x.ndim - 1)))
        used_mean, used_variance = (
            (mean, variance) if norm == "batch" else (running_mean.value, running_variance.value)
        )
        factor = scale * lax.rsqrt(used_variance + BATCH_NORM_EPSILON)
        y = wide * factor + (bias - used_mean * factor)
        return y.astype(x.dtype), BatchNormTap(mean, variance, image_mean)
