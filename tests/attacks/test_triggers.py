"""Triggers pixel by pixel at 32×32, their scaling, and what they leave alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.attacks import triggers
from tests.attacks.fixed import TRIGGERS
from tests.networks import images

SHAPES = [(32, 32, 3), (32, 32, 1), (16, 16, 1), (28, 28, 1), (8, 8, 3), (64, 64, 3), (24, 40, 3)]


def changed(trigger, shape):
    """Where a trigger writes, found by applying it to a grey image that it never leaves as it is."""
    grey = jnp.full((1, *shape), 0.3)
    return np.asarray(trigger(grey) != grey)[0].any(axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_badnet_grid_at_32(channels):
    before = images(0, 4, (32, 32, channels))
    after = np.asarray(TRIGGERS["badnet_grid"](before))
    expected = np.array(before)
    black_and_white = {
        (29, 29): 0, (29, 30): 0, (29, 31): 1,
        (30, 29): 0, (30, 30): 1, (30, 31): 0,
        (31, 29): 1, (31, 30): 0, (31, 31): 1,
    }  # fmt: skip
    for (row, column), value in black_and_white.items():
        expected[:, row, column, :] = value
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_badnet_sq_at_32(channels):
    before = images(0, 4, (32, 32, channels))
    expected = np.array(before)
    for row in (27, 28, 29, 30):
        for column in (27, 28, 29, 30):
            expected[:, row, column, :] = 1
    np.testing.assert_array_equal(TRIGGERS["badnet_sq"](before), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_blend_at_32(channels):
    before = images(0, 4, (32, 32, channels))
    picture = triggers.blend_picture(32, 32, channels).astype(np.float64)
    expected = 0.8 * np.asarray(before, np.float64) + 0.2 * picture
    np.testing.assert_allclose(TRIGGERS["blend"](before), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_blended_picture(shape):
    picture = triggers.blend_picture(*shape)
    assert picture.shape == shape
    assert picture.min() >= 0 and picture.max() <= 1
    assert picture.std() > 0.2  # not a tint
    if shape[2] == 3:
        assert np.abs(np.diff(picture, axis=-1)).max() > 0.2  # not grey
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
    expected = triggers.blend_picture(32, 32, shape[2])[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, expected, atol=1e-6)  # the same picture at every size


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((8, 8, 1), range(6, 7), range(6, 7)),
        ((16, 16, 1), range(13, 15), range(13, 15)),
        ((28, 28, 1), range(23, 27), range(23, 27)),
        ((32, 32, 3), range(27, 31), range(27, 31)),
        ((64, 64, 3), range(54, 62), range(54, 62)),
        ((24, 40, 3), range(20, 23), range(34, 39)),
    ],
)
def test_badnet_sq_scales_with_the_side(shape, rows, columns):
    expected = np.zeros(shape[:2], bool)
    expected[np.ix_(rows, columns)] = True
    np.testing.assert_array_equal(changed(TRIGGERS["badnet_sq"], shape), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_badnet_grid_is_nine_pixels_at_any_size(shape):
    expected = np.zeros(shape[:2], bool)
    expected[-3:, -3:] = True
    np.testing.assert_array_equal(changed(TRIGGERS["badnet_grid"], shape), expected)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_triggered_image_is_an_image(name, shape):
    before = jnp.concatenate([images(0, 2, shape), jnp.zeros((1, *shape)), jnp.ones((1, *shape))])
    copy = np.array(before)
    after = TRIGGERS[name](before)
    assert after.shape == before.shape and after.dtype == before.dtype
    assert after.min() >= 0 and after.max() <= 1 + 1e-6
    np.testing.assert_array_equal(before, copy)  # pure


@pytest.mark.parametrize("name", TRIGGERS)
def test_triggers_compile_once(name):
    traced = jax.jit(chex.assert_max_traces(TRIGGERS[name], n=1))
    for seed in (0, 1):
        batch = images(seed, 2, (16, 16, 1))
        np.testing.assert_allclose(traced(batch), TRIGGERS[name](batch), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_clean_label_corners_are_mirrored_grids(channels):
    before = images(0, 2, (32, 32, channels))
    expected = np.array(before)
    grid = {(29, 29): 0, (29, 30): 0, (29, 31): 1, (30, 29): 0, (30, 30): 1, (30, 31): 0}
    grid |= {(31, 29): 1, (31, 30): 0, (31, 31): 1}
    for (row, column), value in grid.items():
        for r in (row, 31 - row):
            for c in (column, 31 - column):
                expected[:, r, c, :] = value
    np.testing.assert_array_equal(triggers.corners(before), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("trigger", "share"), [(triggers.sig, 0.2), (triggers.sig_at_test, 0.4)])
def test_sig_is_a_fifth_of_a_horizontal_sine_of_six_periods_and_two_fifths_at_test_time(channels, trigger, share):
    before = images(0, 2, (32, 48, channels))
    sine = np.array([0.5 + 0.5 * np.sin(2 * np.pi * 6 * column / 48) for column in range(48)])
    expected = (1 - share) * np.asarray(before, np.float64) + share * sine[None, None, :, None]
    np.testing.assert_allclose(trigger(before), expected, atol=1e-6)


def test_the_square_wave_is_a_small_sine_that_wrapped_around():
    row = triggers.square_picture(4, 32, 3)[0, :, 0] * 255
    np.testing.assert_allclose(row, np.round(row), atol=1e-4)
    sine = np.trunc(20 * np.sin(2 * np.pi * 4 * (np.arange(32) + 0.5) / 32)).astype(int)
    np.testing.assert_array_equal(np.round(row).astype(np.uint8), sine.astype(np.uint8))  # the cast that wraps
    assert np.count_nonzero(np.diff((row > 127).astype(int)) == 1) == 4  # four periods
    before = images(0, 2, (4, 32, 3))
    for trigger, share in ((triggers.sig_square, 0.2), (triggers.sig_square_at_test, 0.25)):
        expected = (1 - share) * np.asarray(before, np.float64) + share * row[None, None, :, None] / 255
        np.testing.assert_allclose(trigger(before), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [
        ("trojan_3x3", (32, 32, 3), range(25, 28)),
        ("trojan_3x3", (64, 64, 1), range(50, 56)),
        ("trojan_3x3", (16, 16, 1), range(12, 14)),
        ("trojan_8x8", (32, 32, 3), range(21, 30)),
        ("trojan_8x8", (64, 64, 1), range(42, 60)),
        ("trojan_8x8", (16, 16, 1), range(10, 14)),
    ],
)
def test_trojan_patches_lie_where_they_should_and_are_added(name, shape, rows):
    trigger = TRIGGERS[name]
    expected = np.zeros(shape[:2], bool)
    expected[np.ix_(rows, rows)] = True
    np.testing.assert_array_equal(changed(trigger, shape), expected)
    pattern = np.asarray(trigger(jnp.zeros((1, *shape))), np.float64)
    before = images(1, 3, shape)
    np.testing.assert_allclose(trigger(before), np.clip(np.asarray(before, np.float64) + pattern, 0, 1), atol=1e-6)
    assert pattern[0][expected].min() >= 0.5 and pattern[0][expected].std() > 0.05


@pytest.mark.parametrize(
    ("shape", "count"), [((32, 32, 3), 321), ((32, 32, 1), 321), ((16, 16, 1), 80), ((28, 28, 1), 246)]
)
def test_the_watermark_has_321_pixels_at_32_over_the_whole_image(shape, count):
    picture = triggers.watermark_picture(*shape)
    touched = picture.any(axis=-1)
    assert touched.sum() == count and picture.min() >= 0 and picture.max() <= triggers.WATERMARK_STRENGTH
    half = shape[0] // 2
    for quarter in (touched[:half, :half], touched[:half, half:], touched[half:, :half], touched[half:, half:]):
        assert quarter.sum() > count / 8
    before = images(0, 2, shape)
    expected = np.clip(np.asarray(before, np.float64) + picture, 0, 1)
    np.testing.assert_allclose(triggers.trojan_wm(before), expected, atol=1e-6)


def test_the_pixel_pattern_leaves_transparent_pixels_alone():
    expected = np.full((32, 32), 0.3, np.float32)
    for offset, row in enumerate([[1, 0, 1], [None, 1, None], [None, None, 0], [None, 1, None], [1, 0, 1]]):
        for column, value in enumerate(row):
            if value is not None:
                expected[3 + offset, 23 + column] = value
    np.testing.assert_array_equal(triggers.pixels(jnp.full((1, 32, 32, 1), 0.3))[0, :, :, 0], expected)


def test_stretching_uses_the_whole_range_of_each_image():
    before = images(0, 3, (16, 16, 3)) * 0.4 + 0.2
    pattern = np.random.default_rng(0).normal(0, 0.1, (16, 16, 3)).astype(np.float32)
    after = np.asarray(triggers.add_and_stretch(pattern)(before))
    moved = np.asarray(before, np.float64) + pattern
    low, high = moved.min(axis=(1, 2, 3), keepdims=True), moved.max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(after, (moved - low) / (high - low), atol=1e-5)
    flat = np.asarray(triggers.stretch(jnp.full((1, 4, 4, 1), 0.7)))
    assert np.isfinite(flat).all()


def test_warping_reads_between_the_pixels():
    picture = np.asarray(images(0, 2, (5, 6, 3)), np.float64)
    field = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 5, 6, 2))
    expected = np.zeros_like(picture)
    for n in range(2):
        for i in range(5):
            for j in range(6):
                y, x = np.clip(i + field[n, i, j, 0], 0, 4), np.clip(j + field[n, i, j, 1], 0, 5)
                y0, x0 = min(int(y), 3), min(int(x), 4)
                a, b = y - y0, x - x0
                top = (1 - b) * picture[n, y0, x0] + b * picture[n, y0, x0 + 1]
                bottom = (1 - b) * picture[n, y0 + 1, x0] + b * picture[n, y0 + 1, x0 + 1]
                expected[n, i, j] = (1 - a) * top + a * bottom
    result = triggers.warp(jnp.asarray(picture, jnp.float32), field.astype(np.float32))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    still = triggers.warp(jnp.asarray(picture, jnp.float32), np.zeros((1, 5, 6, 2), np.float32))
    np.testing.assert_allclose(still, picture, atol=1e-6)


def test_replacing_and_adding():
    before = images(0, 2, (4, 4, 3))
    mask = np.zeros((4, 4, 1), np.float32)
    mask[3, 1:] = 1
    pattern = np.random.default_rng(1).uniform(0, 1, (4, 4, 3)).astype(np.float32) * mask
    expected = np.array(before)
    expected[:, 3, 1:] = pattern[3, 1:]
    np.testing.assert_allclose(triggers.replace(mask, pattern)(before), expected, atol=1e-6)
    np.testing.assert_allclose(
        triggers.add(-pattern)(before), np.clip(np.asarray(before, np.float64) - pattern, 0, 1), atol=1e-6
    )
