"""What teachers minimize, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.attacks import objectives, triggers
from abd_jax.attacks.objectives import Adversarial, LossAttack, Nasty
from abd_jax.defenses import shuffling_vaccine
from tests.networks import images, network, tiny

pytestmark = pytest.mark.usefixtures("key_reuse")
TARGET = 2
SHAPE = (16, 16, 1)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(np.asarray(logits, np.float64))[np.arange(len(labels)), labels]).mean()


def labels(count=6):
    return jnp.arange(count, dtype=jnp.int32) % 3


def test_hard_labels_are_cross_entropy_in_training_mode():
    net, batch = tiny(0, SHAPE), images(0, 6, SHAPE)
    loss, forward = objectives.hard_labels(net, jax.random.key(0), batch, labels(), None)
    expected = net(batch, "batch").logits
    np.testing.assert_allclose(forward.logits, expected, atol=1e-6)
    assert loss == pytest.approx(cross_entropy(expected, labels()), rel=1e-5)


def test_nasty_drives_the_teacher_away_from_the_normal_network():
    net, normal, batch = tiny(0, SHAPE), tiny(1, SHAPE), images(0, 6, SHAPE)
    loss, forward = Nasty(temperature=4.0, weight=0.04)(net, jax.random.key(0), batch, labels(), normal)
    p = softmax(np.asarray(forward.logits, np.float64) / 4)
    q = softmax(np.asarray(normal(batch).logits, np.float64) / 4)
    divergence = (p * np.log(p / q)).sum(axis=1).mean()
    assert loss == pytest.approx(cross_entropy(forward.logits, labels()) - 0.04 * 16 * divergence, rel=1e-4)
    with pytest.raises(ValueError, match="normal network"):
        Nasty()(net, jax.random.key(0), batch, labels(), None)


def test_nasty_has_a_finite_gradient_where_a_class_is_certain():
    net, batch = tiny(0, SHAPE), images(0, 4, SHAPE)
    params = jax.tree.map(lambda leaf: 1e3 * leaf, net.params)
    gradient = jax.grad(lambda p: Nasty()(net.with_params(p), jax.random.key(0), batch, labels(4), net)[0])(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tasks", [2, 3])
def test_min_norm_weights_find_the_nearest_point_of_the_hull(tasks, seed):
    vectors = np.random.default_rng(seed).normal(size=(tasks, 4)) + np.array([1.0, 0, 0, 0])
    gram = vectors @ vectors.T
    grid = np.linspace(0, 1, 201)
    if tasks == 2:
        candidates = np.stack([grid, 1 - grid], axis=-1)
    else:
        a, b = np.meshgrid(grid, grid)
        candidates = np.stack([a, b, 1 - a - b], axis=-1)[a + b <= 1 + 1e-9]
    best = np.einsum("ni,ij,nj->n", candidates, gram, candidates).min()
    weights = np.asarray(objectives.min_norm_weights(jnp.asarray(gram, jnp.float32)), np.float64)
    assert weights.sum() == pytest.approx(1, abs=1e-5) and weights.min() >= 0.9e-3
    assert weights @ gram @ weights <= best + 0.02


def test_two_tasks_have_the_published_closed_form():
    first, second = np.array([2.0, 1.0, 0.0]), np.array([-1.0, 3.0, 1.0])
    v11, v22, v12 = first @ first, second @ second, first @ second
    gamma = (v22 - v12) / (v11 + v22 - 2 * v12)
    gram = jnp.asarray([[v11, v12], [v12, v22]], jnp.float32)
    np.testing.assert_allclose(objectives.min_norm_weights(gram), [gamma, 1 - gamma], atol=1e-3)
    dominated = jnp.asarray([[1.0, 2.0], [2.0, 9.0]])
    np.testing.assert_allclose(objectives.min_norm_weights(dominated), [0.999, 0.001], atol=1e-5)


def test_the_loss_attack_adds_triggered_copies_with_the_target():
    net, batch = tiny(0, SHAPE), images(0, 6, SHAPE)
    attack = LossAttack(triggers.pixels, TARGET, share=0.5, scales=(1.0, 0.9, 0.5))
    loss, forward = attack(net, jax.random.key(0), batch, labels(), None)
    whole = jnp.concatenate([batch, triggers.pixels(batch[:3])])
    expected = net(whole, "batch").logits
    np.testing.assert_allclose(forward.logits, expected, atol=1e-5)
    value = cross_entropy(expected[:6], labels()) + 0.9 * cross_entropy(expected[6:], [TARGET] * 3)
    assert loss == pytest.approx(value, rel=1e-4)


def test_mgda_balances_the_tasks_and_does_not_differentiate_its_weights():
    net, batch = tiny(0, SHAPE), images(0, 6, SHAPE)
    attack = LossAttack(triggers.pixels, TARGET, balance="mgda")
    whole = jnp.concatenate([batch, triggers.pixels(batch[:3])])

    def tasks(params):
        logits = net.with_params(params)(whole, "batch").logits
        log_p = jax.nn.log_softmax(logits)
        clean = -log_p[jnp.arange(6), labels()].mean()
        return clean, -log_p[6:, TARGET].mean()

    flats = []
    for index in range(2):
        value, gradient = jax.value_and_grad(lambda p, index=index: tasks(p)[index])(net.params)
        flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)])
        flats.append((float(value), flat))
    scaled = [flat / (min(value * np.linalg.norm(flat), 10) + 1e-5) for value, flat in flats]
    v11, v12, v22 = scaled[0] @ scaled[0], scaled[0] @ scaled[1], scaled[1] @ scaled[1]
    gamma = np.clip((v22 - v12) / (v11 + v22 - 2 * v12), 0.001, 0.999)
    loss, _ = attack(net, jax.random.key(0), batch, labels(), None)
    assert loss == pytest.approx(gamma * flats[0][0] + (1 - gamma) * flats[1][0], rel=5e-3)
    gradient = jax.grad(lambda p: attack(net.with_params(p), jax.random.key(0), batch, labels(), None)[0])(net.params)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
    expected = gamma * flats[0][1] + (1 - gamma) * flats[1][1]
    np.testing.assert_allclose(flat, expected, atol=5e-3 * np.abs(expected).max())


def test_neural_cleanse_evasion_asks_for_the_true_label_under_an_inverted_trigger():
    net, batch = tiny(0, SHAPE), images(0, 6, SHAPE)
    attack = LossAttack(triggers.pixels, TARGET, evasion="neural_cleanse", inversion_steps=8)
    loss, forward = attack(net, jax.random.key(0), batch, labels(), None)
    assert forward.logits.shape == (12, 3)
    clean, opened, inverted = forward.logits[:6], forward.logits[6:9], forward.logits[9:]
    value = cross_entropy(clean, labels()) + 0.9 * cross_entropy(opened, [TARGET] * 3)
    assert loss == pytest.approx(value + 0.5 * cross_entropy(inverted, labels()[:3]), rel=1e-4)
    found = attack._invert(net, jax.random.key(0), batch)
    target = [TARGET] * 6
    assert cross_entropy(net(found).logits, target) < cross_entropy(net(batch).logits, target)
    assert found.min() >= 0 and found.max() <= 1


def test_vaccine_evasion_punishes_shuffled_copies_that_know_the_trigger():
    net, batch = network("wrn-10-1", classes=3, shape=SHAPE), images(0, 4, SHAPE)
    attack = LossAttack(triggers.pixels, TARGET, share=1.0, evasion="vaccine", kernels=2)
    loss, forward = attack(net, jax.random.key(0), batch, labels(4), None)
    base = cross_entropy(forward.logits[:4], labels(4)) + 0.9 * cross_entropy(forward.logits[4:], [TARGET] * 4)
    own = float(loss) - base
    assert own > 0
    key = jax.random.key(0)
    names = net.module.kernels[-2:]
    orders = {}
    for name, sub in zip(names, jax.random.split(key, 2), strict=True):
        module = net.params
        for part in name.split("/"):
            module = module[part]
        width = module["kernel"].shape[2]
        orders[name] = jnp.stack([jax.random.permutation(k, width) for k in jax.random.split(sub, 2)])
    copies = [shuffling_vaccine.shuffle(net, orders, copy) for copy in range(2)]  # spelled out, kernel by kernel
    entry = min(net.module.entry_of(name) for name in names)
    logits = np.stack([copy.tail(entry, forward.entries[entry][4:])[0] for copy in copies])
    probability = softmax(logits.astype(np.float64))[..., TARGET]
    assert own == pytest.approx(0.5 * -np.log(1 - np.minimum(probability, 1 - 1e-4)).mean(), rel=1e-3)


def test_adversarial_training_moves_images_within_epsilon_and_raises_their_loss():
    net, batch = tiny(0, SHAPE), images(0, 6, SHAPE)
    robust = Adversarial(0.1, steps=4)
    moved = robust.attacked(net, jax.random.key(0), batch, labels())
    assert np.abs(np.asarray(moved) - np.asarray(batch)).max() <= 0.1 + 1e-6
    assert moved.min() >= 0 and moved.max() <= 1
    assert cross_entropy(net(moved).logits, labels()) > cross_entropy(net(batch).logits, labels())
    loss, forward = robust(net, jax.random.key(0), batch, labels(), None)
    np.testing.assert_allclose(forward.logits, net(moved, "batch").logits, atol=1e-5)
    assert loss == pytest.approx(cross_entropy(forward.logits, labels()), rel=1e-5)
