"""Networks: pure flax.linen modules, wrapped as `Network` values; `create` makes one by name."""

from __future__ import annotations

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from abd_jax.models import mobilenet, resnet, vgg, vit, wide_resnet
from abd_jax.models.generator import Generator
from abd_jax.models.layers import BatchNormTap, Norm
from abd_jax.models.mobilenet import MobileNetV2
from abd_jax.models.network import Forward, Network, drawn, initialize
from abd_jax.models.resnet import ResNet
from abd_jax.models.typing import Leaf
from abd_jax.models.vgg import VGG
from abd_jax.models.vit import VisionTransformer
from abd_jax.models.wide_resnet import WideResNet

__all__ = [
    "VGG",
    "Architecture",
    "BatchNormTap",
    "Forward",
    "Generator",
    "Leaf",
    "MobileNetV2",
    "Network",
    "Norm",
    "ResNet",
    "VisionTransformer",
    "WideResNet",
    "abstract",
    "build",
    "create",
    "drawn",
]

Architecture: TypeAlias = WideResNet | ResNet | VGG | MobileNetV2 | VisionTransformer
FAMILIES = (wide_resnet, resnet, vgg, mobilenet, vit)
"""Each has `NAMES`, the names it knows in words, and `named(name, num_classes, dtype)`, the module or None."""
SIZES = range(8, 65)


def build(name: str, num_classes: int, dtype: str = "float32") -> Architecture:
    """The module of an architecture by name.

    Args:
        name: one of the `NAMES` of a family, in small or capital letters.
        num_classes: size of the logits.
        dtype: compute dtype, `float32` or `bfloat16`.

    Raises:
        ValueError: no such architecture.
    """
    for family in FAMILIES:
        module = family.named(name.lower(), num_classes, jnp.dtype(dtype))
        if module is not None:
            return module
    allowed = "; ".join(family.NAMES for family in FAMILIES)
    raise ValueError(f"unknown architecture {name!r}: allowed are {allowed}")


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
