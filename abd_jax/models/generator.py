"""The generator of zero-shot knowledge transfer (Micaelli & Storkey, 2019, arXiv 1905.09768)."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from abd_jax.models.layers import BatchNorm, Conv


class Generator(nn.Module):
    """Latent vector → image: linear to a quarter of the size, twice (upsample, 3×3, BN, leaky ReLU), 3×3, BN.

    With `output="standardized"` a final batch normalization makes the output what a teacher's input is; `mean` and
    `std` carry it back to pixels, so that images are in the units of [0, 1] but may leave it. With `"sigmoid"` a
    sigmoid takes its place and images lie in [0, 1] (the generator of CMI and Fast-DFKD, 2021–2022). Statistics are
    always the batch's.

    Attributes:
        image_shape: (height, width, channels); height and width divisible by 4.
        mean, std: per-channel normalization of the teacher.
        features: channels of the inner layers; the published network has 128.
        output: what ends the network.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    features: int = 128
    dtype: jnp.dtype = jnp.float32
    output: Literal["standardized", "sigmoid"] = "standardized"

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"]) -> Float[Array, "batch height width channels"]:
        height, width, channels = self.image_shape
        if height % 4 or width % 4:
            raise ValueError(f"image shape {self.image_shape}: a generator needs height and width divisible by 4")
        h = nn.Dense(height * width // 16 * self.features, dtype=self.dtype)(latent.astype(self.dtype))
        h, _ = BatchNorm(track=False)(h.reshape(-1, height // 4, width // 4, self.features), "batch")
        for features in (self.features, self.features // 2):
            h = h.repeat(2, axis=1).repeat(2, axis=2)
            h, _ = BatchNorm(track=False)(Conv(features, dtype=self.dtype)(h), "batch")
            h = nn.leaky_relu(h, 0.2)
        h = Conv(channels, dtype=self.dtype)(h)
        if self.output == "sigmoid":
            return nn.sigmoid(h.astype(jnp.float32))
        h, _ = BatchNorm(track=False)(h, "batch")
        return h.astype(jnp.float32) * jnp.asarray(self.std) + jnp.asarray(self.mean)
