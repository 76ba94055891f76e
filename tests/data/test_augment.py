"""Every augmented image is a crop of its own padded original, mirrored or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.data.augment import crop_and_flip
from tests.networks import images

PAD = 2
augmented = jax.jit(crop_and_flip, static_argnames=("pad", "flip"))


def crops(image, pad):
    """{(row, column, mirrored): crop} of one image."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    found = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = padded[row : row + height, column : column + width]
            found |= {(row, column, False): crop, (row, column, True): crop[:, ::-1]}
    return found


def choices(before, after, pad):
    """Which crop each image is."""
    named = []
    for original, image in zip(np.asarray(before), np.asarray(after), strict=True):
        matching = [name for name, crop in crops(original, pad).items() if np.array_equal(crop, image)]
        assert len(matching) == 1
        named.append(matching[0])
    return named


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_and_flips(channels, flip):
    before = images(0, 64, (6, 8, channels))
    after = augmented(jax.random.key(1), before, pad=PAD, flip=flip)
    assert after.shape == before.shape and after.dtype == before.dtype
    rows, columns, mirrored = zip(*choices(before, after, PAD), strict=True)
    assert set(rows) == set(columns) == set(range(2 * PAD + 1))
    if flip:
        assert 16 < sum(mirrored) < 48
    else:
        assert not any(mirrored)


def test_every_image_is_cropped_on_its_own():
    before = jnp.tile(images(0, 1, (6, 6, 1)), (32, 1, 1, 1))
    after = np.asarray(augmented(jax.random.key(2), before, pad=PAD, flip=True))
    assert len({image.tobytes() for image in after}) > 16


def test_a_key_is_a_draw():
    before = images(0, 16, (6, 6, 1))
    first, again, other = (augmented(jax.random.key(seed), before, pad=PAD, flip=True) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def test_nothing_is_left_as_it_is():
    before = images(0, 8, (6, 6, 1))
    np.testing.assert_array_equal(augmented(jax.random.key(5), before, pad=0, flip=False), before)
