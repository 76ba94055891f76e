"""Fast data-free distillation: loss against float64 NumPy, both meta-updates by hand, warm-up, reset, averages."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abd_jax.synthesis.fast import REPTILE_FACTOR, Fast, FastConfig
from tests import reference
from tests.synthesis import small

pytestmark = pytest.mark.optax

SMALL = {
    "latent": 5,
    "features": 4,
    "updates": 2,
    "batch": small.BATCH,
    "learning_rate": 0.01,
    "warm_up": 0,
    "reset": 0,
    "bank": small.BANK,
}


def synthesizer(**options):
    return Fast(FastConfig(**(SMALL | options)), small.task())


def init(own, seed=3):
    return own.init(jax.random.key(seed))


def generated(variables):
    return reference.generator(
        variables["generator"], variables["latent"], small.SHAPE, small.MEAN, small.STD, "sigmoid"
    )


def first_moment(optimizer):
    return reference.flat(optax.tree.get(optimizer, "mu"))


def copys_first_moment(state):
    return first_moment(state.optimizer["generator"])


def test_the_loss_against_numpy():
    """In the second episode, with the average moments of the first."""
    own = synthesizer(batch_norm=0.7, one_hot=1.3, adversarial=0.9)
    state, _ = small.run(own, init(own), 3)
    assert state.episode == 1 and state.position == 1
    new, metrics = small.update(own, state, 50)
    images, labels = generated(state.variables), np.asarray(state.labels)
    seen = small.forward(small.networks_at_odds()[0], images)
    average = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.moments)[0]
    mixed = tuple(0.9 * old + 0.1 * now for old, now in zip(average, (seen.mean, seen.variance), strict=True))
    expected = small.inversion(own.config, images, labels, moments=mixed)
    np.testing.assert_allclose(metrics["generator/loss"], expected, rtol=1e-3)
    after = jax.tree.map(np.asarray, new.moments)[0]
    for stored, now in zip(after, mixed, strict=True):
        np.testing.assert_allclose(stored, now, rtol=1e-3, atol=1e-4)


def test_the_first_episode_has_no_average():
    own = synthesizer(updates=1)
    state, _ = small.update(own, init(own), 5)
    seen = small.forward(small.networks_at_odds()[0], np.asarray(state.best.kept["images"]))
    np.testing.assert_allclose(state.moments[0][0], seen.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.moments[0][1], seen.variance, rtol=1e-3, atol=1e-4)


def test_fomaml_learns_from_the_sum_of_the_copys_gradients():
    own = synthesizer()
    begun = init(own)
    middle, _ = small.update(own, begun, 5)
    for path, leaf in reference.flat(middle.meta).items():
        np.testing.assert_array_equal(leaf, reference.flat(begun.meta)[path], err_msg=path)
    end, _ = small.update(own, middle, 6)
    inner = [copys_first_moment(state) for state in (middle, end)]  # β 0.5: mu₁ = g₁/2, mu₂ = mu₁/2 + g₂/2
    moment = first_moment(end.meta_optimizer)
    for path, value in moment.items():
        one, two = (moments[path] for moments in inner)
        first, second = 2 * one, 2 * two - one
        np.testing.assert_allclose(value, (first + second) / 2, rtol=1e-3, atol=1e-5, err_msg=path)
    before, after = reference.flat(end.meta), reference.flat(middle.meta)
    step = 2 * own.config.learning_rate
    for path, value in moment.items():
        gradient = 2 * value
        expected = after[path] - step * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(before[path], expected, atol=1e-4, err_msg=path)


def test_reptile_goes_the_copys_way():
    own = synthesizer(meta="reptile")
    begun = init(own)
    end, _ = small.run(own, begun, 2)
    start, adapted = reference.flat(begun.meta), reference.flat(end.variables["generator"])
    for path, moment in first_moment(end.meta_optimizer).items():
        expected = REPTILE_FACTOR * (start[path] - adapted[path]) / 2
        np.testing.assert_allclose(moment, expected, rtol=1e-2, atol=1e-3, err_msg=path)


def test_every_episode_starts_from_the_meta_generator():
    own = synthesizer()
    state, _ = small.run(own, init(own), 2)
    new, _ = small.update(own, state, 50)
    for path, leaf in reference.flat(new.variables["generator"]).items():
        apart = np.abs(leaf - reference.flat(state.meta)[path]).max()
        assert apart <= own.config.learning_rate * 1.001, path  # one step of Adam
    latents = np.abs(np.asarray(new.variables["latent"] - state.variables["latent"]))
    assert latents.mean() > 0.5
    assert new.bank.written == small.BATCH


def test_the_latent_vectors_have_a_learning_rate_of_their_own():
    own = synthesizer(latent_learning_rate=0.3)
    state, _ = small.update(own, init(own), 5)
    new, _ = small.update(own, state, 6)
    moved = np.abs(np.asarray(new.variables["latent"] - state.variables["latent"])).max()
    assert 0.05 < moved <= 0.45
    weights = np.abs(np.asarray(new.variables["generator"]["Dense_0"]["kernel"]))
    assert np.abs(weights - np.abs(np.asarray(state.variables["generator"]["Dense_0"]["kernel"]))).max() <= 0.015


def test_a_warm_up_silences_the_adversary():
    warm, cold = synthesizer(warm_up=1, updates=1), synthesizer(warm_up=1, updates=1, adversarial=9.0)
    states = [init(own) for own in (warm, cold)]
    for first, same in ((True, True), (False, False)):
        results = [small.update(own, state, 5) for own, state in zip((warm, cold), states, strict=True)]
        values = [float(metrics["generator/loss"]) for _, metrics in results]
        assert (values[0] == values[1]) == same, first
        states = [state for state, _ in results]


def test_the_first_layer_is_drawn_anew_once():
    own = synthesizer(updates=1, reset=2)
    state, kernels = init(own), []
    for step in range(5):
        state, _ = small.update(own, state, step)
        kernels.append(np.asarray(state.meta["Dense_0"]["kernel"]))
    steps = [np.abs(later - sooner).max() for sooner, later in itertools.pairwise(kernels)]
    assert steps[1] > 0.2 and max(steps[0], *steps[2:]) < 0.02


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="method fast reads the teacher's batch normalization, and this teacher has"):
        Fast(FastConfig(), dataclasses.replace(small.task(), channels=()))
    for name, value in (("updates", 0), ("latent_learning_rate", 0.0), ("momentum", 1.0)):
        with pytest.raises(ValueError, match=f"synthesis.{name} .*: allowed"):
            FastConfig(**{name: value})


def test_everything_is_finite():
    own = synthesizer()
    state, history = small.run(own, init(own), 6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert all(np.isfinite(value) for row in history for value in row.values())
    assert jnp.all(state.labels[1:] >= state.labels[:-1])
