"""One picture of many attacks: a row of clean images for each, what the attack makes of them, the difference × 8."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from abd_jax.attacks.poison import Triggered

AMPLIFICATION = 8
LABEL, GAP, CELL = 150, 6, 64
"""Pixels: width of the names' column, between two cells, and a cell's side."""


def amplified_difference(
    clean: UInt8[np.ndarray, "n height width channels"], triggered: UInt8[np.ndarray, "n height width channels"]
) -> UInt8[np.ndarray, "n height width channels"]:
    """Grey where nothing changed, brighter or darker by eight times the change, cut off at white and black."""
    change = triggered.astype(np.int32) - clean.astype(np.int32)
    return np.clip(128 + AMPLIFICATION * change, 0, 255).astype(np.uint8)


def _cell(image: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    colors = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    return Image.fromarray(np.ascontiguousarray(colors)).resize((CELL, CELL), Image.Resampling.NEAREST)


def page(
    found: Mapping[str, Triggered], images: UInt8[np.ndarray, "test height width channels"], examples: int = 4
) -> UInt8[np.ndarray, "page_height page_width 3"]:
    """The rows below each other, in the mapping's order.

    Args:
        found: name → what the attack makes of the test set.
        images: the test set.
        examples: images in a row, each three times.
    """
    width = LABEL + 3 * examples * (CELL + GAP) + 2 * GAP
    canvas = Image.new("RGB", (width, 20 + len(found) * (CELL + GAP)), "white")
    pen = ImageDraw.Draw(canvas)
    block = examples * (CELL + GAP) + GAP
    for index, title in enumerate(("clean", "triggered", f"difference x {AMPLIFICATION}")):
        pen.text((LABEL + index * block, 4), title, fill="black")
    for row, (name, triggered) in enumerate(found.items()):
        top = 20 + row * (CELL + GAP)
        pen.text((4, top + CELL // 2 - 6), name, fill="black")
        clean, after = images[triggered.sources[:examples]], triggered.images[:examples]
        for index, cells in enumerate((clean, after, amplified_difference(clean, after))):
            for column, image in enumerate(cells):
                canvas.paste(_cell(image), (LABEL + index * block + column * (CELL + GAP), top))
    return np.asarray(canvas)
