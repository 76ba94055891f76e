"""Wide residual networks (Zagoruyko & Komodakis, 2016, arXiv 1605.07146), pre-activation form."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from abd_jax.models.layers import BatchNorm, BatchNormTap, Conv, Norm, gather, orders_in
from abd_jax.models.network import Forward

STAGES = 3
NAMES = "wrn-D-W with depth D = 10, 16, 22, … (6n + 4, at most 100) and width W = 1 … 20"


def named(name: str, num_classes: int, dtype: jnp.dtype) -> WideResNet | None:
    """The module that the name stands for, if it is one of `NAMES`."""
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    depth, width = map(int, match.groups()) if match else (0, 0)
    if not (10 <= depth <= 100 and depth % 6 == 4 and 1 <= width <= 20):
        return None
    return WideResNet(depth=depth, width=width, num_classes=num_classes, dtype=dtype)


class Block(nn.Module):
    """BN, ReLU, 3×3, BN, ReLU, 3×3, plus the input (through a 1×1 where the shape changes)."""

    features: int
    stride: int
    project: bool
    dtype: jnp.dtype

    def setup(self):
        self.bn1 = BatchNorm()
        self.conv1 = Conv(self.features, 3, self.stride, dtype=self.dtype)
        self.bn2 = BatchNorm()
        self.conv2 = Conv(self.features, dtype=self.dtype)
        if self.project:
            self.convShortcut = Conv(self.features, 1, self.stride, dtype=self.dtype)

    def __call__(
        self, x: Array, norm: Norm, gathers: Mapping[str, Array]
    ) -> tuple[Array, tuple[BatchNormTap, BatchNormTap]]:
        h, first = self.bn1(x, norm)
        h = nn.relu(h)
        shortcut = self.convShortcut(gather(h, gathers.get("convShortcut"))) if self.project else x
        h, second = self.bn2(self.conv1(gather(h, gathers.get("conv1"))), norm)
        h = self.conv2(gather(nn.relu(h), gathers.get("conv2")))
        return h + shortcut, (first, second)


class WideResNet(nn.Module):
    """WRN-`depth`-`width`: 3×3 stem, three stages of `(depth − 4) / 6` blocks with 16, 32, 64 × `width` channels.

    Module names are those of the PyTorch networks of this literature (`block1_layer_0` for `block1.layer.0`).

    Attributes:
        depth: 6n + 4.
        width: multiple of the channel count.
        num_classes: size of the logits.
        dtype: compute dtype of convolutions; parameters, statistics and logits stay float32.
    """

    depth: int
    width: int
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(f"block{s + 1}_layer_{b}" for s in range(STAGES) for b in range(self._blocks_per_stage))

    @property
    def kernels(self) -> tuple[str, ...]:
        """All kernels in forward order, a block's shortcut last."""
        names = ["conv1"]
        for block in self.block_names:
            names += [f"{block}/conv1", f"{block}/conv2"]
            if self._projects(block):
                names.append(f"{block}/convShortcut")
        return tuple(names)

    @property
    def batch_norms(self) -> tuple[str, ...]:
        return (*(f"{block}/{bn}" for block in self.block_names for bn in ("bn1", "bn2")), "bn1")

    @property
    def normalized(self) -> tuple[str, ...]:
        """The stem's, or of the block before the second convolution's; within a block the first one's."""
        ends = ("conv1", *(f"{block}/conv2" for block in self.block_names))
        pairs = zip(ends, (f"{block}/conv1" for block in self.block_names), strict=False)
        return (*(path for pair in pairs for path in pair), ends[-1])

    def entry_of(self, kernel: str) -> int:
        """Index of the block that owns the kernel; the stem lies before every entry."""
        block = kernel.rpartition("/")[0]
        if block not in self.block_names:
            raise ValueError(f"kernel {kernel!r} lies before every block: it cannot be shuffled")
        return self.block_names.index(block)

    @property
    def _blocks_per_stage(self) -> int:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 with n ≥ 1 (10, 16, 22, 28, 40, …), got {self.depth}")
        return (self.depth - 4) // 6

    def _projects(self, block: str) -> bool:
        stage = int(block[len("block")]) - 1
        first = block.endswith("_layer_0")
        return first and (stage > 0 or self.width > 1)

    def setup(self):
        self.conv1 = Conv(16, dtype=self.dtype)
        blocks = []
        for name in self.block_names:
            stage = int(name[len("block")]) - 1
            stride = 2 if stage > 0 and name.endswith("_layer_0") else 1
            blocks.append(Block(16 * self.width * 2**stage, stride, self._projects(name), dtype=self.dtype, name=name))
        self.blocks = blocks
        self.bn1 = BatchNorm()
        self.fc = nn.Dense(self.num_classes, kernel_init=nn.initializers.lecun_normal())

    def __call__(self, images: Array, norm: Norm = "running") -> Forward:
        h = self.conv1(images.astype(self.dtype))
        entries: list[Array] = []
        stages: list[Array] = []
        taps: list[BatchNormTap] = []
        for index, block in enumerate(self.blocks):
            entries.append(h)
            h, pair = block(h, norm, {})
            taps += pair
            if (index + 1) % self._blocks_per_stage == 0:
                stages.append(h)
        logits, embedding, tap = self._classify(h, norm)
        return Forward(logits, embedding, tuple(stages), tuple(entries), (*taps, tap))

    def tail(self, h: Array, entry: int, gathers: Mapping[str, Array]) -> Array:
        """Logits from the activation that enters block `entry`, running statistics; see `Network.tail`."""
        for name, block in list(zip(self.block_names, self.blocks, strict=True))[entry:]:
            h, _ = block(h, "running", orders_in(name, gathers))
        return self._classify(h, "running")[0]

    def _classify(self, h: Array, norm: Norm) -> tuple[Array, Array, BatchNormTap]:
        h, tap = self.bn1(h, norm)
        embedding = nn.relu(h).astype(jnp.float32).mean(axis=(1, 2))
        return self.fc(embedding), embedding, tap
