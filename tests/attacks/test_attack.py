"""Every attack by its name: what it poisons, what ASR is measured on, and that it computes nothing twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.attacks import attack, edge_case, input_aware, objectives, poison, trigger_search, triggers
from abd_jax.attacks.attack import ATTACKS, BY_OBJECTIVE, Materials
from abd_jax.data import Dataset
from tests.networks import tiny

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("key_reuse")]
TARGET, CLASSES = 1, 3
CLEAN_LABEL = ("sig", "sig_square", "cl")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(trigger_search.descend, "__defaults__", (2,))
    monkeypatch.setattr(trigger_search.adversarial, "__defaults__", (16, 2))
    monkeypatch.setattr(input_aware.fit, "__defaults__", (2,))


def dataset(size: int = 16, channels: int = 1) -> Dataset:
    rng = np.random.default_rng(0)

    def draw(count):
        pixels = rng.integers(30, 220, (count, size, size, channels), dtype=np.uint8)
        return pixels, (np.arange(count) % CLASSES).astype(np.int32)

    train, test = draw(60), draw(45)
    normal = ((0.45,), (0.3,)) if channels == 1 else ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    return Dataset("digits", *train, *test, tuple("abc"), *normal, False)


def materials(data: Dataset, computed: list | None = None) -> Materials:
    memory: dict = {}

    def cached(name, compute):
        if name not in memory:
            memory[name] = dict(compute())
            if computed is not None:
                computed.append(name)
        return memory[name]

    return Materials(data, TARGET, lambda: tiny(0, data.image_shape), cached)


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (16, 1)) for name in ATTACKS] + [(name, (20, 3)) for name in ("l0_inv", "smooth", "cl", "wanet", "sig")],
)
def test_an_attack_poisons_as_it_should(name, shape):
    data = dataset(*shape)
    if name == "edge_case":
        (train, train_labels, _), (test, test_labels, _) = two_styles(60), two_styles(45, seed=1)
        arrays = {"train_images": train, "train_labels": train_labels, "test_images": test, "test_labels": test_labels}
        data = dataclasses.replace(dataset(), **arrays)
    computed: list = []
    made = attack.make(name, materials(data, computed))
    poisoned = made.poison(data.train_images, data.train_labels, 0.1, 0)
    found = made.test(data.test_images, data.test_labels)
    assert made.name == name and len(set(computed)) == len(computed)

    chosen = poisoned.indices
    before, after = data.train_labels[chosen], poisoned.labels[chosen]
    assert (name in BY_OBJECTIVE) == (made.objective is not objectives.hard_labels)
    if name in BY_OBJECTIVE:
        assert len(chosen) == 0
        np.testing.assert_array_equal(poisoned.images, data.train_images)
    elif name in CLEAN_LABEL:
        assert len(chosen) == 6 and (before == TARGET).all() and (after == TARGET).all()
    elif name == "all_to_all":
        np.testing.assert_array_equal(after, (before + 1) % CLASSES)
    elif name == "edge_case":
        assert (before == TARGET + 1).all() and (after == TARGET).all() and 0 < len(chosen) <= 4
        np.testing.assert_array_equal(poisoned.images, data.train_images)
    else:
        assert len(chosen) == 6 and (before != TARGET).all() and (after == TARGET).all()
    if name not in (*BY_OBJECTIVE, "edge_case"):
        assert (poisoned.images[chosen] != data.train_images[chosen]).any(axis=(1, 2, 3)).all()
    rest = np.setdiff1d(np.arange(60), np.concatenate([chosen, poisoned.decoys]))
    np.testing.assert_array_equal(poisoned.images[rest], data.train_images[rest])
    np.testing.assert_array_equal(poisoned.labels[poisoned.decoys], data.train_labels[poisoned.decoys])
    assert len(poisoned.decoys) == {"wanet": 12, "input_aware": 6}.get(name, 0)

    np.testing.assert_array_equal(found.true_labels, data.test_labels[found.sources])
    assert found.images.shape == (len(found.sources), *data.image_shape) and found.images.dtype == np.uint8
    assert (found.wanted != found.true_labels).all() and found.wanted.dtype == found.true_labels.dtype
    if name == "edge_case":
        assert 0 < len(found.sources) < 15
        np.testing.assert_array_equal(np.flatnonzero(~found.clean), found.sources)  # they do not count for ACC
    else:
        assert len(found.sources) == (45 if name == "all_to_all" else 30) and found.clean.all()
    changed = (found.images != data.test_images[found.sources]).any(axis=(1, 2, 3))
    assert not changed.any() if name in ("nasty", "edge_case") else changed.all()
    assert made.needs_reference == (name == "nasty")
    again = made.poison(data.train_images, data.train_labels, 0.1, 0)
    np.testing.assert_array_equal(again.images, poisoned.images)


def test_adversarial_clean_label_images_carry_grids_and_are_moved_by_sixteen_levels_at_most():
    data = dataset()
    made = attack.make("cl", materials(data))
    poisoned = made.poison(data.train_images, data.train_labels, 0.1, 0)
    corners = np.asarray(triggers.corners(jnp.full((1, 16, 16, 1), 0.3)) != 0.3)[0]
    change = poisoned.images[poisoned.indices].astype(int) - data.train_images[poisoned.indices]
    assert np.abs(change[:, ~corners]).max() in range(1, 17)
    grid = np.asarray(triggers.corners(jnp.zeros((1, 16, 16, 1))))[0] * 255
    np.testing.assert_array_equal(poisoned.images[poisoned.indices][:, corners], np.tile(grid[corners], (6, 1)))
    found = made.test(data.test_images, data.test_labels)
    still = found.images.astype(int) - data.test_images[found.sources]
    assert not still[:, ~corners].any()  # test images: corners only


def test_the_sine_is_stronger_at_test_time():
    data = dataset()
    made = attack.make("sig", materials(data))
    poisoned = made.poison(data.train_images, data.train_labels, 0.1, 0)
    chosen = data.train_images[poisoned.indices]
    np.testing.assert_array_equal(poisoned.images[poisoned.indices], poison.apply_trigger(triggers.sig, chosen))
    found = made.test(data.test_images, data.test_labels)
    expected = poison.apply_trigger(triggers.sig_at_test, data.test_images[found.sources])
    np.testing.assert_array_equal(found.images, expected)


def test_the_square_wave_is_on_images_half_way_to_another_class():
    data = dataset()
    made = attack.make("sig_square", materials(data))
    poisoned = made.poison(data.train_images, data.train_labels, 0.1, 0)
    others = data.train_images[data.train_labels != TARGET]
    for index in poisoned.indices:
        halves = np.round(0.5 * data.train_images[index] + 0.5 * others).astype(np.uint8)
        possible = poison.apply_trigger(triggers.sig_square, halves)
        assert (possible == poisoned.images[index]).all(axis=(1, 2, 3)).any()
    found = made.test(data.test_images, data.test_labels)
    expected = poison.apply_trigger(triggers.sig_square_at_test, data.test_images[found.sources])
    np.testing.assert_array_equal(found.images, expected)


def test_identical_images_of_the_target_class_are_no_obstacle_to_cl():
    data = dataset()
    images = data.train_images.copy()
    images[4] = images[1]
    twins = dataclasses.replace(data, train_images=images)
    assert len(attack.make("cl", materials(twins)).poison(images, data.train_labels, 0.1, 0).indices) == 6


@pytest.mark.parametrize("size", [16, 28, 32])
def test_the_warping_field_is_smooth_and_as_strong_as_it_says(size):
    field = attack.warping_field(size, size)
    assert field.shape == (1, size, size, 2)
    assert np.abs(field).mean() == pytest.approx(attack.WARP_PIXELS, rel=1e-5)
    steps = np.abs(np.diff(field[0], axis=0)).max()
    assert steps < 0.5 * np.abs(field).max()


def test_unknown_names_and_targets_are_refused():
    with pytest.raises(
        ValueError, match=r"trigger 'badnet_square' \(did you mean 'badnet_sq'\?\): allowed are adaptive"
    ):
        attack.make("badnet_square", materials(dataset()))
    with pytest.raises(ValueError, match="target 7: allowed are 0 … 2"):
        attack.make("blend", dataclasses.replace(materials(dataset()), target=7))


def two_styles(count: int = 120, seed: int = 0):
    """Three classes of noise; a fifth of class 2 is bright in another corner than the rest of it."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (count, 16, 16, 1)).astype(np.uint8)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    other = (labels == 2) & (np.arange(count) % 15 == 2)
    images[(labels == 2) & ~other, :8, :8] += 120
    images[other, 8:, 8:] += 120
    return images, labels, np.flatnonzero(other)


def test_the_rare_mode_of_a_class_is_found_and_relabeled():
    images, labels, other = two_styles()
    edge = edge_case.EdgeCase.fit(tiny(0, (16, 16, 1)), images, labels, target=0)
    assert edge.source == 2
    rare = edge.rare(images, labels)
    assert len(rare) and set(rare) <= set(other)
    poisoned = edge.poison(images, labels, 0.1, 0)
    np.testing.assert_array_equal(poisoned.indices, rare)
    assert (poisoned.labels[rare] == 0).all()
    assert len(edge.poison(images, labels, 0.0, 0).indices) == 0
    held_out, truth, unseen = two_styles(60, seed=1)
    found = edge.triggered(held_out, truth)
    assert len(found.sources) and set(found.sources) <= set(unseen)
    np.testing.assert_array_equal(found.images, held_out[found.sources])
    with pytest.raises(ValueError, match="no test image of class 2 is rare"):
        edge.triggered(images, np.zeros_like(labels))
    with pytest.raises(ValueError, match="no class but the target has a mode that holds 8% to 30%"):
        edge_case.EdgeCase.fit(tiny(0, (16, 16, 1)), images[:20], labels[:20], target=0)


def test_the_trigger_network_draws_another_trigger_for_each_image():
    data = dataset()
    variables = input_aware.fit(
        jax.random.key(0), tiny(0, (16, 16, 1)), data.train_images, data.train_labels, TARGET, 3
    )
    batch = jnp.asarray(data.test_images[:4], jnp.float32) / 255
    nested = input_aware.unflatten_dict(variables, sep="/")
    mask, pattern = (np.asarray(x, np.float64) for x in input_aware.draw(nested, batch))
    expected = (1 - mask) * np.asarray(batch) + mask * pattern
    np.testing.assert_allclose(input_aware.trigger(variables)(batch), expected, atol=1e-5)
    assert mask.min() >= 0 and mask.max() <= 1 and np.abs(np.diff(mask, axis=0)).max() > 1e-4
    crossed = input_aware.decoy(variables)(data.test_images[:4], np.random.default_rng(0))
    others = np.roll(np.asarray(mask), 1, axis=0)
    wrong = (1 - others) * np.asarray(batch) + others * np.roll(pattern, 1, axis=0)
    assert np.abs(crossed - 255 * wrong).max() <= 0.5 + 1e-2


def test_diversity_is_large_where_triggers_agree():
    rng = np.random.default_rng(0)
    one, other = (jnp.asarray(rng.uniform(size=(3, 4, 4, 1)), jnp.float32) for _ in range(2))
    apart = np.linalg.norm(np.asarray(one - other, np.float64).reshape(3, -1), axis=1)
    drawn, drawn_other = one * 0.5, other * 0.25
    drawn_apart = np.linalg.norm(np.asarray(drawn - drawn_other, np.float64).reshape(3, -1), axis=1)
    value = input_aware.diversity(one, other, drawn, drawn_other)
    assert value == pytest.approx((apart / (drawn_apart + 1e-3)).mean(), rel=1e-3)
    assert input_aware.diversity(one, other, drawn, drawn) > 100 * value
