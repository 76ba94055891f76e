"""Batches from disk: every image once an epoch, the same for the same seed, resumable."""

import itertools
import sys

import numpy as np
import pytest

from abd_jax import data
from abd_jax.data import prepared
from tests.data import originals

COUNT = 20


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Prepared arrays on disk, each image all of its own number."""
    expected = originals.arrays(COUNT, 4, (28, 28, 1), 10)
    numbers = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (COUNT, 28, 28, 1))
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setitem(data.CATALOG, "mnist", originals.tiny("mnist", COUNT, 4))
    source = originals.write_idx(tmp_path / "originals", expected._replace(train_images=numbers))
    data.prepare(data.info("mnist"), source)
    return data.load("mnist")


def numbers(iterator):
    return [images[:, 0, 0, 0].tolist() for images, _ in iterator]


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def test_an_epoch_has_every_image_once_with_its_label(dataset):
    seen = list(data.batches(dataset, batch=4, seed=0))
    assert len(seen) == 5
    for images, labels in seen:
        assert images.shape == (4, 28, 28, 1) and images.dtype == np.uint8 and labels.shape == (4,)
        np.testing.assert_array_equal(images, np.broadcast_to(images[:, :1, :1], images.shape))
        np.testing.assert_array_equal(labels, dataset.train_labels[images[:, 0, 0, 0]])
    assert sorted(flat(numbers(seen))) == list(range(COUNT))


def test_the_order_is_the_seeds_and_another_in_every_epoch(dataset):
    first = numbers(data.batches(dataset, batch=5, seed=0, epochs=2))
    assert first == numbers(data.batches(dataset, batch=5, seed=0, epochs=2, threads=1))
    assert first != numbers(data.batches(dataset, batch=5, seed=1, epochs=2))
    epochs = [flat(first[:4]), flat(first[4:])]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]) == list(range(COUNT))


def test_what_makes_no_batch_is_left_out(dataset):
    assert len(numbers(data.batches(dataset, "test", batch=3, seed=0))) == 1


def test_a_state_resumes(dataset):
    iterator = data.batches(dataset, batch=4, seed=0, epochs=None)
    numbers([next(iterator), next(iterator)])
    state = iterator.get_state()
    expected = numbers([next(iterator) for _ in range(7)])
    again = data.batches(dataset, batch=4, seed=0, epochs=None)
    again.set_state(state)
    assert numbers([next(again) for _ in range(7)]) == expected


@pytest.mark.parametrize("batch", [0, COUNT + 1])
def test_a_batch_that_cannot_be(dataset, batch):
    with pytest.raises(ValueError, match=rf"batch {batch}: allowed are 1 … 20, the train images of mnist"):
        data.batches(dataset, batch=batch, seed=0)


def test_without_grain_the_extra_is_named(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match=r"pip install 'abd-jax\[stream\]'"):
        data.batches(dataset, batch=4, seed=0)
