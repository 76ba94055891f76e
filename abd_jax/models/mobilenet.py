"""MobileNetV2 (Sandler et al., 2018, arXiv 1801.04381), for small images and as for ImageNet.

The form for small images has stride 1 in the stem and in the second stage; all else, parameters included, is equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from abd_jax.models.layers import BatchNorm, BatchNormTap, Conv, Norm, gather, orders_in
from abd_jax.models.network import Forward

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, features, blocks, stride of the first block."""
NAMES = "mobilenet-v2 (small images), mobilenet-v2-imagenet"


def named(name: str, num_classes: int, dtype: jnp.dtype) -> MobileNetV2 | None:
    """The module that the name stands for, if it is one of `NAMES`."""
    match = re.fullmatch(r"mobilenet-v2(-imagenet)?", name)
    return match and MobileNetV2(num_classes, imagenet=bool(match[1]), dtype=dtype)


class Depthwise(nn.Module):
    """3×3 convolution of every channel by itself; its kernel is `[3, 3, 1, channels]`, so it mixes none."""

    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, 1, channels)).astype(self.dtype)
        return lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )


class Block(nn.Module):
    """Inverted residual: 1×1 up, depthwise 3×3, 1×1 down, each with BN, ReLU6 behind the first two; plus the input.

    Attributes:
        inputs: channels of the input, which is added where it has the output's shape.
        features: channels of the output.
        expansion: hidden channels are `inputs · expansion`; with 1 there is no 1×1 up.
        stride: of the depthwise convolution.
    """

    inputs: int
    features: int
    expansion: int
    stride: int
    dtype: jnp.dtype

    def setup(self):
        if self.expansion > 1:
            self.expand = Conv(self.inputs * self.expansion, 1, dtype=self.dtype)
            self.expand_bn = BatchNorm()
        self.depthwise = Depthwise(self.stride, self.dtype)
        self.depthwise_bn = BatchNorm()
        self.project = Conv(self.features, 1, dtype=self.dtype)
        self.project_bn = BatchNorm()

    def __call__(self, x: Array, norm: Norm, gathers: Mapping[str, Array]) -> tuple[Array, list[BatchNormTap]]:
        h, taps = x, []
        if self.expansion > 1:
            h, tap = self.expand_bn(self.expand(gather(h, gathers.get("expand"))), norm)
            h = nn.relu6(h)
            taps.append(tap)
        h, tap = self.depthwise_bn(self.depthwise(h), norm)
        taps.append(tap)
        h, tap = self.project_bn(self.project(gather(nn.relu6(h), gathers.get("project"))), norm)
        taps.append(tap)
        return (h + x if self.stride == 1 and self.inputs == self.features else h), taps


class MobileNetV2(nn.Module):
    """Stem of 32 channels, 17 inverted residuals, a 1×1 to 1280 channels, mean, linear.

    The kernels that can be shuffled are the 1×1: a depthwise kernel has one input channel for each output.

    Attributes:
        num_classes: size of the logits.
        imagenet: ImageNet's strides.
        dtype: compute dtype of convolutions; parameters, statistics and logits stay float32.
    """

    num_classes: int
    imagenet: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def _blocks(self) -> dict[str, tuple[int, int, int, int]]:
        """Name → inputs, features, expansion, stride."""
        blocks: dict[str, tuple[int, int, int, int]] = {}
        inputs = 32
        for stage, (expansion, features, count, first) in enumerate(STAGES):
            for index in range(count):
                stride = first if index == 0 and (stage != 1 or self.imagenet) else 1
                blocks[f"features_{len(blocks) + 1}"] = (inputs, features, expansion, stride)
                inputs = features
        return blocks

    @property
    def kernels(self) -> tuple[str, ...]:
        """The stem and all 1×1 kernels in forward order."""
        inside = [
            f"{name}/{kernel}"
            for name, (_, _, expansion, _) in self._blocks.items()
            for kernel in (("expand", "project") if expansion > 1 else ("project",))
        ]
        return ("conv_stem", *inside, "conv_head")

    @property
    def batch_norms(self) -> tuple[str, ...]:
        inside = [
            f"{name}/{bn}"
            for name, (_, _, expansion, _) in self._blocks.items()
            for bn in ("expand_bn", "depthwise_bn", "project_bn")[expansion == 1 :]
        ]
        return ("bn_stem", *inside, "bn_head")

    @property
    def normalized(self) -> tuple[str, ...]:
        return tuple(path.removesuffix("_bn").replace("bn_", "conv_") for path in self.batch_norms)

    def entry_of(self, kernel: str) -> int:
        """Index of the block that owns the kernel; behind the last block comes the head; the stem has none."""
        if kernel == "conv_head":
            return len(self._blocks)
        block = kernel.rpartition("/")[0]
        if block not in self._blocks:
            raise ValueError(f"kernel {kernel!r} lies before every block: it cannot be shuffled")
        return list(self._blocks).index(block)

    def setup(self):
        self.conv_stem = Conv(32, 3, 2 if self.imagenet else 1, dtype=self.dtype)
        self.bn_stem = BatchNorm()
        self.blocks = [Block(*shape, dtype=self.dtype, name=name) for name, shape in self._blocks.items()]
        self.conv_head = Conv(1280, 1, dtype=self.dtype)
        self.bn_head = BatchNorm()
        self.fc = nn.Dense(self.num_classes, kernel_init=nn.initializers.lecun_normal())

    def __call__(self, images: Array, norm: Norm = "running") -> Forward:
        h, tap = self.bn_stem(self.conv_stem(images.astype(self.dtype)), norm)
        h = nn.relu6(h)
        entries: list[Array] = []
        stages: list[Array] = []
        taps = [tap]
        for block in self.blocks:
            if entries and block.stride == 2:
                stages.append(h)
            entries.append(h)
            h, seen = block(h, norm, {})
            taps += seen
        logits, embedding, tap = self._classify(h, norm, None)
        return Forward(logits, embedding, (*stages, h), (*entries, h), (*taps, tap))

    def tail(self, h: Array, entry: int, gathers: Mapping[str, Array]) -> Array:
        """Logits from the activation that enters block `entry`, running statistics; see `Network.tail`."""
        for name, block in list(zip(self._blocks, self.blocks, strict=True))[entry:]:
            h, _ = block(h, "running", orders_in(name, gathers))
        return self._classify(h, "running", gathers.get("conv_head"))[0]

    def _classify(self, h: Array, norm: Norm, order: Array | None) -> tuple[Array, Array, BatchNormTap]:
        h, tap = self.bn_head(self.conv_head(gather(h, order)), norm)
        embedding = nn.relu6(h).astype(jnp.float32).mean(axis=(1, 2))
        return self.fc(embedding), embedding, tap
