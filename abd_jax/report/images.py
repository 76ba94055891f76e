"""uint8 images as PNG data URIs: single ones, contact sheets, triggers, amplified differences."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def data_uri(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """A PNG that needs no file; channels: 1 grey, 2 grey and opacity, 3 colors, 4 colors and opacity."""
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def sheet(
    images: UInt8[np.ndarray, "n height width channels"], columns: int = 8, gap: int = 2
) -> UInt8[np.ndarray, "sheet_height sheet_width channels_and_opacity"]:
    """Images in rows, with transparent gaps of so many pixels between them."""
    count, height, width, channels = images.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width, :channels] = image
        canvas[top : top + height, left : left + width, channels] = 255
    return canvas


def patches(
    masks: Float[np.ndarray, "n height width 1"], patterns: Float[np.ndarray, "n height width channels"]
) -> UInt8[np.ndarray, "n height width channels"]:
    """What a trigger pastes, black where it pastes nothing; masks and patterns in [0, 1]."""
    return np.round(255 * masks * patterns).astype(np.uint8)


def difference(
    clean: UInt8[np.ndarray, "n height width channels"], triggered: UInt8[np.ndarray, "n height width channels"]
) -> tuple[UInt8[np.ndarray, "n height width channels"], float]:
    """|triggered − clean|, amplified by the one factor that makes the largest difference of all white.

    Returns:
        The differences and the factor, 1 if there is no difference at all.
    """
    change = np.abs(triggered.astype(np.int16) - clean.astype(np.int16))
    factor = 255 / change.max() if change.any() else 1.0
    return np.round(change * factor).astype(np.uint8), float(factor)
