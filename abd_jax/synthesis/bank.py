"""The image bank: a ring buffer of uint8 images on the device, part of a run's state and so of its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8
from PIL import Image

from abd_jax.data.augment import crop_and_flip
from abd_jax.models import Leaf
from abd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class BankConfig:
    """Settings of an image bank.

    Attributes:
        capacity: images that it holds; the oldest make room. A published run of CMI makes 51 200.
        crop: zero padding of the random crop of a sampled image, in pixels.
        flip: whether half of the sampled images are mirrored.
        spill: whether a run also keeps every image on the host, in files that no later one overwrites.
    """

    capacity: int = 51_200
    crop: int = 4
    flip: bool = True
    spill: bool = False

    def __post_init__(self) -> None:
        check("synthesis.bank", self, positive=("capacity",), nonnegative=("crop",))


@struct.dataclass
class Bank:
    """A ring buffer.

    Attributes:
        rows: the images, each a row, `[capacity, height · width · channels]`, uint8; a slot that was never written
            holds noise. A TPU copies an array of images as a whole, into another layout, before it takes some out.
        written: images added so far, as `write` counts them, `[]`, int32.
        image_shape: height, width, channels.
    """

    rows: Leaf
    written: Leaf
    image_shape: tuple[int, int, int] = struct.field(pytree_node=False)

    @property
    def images(self) -> UInt8[np.ndarray, "capacity height width channels"]:
        """All slots, on the host."""
        return np.asarray(self.rows).reshape(-1, *self.image_shape)

    @property
    def size(self) -> Int[Array, ""]:
        """Images that it holds."""
        return jnp.minimum(self.written, self.rows.shape[0])


def empty(key: PRNGKeyArray, config: BankConfig, image_shape: tuple[int, int, int]) -> Bank:
    """A bank that holds nothing; its slots are uniform noise, which is what it gives until the first `add`."""
    noise = jax.random.bits(key, (config.capacity, math.prod(image_shape)), jnp.uint8)
    return Bank(noise, jnp.zeros((), jnp.int32), image_shape)


def write(
    buffer: Shaped[Array, "capacity ..."],
    written: Int[Array, ""],
    batch: Shaped[Array, "batch ..."],
    when: bool | Bool[Array, ""] = True,
) -> tuple[Shaped[Array, "capacity ..."], Int[Array, ""]]:
    """Writes a batch over the oldest slots of a ring buffer if `when`; else changes nothing.

    Only the batch's own slots are touched, so under donation nothing is copied.

    Returns:
        The buffer and the new count of what was ever written: finite, true to the place in the ring, and from the
        capacity on once that is reached.

    Raises:
        ValueError: the batch is larger than the buffer.
    """
    capacity, count = buffer.shape[0], batch.shape[0]
    if count > capacity:
        raise ValueError(f"synthesis.bank.capacity {capacity}: allowed are whole numbers from the batch's {count}")
    slots = (written + jnp.arange(count, dtype=jnp.int32)) % capacity
    after = written + jnp.where(when, jnp.int32(count), jnp.int32(0))
    after = jnp.where(after >= 2 * capacity, after - capacity, after)
    return buffer.at[slots].set(jnp.where(when, batch, buffer[slots])), after


def add(bank: Bank, images: Float[Array, "batch height width channels"], when: bool | Bool[Array, ""] = True) -> Bank:
    """Writes images, clipped to [0, 1] and rounded to uint8, over the oldest if `when`; see `write`."""
    pixels = jnp.round(jnp.clip(images, 0.0, 1.0) * 255.0).astype(jnp.uint8)
    return Bank(*write(bank.rows, bank.written, pixels.reshape(len(pixels), -1), when), bank.image_shape)


def sample(
    key: PRNGKeyArray, bank: Bank, count: int, config: BankConfig
) -> Float[Array, "count height width channels"]:
    """`count` images of the bank, drawn uniformly with replacement, cropped and mirrored at random, in [0, 1]."""
    choice, change = jax.random.split(key)
    limit = jnp.where(bank.size > 0, bank.size, bank.rows.shape[0])
    chosen = bank.rows[jax.random.randint(choice, (count,), 0, limit)].reshape(count, *bank.image_shape)
    return crop_and_flip(change, chosen.astype(jnp.float32) / 255.0, pad=config.crop, flip=config.flip)


def newest(bank: Bank, count: int) -> UInt8[np.ndarray, "images height width channels"]:
    """The newest `count` images, or all if there are fewer, newest first, on the host."""
    count = min(int(bank.size), count)
    return bank.images[(int(bank.written) - 1 - np.arange(count)) % len(bank.rows)]


def write_grid(bank: Bank, path: Path, limit: int = 256, columns: int = 16) -> int:
    """Writes the newest images, newest first, as a PNG grid; returns how many.

    Raises:
        ValueError: the bank is empty.
    """
    images = newest(bank, limit)
    count, height, width, channels = images.shape
    if not count:
        raise ValueError(f"{path}: the image bank is empty, there is nothing to show")
    rows = -(-count // columns)
    canvas = np.zeros((rows * columns, height, width, channels), np.uint8)
    canvas[:count] = images
    sheet = canvas.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path, format="PNG")
    return count
