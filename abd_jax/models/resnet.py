"""Residual networks (He et al., 2016, arXiv 1512.03385), post-activation form, for small images and as for ImageNet.

The stem for small images is one 3×3 convolution; ImageNet's is a 7×7 of stride 2 and a 3×3 maximum of stride 2. A
bottleneck has its stride in the 3×3, as in torchvision and timm.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from abd_jax.models.layers import BatchNorm, BatchNormTap, Conv, Norm, gather, orders_in
from abd_jax.models.network import Forward

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
NAMES = "resnet-18, -34, -50 (small images) and resnet-18-imagenet, -34-imagenet, -50-imagenet"


def named(name: str, num_classes: int, dtype: jnp.dtype) -> ResNet | None:
    """The module that the name stands for, if it is one of `NAMES`."""
    match = re.fullmatch(r"resnet-(18|34|50)(-imagenet)?", name)
    return match and ResNet(int(match[1]), num_classes, imagenet=bool(match[2]), dtype=dtype)


def _maximum(x: Array) -> Array:
    """Maximum over 3×3 pixels with stride 2 and one pixel of padding, axis by axis; of equals, the first counts.

    Slices and `where`, since jax2onnx converts flax's `max_pool` to something else.
    """
    for axis in (1, 2):
        length = (x.shape[axis] - 1) // 2 + 1
        padded = jnp.pad(x, [(1, 1) if at == axis else (0, 0) for at in range(4)], constant_values=-jnp.inf)
        parts = [lax.slice_in_dim(padded, at, min(at + 2 * length, padded.shape[axis]), 2, axis) for at in range(3)]
        first, second, third = (lax.slice_in_dim(part, 0, length, axis=axis) for part in parts)
        x = jnp.where(first >= second, first, second)
        x = jnp.where(x >= third, x, third)
    return x


class Block(nn.Module):
    """Convolutions with BN, ReLU between them, plus the input (through a 1×1 and BN where the shape changes), ReLU.

    Attributes:
        features: of the 3×3 convolutions; a bottleneck puts out four times as many.
        stride: of the first 3×3.
        project: whether the shape changes.
        bottleneck: 1×1, 3×3, 1×1 in place of 3×3, 3×3.
    """

    features: int
    stride: int
    project: bool
    bottleneck: bool
    dtype: jnp.dtype

    def setup(self):
        features, stride, conv = self.features, self.stride, functools.partial(Conv, dtype=self.dtype)
        if self.bottleneck:
            self.conv1 = conv(features, 1)
            self.conv2 = conv(features, 3, stride)
            self.conv3 = conv(4 * features, 1)
            self.bn3 = BatchNorm()
        else:
            self.conv1 = conv(features, 3, stride)
            self.conv2 = conv(features)
        self.bn1 = BatchNorm()
        self.bn2 = BatchNorm()
        if self.project:
            self.downsample = conv(4 * features if self.bottleneck else features, 1, stride)
            self.bn_downsample = BatchNorm()

    def __call__(self, x: Array, norm: Norm, gathers: Mapping[str, Array]) -> tuple[Array, list[BatchNormTap]]:
        h, taps = x, []
        layers = [("conv1", self.conv1, self.bn1), ("conv2", self.conv2, self.bn2)]
        layers += [("conv3", self.conv3, self.bn3)] if self.bottleneck else []
        for index, (name, conv, bn) in enumerate(layers):
            h, tap = bn(conv(gather(nn.relu(h) if index else h, gathers.get(name))), norm)
            taps.append(tap)
        if self.project:
            x, tap = self.bn_downsample(self.downsample(gather(x, gathers.get("downsample"))), norm)
            taps.append(tap)
        return nn.relu(h + x), taps


class ResNet(nn.Module):
    """ResNet-`depth`: stem, four stages of 64, 128, 256, 512 channels (times 4 behind bottlenecks), mean, linear.

    Attributes:
        depth: 18, 34 or 50; 50 has bottlenecks.
        num_classes: size of the logits.
        imagenet: ImageNet's stem.
        dtype: compute dtype of convolutions; parameters, statistics and logits stay float32.
    """

    depth: int
    num_classes: int
    imagenet: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(f"layer{s + 1}_{b}" for s, count in enumerate(BLOCKS[self.depth]) for b in range(count))

    @property
    def kernels(self) -> tuple[str, ...]:
        """All kernels in forward order, a block's shortcut last."""
        inside = ("conv1", "conv2", "conv3") if self.depth == 50 else ("conv1", "conv2")
        names = ["conv1"]
        for block in self.block_names:
            names += [f"{block}/{conv}" for conv in inside]
            names += [f"{block}/downsample"] if self._projects(block) else []
        return tuple(names)

    @property
    def batch_norms(self) -> tuple[str, ...]:
        return tuple(re.sub(r"conv(?=\d)", "bn", name).replace("/down", "/bn_down") for name in self.kernels)

    @property
    def normalized(self) -> tuple[str, ...]:
        return tuple(path.replace("bn_downsample", "downsample").replace("bn", "conv") for path in self.batch_norms)

    def entry_of(self, kernel: str) -> int:
        """Index of the block that owns the kernel; the stem lies before every entry."""
        block = kernel.rpartition("/")[0]
        if block not in self.block_names:
            raise ValueError(f"kernel {kernel!r} lies before every block: it cannot be shuffled")
        return self.block_names.index(block)

    def _projects(self, block: str) -> bool:
        return block.endswith("_0") and (block != "layer1_0" or self.depth == 50)

    def setup(self):
        self.conv1 = Conv(64, 7, 2, dtype=self.dtype) if self.imagenet else Conv(64, dtype=self.dtype)
        self.bn1 = BatchNorm()
        blocks = []
        for name in self.block_names:
            stage = int(name[len("layer")]) - 1
            stride = 2 if stage > 0 and name.endswith("_0") else 1
            blocks.append(Block(64 * 2**stage, stride, self._projects(name), self.depth == 50, self.dtype, name=name))
        self.blocks = blocks
        self.fc = nn.Dense(self.num_classes, kernel_init=nn.initializers.lecun_normal())

    def __call__(self, images: Array, norm: Norm = "running") -> Forward:
        h, tap = self.bn1(self.conv1(images.astype(self.dtype)), norm)
        h = nn.relu(h)
        if self.imagenet:
            h = _maximum(h)
        entries: list[Array] = []
        stages: list[Array] = []
        taps = [tap]
        for name, block in zip(self.block_names, self.blocks, strict=True):
            if entries and name.endswith("_0"):
                stages.append(h)
            entries.append(h)
            h, seen = block(h, norm, {})
            taps += seen
        logits, embedding = self._classify(h)
        return Forward(logits, embedding, (*stages, h), tuple(entries), tuple(taps))

    def tail(self, h: Array, entry: int, gathers: Mapping[str, Array]) -> Array:
        """Logits from the activation that enters block `entry`, running statistics; see `Network.tail`."""
        for name, block in list(zip(self.block_names, self.blocks, strict=True))[entry:]:
            h, _ = block(h, "running", orders_in(name, gathers))
        return self._classify(h)[0]

    def _classify(self, h: Array) -> tuple[Array, Array]:
        embedding = h.astype(jnp.float32).mean(axis=(1, 2))
        return self.fc(embedding), embedding
