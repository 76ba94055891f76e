"""Attacks with what they compute: the surrogate and the cache."""

import dataclasses

import numpy as np
import pytest

from abd_jax.training import attacks
from abd_jax.training.evaluate import TestSet, evaluate
from tests.networks import network
from tests.training import small

pytestmark = pytest.mark.optax


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ABD_JAX_DATA", raising=False)
    monkeypatch.setattr(attacks, "LEAST_STEPS", 2)
    monkeypatch.setattr(attacks, "LEAST_EPOCHS", 1)
    monkeypatch.setattr(attacks, "BATCH", 24)
    monkeypatch.setattr(attacks, "SURROGATE", "wrn-10-1")
    return tmp_path / "abd_jax" / "attacks"


def test_arrays_are_computed_once_and_again_if_damaged(cache):
    calls = []

    def compute():
        calls.append(1)
        return {"pattern": np.arange(4.0)}

    path = cache / "pattern.npz"
    for _ in range(2):
        np.testing.assert_array_equal(attacks.cached(path, compute)["pattern"], np.arange(4.0))
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:-20])
    np.testing.assert_array_equal(attacks.cached(path, compute)["pattern"], np.arange(4.0))
    np.savez(path, pattern=np.ones(4), digest=np.asarray("not its digest"))
    np.testing.assert_array_equal(attacks.cached(path, compute)["pattern"], np.arange(4.0))
    assert len(calls) == 3
    assert not list(cache.glob(".*"))


def test_the_surrogate_is_trained_once_per_data_set(cache, monkeypatch):
    trained = []

    def train(dataset):
        trained.append(dataset.name)
        return network(classes=10)

    monkeypatch.setattr(attacks, "train_surrogate", train)
    data = small.dataset()
    identity = attacks.fingerprint(data)
    first, again = attacks.surrogate(data, identity), attacks.surrogate(data, identity)
    assert len(trained) == 1
    np.testing.assert_array_equal(first.params["fc"]["kernel"], again.params["fc"]["kernel"])
    (place,) = cache.glob("surrogate-*")
    (place / "network.json").write_text("{}")
    attacks.surrogate(data, identity)
    assert len(trained) == 2


def test_the_surrogate_learns(monkeypatch):
    """Ten pictures under noise: images that it has not seen are told apart."""
    monkeypatch.setattr(attacks, "LEAST_STEPS", 40)
    data, rng = small.dataset(train=240, test=100), np.random.default_rng(1)
    pictures = rng.integers(40, 216, (10, 8, 8, 1))

    def seen(labels):
        return (pictures[labels] + rng.integers(-40, 40, (len(labels), 8, 8, 1))).astype(np.uint8)

    data = dataclasses.replace(data, train_images=seen(data.train_labels), test_images=seen(data.test_labels))
    trained = attacks.train_surrogate(data)
    assert evaluate(trained, TestSet.make(data, "blend", 0)).acc > 0.8


def test_a_fingerprint_knows_the_training_set(monkeypatch):
    data = small.dataset()
    other = data.train_images.copy()
    other[0, 0, 0, 0] ^= 1
    prints = {
        attacks.fingerprint(data),
        attacks.fingerprint(dataclasses.replace(data, train_images=other)),
        attacks.fingerprint(dataclasses.replace(data, train_labels=data.train_labels[::-1].copy())),
        attacks.fingerprint(dataclasses.replace(data, flip=True)),
    }
    assert len(prints) == 4
    assert attacks.fingerprint(dataclasses.replace(data, test_images=255 - data.test_images)) in prints


def test_a_trigger_of_formulas_needs_no_surrogate(cache):
    attacks.prepare("blend", small.dataset(), 0)
    assert not cache.exists()


def test_a_computed_trigger_is_the_same_in_another_process(cache, monkeypatch):
    data = small.dataset(size=16)
    monkeypatch.setattr(attacks, "train_surrogate", lambda data: network(classes=10, shape=(16, 16, 1)))
    first = attacks.prepare("l0_inv", data, 0).test(data.test_images, data.test_labels)
    assert len(list(cache.glob("l0_inv-*.npz"))) == 1

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(attacks, "surrogate", refuse)
    again = attacks.prepare("l0_inv", data, 0).test(data.test_images, data.test_labels)
    np.testing.assert_array_equal(first.images, again.images)
    with pytest.raises(AssertionError, match="computed again"):
        attacks.prepare("l0_inv", data, 1)  # another target is another trigger


def test_rates_count_the_class_that_the_attacker_wants():
    data, net = small.dataset(), network(classes=10)
    test = TestSet.make(data, "all_to_all", 0)
    found = evaluate(net, test)
    predicted = np.argmax(net(test.triggered / 255.0).logits, axis=-1)
    assert found.asr == pytest.approx(np.mean(predicted == (data.test_labels + 1) % 10))
    assert found.ra == pytest.approx(np.mean(predicted == data.test_labels))
    assert found.acc == pytest.approx(np.mean(np.argmax(net(test.images / 255.0).logits, -1) == data.test_labels))
