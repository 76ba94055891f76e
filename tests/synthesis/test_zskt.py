"""Zero-shot knowledge transfer: loss and gradient against float64 NumPy, samples, screens, and that it learns."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abd_jax.screening import Screening, accept_all
from abd_jax.synthesis import Task
from abd_jax.synthesis.zskt import ZSKT, ZSKTConfig
from tests import networks, reference
from tests.synthesis.small import networks_at_odds

pytestmark = pytest.mark.optax

SHAPE, BATCH, LATENT, STEPS = (8, 8, 1), 6, 5, 20


def synthesizer(**options):
    config = ZSKTConfig(**({"latent": LATENT, "features": 4, "clip": 1e6} | options))
    return ZSKT(config, Task(SHAPE, networks.MEAN[1], networks.STD[1], 3, BATCH, STEPS))


@functools.cache
def state(**options):
    own = synthesizer(**options)
    state = own.init(jax.random.key(3))
    return state.replace(params=networks.randomized({"params": state.params}, 4)["params"])


@functools.cache
def updater(own, screen):
    """The student normalizes by the batch, as in the published code; that is the caller's to say."""
    return jax.jit(
        lambda key, state, teacher, student: own.update(
            key, state, teacher, lambda images: student(images, "batch"), screen
        )
    )


def update(own, given, screen=accept_all, seed=7):
    return updater(own, screen)(jax.random.key(seed), given, *networks_at_odds())


# --- the reference


def latents(seed=7, count=BATCH):
    return np.asarray(jax.random.normal(jax.random.key(seed), (count, LATENT)), np.float64)


def generated(params, seed=7, count=BATCH):
    return reference.generator(params, latents(seed, count), SHAPE, networks.MEAN[1], networks.STD[1])


def logits_of(network, images, norm):
    """`networks.Tiny` by hand."""
    v = reference.flat(network.variables)
    x = (images - np.array(network.mean)) / np.array(network.std)
    h, _ = reference.batch_norm(reference.convolve(x, v["params/conv/kernel"]), v, "bn", norm)
    return np.log1p(np.exp(h)).mean(axis=(1, 2)) @ v["params/fc/kernel"] + v["params/fc/bias"]


def disagreements(params, temperature=1.0):
    """KL(T ‖ S) per image; the teacher by running statistics, the student by the batch."""
    teacher, student = networks_at_odds()
    images = generated(params)
    return reference.kl(logits_of(teacher, images, "running"), logits_of(student, images, "batch"), temperature)


def gradient_of(new_state):
    """What the first update saw: Adam's first moment is a tenth of it."""
    return reference.flat(jax.tree.map(lambda moment: 10 * moment, optax.tree.get(new_state.optimizer, "mu")))


def slopes(loss, params, entries):
    """Central differences in single entries of the parameters."""
    found = []
    for path, index in entries:
        ends = []
        for step in (1e-6, -1e-6):
            moved = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
            module, leaf = path.split("/")
            moved[module][leaf][index] += step
            ends.append(loss(moved))
        found.append((ends[0] - ends[1]) / 2e-6)
    return np.array(found)


ENTRIES = [
    ("Dense_0/kernel", (0, 3)),
    ("Dense_0/kernel", (4, 9)),
    ("BatchNorm_0/scale", (1,)),
    ("Conv_0/kernel", (0, 1, 2, 3)),
    ("Conv_1/kernel", (2, 2, 0, 1)),
    ("BatchNorm_2/bias", (0,)),
    ("Conv_2/kernel", (1, 1, 1, 0)),
    ("BatchNorm_3/scale", (0,)),
]


# --- one update


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_loss_and_its_gradient_against_numpy(temperature):
    own, given = synthesizer(temperature=temperature), state()
    new, metrics = update(own, given)
    classes = 3
    expected = disagreements(given.params, temperature).mean() / classes
    np.testing.assert_allclose(metrics["generator/disagreement"], expected, rtol=1e-3)
    assert metrics["generator/penalty"] == 0
    gradient = gradient_of(new)
    loss = lambda params: -disagreements(params, temperature).mean() / classes  # noqa: E731
    result = np.array([gradient[path][index] for path, index in ENTRIES])
    differences = slopes(loss, given.params, ENTRIES)
    assert np.abs(differences).max() > 1e-3
    np.testing.assert_allclose(result, differences, rtol=1e-2, atol=1e-3 * np.abs(differences).max())


def test_the_first_step_is_adams():
    """Every parameter moves against its gradient by the learning rate."""
    given = state()
    new, _ = update(synthesizer(learning_rate=0.01), given)
    gradient, before, after = gradient_of(new), reference.flat(given.params), reference.flat(new.params)
    for path, slope in gradient.items():
        expected = before[path] - 0.01 * slope / (np.abs(slope) + 1e-8)
        np.testing.assert_allclose(after[path], expected, atol=1e-5, err_msg=path)


def test_a_gradient_is_clipped_by_its_global_norm():
    given = state()
    free, clipped = (gradient_of(update(synthesizer(clip=clip), given)[0]) for clip in (1e6, 1e-3))
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in free.values()))
    assert norm > 1e-2
    for path, leaf in free.items():
        np.testing.assert_allclose(clipped[path], leaf * 1e-3 / norm, rtol=1e-3, atol=1e-9, err_msg=path)


def test_the_learning_rate_falls_by_a_cosine_to_zero():
    """With a constant gradient Adam's step is the learning rate; read off it from Adam's own moments."""
    own, given = synthesizer(learning_rate=0.01), state()
    rates = []
    for step in range(1, STEPS + 2):
        new, _ = update(own, given)
        mu, nu = (reference.flat(optax.tree.get(new.optimizer, name))["Dense_0/bias"] for name in ("mu", "nu"))
        direction = (mu / (1 - 0.9**step)) / (np.sqrt(nu / (1 - 0.999**step)) + 1e-8)
        moved = reference.flat(given.params)["Dense_0/bias"] - reference.flat(new.params)["Dense_0/bias"]
        largest = np.abs(direction).argmax()
        rates.append(moved[largest] / direction[largest])
        given = new
    expected = [0.01 * 0.5 * (1 + np.cos(np.pi * min(step, STEPS) / STEPS)) for step in range(STEPS + 1)]
    np.testing.assert_allclose(rates, expected, rtol=2e-2, atol=2e-5)


def test_teacher_and_student_are_left_alone():
    before = [jax.tree.map(np.array, network.variables) for network in networks_at_odds()]
    update(synthesizer(), state())
    chex.assert_trees_all_equal([network.variables for network in networks_at_odds()], before)


# --- a defense's screen


def test_weights_and_penalty_of_a_screen_enter_the_loss():
    """Loss: penalty − Σ w·KL / (C·Σ w); both of the screen's outputs are differentiated."""
    weights = np.array([1.0, 0.0, 0.5, 2.0, 0.0, 0.1])

    def screen(images, teacher_forward):
        brightness = images.mean(axis=(1, 2, 3))
        scaled = jnp.asarray(weights, jnp.float32) * jnp.exp(20 * brightness)
        penalty = 0.002 * jnp.square(teacher_forward.logits).mean()
        return Screening(scaled, penalty, {"seen": brightness.max()})

    given = state()
    new, metrics = update(synthesizer(), given, screen)

    def by_hand(params):
        images = generated(params)
        brightness = images.mean(axis=(1, 2, 3))
        disagreement = np.average(disagreements(params), weights=weights * np.exp(20 * brightness)) / 3
        penalty = 0.002 * np.square(logits_of(networks_at_odds()[0], images, "running")).mean()
        return penalty - disagreement, disagreement, penalty, brightness.max()

    _, disagreement, penalty, seen = by_hand(given.params)
    np.testing.assert_allclose(metrics["generator/disagreement"], disagreement, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator/penalty"], penalty, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator/seen"], seen, rtol=1e-3)
    gradient = gradient_of(new)
    result = np.array([gradient[path][index] for path, index in ENTRIES])
    differences = slopes(lambda params: by_hand(params)[0], given.params, ENTRIES)
    np.testing.assert_allclose(result, differences, rtol=1e-2, atol=1e-3 * np.abs(differences).max())


def test_a_batch_without_weight_leaves_the_penalty():
    def screen(images, teacher_forward):
        return Screening(jnp.zeros(BATCH), jnp.square(images).mean(), {})

    new, metrics = update(synthesizer(), state(), screen)
    assert metrics["generator/disagreement"] == 0
    assert all(np.isfinite(leaf).all() for leaf in gradient_of(new).values())


# --- samples


def test_a_sample_with_the_key_of_an_update_is_of_the_same_latent_vectors():
    own, given = synthesizer(), state()
    sample = jax.jit(own.sample, static_argnums=2)
    images = sample(jax.random.key(7), given, BATCH)
    assert images.shape == (BATCH, *SHAPE)
    np.testing.assert_allclose(images, generated(given.params), rtol=1e-3, atol=1e-4)  # those of the loss above
    new, _ = update(own, given)
    after = sample(jax.random.key(7), new, BATCH)
    np.testing.assert_allclose(after, generated(new.params), rtol=1e-3, atol=1e-4)
    other = sample(jax.random.key(8), given, BATCH)
    assert (np.asarray(other) != np.asarray(images)).all()


def test_a_sample_of_another_size():
    images = jax.jit(synthesizer().sample, static_argnums=2)(jax.random.key(7), state(), 3)
    np.testing.assert_allclose(images, generated(state().params, count=3), rtol=1e-3, atol=1e-4)


def test_init_is_a_function_of_its_key():
    own = synthesizer()
    first, again, other = (own.init(jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (np.asarray(first.params["Dense_0"]["kernel"]) != np.asarray(other.params["Dense_0"]["kernel"])).all()


# --- learning


def test_twenty_updates_raise_the_disagreement():
    own = synthesizer(learning_rate=0.02, features=8)
    given = own.init(jax.random.key(0))
    values = []
    for step in range(STEPS):
        given, metrics = update(own, given, seed=100 + step)
        values.append(float(metrics["generator/disagreement"]))
    assert np.mean(values[-5:]) > 1.5 * np.mean(values[:5])


# --- no defense, settings


def test_accept_all_accepts_all():
    images = networks.images(0, 4)
    result = accept_all(images, networks.tiny(shape=SHAPE)(images))
    np.testing.assert_array_equal(result.weights, np.ones(4))
    assert result.penalty == 0 and not result.metrics


@pytest.mark.parametrize("name", ["latent", "features", "updates", "learning_rate", "temperature", "clip"])
@pytest.mark.parametrize("value", [0, -1])
def test_impossible_settings_are_refused(name, value):
    kind = type(getattr(ZSKTConfig(), name))
    value, allowed = kind(value), "whole numbers from 1" if kind is int else "numbers above 0"
    with pytest.raises(ValueError, match=f"synthesis.{name} {value}: allowed are {allowed}"):
        ZSKTConfig(**{name: value})
