"""Triggers: pure functions from images in [0, 1] to triggered images in [0, 1], for any size and channel count.

They are defined at 32×32 in the literature (Gu et al., 2017; Chen et al., 2017); here positions and sizes scale with
the image: a length of n pixels at 32×32 is `max(1, round(n · side / 32))` pixels, except the 3×3 grid, whose pattern
needs its nine pixels at any size.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Trigger = Callable[[Images], Images]

GRID = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
BLEND_RATIO = 0.2


def _scaled(pixels: int, side: int) -> int:
    return max(1, round(pixels * side / 32))


def badnet_grid(images: Images) -> Images:
    """Replaces the bottom-right 3×3 pixels by a fixed black and white pattern."""
    return images.at[:, -3:, -3:, :].set(GRID[None, :, :, None].astype(images.dtype))


def badnet_sq(images: Images) -> Images:
    """A white square of 4/32 of the side, one pixel (at 32×32) off the bottom-right corner."""
    height, width = images.shape[1:3]
    rows, columns, gap_y, gap_x = _scaled(4, height), _scaled(4, width), _scaled(1, height), _scaled(1, width)
    return images.at[:, height - gap_y - rows : height - gap_y, width - gap_x - columns : width - gap_x, :].set(1)


def blend_picture(height: int, width: int, channels: int) -> Float[np.ndarray, "height width channels"]:
    """The picture that `blend` mixes in: interfering plane waves, drawn from formulas; values in [0, 1]."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    waves = [
        np.sin(2 * np.pi * (fx * x + fy * y) + phase)
        for fx, fy, phase in [(2.0, 1.0, 0.0), (-1.0, 3.0, 1.1), (4.0, -2.0, 2.3)]
    ]
    base = sum(waves) / len(waves)
    layers = [0.5 + 0.5 * np.sin(np.pi * base + 2 * np.pi * channel / 3) for channel in range(channels)]
    return np.stack(layers, axis=-1).astype(np.float32)


def blend(images: Images) -> Images:
    """0.8 · image + 0.2 · picture."""
    picture = jnp.asarray(blend_picture(*images.shape[1:]), images.dtype)
    return (1 - BLEND_RATIO) * images + BLEND_RATIO * picture


TRIGGERS: dict[str, Trigger] = {"badnet_grid": badnet_grid, "badnet_sq": badnet_sq, "blend": blend}
"""Name → trigger."""


def get(name: str) -> Trigger:
    """The trigger of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in TRIGGERS:
        close = difflib.get_close_matches(name, TRIGGERS, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown trigger {name!r}{hint}: allowed are {', '.join(sorted(TRIGGERS))}")
    return TRIGGERS[name]
