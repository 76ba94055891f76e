"""VGG with batch normalization (Simonyan & Zisserman, 2015, arXiv 1409.1556) and one linear layer, for small images."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from abd_jax.models.layers import BatchNorm, BatchNormTap, Conv, Norm, gather
from abd_jax.models.network import Forward

GROUPS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
FEATURES = (64, 128, 256, 512, 512)
NAMES = "vgg-11, vgg-16"


def named(name: str, num_classes: int, dtype: jnp.dtype) -> VGG | None:
    """The module that the name stands for, if it is one of `NAMES`."""
    match = re.fullmatch(r"vgg-(11|16)", name)
    return match and VGG(int(match[1]), num_classes, dtype=dtype)


def _halve(x: Array) -> Array:
    """Maximum over 2×2 pixels; an odd last row or column is left out, and a side of one pixel is left alone.

    Written with `where`: the gradient of a maximum over an axis divides by the number of values that equal it, which is
    none, and the gradient NaN, where XLA computes a value twice and rounds it in two ways. Of equals, the first counts.
    """
    for axis in (1, 2):
        if x.shape[axis] > 1:
            even = lax.slice_in_dim(x, 0, x.shape[axis] // 2 * 2, axis=axis)
            first, second = (lax.slice_in_dim(even, start, None, 2, axis) for start in (0, 1))
            x = jnp.where(first >= second, first, second)
    return x


class VGG(nn.Module):
    """VGG-`depth`: groups of 3×3, BN, ReLU with 64 to 512 channels, a 2×2 maximum behind each, mean, linear.

    The convolutions have no bias, which batch normalization would take away again. Images of 32 pixels and fewer end at
    a single pixel; maxima that would have none left are skipped.

    Attributes:
        depth: 11 or 16.
        num_classes: size of the logits.
        dtype: compute dtype of convolutions; parameters, statistics and logits stay float32.
    """

    depth: int
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @property
    def kernels(self) -> tuple[str, ...]:
        return tuple(f"conv{group + 1}_{i}" for group, count in enumerate(GROUPS[self.depth]) for i in range(count))

    @property
    def batch_norms(self) -> tuple[str, ...]:
        return tuple(name.replace("conv", "bn") for name in self.kernels)

    @property
    def normalized(self) -> tuple[str, ...]:
        return self.kernels

    def entry_of(self, kernel: str) -> int:
        """Entry i is what enters the convolution i + 1."""
        if kernel not in self.kernels[1:]:
            raise ValueError(f"kernel {kernel!r} lies before every entry: it cannot be shuffled")
        return self.kernels.index(kernel) - 1

    def setup(self):
        self.convs = [Conv(FEATURES[int(name[4]) - 1], dtype=self.dtype, name=name) for name in self.kernels]
        self.norms = [BatchNorm(name=name) for name in self.batch_norms]
        self.fc = nn.Dense(self.num_classes, kernel_init=nn.initializers.lecun_normal())

    def __call__(self, images: Array, norm: Norm = "running") -> Forward:
        h = images.astype(self.dtype)
        entries: list[Array] = []
        stages: list[Array] = []
        taps: list[BatchNormTap] = []
        for index, name in enumerate(self.kernels):
            if index and name.endswith("_0"):
                stages.append(h)
                h = _halve(h)
            if index:
                entries.append(h)
            h, tap = self._layer(index, h, norm, None)
            taps.append(tap)
        logits, embedding = self._classify(h)
        return Forward(logits, embedding, (*stages, h), tuple(entries), tuple(taps))

    def tail(self, h: Array, entry: int, gathers: Mapping[str, Array]) -> Array:
        """Logits from the activation that enters convolution `entry + 1`, running statistics; see `Network.tail`."""
        for index, name in list(enumerate(self.kernels))[entry + 1 :]:
            if index > entry + 1 and name.endswith("_0"):
                h = _halve(h)
            h, _ = self._layer(index, h, "running", gathers.get(name))
        return self._classify(h)[0]

    def _layer(self, index: int, h: Array, norm: Norm, order: Array | None) -> tuple[Array, BatchNormTap]:
        h, tap = self.norms[index](self.convs[index](gather(h, order)), norm)
        return nn.relu(h), tap

    def _classify(self, h: Array) -> tuple[Array, Array]:
        embedding = _halve(h).astype(jnp.float32).mean(axis=(1, 2))
        return self.fc(embedding), embedding
