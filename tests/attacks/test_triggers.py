"""Triggers pixel by pixel at 32×32, their scaling, and what they leave alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.attacks import triggers
from tests.networks import images

SHAPES = [(32, 32, 3), (32, 32, 1), (16, 16, 1), (28, 28, 1), (8, 8, 3), (64, 64, 3), (24, 40, 3)]


def changed(trigger, shape):
    """Where a trigger writes, found by applying it to a grey image that it never leaves as it is."""
    grey = jnp.full((1, *shape), 0.3)
    return np.asarray(trigger(grey) != grey)[0].any(axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_badnet_grid_at_32(channels):
    before = images(0, 4, (32, 32, channels))
    after = np.asarray(triggers.get("badnet_grid")(before))
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
    np.testing.assert_array_equal(triggers.get("badnet_sq")(before), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_blend_at_32(channels):
    before = images(0, 4, (32, 32, channels))
    picture = triggers.blend_picture(32, 32, channels).astype(np.float64)
    expected = 0.8 * np.asarray(before, np.float64) + 0.2 * picture
    np.testing.assert_allclose(triggers.get("blend")(before), expected, atol=1e-6)


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
    np.testing.assert_array_equal(changed(triggers.get("badnet_sq"), shape), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_badnet_grid_is_nine_pixels_at_any_size(shape):
    expected = np.zeros(shape[:2], bool)
    expected[-3:, -3:] = True
    np.testing.assert_array_equal(changed(triggers.get("badnet_grid"), shape), expected)


@pytest.mark.parametrize("name", triggers.TRIGGERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_triggered_image_is_an_image(name, shape):
    before = jnp.concatenate([images(0, 2, shape), jnp.zeros((1, *shape)), jnp.ones((1, *shape))])
    copy = np.array(before)
    after = triggers.get(name)(before)
    assert after.shape == before.shape and after.dtype == before.dtype
    assert after.min() >= 0 and after.max() <= 1 + 1e-6
    np.testing.assert_array_equal(before, copy)  # pure


@pytest.mark.parametrize("name", triggers.TRIGGERS)
def test_triggers_compile_once(name):
    traced = jax.jit(chex.assert_max_traces(triggers.get(name), n=1))
    for seed in (0, 1):
        batch = images(seed, 2, (16, 16, 1))
        np.testing.assert_allclose(traced(batch), triggers.get(name)(batch), atol=1e-6)


def test_an_unknown_trigger_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown trigger 'badnet_square' \(did you mean 'badnet_sq'\?\): allowed are"
    ):
        triggers.get("badnet_square")
