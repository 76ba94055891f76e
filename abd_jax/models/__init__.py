"""Networks: pure flax.linen modules, wrapped as `Network` values; `create` makes one by name."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
from jaxtyping import Array

from abd_jax.models.generator import Generator
from abd_jax.models.layers import BatchNormTap, Norm
from abd_jax.models.network import Forward, Network, initialize
from abd_jax.models.typing import Leaf
from abd_jax.models.wide_resnet import WideResNet

__all__ = [
    "BatchNormTap",
    "Forward",
    "Generator",
    "Leaf",
    "Network",
    "Norm",
    "WideResNet",
    "abstract",
    "build",
    "create",
]

_WIDE_RESNET = re.compile(r"wrn-(\d+)-(\d+)")
SIZES = range(8, 65)


def build(name: str, num_classes: int, dtype: str = "float32") -> WideResNet:
    """The module of an architecture by name.

    Args:
        name: `wrn-<depth>-<width>`, depth 6n + 4.
        num_classes: size of the logits.
        dtype: compute dtype, `float32` or `bfloat16`.

    Raises:
        ValueError: no such architecture.
    """
    match = _WIDE_RESNET.fullmatch(name.lower())
    depth, width = map(int, match.groups()) if match else (0, 0)
    if not (10 <= depth <= 100 and depth % 6 == 4 and 1 <= width <= 20):
        raise ValueError(
            f"unknown architecture {name!r}: allowed are wrn-D-W with depth D = 10, 16, 22, … (6n + 4, at most 100) "
            "and width W = 1 … 20"
        )
    return WideResNet(depth=depth, width=width, num_classes=num_classes, dtype=jnp.dtype(dtype))


def create(
    key: Array,
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: str = "float32",
) -> Network:
    """A freshly initialized network by name.

    Args:
        key: random key.
        name: see `build`.
        num_classes: size of the logits.
        input_shape: (height, width, channels) with 8–64 pixels and 1 or 3 channels.
        mean, std: per-channel normalization of images in [0, 1].
        dtype: compute dtype.

    Raises:
        ValueError: unknown architecture, or a shape outside the bounds.
    """
    height, width, channels = input_shape
    if height not in SIZES or width not in SIZES or channels not in (1, 3):
        raise ValueError(f"input shape {input_shape}: allowed are 8–64 pixels a side and 1 or 3 channels")
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean and std need {channels} value(s) each, got {len(mean)} and {len(std)}")
    return initialize(key, build(name, num_classes, dtype), input_shape, mean, std)


def abstract(name: str, **options) -> Network:
    """The shapes of what `create` makes with the same options, without computing anything."""
    return jax.eval_shape(functools.partial(create, name=name, **options), jax.random.key(0))
