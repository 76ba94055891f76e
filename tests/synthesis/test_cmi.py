"""Contrastive model inversion: contrast and loss against float64 NumPy, memory, views, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abd_jax.synthesis import cmi
from abd_jax.synthesis.cmi import CMI, CMIConfig
from tests import networks, reference
from tests.synthesis import small

pytestmark = pytest.mark.optax

LATENT, NEGATIVES, WIDTH = 5, 8, 4
SMALL = {
    "latent": LATENT,
    "features": 4,
    "updates": 2,
    "batch": small.BATCH,
    "head": 3,
    "memory": 2 * small.BATCH,
    "negatives": NEGATIVES,
    "crop": 0,
    "scale": 1.0,
    "flip": False,
    "bank": small.BANK,
}


def synthesizer(**options):
    return CMI(CMIConfig(**(SMALL | options)), small.task())


def init(own, seed=3):
    return own.init(jax.random.key(seed))


# --- the reference


def project(head, features):
    v = reference.flat(head)
    h = np.maximum(features @ v["Dense_0/kernel"] + v["Dense_0/bias"], 0)
    h = h @ v["Dense_1/kernel"] + v["Dense_1/bias"]
    return h / np.sqrt(np.square(h).sum(-1, keepdims=True) + 1e-12)


def contrast(head, local, whole, negatives, temperature):
    queries = project(head, np.concatenate([local, negatives[:, 0]]))
    keys = project(head, np.concatenate([whole, negatives[:, 1]]))
    values = -np.diag(reference.log_softmax(queries @ keys.T / temperature))
    own = len(local)
    return values[:own].mean() + (values[own:].mean() if len(negatives) else 0)


def head(seed=0):
    shapes = jax.eval_shape(lambda: cmi.Head(3).init(jax.random.key(0), jnp.zeros((1, WIDTH))))
    return networks.randomized(shapes, seed)["params"]


def features(seed, count, views=2):
    return np.random.default_rng(seed).normal(size=(count, views, WIDTH)).astype(np.float32)


# --- contrast and memory


@pytest.mark.parametrize("there", [0, 1, 5, NEGATIVES])
def test_the_contrast_against_numpy(there):
    own, past = features(0, 6), features(1, NEGATIVES)
    present = jnp.arange(NEGATIVES) < there
    config = CMIConfig(**SMALL)
    loss = lambda local, whole, head: cmi.contrast(config, head, local, whole, jnp.asarray(past), present)  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
        jnp.asarray(own[:, 0]), jnp.asarray(own[:, 1]), head()
    )
    expected = contrast(head(), own[:, 0], own[:, 1], past[:there], config.temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert (np.asarray(gradients[1]) == 0).all(), "the global view is a constant"
    assert np.abs(gradients[0]).max() > 1e-3


@pytest.mark.parametrize("remembered", [0, 3, 11, 12, 20])
def test_negatives_are_different_and_there_as_far_as_they_can_be(remembered):
    memory = jnp.arange(12.0)[:, None, None] * jnp.ones((12, 2, 1))
    draw = jax.jit(cmi.draw_negatives, static_argnums=3)
    seen = set()
    for seed in range(30):
        drawn, present = draw(jax.random.key(seed), memory, jnp.int32(remembered), 4)
        slots = np.asarray(drawn)[:, 0, 0][np.asarray(present)].tolist()
        assert len(slots) == len(set(slots)) == min(4, remembered)
        assert all(slot < remembered for slot in slots)
        seen |= set(slots)
    assert len(seen) == min(12, remembered), "every entry's turn comes"


def test_the_memory_runs_full_and_over_without_a_nan():
    """Six episodes, three times the memory: empty, partly filled, exactly full, and overwritten."""
    own = synthesizer()
    state, remembered = init(own), []
    for step in range(12):
        state, metrics = small.update(own, state, step)
        assert all(np.isfinite(float(value)) for value in metrics.values()), (step, metrics)
        remembered.append(min(int(state.remembered), 12))
    assert remembered == [0, 6, 6, 12, 12, 12, 12, 12, 12, 12, 12, 12]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.variables, state.head, state.memory)))


# --- views


def test_a_whole_local_view_is_the_image():
    images = networks.images(0, 4)
    wide = cmi.local_view(jax.random.key(0), images, scale=1.0, flip=False)
    # A rectangle of the whole area that is not square is clipped to the image: one side is whole, none is larger.
    assert wide.shape == images.shape and np.isfinite(wide).all()
    assert np.asarray(wide).min() >= 0 and np.asarray(wide).max() <= 1 + 1e-6


def test_local_views_magnify():
    """On a ramp, a view's slope is the share that it shows, and its values lie within the image's."""
    ramp = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 32)[None, None, :, None], (64, 32, 32, 1))
    views = np.asarray(cmi.local_view(jax.random.key(1), ramp, scale=0.25, flip=False))[:, 16, :, 0]
    span = views.max(axis=1) - views.min(axis=1)
    assert (np.diff(views, axis=1) >= -1e-5).all()
    assert 0.35 < span.min() < 0.6 < 0.85 < span.max() <= 1 + 1e-5
    assert views.min() >= -1e-5 and views.max() <= 1 + 1e-5


def test_half_of_the_views_are_mirrored():
    ramp = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 8)[None, None, :, None], (64, 8, 8, 1))
    views = np.asarray(cmi.local_view(jax.random.key(1), ramp, scale=0.5, flip=True))[:, 4, :, 0]
    assert 15 < (views[:, 0] > views[:, -1]).sum() < 49


# --- one update


def test_the_loss_against_numpy():
    own = synthesizer(batch_norm=0.7, one_hot=1.3, adversarial=0.4, contrast=0.6)
    state, _ = small.update(own, init(own), 5)
    state, _ = small.update(own, state, 6)  # an episode is over: something is remembered
    state, _ = small.update(own, state, 7)
    new, metrics = small.update(own, state, 8)
    images = reference.generator(
        state.variables["generator"], state.variables["latent"], small.SHAPE, small.MEAN, small.STD, "sigmoid"
    )
    inversion = small.inversion(own.config, images, np.asarray(state.labels))
    np.testing.assert_allclose(
        metrics["generator/loss"] - 0.6 * metrics["generator/contrast"], inversion, rtol=1e-3, atol=1e-3
    )
    start, crop, cut, draw = jax.random.split(jax.random.key(8), 4)
    del start, crop
    whole = small.forward(small.networks_at_odds()[0], images).image_mean
    views = cmi.local_view(cut, jnp.asarray(images, jnp.float32), scale=1.0, flip=False)
    local = small.forward(small.networks_at_odds()[0], views).image_mean
    negatives, present = cmi.draw_negatives(draw, state.memory, state.remembered, NEGATIVES)
    past = np.asarray(negatives, np.float64)[np.asarray(present)]
    assert len(past) == small.BATCH
    expected = contrast(state.head[0], local, whole, past, own.config.temperature)
    np.testing.assert_allclose(metrics["generator/contrast"], expected, rtol=2e-3)
    assert new.bank.written == 2 * small.BATCH


def test_generator_and_latent_vectors_are_fresh_and_the_head_is_not():
    own = synthesizer()
    state, _ = small.run(own, init(own), 2)
    assert state.position == 0
    new, _ = small.update(own, state, 50)
    assert int(optax.tree.get(new.optimizer, "count")) == 1
    assert int(optax.tree.get(new.head[1], "count")) == 3
    moved = np.asarray(new.variables["latent"] - state.variables["latent"])
    assert np.abs(moved).mean() > 0.5
    head_moved = new.head[0]["Dense_0"]["kernel"] - state.head[0]["Dense_0"]["kernel"]
    assert 0 < np.abs(head_moved).max() < 0.01


def test_the_best_features_are_remembered_with_the_best_images():
    own = synthesizer()
    state, _ = small.run(own, init(own), 2)
    seen = small.forward(small.networks_at_odds()[0], np.asarray(state.best.kept["images"]))
    np.testing.assert_allclose(state.memory[: small.BATCH, 1], seen.image_mean, rtol=1e-3, atol=1e-4)
    stored = np.asarray(state.bank.images[: small.BATCH]) / 255
    np.testing.assert_allclose(stored, state.best.kept["images"], atol=0.51 / 255)


# --- what it refuses


def test_a_teacher_without_batch_normalization_is_refused():
    with pytest.raises(ValueError, match="method cmi reads the teacher's batch normalization, and this teacher has"):
        CMI(CMIConfig(), dataclasses.replace(small.task(), channels=()))


def test_sides_that_are_not_divisible_by_four_are_refused():
    with pytest.raises(ValueError, match="image size 10×8: the generator of cmi needs sides divisible by 4"):
        CMI(CMIConfig(), dataclasses.replace(small.task(), image_shape=(10, 8, 1)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("updates", 0), ("temperature", 0.0), ("contrast", -0.1), ("scale", 0.0), ("memory", 100), ("negatives", 50_000)],
)
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match="synthesis.(memory|" + name + ") .*: allowed"):
        CMIConfig(**{name: value})
