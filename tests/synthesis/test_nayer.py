"""NAYER: noisy layers and loss against float64 NumPy, label embeddings, when what is drawn anew."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from abd_jax.synthesis import label_embeddings
from abd_jax.synthesis.nayer import NAYER, NAYERConfig
from tests import reference
from tests.synthesis import small

pytestmark = pytest.mark.optax

COUNT = 7  # two blocks of three classes and one image more
SMALL = {
    "noise": 5,
    "features": 4,
    "updates": 2,
    "batch": COUNT,
    "warm_up": 0,
    "rebuild": 2,
    "bank": dataclasses.replace(small.BANK, capacity=3 * COUNT),
}


def synthesizer(**options):
    return NAYER(NAYERConfig(**(SMALL | options)), small.task())


def init(own, seed=3):
    return own.init(jax.random.key(seed))


def generated(variables, first, count=COUNT):
    table = np.roll(label_embeddings.table("text", ("0", "1", "2"), 3).astype(np.float64), -first, axis=0)
    noisy = np.asarray(variables["noisy"], np.float64)
    latent = np.concatenate([table @ layer for layer in noisy])[:count]
    return reference.generator(variables["decoder"], latent, small.SHAPE, small.MEAN, small.STD, "sigmoid")


def test_the_loss_against_numpy():
    """In the second episode, with the average moments of the first; classes take turns where the first left off."""
    own = synthesizer(batch_norm=0.7, one_hot=1.3, adversarial=0.9)
    state, _ = small.run(own, init(own), 3)
    new, metrics = small.update(own, state, 50)
    assert new.episode == 2 and new.bank.written == 2 * COUNT
    images = generated(state.variables, first=1)
    seen = small.forward(small.networks_at_odds()[0], images)
    average = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.moments)[0]
    mixed = tuple(0.9 * old + 0.1 * now for old, now in zip(average, (seen.mean, seen.variance), strict=True))
    expected = small.inversion(own.config, images, np.array([1, 2, 0, 1, 2, 0, 1]), moments=mixed)
    np.testing.assert_allclose(metrics["generator/loss"], expected, rtol=2e-3)


def test_batches_smaller_than_the_number_of_classes_make_all_of_them_in_turn():
    own = synthesizer(batch=2, batch_norm=0.0, adversarial=0.0)
    state = init(own)
    for episode, labels in enumerate(([0, 1], [2, 0], [1, 2])):
        state, _ = small.update(own, state, 2 * episode)
        images = generated(state.variables, labels[0], count=2)
        state, metrics = small.update(own, state, 2 * episode + 1)
        expected = small.inversion(own.config, images, np.array(labels))
        np.testing.assert_allclose(metrics["generator/loss"], expected, rtol=2e-3)


def test_noisy_layers_are_drawn_for_every_batch_and_the_decoder_sometimes():
    own = synthesizer(updates=1)
    state, noisy, decoders = init(own), [], []
    for step in range(5):
        state, _ = small.update(own, state, step)
        assert int(optax.tree.get(state.optimizer, "count")) == 1
        noisy.append(np.asarray(state.variables["noisy"]))
        decoders.append(np.asarray(state.variables["decoder"]["Dense_0"]["kernel"]))
    changes = [np.abs(b - a).mean() for a, b in itertools.pairwise(noisy)]
    assert min(changes) > 0.5
    steps = [np.abs(b - a).max() for a, b in itertools.pairwise(decoders)]
    assert [step > 0.05 for step in steps] == [False, True, False, True], steps


def test_a_warm_up_silences_the_adversary():
    mild, harsh = synthesizer(warm_up=1, updates=1), synthesizer(warm_up=1, updates=1, adversarial=9.0)
    states = [init(own) for own in (mild, harsh)]
    for same in (True, False):
        results = [small.update(own, state, 5) for own, state in zip((mild, harsh), states, strict=True)]
        assert (results[0][1]["generator/loss"] == results[1][1]["generator/loss"]) == same
        states = [state for state, _ in results]


# --- label embeddings


def test_every_known_class_has_an_embedding_of_unit_length():
    known = label_embeddings.known()
    assert {"0", "9", "cat", "truck", "ankle boot", "willow_tree"} <= set(known)
    for name, row in known.items():
        assert row.shape == (label_embeddings.DIMENSION,), name
        np.testing.assert_allclose(np.linalg.norm(row), 1, atol=2e-3, err_msg=name)


def test_embeddings_know_what_names_mean():
    known = label_embeddings.known()
    assert known["cat"] @ known["dog"] > known["cat"] @ known["truck"] + 0.1
    assert known["truck"] @ known["automobile"] > known["truck"] @ known["frog"] + 0.1


def test_random_directions_are_orthogonal():
    rows = label_embeddings.orthogonal(100)
    np.testing.assert_allclose(rows @ rows.T, np.eye(100), atol=1e-5)
    np.testing.assert_array_equal(rows, label_embeddings.orthogonal(100))
    assert label_embeddings.orthogonal(400).shape == (400, label_embeddings.DIMENSION)


@pytest.mark.parametrize("kind", ["text", "orthogonal", "auto"])
def test_a_table_is_standardized_over_the_classes(kind):
    table = label_embeddings.table(kind, ("cat", "Dog", "ship"), 3)
    np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-5)
    deviation = table.std(axis=0)
    assert deviation.max() <= 1 + 1e-5 and np.median(deviation) > 0.98


def test_auto_takes_text_where_all_classes_have_one():
    text = label_embeddings.table("text", ("cat", "dog"), 2)
    np.testing.assert_array_equal(label_embeddings.table("auto", ("cat", "dog"), 2), text)
    fallback = label_embeddings.table("orthogonal", (), 2)
    for classes in ((), ("cat", "flibbertigibbet"), ("cat", "dog", "ship")):
        np.testing.assert_array_equal(label_embeddings.table("auto", classes, 2), fallback)


@pytest.mark.parametrize(("classes", "named"), [(("cat", "snark", "boojum"), "snark, boojum"), ((), "no class names")])
def test_text_without_embeddings_is_refused(classes, named):
    task = dataclasses.replace(small.task(), classes=classes)
    with pytest.raises(ValueError, match=f"synthesis.embedding 'text': no embedding for .*{named}"):
        NAYER(NAYERConfig(embedding="text"), task)


@pytest.mark.parametrize(("name", "value"), [("noise", 0), ("rebuild", 0), ("momentum", -0.1)])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"synthesis.{name} .*: allowed"):
        NAYERConfig(**{name: value})
