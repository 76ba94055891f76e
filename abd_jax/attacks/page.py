"""One picture of many attacks: a row of clean images for each, what the attack makes of them, the difference × 8."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from abd_jax.attacks.poison import Triggered

AMPLIFICATION = 8
HEAD, LABEL, GAP, LEAST_CELL = 64, 260, 6, 64
"""Pixels: height of the titles, width of the names' column, between two cells, and a cell's side at least."""
BLOCKS = ("clean", "triggered", f"difference × {AMPLIFICATION}: gray is unchanged")
LEAST_BLOCK = 260
"""Pixels: room for the longest of these."""
INK, MUTED = "black", "#555555"


def amplified_difference(
    clean: UInt8[np.ndarray, "n height width channels"], triggered: UInt8[np.ndarray, "n height width channels"]
) -> UInt8[np.ndarray, "n height width channels"]:
    """Gray where nothing changed, brighter or darker by eight times the change, cut off at white and black."""
    change = triggered.astype(np.int32) - clean.astype(np.int32)
    return np.clip(128 + AMPLIFICATION * change, 0, 255).astype(np.uint8)


def magnification(height: int, width: int) -> int:
    """The whole number by which every pixel is enlarged, so that all look the same."""
    return -(-LEAST_CELL // max(height, width))


def _cell(image: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    colors = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
    factor = magnification(*image.shape[:2])
    return Image.fromarray(np.ascontiguousarray(colors.repeat(factor, axis=0).repeat(factor, axis=1)))


def page(
    found: Mapping[str, Triggered],
    images: UInt8[np.ndarray, "test height width channels"],
    examples: int = 4,
    title: str = "",
    summaries: Mapping[str, str] | None = None,
) -> UInt8[np.ndarray, "page_height page_width 3"]:
    """The rows below each other, in the mapping's order.

    Args:
        found: name → what the attack makes of the test set.
        images: the test set.
        examples: images in a row, each three times.
        title: of the page.
        summaries: name → a few words that stand below it.
    """
    height, width = (side * magnification(*images.shape[1:3]) for side in images.shape[1:3])
    block = examples * (width + GAP) + 2 * GAP
    size = (LABEL + 2 * block + max(block, LEAST_BLOCK), HEAD + len(found) * (height + GAP))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)

    def write(left: int, top: int, text: str, points: int, color: str = INK) -> None:
        # Pillow's own font has no ×.
        pen.text((left, top), text.replace("×", "x"), color, ImageFont.load_default(points))

    write(GAP, GAP, title, 18)
    for index, heading in enumerate(BLOCKS):
        write(LABEL + index * block, HEAD - 24, heading, 15)
    for row, (name, triggered) in enumerate(found.items()):
        top = HEAD + row * (height + GAP)
        write(GAP, top, name, 15)
        write(GAP, top + 20, textwrap.fill((summaries or {}).get(name, ""), 40), 12, MUTED)
        clean, after = images[triggered.sources[:examples]], triggered.images[:examples]
        for index, cells in enumerate((clean, after, amplified_difference(clean, after))):
            for column, image in enumerate(cells):
                canvas.paste(_cell(image), (LABEL + index * block + column * (width + GAP), top))
    return np.asarray(canvas)
