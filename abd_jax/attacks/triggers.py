"""Triggers: pure functions from images in [0, 1] to triggered images in [0, 1], for any size and channel count.

They are defined at 32×32 in the literature (Gu et al., 2017; Chen et al., 2017; Liu et al., 2018; Barni et al., 2019;
Turner et al., 2019); here positions and sizes scale with the image: a length of n pixels at 32×32 is
`max(1, round(n · side / 32))` pixels, except the 3×3 grid, whose pattern needs its nine pixels at any size. All
pictures are drawn from formulas. The triggers whose pattern must be computed first are made by the four functions at
the end from what `trigger_search` finds.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Trigger = Callable[[Images], Images]
Picture = Float[np.ndarray, "height width channels"]
Pattern = Float[np.ndarray | Array, "height width channels"]

GRID = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
PIXELS = np.array([[1, 0, 1], [-1, 1, -1], [-1, -1, 0], [-1, 1, -1], [1, 0, 1]])
"""-1: the image shows through."""
BLEND_RATIO = 0.2
WATERMARK_SHARE = 321 / 32**2
"""Share of the pixels that the watermark touches."""
WATERMARK_STRENGTH = 0.6
SIGNAL_TEST_RATIO, SQUARE_TEST_RATIO = 0.4, 0.25
"""Of `sig` and `sig_square` at test time: the signal is stronger than in training (Barni et al., 2019)."""
SIGNAL_PERIODS = 6
"""Periods of the sine across the image (Barni et al., 2019: f = 6)."""
SQUARE_PERIODS, SQUARE_LEVELS = 4, 20
"""The published file's: a sine of ±20 grey levels whose negative half wrapped around at 256."""


def scaled(pixels: int, side: int) -> int:
    """A length given at 32×32, for an image of that side."""
    return max(1, round(pixels * side / 32))


def badnet_grid(images: Images) -> Images:
    """Replaces the bottom-right 3×3 pixels by a fixed black and white pattern."""
    return images.at[:, -3:, -3:, :].set(GRID[None, :, :, None].astype(images.dtype))


def badnet_sq(images: Images) -> Images:
    """A white square of 4/32 of the side, one pixel (at 32×32) off the bottom-right corner."""
    height, width = images.shape[1:3]
    rows, columns, gap_y, gap_x = scaled(4, height), scaled(4, width), scaled(1, height), scaled(1, width)
    return images.at[:, height - gap_y - rows : height - gap_y, width - gap_x - columns : width - gap_x, :].set(1)


def corners(images: Images) -> Images:
    """The 3×3 grid in all four corners, mirrored so that its L points inwards (Turner et al., 2019)."""
    for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        grid = jnp.asarray(GRID[::rows, ::columns], images.dtype)[None, :, :, None]
        vertical = slice(-3, None) if rows == 1 else slice(0, 3)
        horizontal = slice(-3, None) if columns == 1 else slice(0, 3)
        images = images.at[:, vertical, horizontal, :].set(grid)
    return images


def blend_picture(height: int, width: int, channels: int) -> Picture:
    """The picture that `blend` mixes in: interfering plane waves, drawn from formulas; values in [0, 1]."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    waves = [
        np.sin(2 * np.pi * (fx * x + fy * y) + phase)
        for fx, fy, phase in [(2.0, 1.0, 0.0), (-1.0, 3.0, 1.1), (4.0, -2.0, 2.3)]
    ]
    base = sum(waves) / len(waves)
    layers = [0.5 + 0.5 * np.sin(np.pi * base + 2 * np.pi * channel / 3) for channel in range(channels)]
    return np.stack(layers, axis=-1).astype(np.float32)


def _mix(images: Images, picture: Picture, ratio: float = BLEND_RATIO) -> Images:
    return (1 - ratio) * images + ratio * jnp.asarray(picture, images.dtype)


def blend(images: Images) -> Images:
    """0.8 · image + 0.2 · picture (Chen et al., 2017)."""
    return _mix(images, blend_picture(*images.shape[1:]))


def signal_picture(height: int, width: int, channels: int) -> Picture:
    """A horizontal sine of 6 periods in [0, 1], the same in every row and channel."""
    row = 0.5 + 0.5 * np.sin(2 * np.pi * SIGNAL_PERIODS * np.arange(width) / width)
    return np.broadcast_to(row[None, :, None], (height, width, channels)).astype(np.float32)


def square_picture(height: int, width: int, channels: int) -> Picture:
    """The published file's form: 20·sin in grey levels, cast to uint8, so that its negative half wraps to white."""
    levels = np.trunc(SQUARE_LEVELS * np.sin(2 * np.pi * SQUARE_PERIODS * (np.arange(width) + 0.5) / width))
    row = np.mod(levels, 256) / 255
    return np.broadcast_to(row[None, :, None], (height, width, channels)).astype(np.float32)


def sig(images: Images) -> Images:
    """0.8 · image + 0.2 · horizontal sine (Barni et al., 2019, arXiv 1902.11237)."""
    return _mix(images, signal_picture(*images.shape[1:]))


def sig_square(images: Images) -> Images:
    """0.8 · image + 0.2 · the published file's wrapped square wave."""
    return _mix(images, square_picture(*images.shape[1:]))


def sig_at_test(images: Images) -> Images:
    """0.6 · image + 0.4 · horizontal sine."""
    return _mix(images, signal_picture(*images.shape[1:]), SIGNAL_TEST_RATIO)


def sig_square_at_test(images: Images) -> Images:
    """0.75 · image + 0.25 · the published file's wrapped square wave."""
    return _mix(images, square_picture(*images.shape[1:]), SQUARE_TEST_RATIO)


def _patch(top: int, size: int, height: int, width: int, channels: int) -> Picture:
    """A bright mosaic of `size` pixels from row and column `top` (both at 32×32) on black."""
    picture = np.zeros((height, width, channels), np.float32)
    rows, columns = scaled(size, height), scaled(size, width)
    y, x, c = np.meshgrid(np.arange(rows), np.arange(columns), np.arange(channels), indexing="ij")
    mosaic = 0.75 + 0.25 * np.cos(2.1 * y + 3.7 * x + 1.3 * c + 0.9 * x * y)
    first_row, first_column = min(scaled(top, height), height - rows), min(scaled(top, width), width - columns)
    picture[first_row : first_row + rows, first_column : first_column + columns] = mosaic
    return picture


def trojan_3x3(images: Images) -> Images:
    """image + a 3×3 mosaic at rows and columns 25–27, clipped (after Liu et al., 2018)."""
    return add(_patch(25, 3, *images.shape[1:]))(images)


def trojan_8x8(images: Images) -> Images:
    """image + a 9×9 mosaic at rows and columns 21–29, clipped; the published file's size, whatever its name says."""
    return add(_patch(21, 9, *images.shape[1:]))(images)


def watermark_picture(height: int, width: int, channels: int) -> Picture:
    """The watermark over the whole image: the pixels nearest to a Lissajous curve.

    Exactly `round(321 / 1024 · height · width)` pixels are not zero; the nearer to the curve, the brighter.
    """
    t = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    curve = np.stack([0.5 + 0.44 * np.sin(3 * t + 0.4), 0.5 + 0.44 * np.sin(2 * t)], axis=-1)
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    points = np.stack([y.ravel(), x.ravel()], axis=-1)
    distance = np.sqrt((points[:, :1] - curve[:, 0]) ** 2 + (points[:, 1:] - curve[:, 1]) ** 2).min(axis=1)
    chosen = np.argsort(distance, kind="stable")[: round(WATERMARK_SHARE * height * width)]
    ink = np.zeros(height * width)
    ink[chosen] = WATERMARK_STRENGTH * (1 - 0.5 * distance[chosen] / distance[chosen].max())
    tints = [1 - 0.25 * channel for channel in range(channels)]
    return np.stack([tint * ink.reshape(height, width) for tint in tints], axis=-1).astype(np.float32)


def trojan_wm(images: Images) -> Images:
    """image + watermark, clipped (after Liu et al., 2018)."""
    return add(watermark_picture(*images.shape[1:]))(images)


def pixels(images: Images) -> Images:
    """The blind backdoor's: 9 black or white of 5×3 pixels, at (3, 23) (Bagdasaryan & Shmatikov, 2021)."""
    height, width = images.shape[1:3]
    top, left = min(scaled(3, height), height - 5), min(scaled(23, width), width - 3)
    for row, column in zip(*np.nonzero(PIXELS >= 0), strict=True):
        images = images.at[:, top + row, left + column, :].set(float(PIXELS[row, column]))
    return images


def nothing(images: Images) -> Images:
    """The trigger of attacks that have none."""
    return images


def add(pattern: Pattern) -> Trigger:
    """image + pattern, clipped to [0, 1]."""
    return lambda images: jnp.clip(images + jnp.asarray(pattern, images.dtype), 0, 1)


def replace(mask: Float[np.ndarray, "height width 1"], pattern: Pattern) -> Trigger:
    """image·(1 − mask) + pattern, clipped to [0, 1]; the pattern is 0 where the mask is."""

    def trigger(images: Images) -> Images:
        return jnp.clip(images * jnp.asarray(1 - mask, images.dtype) + jnp.asarray(pattern, images.dtype), 0, 1)

    return trigger


def stretch(images: Images) -> Images:
    """Each image to its full range: (x − min) / (max − min); an image of one value becomes black."""
    low = images.min(axis=(1, 2, 3), keepdims=True)
    high = images.max(axis=(1, 2, 3), keepdims=True)
    return (images - low) / jnp.maximum(high - low, 1e-6)


def add_and_stretch(pattern: Pattern) -> Trigger:
    """image + pattern, then `stretch`."""
    return lambda images: stretch(images + jnp.asarray(pattern, images.dtype))


def warp(images: Images, field: Float[Array | np.ndarray, "_ height width 2"]) -> Images:
    """Each image read, bilinearly, at its pixels' places plus the field (rows and columns, in pixels).

    Args:
        images: `[batch, height, width, channels]`.
        field: one displacement field for all images, or one for each.
    """
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height, dtype=images.dtype), jnp.arange(width, dtype=images.dtype)
    base = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    places = jnp.clip(base + jnp.asarray(field, images.dtype), 0, jnp.array([height - 1, width - 1], images.dtype))
    places = jnp.broadcast_to(places, (len(images), height, width, 2))

    def one(image: Array, places: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(image, [places[..., 0], places[..., 1]], order=1, mode="nearest")

    return jax.vmap(jax.vmap(one, in_axes=(-1, None), out_axes=-1))(images, places)
