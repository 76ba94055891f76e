"""The convolution's three maps on CPU by oneDNN, which PyTorch brings: an option, `ABD_JAX_CONVOLUTIONS=onednn`.

jaxlib's own convolutions and products on CPU are compiled for AVX, oneDNN's for the processor at hand. PyTorch is the
one kept package that carries oneDNN for every CPU: Intel's `onednn` runs through SYCL, which knows no CPU of AMD, and
`onednn-cpu-*` have had no release since 2023. XLA calls back into Python, which gives its buffers to PyTorch as they
lie; the result is copied once. What it costs: JAX does not keep programs with callbacks in its compilation cache.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.buffer_callback import buffer_callback

VARIABLE = "ABD_JAX_CONVOLUTIONS"
_ALLOWED = ("xla", "onednn")


@functools.cache
def chosen() -> bool:
    """Whether oneDNN was asked for; read once, so that what is compiled does not change under a running process.

    Raises:
        ValueError: `ABD_JAX_CONVOLUTIONS` is neither xla nor onednn, or PyTorch is missing.
    """
    choice = os.environ.get(VARIABLE, "xla")
    if choice not in _ALLOWED:
        raise ValueError(f"{VARIABLE} {choice!r}: allowed are {', '.join(_ALLOWED)}")
    if choice == "onednn" and importlib.util.find_spec("torch") is None:
        raise ValueError(f"{VARIABLE} onednn: needs PyTorch: pip install 'abd-jax[torch]'")
    return choice == "onednn"


def takes(images: Array, kernel_size: int) -> bool:
    """Whether a convolution of these images goes to oneDNN: if chosen, float32, not 1×1, of known size, on one device.

    A callback cannot be split over devices, and one in a program for several platforms cannot be lowered; those keep
    XLA's form, as do 1×1 kernels, for which that is the faster.

    Raises:
        ValueError: as `chosen`.
    """
    return (
        chosen()
        and images.dtype == jnp.float32
        and kernel_size > 1
        and all(isinstance(size, int) for size in images.shape)
        and jax.device_count() == 1
    )


def convolve(images: Array, kernel: Array, *, stride: int, shape: tuple[int, ...]) -> Array:
    """`layers.convolution` with a result of this shape."""
    return _call(_convolve, shape, images, kernel, stride=stride)


def input_gradient(cotangent: Array, kernel: Array, *, stride: int, shape: tuple[int, ...]) -> Array:
    """Its transpose in the images, which have this shape."""
    return _call(_input_gradient, shape, cotangent, kernel, stride=stride)


def kernel_gradient(images: Array, cotangent: Array, *, stride: int, size: int) -> Array:
    """Its transpose in the kernel, of this size."""
    shape = (size, size, images.shape[-1], cotangent.shape[-1])
    return _call(_kernel_gradient, shape, images, cotangent, stride=stride)


def _call(function: Callable[..., None], shape: tuple[int, ...], *operands: Array, stride: int) -> Array:
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = buffer_callback(functools.partial(function, stride=stride), result, vmap_method="sequential")
    return call(*operands)  # type: ignore[no-any-return]


# --- what XLA calls: `out` is written in place


def _convolve(context: object, out: Any, images: Any, kernel: Any, *, stride: int) -> None:
    from torch.nn import functional

    weight = _kernel(kernel)
    _images(out).copy_(functional.conv2d(_images(images), weight, stride=stride, padding=weight.shape[-1] // 2))


def _input_gradient(context: object, out: Any, cotangent: Any, kernel: Any, *, stride: int) -> None:
    images = _images(out)
    images.copy_(_backward(images, _kernel(kernel), _images(cotangent), stride, of=0))


def _kernel_gradient(context: object, out: Any, images: Any, cotangent: Any, *, stride: int) -> None:
    kernel = _kernel(out)
    kernel.copy_(_backward(_images(images), kernel, _images(cotangent), stride, of=1))


def _backward(images: Any, kernel: Any, cotangent: Any, stride: int, *, of: int) -> Any:
    """PyTorch's gradient in the images (0) or the kernel (1), of which it reads no more than the shape."""
    from torch.ops import aten

    mask = [of == 0, of == 1, False]
    padding = [kernel.shape[-1] // 2] * 2
    call = aten.convolution_backward
    return call(cotangent, images, kernel, None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, mask)[of]


def _images(buffer: Any) -> Any:
    """XLA's `[batch, height, width, channels]` as PyTorch's `[batch, channels, height, width]`, uncopied."""
    import torch

    return torch.from_numpy(np.asarray(buffer)).permute(0, 3, 1, 2)


def _kernel(buffer: Any) -> Any:
    """XLA's `[height, width, inputs, outputs]` as PyTorch's `[outputs, inputs, height, width]`, uncopied."""
    import torch

    return torch.from_numpy(np.asarray(buffer)).permute(3, 2, 0, 1)
