"""Vision transformers (Dosovitskiy et al., 2021, arXiv 2010.11929) as in timm: pre-norm, class token, no BatchNorm.

Tokens are `[batch, 1, tokens, features]` and a linear map has a kernel `[1, 1, inputs, outputs]`: a 1×1 convolution, so
that whoever reorders the input channels of convolutions, the Shuffling Vaccine, does the same here. What it may
reorder are the input features of all four linear maps of a block, in forward order: `qkv` and `fc1` (the normalized
tokens), `proj` (the heads' outputs) and `fc2` (the hidden units); the last five are the last block and `fc2` of the one
before. Measured, that does not single out triggers as it does in a network of convolutions (docs/defenses.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from abd_jax.models.layers import Norm, gather, orders_in
from abd_jax.models.network import Forward

SIZES = {"nano": (6, 96, 3), "tiny": (12, 192, 3), "small": (12, 384, 6)}
"""Blocks, features, heads; tiny and small are timm's."""
STAGES = 3
NAMES = "vit-nano-P, vit-tiny-P, vit-small-P with patches of P = 2 … 32 pixels"


def named(name: str, num_classes: int, dtype: jnp.dtype) -> VisionTransformer | None:
    """The module that the name stands for, if it is one of `NAMES`."""
    match = re.fullmatch(r"vit-(nano|tiny|small)-(\d{1,2})", name)
    if not match or not 2 <= int(match[2]) <= 32:
        return None
    return VisionTransformer(*SIZES[match[1]], patch=int(match[2]), num_classes=num_classes, dtype=dtype)


class Linear(nn.Module):
    """`x · kernel + bias` over the last axis, with the kernel of a 1×1 convolution."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return x @ kernel[0, 0].astype(self.dtype) + bias.astype(self.dtype)


class Patches(nn.Module):
    """A linear map of each patch; its kernel is that of a convolution of the patch's size and stride."""

    size: int
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array) -> Array:
        batch, height, width, channels = images.shape
        if height % self.size or width % self.size:
            raise ValueError(
                f"input shape {(height, width, channels)}: patches of {self.size} pixels need multiples of {self.size}"
            )
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (self.size, self.size, channels, self.features)
        ).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(self.dtype)
        cut = images.reshape(batch, height // self.size, self.size, width // self.size, self.size, channels)
        return jnp.einsum("bhpwqc,pqcf->bhwf", cut, kernel) + bias


class Tokens(nn.Module):
    """The class token in front of the patches in reading order, plus a learned vector for each position."""

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        batch, height, width, features = patches.shape
        length = height * width
        first = self.param("cls_token", nn.initializers.zeros_init(), (1, 1, features))
        positions = self.param("pos_embed", nn.initializers.normal(0.02), (1, 1 + length, features))
        first = jnp.broadcast_to(first.astype(patches.dtype), (batch, 1, features))
        h = jnp.concatenate([first, patches.reshape(batch, length, features)], axis=1)
        return h + positions.astype(patches.dtype)


def _layer_norm() -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32)


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, with exact GELU between the two layers of the perceptron."""

    features: int
    heads: int
    dtype: jnp.dtype

    def setup(self):
        self.norm1, self.norm2 = _layer_norm(), _layer_norm()
        self.qkv = Linear(3 * self.features, self.dtype)
        self.proj = Linear(self.features, self.dtype)
        self.fc1 = Linear(4 * self.features, self.dtype)
        self.fc2 = Linear(self.features, self.dtype)

    def __call__(self, x: Array, gathers: Mapping[str, Array]) -> Array:
        h = self.qkv(gather(self.norm1(x.astype(jnp.float32)).astype(self.dtype), gathers.get("qkv")))
        batch, _, tokens, _ = x.shape
        q, k, v = jnp.moveaxis(h.reshape(batch, tokens, 3, self.heads, self.features // self.heads), 2, 0)
        scores = jnp.einsum("bqhf,bkhf->bhqk", q, k).astype(jnp.float32) * (self.features // self.heads) ** -0.5
        h = jnp.einsum("bhqk,bkhf->bqhf", nn.softmax(scores).astype(self.dtype), v).reshape(x.shape)
        x = x + self.proj(gather(h, gathers.get("proj")))
        h = self.fc1(gather(self.norm2(x.astype(jnp.float32)).astype(self.dtype), gathers.get("fc1")))
        return x + self.fc2(gather(nn.gelu(h, approximate=False), gathers.get("fc2")))


class VisionTransformer(nn.Module):
    """Patches, class token, learned positions, `depth` blocks, layer normalization, linear on the class token.

    `Forward.stages` are the patches' tokens, as a grid, after each third of the blocks; the embedding is the
    normalized class token; `batch_norm` is empty.

    Attributes:
        depth: number of blocks.
        features: of a token.
        heads: of attention.
        patch: pixels a side.
        num_classes: size of the logits.
        dtype: compute dtype of linear maps and attention; parameters, normalizations and logits stay float32.
    """

    depth: int
    features: int
    heads: int
    patch: int
    num_classes: int
    dtype: jnp.dtype = jnp.float32
    batch_norms = ()

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(f"blocks_{index}" for index in range(self.depth))

    @property
    def kernels(self) -> tuple[str, ...]:
        return (
            "patch_embed",
            *(f"{block}/{name}" for block in self.block_names for name in ("qkv", "proj", "fc1", "fc2")),
        )

    def entry_of(self, kernel: str) -> int:
        """Index of the block that owns the kernel; the patches lie before every entry."""
        block = kernel.rpartition("/")[0]
        if block not in self.block_names:
            raise ValueError(f"kernel {kernel!r} lies before every block: it cannot be shuffled")
        return self.block_names.index(block)

    def setup(self):
        self.patch_embed = Patches(self.patch, self.features, self.dtype)
        self.tokens = Tokens()
        self.blocks = [Block(self.features, self.heads, self.dtype, name=name) for name in self.block_names]
        self.norm = _layer_norm()
        self.fc = nn.Dense(self.num_classes, kernel_init=nn.initializers.lecun_normal())

    def __call__(self, images: Array, norm: Norm = "running") -> Forward:
        del norm  # there is nothing to normalize by a batch
        patches = self.patch_embed(images.astype(self.dtype))
        h = self.tokens(patches)[:, None]
        entries: list[Array] = []
        stages: list[Array] = []
        for index, block in enumerate(self.blocks):
            entries.append(h)
            h = block(h, {})
            if (index + 1) % (self.depth // STAGES) == 0:
                stages.append(h[:, 0, 1:].reshape(patches.shape))
        logits, embedding = self._classify(h)
        return Forward(logits, embedding, tuple(stages), tuple(entries), ())

    def tail(self, h: Array, entry: int, gathers: Mapping[str, Array]) -> Array:
        """Logits from the tokens `[batch, 1, tokens, features]` that enter block `entry`; see `Network.tail`."""
        for name, block in list(zip(self.block_names, self.blocks, strict=True))[entry:]:
            h = block(h, orders_in(name, gathers))
        return self._classify(h)[0]

    def _classify(self, h: Array) -> tuple[Array, Array]:
        embedding = self.norm(h[:, 0, 0].astype(jnp.float32))
        return self.fc(embedding), embedding
