"""The loss and the bookkeeping that inversion methods share, against float64 NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.screening import Screening, accept_all
from abd_jax.synthesis.inversion import Best, average_moments, inversion_loss
from tests import networks, reference
from tests.synthesis import small

WEIGHTS = SimpleNamespace(batch_norm=0.7, one_hot=1.3, adversarial=0.4)
LABELS = jnp.asarray([0, 1, 2, 0, 1, 2], jnp.int32)


def loss(images, screen=accept_all, weights=WEIGHTS, **options):
    return inversion_loss(weights, images, LABELS, *small.networks_at_odds(), screen, **options)


def images():
    return networks.images(3, small.BATCH)


def test_the_loss_against_numpy():
    value, (forward, metrics) = jax.jit(loss)(images())
    seen = small.forward(small.networks_at_odds()[0], images())
    np.testing.assert_allclose(value, small.inversion(WEIGHTS, images(), np.asarray(LABELS)), rtol=1e-4)
    np.testing.assert_allclose(forward.logits, seen.logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        metrics["generator/confidence"], reference.softmax(seen.logits).max(-1).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["generator/loss"], value)


def test_its_gradient_against_differences():
    gradient = jax.jit(jax.grad(lambda x: loss(x)[0]))(images())
    for place in ((0, 3, 3, 0), (4, 0, 7, 0), (5, 6, 2, 0)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = np.asarray(images(), np.float64)
            moved[place] += step
            ends.append(small.inversion(WEIGHTS, moved, np.asarray(LABELS)))
        np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, rtol=1e-2, atol=1e-4)


def test_a_screens_weights_and_penalty_enter():
    weights = np.array([1.0, 0.0, 0.5, 2.0, 0.0, 0.1])

    def screen(images, forward):
        return Screening(jnp.asarray(weights, jnp.float32), jnp.square(images).mean(), {"seen": forward.logits.max()})

    value, (_, metrics) = jax.jit(lambda x: loss(x, screen))(images())
    teacher, student = small.networks_at_odds()
    seen = small.forward(teacher, images())
    expected = WEIGHTS.batch_norm * small.distance(seen.mean, seen.variance, teacher)
    expected += WEIGHTS.one_hot * np.average(small.cross_entropy(seen.logits, np.asarray(LABELS)), weights=weights)
    apart = small.agreed(seen.logits, small.forward(student, images()).logits)
    expected -= WEIGHTS.adversarial * np.average(apart, weights=weights)
    penalty = np.square(np.asarray(images(), np.float64)).mean()
    np.testing.assert_allclose(value, expected + penalty, rtol=1e-4)
    np.testing.assert_allclose(metrics["generator/penalty"], penalty, rtol=1e-5)
    np.testing.assert_allclose(metrics["generator/seen"], seen.logits.max(), rtol=1e-4)


def test_without_an_adversary_no_student_is_called():
    def never(images):
        raise AssertionError

    weights = SimpleNamespace(batch_norm=0.7, one_hot=1.3, adversarial=0.0)
    value, _ = inversion_loss(weights, images(), LABELS, small.networks_at_odds()[0], never, accept_all)
    np.testing.assert_allclose(value, small.inversion(weights, images(), np.asarray(LABELS)), rtol=1e-4)


def test_a_warm_up_silences_the_adversary():
    silent, _ = loss(images(), opposed=jnp.zeros(()))
    np.testing.assert_allclose(silent, small.inversion(WEIGHTS, images(), np.asarray(LABELS), opposed=0.0), rtol=1e-4)


def test_moments_may_be_mixed_with_those_of_the_past():
    past = ((jnp.asarray([0.1, 0.2, 0.3, 0.4]), jnp.asarray([1.0, 2.0, 3.0, 4.0])),)
    value, _ = jax.jit(lambda x: loss(x, mixed=lambda moments: average_moments(past, moments, 0.9)))(images())
    seen = small.forward(small.networks_at_odds()[0], images())
    mixed = tuple(
        0.9 * np.asarray(old) + 0.1 * new for old, new in zip(past[0], (seen.mean, seen.variance), strict=True)
    )
    expected = small.inversion(WEIGHTS, images(), np.asarray(LABELS), moments=mixed)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("losses", [[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
def test_the_best_is_kept_and_not_the_last(losses):
    best = Best.none(images=jnp.zeros(2))
    for value in losses:
        best = best.or_better(jnp.asarray(value), images=jnp.full(2, 10 * value))
    assert best.loss == min(losses)
    np.testing.assert_array_equal(best.kept["images"], 10 * min(losses))


def test_a_loss_that_is_not_a_number_is_never_the_best():
    best = Best.none(images=jnp.zeros(2)).or_better(jnp.asarray(2.0), images=jnp.ones(2))
    best = best.or_better(jnp.asarray(jnp.nan), images=jnp.full(2, 5.0))
    np.testing.assert_array_equal(best.kept["images"], 1)
