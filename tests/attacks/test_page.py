"""The page of triggers: every cell in its place."""

import numpy as np

from abd_jax.attacks import page, poison, triggers


def test_every_cell_is_in_its_place():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 16, 16, 1)).astype(np.uint8)
    labels = np.array([0, 1, 2, 1, 2], np.int32)
    names = ("badnet_sq", "blend")
    found = {name: poison.triggered(images, labels, trigger=triggers.TRIGGERS[name], target=0) for name in names}
    picture = page.page(found, images, examples=2)
    for row, name in enumerate(names):
        clean, after = images[[1, 2]].astype(int), found[name].images[:2].astype(int)
        expected = (clean, after, np.clip(128 + 8 * (after - clean), 0, 255))
        for block, cells in enumerate(expected):
            for column, cell in enumerate(cells):
                top = 20 + row * (page.CELL + page.GAP)
                left = page.LABEL + block * (2 * (page.CELL + page.GAP) + page.GAP) + column * (page.CELL + page.GAP)
                shown = picture[top : top + page.CELL : 4, left : left + page.CELL : 4]
                np.testing.assert_array_equal(shown, np.repeat(cell, 3, axis=-1))


def test_an_unchanged_pixel_is_grey():
    image = np.full((1, 4, 4, 3), 200, np.uint8)
    assert (page.amplified_difference(image, image) == 128).all()
    assert (page.amplified_difference(image, image - 1) == 120).all()
