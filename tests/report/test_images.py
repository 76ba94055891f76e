"""PNG data URIs, contact sheets and differences, pixel by pixel."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from abd_jax.report import images


def decode(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_keeps_every_pixel(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    np.testing.assert_array_equal(decode(images.data_uri(image)).reshape(5, 7, channels), image)


def test_a_sheet_has_transparent_gaps():
    tiles = np.full((3, 4, 5, 3), 9, np.uint8)
    sheet = images.sheet(tiles, columns=2, gap=1)
    assert sheet.shape == (9, 11, 4)
    assert (sheet[:4, :5] == [9, 9, 9, 255]).all()
    assert not sheet[4].any() and not sheet[:, 5].any()
    assert not sheet[5:, 6:].any()  # the fourth place is empty
    assert images.sheet(tiles[:1], columns=8).shape == (4, 5, 4)


def test_a_difference_is_amplified_by_one_factor():
    clean = np.zeros((2, 2, 2, 1), np.uint8)
    clean[0, 1, 1] = 60
    triggered = clean.copy()
    triggered[0, 0, 0], triggered[0, 1, 1], triggered[1, 0, 0] = 51, 43, 17
    change, factor = images.difference(clean, triggered)
    assert factor == 5.0
    assert change[0, 0, 0] == 255 and change[0, 1, 1] == 85 and change[1, 0, 0] == 85


def test_no_difference_is_black():
    clean = np.full((1, 2, 2, 3), 7, np.uint8)
    change, factor = images.difference(clean, clean)
    assert factor == 1.0 and not change.any()
