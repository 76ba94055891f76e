"""Random crops and flips of a batch, on the device."""

from __future__ import annotations

import dm_pix as pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def crop_and_flip(
    key: Array, images: Float[Array, "batch height width channels"], *, pad: int, flip: bool
) -> Float[Array, "batch height width channels"]:
    """Zero-pads by `pad` pixels, cuts the original size at a random place, mirrors half of the images if `flip`."""
    batch, height, width, channels = images.shape
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    cut = jax.vmap(lambda key, image: pix.random_crop(key, image, (height, width, channels)))
    images = cut(jax.random.split(crop_key, batch), padded)
    return jax.vmap(pix.random_flip_left_right)(jax.random.split(flip_key, batch), images) if flip else images
