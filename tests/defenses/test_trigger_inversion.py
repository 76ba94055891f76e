"""Trigger inversion against float64 by hand, and on a teacher whose backdoor is known."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.defenses import trigger_inversion
from abd_jax.defenses.trigger_inversion import Inversion, InversionConfig, Trigger
from abd_jax.training import dispatch
from tests import networks, reference

SHAPE, BATCH = (4, 4, 1), 4
IMAGES = networks.images(3, BATCH, SHAPE)
TEACHER = networks.tiny(1)
UNKNOWN = trigger_inversion.unknown(InversionConfig(), SHAPE)
advance = jax.jit(trigger_inversion.advance, static_argnums=0)

pytestmark = pytest.mark.optax


def drawn(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return Trigger(*(jnp.asarray(rng.uniform(size=size), jnp.float32) for size in ((*shape[:2], 1), shape)))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def logits_by_hand(network, images):
    """`networks.Tiny` on running statistics."""
    leaves = reference.flat(network.variables)
    x = (np.asarray(images, np.float64) - np.array(network.mean)) / np.array(network.std)
    h = reference.convolve(x, leaves["params/conv/kernel"])
    h = (h - leaves["batch_stats/bn/mean"]) / np.sqrt(leaves["batch_stats/bn/var"] + 1e-5)
    h = np.log1p(np.exp(h * leaves["params/bn/scale"] + leaves["params/bn/bias"])).mean((1, 2))
    return h @ leaves["params/fc/kernel"] + leaves["params/fc/bias"]


def objective_by_hand(config, logits, target):
    mask, pattern = sigmoid(logits.mask), sigmoid(logits.pattern)
    pasted = np.asarray(IMAGES, np.float64) * (1 - mask) + mask * pattern
    return -reference.log_softmax(logits_by_hand(TEACHER, pasted))[:, target].mean() + config.sparsity * mask.sum()


def test_pasting_pixel_by_pixel():
    trigger, pasted = drawn(), trigger_inversion.paste(drawn(), IMAGES)
    for i, row, column in np.ndindex(BATCH, *SHAPE[:2]):
        m = float(trigger.mask[row, column, 0])
        expected = float(IMAGES[i, row, column, 0]) * (1 - m) + m * float(trigger.pattern[row, column, 0])
        assert float(pasted[i, row, column, 0]) == pytest.approx(expected, abs=1e-6)


def test_erasing_fills_the_mask_its_four_neighbors_and_nothing_else():
    images = networks.images(1, 2, (8, 8, 3))
    mask = np.zeros((8, 8, 1), np.float32)
    mask[3, 4], mask[0, 7], mask[6, 1] = 0.9, 0.11, 0.09
    trigger = Trigger(jnp.asarray(mask), jnp.ones((8, 8, 3)))
    erased = np.asarray(trigger_inversion.erase(trigger, (0.1, 0.2, 0.3), images))
    covered = np.zeros((8, 8), bool)
    for row, column in [(3, 4), (2, 4), (4, 4), (3, 3), (3, 5), (0, 7), (1, 7), (0, 6)]:
        covered[row, column] = True
    np.testing.assert_array_equal(erased[:, ~covered], np.asarray(images)[:, ~covered])
    np.testing.assert_allclose(
        erased[:, covered], np.broadcast_to([0.1, 0.2, 0.3], erased[:, covered].shape), rtol=1e-6
    )


def test_nothing_is_erased_by_a_trigger_of_no_pixel():
    erased = trigger_inversion.erase(UNKNOWN.trigger, (0.5,), IMAGES)
    np.testing.assert_array_equal(erased, IMAGES)


def test_a_step_follows_the_gradient_by_differences():
    """Adam's first step is −rate · the gradient's sign; its second moment holds 0.001 times the gradient's square."""
    config = InversionConfig(drop=0.0, sparsity=0.3)
    search = trigger_inversion.begin(config, SHAPE)
    after = advance(config, search, TEACHER, IMAGES, jnp.int32(2), jax.random.key(0))
    second = after.optimizer[0].nu
    for name, (row, column) in [("mask", (0, 1)), ("mask", (2, 2)), ("pattern", (1, 1)), ("pattern", (3, 0))]:
        values = []
        for step in (1e-4, -1e-4):
            moved = {key: np.asarray(leaf, np.float64) for key, leaf in vars(search.logits).items()}
            moved[name] = moved[name].copy()
            moved[name][row, column, 0] += step
            values.append(objective_by_hand(config, Trigger(**moved), 2))
        slope = (values[0] - values[1]) / 2e-4
        assert abs(slope) > 1e-5  # else its sign says nothing
        np.testing.assert_allclose(getattr(second, name)[row, column, 0], 1e-3 * slope**2, rtol=2e-3)
        moved_by = float(getattr(after.logits, name)[row, column, 0] - getattr(search.logits, name)[row, column, 0])
        assert moved_by == pytest.approx(-config.learning_rate * np.sign(slope), rel=1e-2)


def test_left_out_pixels_have_no_gradient():
    config = InversionConfig(drop=1.0, sparsity=0.0)
    search = trigger_inversion.begin(config, SHAPE)
    after = advance(config, search, TEACHER, IMAGES, jnp.int32(1), jax.random.key(0))
    chex.assert_trees_all_close(after.logits, search.logits)


def test_the_verdict_on_a_trigger_by_hand():
    search = trigger_inversion.Search(drawn(5), ())
    search = dataclasses.replace(search, logits=jax.tree.map(lambda leaf: 8 * leaf - 4, search.logits))
    mask, pattern = sigmoid(search.logits.mask), sigmoid(search.logits.pattern)
    before = logits_by_hand(TEACHER, IMAGES).argmax(-1)
    after = logits_by_hand(TEACHER, np.asarray(IMAGES, np.float64) * (1 - mask) + mask * pattern).argmax(-1)
    for target in range(3):
        trigger, size, flips = trigger_inversion.judge(search, TEACHER, IMAGES, jnp.int32(target))
        others = before != target
        np.testing.assert_allclose(trigger.mask, mask, rtol=1e-5)
        np.testing.assert_allclose(size, mask.sum(), rtol=1e-5)
        np.testing.assert_allclose(flips, (others & (after == target)).sum() / max(others.sum(), 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "flips", "suspect"),
    [
        ([9.0, 3.0, 8.0], [1.0, 1.0, 1.0], 1),
        ([9.0, 3.0, 8.0], [1.0, 0.5, 1.0], 2),  # a small trigger that does not work is none
        ([9.0, 3.0, 8.0], [0.3, 0.25, 0.1], 1),
    ],
)
def test_the_suspect_has_the_smallest_trigger_that_works(sizes, flips, suspect):
    triggers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(drawn(seed) for seed in range(3)))
    inversion = Inversion(triggers, jnp.asarray(sizes), jnp.asarray(flips))
    assert int(trigger_inversion.suspect(inversion)) == suspect
    found = trigger_inversion.suspected(InversionConfig(anomaly=-100.0), inversion, UNKNOWN)
    assert int(found.target) == suspect
    chex.assert_trees_all_equal(found.trigger, drawn(suspect))


def test_the_anomaly_by_hand_and_what_it_decides():
    sizes = np.array([4.0, 21.0, 25.0, 18.0, 30.0])
    triggers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(drawn(seed) for seed in range(5)))
    inversion = Inversion(triggers, jnp.asarray(sizes, jnp.float32), jnp.ones(5))
    index = np.log(21 / 4) / (1.4826 * np.median(np.abs(np.log(sizes / 21))))
    assert float(trigger_inversion.anomaly(inversion)) == pytest.approx(index, rel=1e-5)
    for bar, used in [(index - 0.01, True), (index + 0.01, False)]:
        found = trigger_inversion.suspected(InversionConfig(anomaly=bar), inversion, UNKNOWN)
        assert int(found.target) == (0 if used else -1)
        np.testing.assert_array_equal(found.trigger.mask, drawn(0).mask * used)


def test_the_anomalies_count_factors():
    sizes = np.asarray([5.0, 40.0, 44.0, 38.0, 50.0])
    expected = np.log(40 / sizes) / (1.4826 * np.log(1.1))
    np.testing.assert_allclose(trigger_inversion.anomalies(sizes), expected, rtol=1e-5, atol=1e-6)
    assert not trigger_inversion.anomalies(np.asarray([3.0, 3.0, 3.0])).any()


def test_on_the_host_and_on_the_device_it_is_the_same_search(monkeypatch):
    config = InversionConfig(steps=3, images=BATCH)
    host = dispatch.invert_triggers(config, jax.random.key(0), TEACHER, IMAGES)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    device = dispatch.invert_triggers(config, jax.random.key(0), TEACHER, IMAGES)
    assert host.triggers.mask.shape == (3, 4, 4, 1) and host.sizes.shape == host.flips.shape == (3,)
    chex.assert_trees_all_close(host, device, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"images": 0}, "inversion.images 0"),
        ({"steps": 0}, "inversion.steps 0"),
        ({"learning_rate": 0.0}, "inversion.learning_rate"),
        ({"sparsity": -1.0}, "inversion.sparsity"),
        ({"anomaly": float("nan")}, "inversion.anomaly"),
        ({"drop": 1.5}, "inversion.drop"),
    ],
)
def test_settings_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        InversionConfig(**options)
