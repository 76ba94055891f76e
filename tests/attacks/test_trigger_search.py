"""Computed triggers keep to the constraints of their papers, and do what they are searched for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from abd_jax.attacks import trigger_search as search
from abd_jax.attacks import triggers
from tests.networks import images, tiny

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("key_reuse")]
SHAPES = [(16, 16, 1), (16, 16, 3), (32, 32, 3)]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(search.descend, "__defaults__", (8,))


def test_norms_keep_the_root_mean_square():
    assert search.norm_at(3.22, (32, 32, 3)) == pytest.approx(3.22)
    assert search.norm_at(3.22, (16, 16, 3)) == pytest.approx(1.61)
    assert search.norm_at(3.22, (32, 32, 1)) == pytest.approx(3.22 / 3**0.5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_projection_to_the_clipped_sphere(scale):
    pattern = np.random.default_rng(0).standard_cauchy((8, 8, 3)) * scale  # a few values are far beyond the bound
    result = np.asarray(search.project_to_sphere(jnp.asarray(pattern, jnp.float32), 2.0, 0.2), np.float64)
    assert np.linalg.norm(result) == pytest.approx(2.0, rel=1e-4)
    assert np.abs(result).max() <= 0.2 + 1e-6
    inside = np.abs(result) < 0.2 - 1e-4
    ratios = result[inside] / pattern[inside]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)  # nothing but scaling and clipping
    assert (np.abs(pattern[~inside]) >= np.abs(pattern[inside]).max() * (1 - 1e-3)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_l2_has_its_norm_and_its_largest_value_and_raises_the_neurons(shape):
    network, batch, neurons = tiny(0, shape), images(0, 8, shape), np.array([1, 2])
    pattern = search.l2_pattern(jax.random.key(0), network, batch, neurons)
    assert pattern.shape == shape
    expected = 3.22 * (np.prod(shape) / 3072) ** 0.5
    assert np.linalg.norm(pattern.astype(np.float64)) == pytest.approx(expected, rel=1e-3)
    assert np.abs(pattern).max() <= 68 / 255 + 1e-6
    before = network(batch).embedding[:, neurons].mean()
    assert network(triggers.add(pattern)(batch)).embedding[:, neurons].mean() > before


@pytest.mark.parametrize(("shape", "count"), [((16, 16, 1), 4), ((32, 32, 3), 9), ((28, 28, 1), 8)])
def test_l0_is_nine_pixels_on_the_bottom_row(shape, count):
    network, batch, neurons = tiny(0, shape), images(0, 8, shape), np.array([0])
    pattern = search.l0_pattern(jax.random.key(0), network, batch, neurons)
    assert pattern.min() >= 0 and pattern.max() <= 1
    touched = np.zeros(shape[:2], bool)
    touched[-1, -count:] = True
    assert not pattern[~touched].any()
    mask = search.l0_mask(*shape[:2])
    np.testing.assert_array_equal(mask[..., 0].astype(bool), touched)
    after = np.asarray(triggers.replace(mask, pattern)(batch))
    np.testing.assert_array_equal(after[:, ~touched], np.asarray(batch)[:, ~touched])
    np.testing.assert_allclose(after[:, touched], np.broadcast_to(pattern[touched], after[:, touched].shape))
    plain = jax.random.uniform(jax.random.key(0), shape) * mask  # where the search starts
    start = network(triggers.replace(mask, plain)(batch)).embedding[:, 0].mean()
    assert network(jnp.asarray(after)).embedding[:, 0].mean() > start


@pytest.mark.parametrize("shape", SHAPES)
def test_smooth_has_low_frequencies_only_and_meets_a_bound(shape):
    network, batch = tiny(0, shape), images(0, 8, shape)
    pattern = search.smooth_pattern(jax.random.key(0), network, batch, 2).astype(np.float64)
    spectrum = scipy.fft.dctn(pattern, axes=(0, 1), norm="ortho")
    low = np.zeros(shape, bool)
    low[: shape[0] // 4, : shape[1] // 4] = True
    low[0, 0] = False
    assert np.square(spectrum[~low]).sum() < 1e-9 * np.square(spectrum).sum()
    norm, largest = np.linalg.norm(pattern), np.abs(pattern).max()
    bound = 3.77 * (np.prod(shape) / 3072) ** 0.5
    assert norm <= bound * (1 + 1e-4) and largest <= 51 / 255 * (1 + 1e-4)
    assert norm >= bound * (1 - 1e-3) or largest >= 51 / 255 * (1 - 1e-3)
    before = -jax.nn.log_softmax(network(triggers.stretch(batch)).logits)[:, 2].mean()
    moved = triggers.add_and_stretch(pattern.astype(np.float32))(batch)
    assert -jax.nn.log_softmax(network(moved).logits)[:, 2].mean() < before


def test_adversarial_images_stay_within_sixteen_levels_and_raise_the_loss(monkeypatch):
    monkeypatch.setattr(search, "BATCH", 5)
    network = tiny(0, (16, 16, 3))
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, 8).astype(np.int32)
    moved = search.adversarial(jax.random.key(0), network, clean, labels, steps=5)
    change = moved.astype(int) - clean
    assert moved.dtype == np.uint8 and np.abs(change).max() == 16
    assert (np.abs(change) == 16).mean() > 0.3  # most of the budget is used

    def loss(batch):
        logits = np.asarray(network(jnp.asarray(batch, jnp.float32) / 255).logits, np.float64)
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), labels]

    assert (loss(moved) > loss(clean)).all()


def test_the_targets_neurons_are_those_that_tell_it_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    found = rng.normal(0, 1, (60, 6))
    found[:, 4] += 3 * (labels == 1)
    found[:, 1] += 20 * (labels == 1) * 0.2
    found[:, 2] -= 5 * (labels == 1)
    found[:, 3] += 9 * (labels == 2)
    np.testing.assert_array_equal(search.target_neurons(found, labels, 1, count=2), [1, 4])


def test_features_are_the_networks_embeddings(monkeypatch):
    monkeypatch.setattr(search, "BATCH", 3)
    network = tiny(0, (8, 8, 1))
    batch = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)
    expected = network(jnp.asarray(batch, jnp.float32) / 255).embedding
    np.testing.assert_allclose(search.features(network, batch), expected, atol=1e-6)
