"""The embedded digits: sizes, split, pixels, statistics."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from abd_jax import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def rows(images):
    return [image.tobytes() for image in images]


def test_sizes_and_types(digits):
    assert digits.train_images.shape == (1437, 16, 16, 1) and digits.test_images.shape == (360, 16, 16, 1)
    assert digits.train_labels.shape == (1437,) and digits.test_labels.shape == (360,)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert np.issubdtype(digits.train_labels.dtype, np.integer)
    assert digits.name == "digits" and digits.image_shape == (16, 16, 1) and digits.num_classes == 10
    assert digits.classes == tuple("0123456789")
    assert digits.flip is False  # a mirrored 2 is no 2


def test_every_scan_is_in_one_part_only(digits):
    train, test = rows(digits.train_images), rows(digits.test_images)
    assert len(set(train) | set(test)) == 1797  # no two scans look the same, so rows can be told apart
    assert not set(train) & set(test)


def test_pixels_and_labels_are_those_of_the_scans(digits):
    """Bilinear by hand: an output pixel lies a quarter pixel from one scan pixel, three quarters from the next."""
    raw = load_digits()
    weights = np.zeros((16, 8))
    for out in range(16):
        center = (out + 0.5) / 2 - 0.5
        near = np.clip([np.floor(center), np.floor(center) + 1], 0, 7).astype(int)
        weights[out, near[0]] += 1 - (center - np.floor(center))
        weights[out, near[1]] += center - np.floor(center)
    expected = np.einsum("ia,nab,jb->nij", weights, np.round(raw.images * 255 / 16), weights)[..., None]
    images = np.concatenate([digits.train_images, digits.test_images]).astype(np.int64)
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    flat, wanted = images.reshape(1797, -1).astype(np.float64), expected.reshape(1797, -1)
    distance = (flat**2).sum(1)[:, None] - 2 * flat @ wanted.T + (wanted**2).sum(1)[None]
    match = distance.argmin(axis=1)
    assert sorted(match) == list(range(1797))
    assert np.abs(flat - wanted[match]).max() <= 2  # Pillow rounds after each direction
    np.testing.assert_array_equal(labels, raw.target[match])
    assert images.min() == 0 and images.max() == 255


def test_the_split_keeps_the_shares_of_the_classes(digits):
    train, test = (np.bincount(labels, minlength=10) for labels in (digits.train_labels, digits.test_labels))
    assert (np.abs(test - 0.2 * (train + test)) <= 1).all()


def test_loading_again_gives_the_same(digits):
    again = data.load("digits")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(digits, name))


def test_mean_and_std_are_those_of_the_training_images(digits):
    assert len(digits.mean) == len(digits.std) == 1
    pixels = digits.train_images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean[0], pixels.mean(), atol=1e-4)
    np.testing.assert_allclose(digits.std[0], pixels.std(), atol=1e-4)


def test_an_unknown_dataset_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"dataset 'digit' \(did you mean 'digits'\?\): allowed are .*digits"):
        data.load("digit")
