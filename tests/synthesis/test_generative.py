"""DAFL, DFQ and DFAD: the objective with each method's weights, and its gradient, against float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abd_jax.screening import Screening
from abd_jax.synthesis.dafl import DAFLConfig
from abd_jax.synthesis.dfad import DFADConfig
from abd_jax.synthesis.dfq import DFQConfig
from abd_jax.synthesis.generative import Generative, GenerativeConfig
from tests import networks, reference
from tests.synthesis import small

pytestmark = pytest.mark.optax

SMALL = {"latent": 5, "features": 4}
CONFIGS = {
    "dafl": DAFLConfig(**SMALL),
    "dfq": DFQConfig(**SMALL),
    "dfad": DFADConfig(**SMALL),
    "all": GenerativeConfig(
        **SMALL, one_hot=0.3, activation=0.2, balance=0.7, batch_norm=0.4, adversarial=0.9, divergence="l1"
    ),
}


def by_hand(config, params, seed, weights=None):
    latent = np.asarray(jax.random.normal(jax.random.key(seed), (small.BATCH, 5)), np.float64)
    images = reference.generator(params, latent, small.SHAPE, small.MEAN, small.STD)
    teacher, student = small.networks_at_odds()
    seen, other = small.forward(teacher, images), small.forward(student, images, "batch")
    average = lambda values: np.average(values, weights=weights)  # noqa: E731
    mean = reference.softmax(seen.logits).mean(axis=0)
    apart = (
        np.abs(seen.logits - other.logits).mean(axis=-1)
        if config.divergence == "l1"
        else reference.kl(seen.logits, other.logits)
    )
    return (
        config.one_hot * average(small.cross_entropy(seen.logits, seen.logits.argmax(-1)))
        - config.activation * average(np.abs(seen.embedding).mean(axis=-1))
        + config.balance * (mean * np.log(mean)).sum()
        + config.batch_norm * small.distance(seen.mean, seen.variance, teacher)
        - config.adversarial * average(apart)
    )


def state_of(own):
    state = own.init(jax.random.key(3))
    return state.replace(params=networks.randomized({"params": state.params}, 4)["params"])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_and_its_gradient_against_numpy(name):
    own = Generative(CONFIGS[name], small.task())
    state = state_of(own)
    new, metrics = small.update(own, state, 7)
    np.testing.assert_allclose(metrics["generator/loss"], by_hand(own.config, state.params, 7), rtol=1e-3)
    moment = reference.flat(optax.tree.get(new.optimizer, "mu"))
    for path, place in (("Dense_0/kernel", (4, 9)), ("Conv_1/kernel", (2, 2, 0, 1)), ("BatchNorm_3/scale", (0,))):
        ends = []
        for step in (1e-6, -1e-6):
            moved = jax.tree.map(lambda leaf: np.array(leaf, np.float64), state.params)
            module, leaf = path.split("/")
            moved[module][leaf][place] += step
            ends.append(by_hand(own.config, moved, 7))
        np.testing.assert_allclose(2 * moment[path][place], (ends[0] - ends[1]) / 2e-6, rtol=2e-2, atol=2e-3)


def test_a_screens_weights_and_penalty_enter():
    weights = np.array([1.0, 0.0, 0.5, 2.0, 0.0, 0.1])

    def screen(images, forward):
        return Screening(jnp.asarray(weights, jnp.float32), jnp.square(forward.logits).mean(), {})

    own = Generative(CONFIGS["all"], small.task())
    state = state_of(own)
    _, metrics = small.update(own, state, 7, screen)
    expected = by_hand(own.config, state.params, 7, weights) + float(metrics["generator/penalty"])
    assert metrics["generator/penalty"] > 0.1
    np.testing.assert_allclose(metrics["generator/loss"], expected, rtol=1e-3)


def test_only_terms_with_a_weight_are_computed():
    own = Generative(CONFIGS["dafl"], small.task())
    _, metrics = own.update(
        jax.random.key(0),
        own.init(jax.random.key(1)),
        small.networks_at_odds()[0],
        lambda images: 1 / 0,
        lambda images, forward: Screening(jnp.ones(small.BATCH), jnp.zeros(()), {}),
    )
    terms = {"one_hot", "activation", "imbalance", "loss", "confidence", "penalty"}
    assert set(metrics) == {f"generator/{term}" for term in terms}


def test_samples_follow_their_key():
    own = Generative(CONFIGS["dfad"], small.task())
    state = state_of(own)
    sample = jax.jit(own.sample, static_argnums=2)
    images = sample(jax.random.key(7), state, 5)
    latent = np.asarray(jax.random.normal(jax.random.key(7), (5, 5)), np.float64)
    expected = reference.generator(state.params, latent, small.SHAPE, small.MEAN, small.STD)
    np.testing.assert_allclose(images, expected, rtol=1e-3, atol=1e-4)
    assert (np.asarray(sample(jax.random.key(8), state, 5)) != np.asarray(images)).all()


def test_only_a_method_that_reads_batch_normalization_needs_it():
    bare = dataclasses.replace(small.task(), channels=())
    Generative(CONFIGS["dfad"], bare)
    Generative(CONFIGS["dafl"], bare)
    with pytest.raises(ValueError, match="method dfq reads the teacher's batch normalization, and this teacher has"):
        Generative(CONFIGS["dfq"], bare)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (DAFLConfig, "latent", 0),
        (DFQConfig, "balance", -1.0),
        (DFQConfig, "updates", 0),
    ],
)
def test_impossible_settings_are_refused(config, name, value):
    with pytest.raises(ValueError, match=f"synthesis.{name} .*: allowed"):
        config(**{name: value})


def test_a_generator_without_any_loss_is_refused():
    with pytest.raises(ValueError, match=r"at least one of one_hot, .* must be above 0"):
        GenerativeConfig()
