"""DeepInversion: its loss against float64 NumPy, one episode step by step, and what it refuses."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from abd_jax.synthesis.deep_inversion import DeepInversion, DeepInversionConfig
from tests import reference
from tests.synthesis import small

pytestmark = pytest.mark.optax

STILL = {"updates": 3, "batch": small.BATCH, "jitter": 0, "flip": False, "bank": small.BANK}


def synthesizer(**options):
    return DeepInversion(DeepInversionConfig(**(STILL | options)), small.task())


def init(own):
    return own.init(jax.random.key(3))


def by_hand(config, pixels, labels):
    """The whole loss of standardized pixels that neither roll nor mirror."""
    images = pixels * np.array(small.STD) + np.array(small.MEAN)
    teacher, student = small.networks_at_odds()
    seen, other = small.forward(teacher, images), small.forward(student, images)
    p, q = reference.softmax(seen.logits), reference.softmax(other.logits)
    m = (p + q) / 2
    divergence = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    shifts = (
        pixels[:, :, 1:] - pixels[:, :, :-1],
        pixels[:, 1:] - pixels[:, :-1],
        pixels[:, 1:, 1:] - pixels[:, :-1, :-1],
        pixels[:, 1:, :-1] - pixels[:, :-1, 1:],
    )
    value = config.batch_norm * small.distance(seen.mean, seen.variance, teacher)
    value += config.one_hot * small.cross_entropy(seen.logits, labels).mean()
    value -= config.adversarial * divergence.mean()
    value += config.total_variation * sum(np.sqrt(np.square(shift).sum()) for shift in shifts)
    return value + config.l2 * np.sqrt(np.square(pixels).sum())


@pytest.mark.parametrize(
    "weights",
    [{}, {"adversarial": 1.5, "l2": 0.2, "total_variation": 0.1, "batch_norm": 0.3, "one_hot": 2.0}],
    ids=["published", "all"],
)
def test_the_loss_and_its_gradient_against_numpy(weights):
    own = synthesizer(**weights)
    state, _ = small.update(own, init(own), 5)  # an episode has begun
    pixels, labels = np.asarray(state.pixels, np.float64), np.asarray(state.labels)
    new, metrics = small.update(own, state, 6)
    np.testing.assert_allclose(metrics["generator/loss"], by_hand(own.config, pixels, labels), rtol=1e-4)
    before, after = (optax.tree.get(s.optimizer, "mu") for s in (state, new))
    gradient = (after - 0.5 * before) / 0.5  # Adam's first moment, β 0.5
    for place in ((0, 3, 3, 0), (4, 0, 7, 0), (5, 6, 2, 0)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = pixels.copy()
            moved[place] += step
            ends.append(by_hand(own.config, moved, labels))
        np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, rtol=2e-2, atol=1e-3)


def test_an_episode_puts_its_best_batch_into_the_bank():
    """With a huge learning rate the first batch is the best, the last one is not."""
    own = synthesizer(learning_rate=3.0)
    state, values, seen = init(own), [], []
    for step in range(3):
        state, metrics = small.update(own, state, step)
        values.append(float(metrics["generator/loss"]))
        seen.append(np.asarray(state.best.kept["images"]))
        assert state.bank.written == (small.BATCH if step == 2 else 0)
    assert np.argmin(values) < 2
    best = np.asarray(state.bank.images[: small.BATCH]) / 255
    np.testing.assert_allclose(best, seen[np.argmin(values)], atol=0.51 / 255)
    last = np.asarray(state.pixels) * np.array(small.STD) + np.array(small.MEAN)
    assert np.abs(best - last).max() > 0.1


def test_the_next_episode_starts_anew():
    own = synthesizer()
    state, _ = small.run(own, init(own), 3)
    assert state.position == 0
    new, _ = small.update(own, state, 50)
    assert new.position == 1 and int(optax.tree.get(new.optimizer, "count")) == 1
    assert np.abs(np.asarray(new.pixels - state.pixels)).mean() > 0.3
    assert new.best.loss != state.best.loss


def test_pixels_stay_valid_and_labels_are_classes():
    own = synthesizer(learning_rate=2.0)
    state, _ = small.run(own, init(own), 2)
    images = np.asarray(state.pixels) * np.array(small.STD) + np.array(small.MEAN)
    assert images.min() >= -1e-6 and images.max() <= 1 + 1e-6
    assert set(np.asarray(state.labels).tolist()) <= {0, 1, 2}


def test_jitter_and_flips_change_what_the_teacher_sees():
    """The same pixels at two keys: the same loss if they stay, another if they roll; a roll leaves the batch's mean."""
    for options, differ in (({}, False), ({"jitter": 2}, True), ({"flip": True}, True)):
        own = synthesizer(**options)
        state, _ = small.update(own, init(own), 5)
        values = {round(float(small.update(own, state, seed)[1]["generator/one_hot"]), 5) for seed in range(6)}
        assert (len(values) > 1) == differ, options


def test_a_teacher_without_batch_normalization_is_refused():
    with pytest.raises(ValueError, match="method deep_inversion reads the teacher's batch normalization, and this"):
        DeepInversion(DeepInversionConfig(), dataclasses.replace(small.task(), channels=()))


@pytest.mark.parametrize(
    ("name", "value"), [("updates", 0), ("learning_rate", -1.0), ("batch_norm", -0.1), ("jitter", -1), ("beta1", 1.0)]
)
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"synthesis.{name} {value}: allowed"):
        DeepInversionConfig(**{name: value})
