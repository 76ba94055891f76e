"""Diagnosis: what it measures, and that finished measurements are kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.attacks.objectives import Adversarial
from abd_jax.training import diagnosis, runs
from abd_jax.training.run_directory import RunDirectory, describe
from tests.networks import tiny
from tests.training import small

pytestmark = pytest.mark.optax
PRESET = dataclasses.replace(small.PRESET, trigger="badnet_grid")


def test_the_robust_loss_is_the_mean_over_attacked_images():
    net = tiny(0, (8, 8, 1), num_classes=10)
    data, robust = small.dataset(), Adversarial(0.1, steps=2)
    parts = []
    for start in (0, 20, 40):
        batch = jnp.asarray(data.train_images[start : start + 20], jnp.float32) / 255
        labels = jnp.asarray(data.train_labels[start : start + 20])
        moved = robust.attacked(net, jax.random.fold_in(jax.random.key(0), start), batch, labels)
        logits = np.asarray(net(moved).logits, np.float64)
        parts.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels])
    result = diagnosis.robust_loss(net, robust, data.train_images, data.train_labels, batch=20)
    assert result == pytest.approx(np.concatenate(parts).mean(), rel=1e-4)


def test_robust_loss_is_measured_on_clean_and_poisoned_alike(tmp_path):
    directory = RunDirectory.open(tmp_path / "run", describe(PRESET), "refuse")
    row = diagnosis.measure_robust_loss(directory, PRESET, small.dataset(), 0.25, Adversarial(0.1, 1), 0)
    assert row["robust_loss"] == pytest.approx(0.75 * row["clean_loss"] + 0.25 * row["poison_loss"], rel=0.02)
    assert 0 <= row["acc"] <= 1 and row["share"] == 0.25
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "fit_network", None)  # a finished measurement is not made again
        assert diagnosis.measure_robust_loss(directory, PRESET, small.dataset(), 0.25, Adversarial(0.1, 1), 0) == row


def test_an_attack_through_the_objective_cannot_be_diagnosed(tmp_path):
    directory = RunDirectory.open(tmp_path / "run", describe(PRESET), "refuse")
    preset = dataclasses.replace(PRESET, trigger="blind")
    with pytest.raises(ValueError, match="'blind': acts through the training loss"):
        diagnosis.measure_robust_loss(directory, preset, small.dataset(), 0.1, Adversarial(0.1, 1), 0)


def test_memorization_trains_on_the_set_and_the_noise(tmp_path, monkeypatch):
    seen = []
    net = tiny(0, (8, 8, 1), num_classes=10)

    def fit(path, preset, dataset, training_set, *rest):
        seen.append(training_set)
        return net

    monkeypatch.setattr(runs, "fit_network", fit)
    data = small.dataset()
    directory = RunDirectory.open(tmp_path / "run", describe(PRESET), "refuse")
    row = diagnosis.measure_memorization(directory, PRESET, data, 30, 0)
    images, labels = seen[0]
    noise, given = diagnosis.noise_images(30, (8, 8, 1), 10, 0)
    np.testing.assert_array_equal(images, np.concatenate([data.train_images, noise]))
    np.testing.assert_array_equal(labels, np.concatenate([data.train_labels, given]))
    predicted = np.argmax(net(jnp.asarray(noise, jnp.float32) / 255).logits, axis=-1)
    assert row["memorized"] == pytest.approx(np.mean(predicted == given))
    again, _ = diagnosis.noise_images(30, (8, 8, 1), 10, 0)
    np.testing.assert_array_equal(noise, again)


def rows(*triples):
    return [{"count": count, "memorized": memorized, "acc": acc} for count, memorized, acc in triples]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (rows((0, 1, 0.9)), 0),
        (rows((0, 1, 0.9), (64, 1, 0.9), (256, 0.96, 0.881), (1024, 0.5, 0.9)), 256),
        (rows((0, 1, 0.9), (64, 1, 0.9), (256, 1, 0.87), (1024, 1, 0.9)), 64),
        (rows((256, 1, 0.9), (0, 1, 0.9)), 256),
    ],
)
def test_capacity_is_where_memorization_or_accuracy_first_fails(measured, expected):
    assert diagnosis.capacity(measured) == expected


def test_capacity_needs_the_measurement_without_noise():
    with pytest.raises(ValueError, match="without noise is missing"):
        diagnosis.capacity(rows((64, 1, 0.9)))
