"""The page of triggers: every cell in its place."""

import numpy as np
import pytest

from abd_jax.attacks import page, poison
from tests.attacks.fixed import TRIGGERS

NAMES = ("badnet_sq", "blend")


def drawn(side, **options):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, side, side, 1)).astype(np.uint8)
    labels = np.array([0, 1, 2, 1, 2], np.int32)
    found = {name: poison.triggered(images, labels, trigger=TRIGGERS[name], target=0) for name in NAMES}
    return images, found, page.page(found, images, examples=2, **options)


@pytest.mark.parametrize(("side", "factor"), [(16, 4), (28, 3), (32, 2), (64, 1), (96, 1)])
def test_every_cell_is_in_its_place_and_every_pixel_a_square(side, factor):
    images, found, picture = drawn(side)
    cell = factor * side
    for row, name in enumerate(NAMES):
        clean, after = images[[1, 2]].astype(int), found[name].images[:2].astype(int)
        expected = (clean, after, np.clip(128 + 8 * (after - clean), 0, 255))
        for block, cells in enumerate(expected):
            for column, values in enumerate(cells):
                top = page.HEAD + row * (cell + page.GAP)
                left = page.LABEL + block * (2 * (cell + page.GAP) + 2 * page.GAP) + column * (cell + page.GAP)
                shown = picture[top : top + cell, left : left + cell]
                enlarged = np.kron(values[..., 0], np.ones((factor, factor), int))[..., None]
                np.testing.assert_array_equal(shown, np.repeat(enlarged, 3, axis=-1))


def test_text_has_its_own_room():
    _, _, bare = drawn(16)
    words = {name: "what this attack does, in a few words that need two lines" for name in NAMES}
    _, _, told = drawn(16, title="a title", summaries=words)
    assert bare.shape == told.shape
    written = (bare != told).any(axis=-1)
    assert written[: page.HEAD].any() and written[page.HEAD :].any()
    assert not written[page.HEAD :, page.LABEL - page.GAP :].any()


def test_an_unchanged_pixel_is_gray():
    image = np.full((1, 4, 4, 3), 200, np.uint8)
    assert (page.amplified_difference(image, image) == 128).all()
    assert (page.amplified_difference(image, image - 1) == 120).all()
