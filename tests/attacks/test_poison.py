"""Who is poisoned: counts, classes, labels, seeds; and the set that ASR and RA are measured on."""

import numpy as np
import pytest

from abd_jax.attacks import poison, triggers
from tests.attacks.fixed import TRIGGERS

TARGET = 2


def training_set(train=200, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (train, 8, 8, 1)).astype(np.uint8)
    return images, np.arange(train, dtype=np.int32) % classes


def poisoned(rate=0.1, seed=0, trigger="badnet_sq", target=TARGET, **options):
    images, labels = training_set(**options)
    return (
        images,
        labels,
        poison.dirty_label(images, labels, rate, seed, trigger=TRIGGERS[trigger], target=target),
    )


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.001, 0), (0.013, 3), (0.1, 20), (0.5, 100), (0.8, 160)])
def test_the_rate_is_of_the_whole_set(rate, count):
    _, _, result = poisoned(rate)
    assert len(result.indices) == count == len(np.unique(result.indices))


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_chosen_are_triggered_and_relabeled_and_the_rest_is_as_it_was(trigger):
    images, labels, result = poisoned(trigger=trigger)
    chosen = result.indices
    assert (np.diff(chosen) > 0).all()
    assert (labels[chosen] != TARGET).all()
    assert (result.labels[chosen] == TARGET).all()
    np.testing.assert_array_equal(result.images[chosen], poison.apply_trigger(TRIGGERS[trigger], images[chosen]))
    assert (result.images[chosen] != images[chosen]).any(axis=(1, 2, 3)).all()
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    np.testing.assert_array_equal(result.images[rest], images[rest])
    np.testing.assert_array_equal(result.labels[rest], labels[rest])
    assert result.images.dtype == np.uint8 and result.labels.dtype == labels.dtype


def test_every_other_class_is_drawn_from():
    _, labels, result = poisoned(0.3)
    assert set(labels[result.indices]) == {0, 1, 3, 4}


def test_the_input_is_left_alone():
    images, labels, result = poisoned(0.3)
    again_images, again_labels = training_set()
    np.testing.assert_array_equal(images, again_images)
    np.testing.assert_array_equal(labels, again_labels)
    assert not np.shares_memory(images, result.images)


def test_a_seed_is_a_draw():
    first, again, other = (poisoned(seed=seed)[2] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert set(first.indices) != set(other.indices)


def test_rate_zero_poisons_nobody():
    images, labels, result = poisoned(0.0)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.labels, labels)


@pytest.mark.parametrize(
    ("rate", "target", "message"),
    [
        (-0.1, TARGET, r"poison rate -0.1: allowed is \[0, 1\)"),
        (1.0, TARGET, r"poison rate 1.0: allowed is \[0, 1\)"),
        (float("nan"), TARGET, r"poison rate nan: allowed is \[0, 1\)"),
        (0.81, TARGET, "asks for 162 images of other classes; only 160 are there"),
        (0.1, 5, r"target 5: allowed are the classes \[0, 1, 2, 3, 4\]"),
        (0.1, -1, r"target -1: allowed are"),
    ],
)
def test_impossible_orders_are_refused(rate, target, message):
    with pytest.raises(ValueError, match=message):
        poisoned(rate, target=target)


def test_apply_trigger_rounds_to_the_nearest_grey():
    images, _ = training_set(train=6)
    exact = 0.8 * images + 0.2 * 255 * triggers.blend_picture(8, 8, 1).astype(np.float64)
    result = poison.apply_trigger(triggers.blend, images)
    assert result.dtype == np.uint8
    assert np.abs(result - exact).max() <= 0.5 + 1e-3
    extremes = np.stack([np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8)])
    assert poison.apply_trigger(triggers.badnet_sq, extremes)[:, 6, 6, 0].tolist() == [255, 255]
    assert poison.apply_trigger(triggers.badnet_grid, extremes)[:, 7, 5:, 0].tolist() == [[255, 0, 255]] * 2
    np.testing.assert_array_equal(poison.apply_trigger(triggers.badnet_sq, extremes)[:, :6], extremes[:, :6])


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_triggered_test_set_has_everybody_but_the_target(trigger):
    images, labels = training_set(train=53)
    found = poison.triggered(images, labels, trigger=TRIGGERS[trigger], target=TARGET)
    others = np.array([index for index, label in enumerate(labels) if label != TARGET])
    assert len(found.images) == len(others) < 53
    np.testing.assert_array_equal(found.sources, others)
    np.testing.assert_array_equal(found.true_labels, labels[others])
    assert (found.wanted == TARGET).all() and found.clean.all() and len(found.clean) == 53
    np.testing.assert_array_equal(found.images, poison.apply_trigger(TRIGGERS[trigger], images[others]))


def test_clean_label_poisons_the_target_class_alone_and_keeps_its_labels():
    images, labels = training_set()
    result = poison.clean_label(images, labels, 0.1, 0, trigger=triggers.sig, target=TARGET)
    assert len(result.indices) == 20 and (labels[result.indices] == TARGET).all()
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(
        result.images[result.indices], poison.apply_trigger(triggers.sig, images[result.indices])
    )
    rest = np.setdiff1d(np.arange(200), result.indices)
    np.testing.assert_array_equal(result.images[rest], images[rest])


def test_clean_label_leaves_a_fifth_of_the_class_clean():
    images, labels = training_set()
    result = poison.clean_label(images, labels, 0.9, 0, trigger=triggers.sig, target=TARGET)
    assert len(result.indices) == 0.8 * 40


def test_clean_label_prepares_images_before_the_trigger():
    images, labels = training_set()
    seen = []

    def prepare(chosen, truth):
        seen.append(truth)
        return 255 - chosen

    result = poison.clean_label(images, labels, 0.05, 0, trigger=triggers.badnet_grid, target=TARGET, prepare=prepare)
    inverted = poison.apply_trigger(triggers.badnet_grid, 255 - images[result.indices])
    np.testing.assert_array_equal(result.images[result.indices], inverted)
    assert (np.concatenate(seen) == TARGET).all()


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.1, 40), (0.25, 100), (0.9, 100)])
def test_all_to_all_takes_twice_the_rate_and_half_of_the_set_at_most(rate, count):
    images, labels = training_set()
    result = poison.all_to_all(images, labels, rate, 0, trigger=triggers.badnet_sq, classes=5)
    assert len(result.indices) == count == len(np.unique(result.indices))
    assert (result.labels != labels).sum() == count


def test_all_to_all_moves_every_class_to_the_next():
    images, labels = training_set()
    result = poison.all_to_all(images, labels, 0.5, 0, trigger=triggers.badnet_sq, classes=5)
    chosen = result.indices
    assert set(labels[chosen]) == {0, 1, 2, 3, 4} and len(chosen) == 100
    np.testing.assert_array_equal(result.labels[chosen], [{0: 1, 1: 2, 2: 3, 3: 4, 4: 0}[y] for y in labels[chosen]])
    found = poison.triggered_all_to_all(images, labels, trigger=triggers.badnet_sq, classes=5)
    assert len(found.images) == 200 and (found.wanted != found.true_labels).all()
    np.testing.assert_array_equal(found.wanted, (labels + 1) % 5)
    assert found.wanted.dtype == labels.dtype


def test_decoys_are_changed_and_keep_their_labels():
    images, labels = training_set()
    result = poison.dirty_label(
        images, labels, 0.1, 0, trigger=triggers.badnet_sq, target=TARGET, decoy=lambda x, rng: 255 - x, decoys=2.0
    )
    plain = poison.dirty_label(images, labels, 0.1, 0, trigger=triggers.badnet_sq, target=TARGET)
    np.testing.assert_array_equal(plain.indices, result.indices)  # decoys change nobody else's lot
    assert len(plain.decoys) == 0 and len(result.decoys) == 40
    assert not set(result.decoys) & set(result.indices)
    np.testing.assert_array_equal(result.images[result.decoys], 255 - images[result.decoys])
    np.testing.assert_array_equal(result.labels[result.decoys], labels[result.decoys])
    many = poison.dirty_label(
        images, labels, 0.5, 0, trigger=triggers.badnet_sq, target=TARGET, decoy=lambda x, rng: x, decoys=3.0
    )
    assert len(many.decoys) == 100  # all that are left


def test_a_large_set_is_triggered_in_parts(monkeypatch):
    images, _ = training_set()
    whole = poison.apply_trigger(triggers.blend, images)
    monkeypatch.setattr(poison, "CHUNK", 64)
    np.testing.assert_array_equal(poison.apply_trigger(triggers.blend, images), whole)
    assert poison.apply_trigger(triggers.blend, images[:0]).shape == (0, 8, 8, 1)
