"""Every rival's numerics against an independent computation, and what each leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from abd_jax import losses
from abd_jax.defenses import abl, base, clp, dhbe, fine_pruning, i_bau, nad, rivals
from tests import networks, reference
from tests.synthesis.small import forward

pytestmark = [pytest.mark.optax, pytest.mark.usefixtures("key_reuse")]
SHAPE = (4, 4, 1)


def teacher():
    return networks.tiny(0, SHAPE)


def student():
    return networks.tiny(1, SHAPE)


def sample(index):
    return networks.images(100 + index, 6, SHAPE)


def images():
    return sample(0)


def vector(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


# --- the registry


def test_every_rival_is_a_defense_by_name():
    from abd_jax.training import config

    assert set(rivals.NAMES) == set(config.DEFENSES) - {"none", "sv", "sr", "abd", "clean_kd"}
    for name in rivals.NAMES:
        settings = rivals.lookup(rivals.Rivals(), name)
        assert isinstance(settings, base.Rival) and hash(settings) == hash(dataclasses.replace(settings))
    assert rivals.lookup(rivals.Rivals(), "abd") is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clp.CLP(deviations=0), "rivals.clp.deviations 0: allowed are numbers above 0"),
        (lambda: fine_pruning.FinePruning(loss=2.0), r"rivals.fine_pruning.loss 2.0: allowed is \[0, 1\]"),
        (lambda: nad.NAD(attention=()), r"rivals.nad.attention \(\)"),
        (lambda: i_bau.IBAU(portion=-1.0), "rivals.i_bau.portion -1.0"),
        (lambda: dhbe.DHBE(weight=0.0), "rivals.dhbe.weight 0.0"),
        (lambda: dhbe.DHBE(size=5).init(jax.random.key(0), SHAPE), "rivals.dhbe.size 5: allowed is 1 … 4"),
        (lambda: abl.ABL(share=1.5), "rivals.abl.share 1.5"),
    ],
)
def test_bad_settings_are_one_line_that_names_them(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- CLP


def test_lipschitz_bounds_are_largest_singular_values():
    """By power iteration on MᵀM, channel by channel."""
    rng = np.random.default_rng(0)
    kernel, scale, variance = rng.normal(size=(3, 3, 5, 4)), rng.normal(size=4), rng.uniform(0.5, 2, 4)
    expected = []
    for channel in range(4):
        rows = np.stack([kernel[:, :, index, channel].ravel() for index in range(5)])
        matrix = rows * abs(scale[channel]) / np.sqrt(variance[channel] + 1e-5)
        v = rng.normal(size=9)
        for _ in range(2000):
            v = matrix.T @ (matrix @ v)
            v /= np.linalg.norm(v)
        expected.append(np.linalg.norm(matrix @ v))
    np.testing.assert_allclose(clp.lipschitz_bounds(kernel, scale, variance), expected, rtol=1e-6)


def test_a_sensitive_channel_is_switched_off_and_nothing_else():
    network = networks.tiny(0, SHAPE, features=16)
    loud = np.ones(16, np.float32)
    loud[3] = 50
    params = {**network.params, "bn": {**network.params["bn"], "scale": network.params["bn"]["scale"] * loud}}
    network = network.with_params(params)
    pruned, count = clp.prune(network, 3.0)
    assert count == 1
    before, after = reference.flat(network.variables), reference.flat(pruned.variables)
    for name, value in before.items():
        expected = value * (np.arange(16) != 3) if name in ("params/bn/scale", "params/bn/bias") else value
        np.testing.assert_array_equal(after[name], expected)
    assert clp.CLP().harden(network).params["bn"]["scale"][3] == 0
    assert clp.CLP(network="student").harden(network) is network
    repaired, notes = clp.CLP(network="student").repair(jax.random.key(0), network, network, sample)
    assert notes == {"pruned": 1} and repaired.params["bn"]["scale"][3] == 0
    same, _ = clp.CLP().repair(jax.random.key(0), network, network, sample)
    assert same is network


@pytest.mark.parametrize("name", ["wrn-16-2", "resnet-18", "resnet-50", "vgg-11", "mobilenet-v2"])
def test_every_batch_normalization_names_a_kernel_of_its_width(name):
    network = networks.shapes(name, shape=(32, 32, 3))
    variables = {path: leaf.shape for path, leaf in _leaves(network.variables)}
    assert len(network.module.normalized) == len(network.module.batch_norms)
    for norm, kernel in zip(network.module.batch_norms, network.module.normalized, strict=True):
        assert variables[f"params/{kernel}/kernel"][-1] == variables[f"params/{norm}/scale"][0], (norm, kernel)


def _leaves(tree):
    return [
        ("/".join(part.key for part in path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(dict(tree))[0]
    ]


def test_without_batch_normalization_clp_refuses():
    with pytest.raises(ValueError, match="defense clp: needs a network with batch normalization"):
        clp.prune(networks.shapes("vit-nano-4", shape=(8, 8, 1)), 3.0)


# --- fine-pruning


@pytest.mark.parametrize("loss", [0.0, 0.1, 1.0])
def test_sleepers_are_found_as_by_trying_every_count(loss):
    rng = np.random.default_rng(3)
    features = rng.uniform(size=(50, 8)) * rng.uniform(0, 1, 8) ** 3
    kernel, bias = rng.normal(size=(8, 3)), rng.normal(size=3) / 10
    labels = (features @ kernel + bias).argmax(-1)
    labels[:5] = 0
    order = sorted(range(8), key=lambda index: features[:, index].mean())

    def agreement(count):
        kept = features.copy()
        kept[:, order[:count]] = 0
        return ((kept @ kernel + bias).argmax(-1) == labels).mean()

    allowed = 0
    while allowed < 7 and agreement(allowed + 1) >= agreement(0) - loss:
        allowed += 1
    assert set(np.flatnonzero(fine_pruning.sleepers(features, labels, kernel, bias, loss))) == set(order[:allowed])
    assert allowed == 7 if loss == 1.0 else allowed < 7


def test_fine_pruning_keeps_what_it_switched_off_at_zero():
    settings = fine_pruning.FinePruning(loss=1.0, batches=2, steps=2, learning_rate=0.1)
    repaired, notes = settings.repair(jax.random.key(0), student(), teacher(), sample)
    kernel = np.asarray(repaired.params["fc"]["kernel"])
    assert notes["pruned"] == 3 and notes["features"] == 4
    assert (np.abs(kernel).sum(axis=1) == 0).sum() == 3
    assert np.abs(kernel - student().params["fc"]["kernel"])[np.abs(kernel).sum(axis=1) > 0].max() > 0


# --- fine-tuning and NAD


def test_the_tuning_loss_is_cross_entropy_and_attention():
    labels = np.asarray(base.decisions(teacher(), images()))
    np.testing.assert_array_equal(labels, forward(teacher(), images()).logits.argmax(-1))
    own, other = forward(student(), images(), "batch"), student().with_params(teacher().params)
    entropy = -reference.log_softmax(own.logits)[np.arange(6), labels].mean()
    plain, _ = base.tuning_loss(base.Tuning(1, 0.1), student(), other, images(), jnp.asarray(labels))
    np.testing.assert_allclose(plain, entropy, rtol=1e-5)
    maps = [
        reference.attention_map(np.asarray(network(images(), norm).stages[0]))
        for network, norm in ((student(), "batch"), (other, "running"))
    ]
    expected = entropy + 7.0 * np.square(maps[0] - maps[1]).mean()
    guided, _ = base.tuning_loss(base.Tuning(1, 0.1, (7.0,)), student(), other, images(), jnp.asarray(labels))
    np.testing.assert_allclose(guided, expected, rtol=1e-5)
    assert abs(guided - plain) > 1e-3


def test_fine_tuning_is_sgd_with_momentum_and_decay():
    """Two steps by hand: v ← 0.9 v + g + 1e-4 θ, θ ← θ − 0.1 v; the statistics move by a tenth."""
    tuned, last = base.fine_tune(base.Tuning(2, 0.1), student(), teacher(), sample)
    network, velocity = student(), 0.0
    for step in range(2):
        labels = base.decisions(teacher(), sample(step))

        def loss(params, network=network, labels=labels, step=step):
            return losses.cross_entropy(network.with_params(params)(sample(step), "batch").logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(network.params)
        velocity = 0.9 * velocity + vector(gradient) + 1e-4 * vector(network.params)
        theta = vector(network.params) - 0.1 * velocity
        unravel = ravel_pytree(network.params)[1]
        network = network.absorb(network(sample(step), "batch")).with_params(unravel(jnp.asarray(theta, jnp.float32)))
    np.testing.assert_allclose(vector(tuned.variables), vector(network.variables), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(last, value, rtol=1e-4)


def test_nad_is_guided_by_the_tuned_copy():
    settings = nad.NAD(tuning_steps=2, steps=1, learning_rate=0.01, attention=(50.0,))
    guide, _ = base.fine_tune(base.Tuning(2, 0.1), student(), teacher(), sample)
    expected, _ = base.fine_tune(
        base.Tuning(1, 0.01, (50.0,)), student(), teacher(), lambda index: sample(2 + index), guide
    )
    repaired, notes = settings.repair(jax.random.key(0), student(), teacher(), sample)
    np.testing.assert_array_equal(vector(repaired.variables), vector(expected.variables))
    assert set(notes) == {"guide_loss", "loss"}


# --- I-BAU


def test_i_bau_ascends_from_zero_away_from_its_own_decisions():
    """Central differences of −CE(f(x + δ·std), argmax f(x)) + 0.001‖δ‖² at δ, in float64 NumPy."""
    network, delta = student(), np.random.default_rng(0).normal(0, 0.1, SHAPE)
    own = forward(network, images()).logits.argmax(-1)

    def inner(delta):
        logits = forward(network, np.asarray(images(), np.float64) + delta * np.array(network.std)).logits
        return 1e-3 * np.square(delta).sum() + reference.log_softmax(logits)[np.arange(6), own].mean()

    slope = np.zeros(SHAPE)
    for index in np.ndindex(SHAPE):
        step = np.zeros(SHAPE)
        step[index] = 1e-5
        slope[index] = (inner(delta + step) - inner(delta - step)) / 2e-5
    moved = i_bau.ascend(i_bau.IBAU(ascent_rate=10.0), jnp.asarray(delta, jnp.float32), network, images())
    np.testing.assert_allclose(moved, delta - 10 * slope, rtol=2e-3, atol=2e-4)


def test_the_hypergradient_of_i_bau_is_the_series_of_dense_jacobians():
    config, key = i_bau.IBAU(iterations=3, portion=0.4), jax.random.key(4)
    network, labels, first = student(), jnp.asarray([0, 1, 2, 0, 1, 2]), sample(1)
    delta = jnp.asarray(np.random.default_rng(1).normal(0, 0.3, SHAPE), jnp.float32)
    theta, unravel = ravel_pytree(network.params)
    chosen = (np.asarray(jax.random.permutation(key, 6)) < 2)[:, None, None, None]

    def outer(flat, theta):
        moved = images() + jnp.where(chosen, flat.reshape(SHAPE) * network.std[0], 0.0)
        log = jax.nn.log_softmax(network.with_params(unravel(theta))(moved).logits)
        return -log[np.arange(6), labels].mean()

    def inner(flat, theta):
        moved = first + flat.reshape(SHAPE) * network.std[0]
        log = jax.nn.log_softmax(network.with_params(unravel(theta))(moved).logits)
        return log[np.arange(6), labels].mean() + 1e-3 * jnp.sum(flat**2)

    def point(flat, theta):
        return flat - 0.1 * jax.grad(inner)(flat, theta)

    by_delta, by_theta = jax.grad(outer, argnums=(0, 1))(delta.ravel(), theta)
    a, b = (np.asarray(j, np.float64) for j in jax.jacobian(point, argnums=(0, 1))(delta.ravel(), theta))
    v = sum(np.linalg.matrix_power(a.T, k) @ np.asarray(by_delta, np.float64) for k in range(3))
    value, gradient = i_bau.hypergradient(config, key, network, delta, images(), labels, first, labels)
    np.testing.assert_allclose(vector(gradient), np.asarray(by_theta) + b.T @ v, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(value, outer(delta.ravel(), theta), rtol=1e-5)


def test_i_bau_leaves_the_statistics_alone():
    settings = i_bau.IBAU(rounds=1, batches=2, iterations=1)
    repaired, notes = settings.repair(jax.random.key(0), student(), teacher(), sample)
    np.testing.assert_array_equal(vector(repaired.variables["batch_stats"]), vector(student().variables["batch_stats"]))
    assert np.abs(vector(repaired.params) - vector(student().params)).max() > 5e-4
    assert notes["delta_norm"] > 0


# --- DHBE


@pytest.mark.parametrize("corner", [(0, 0), (2, 1)])
def test_a_patch_is_added_where_it_is_put(corner):
    patch = np.random.default_rng(0).normal(size=(2, 2, 1)).astype(np.float32)
    image = np.asarray(images()[0])
    expected = image.copy()
    expected[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] += patch
    np.testing.assert_array_equal(dhbe.add_patch(jnp.asarray(image), jnp.asarray(patch), jnp.asarray(corner)), expected)


def test_dhbe_draws_the_student_and_drives_the_patches():
    settings, key = dhbe.DHBE(size=2, weight=0.1, latent=3, features=4), jax.random.key(1)
    state = settings.init(jax.random.key(0), SHAPE)
    patched = settings.patched(key, state.params, images())
    changed = np.abs(np.asarray(patched - images())).reshape(6, -1) > 0
    assert (changed.sum(axis=1) == 4).all() and len({tuple(row) for row in changed}) > 1
    new, extra, metrics = settings.regularize(key, state, student(), images(), "running")
    clean = forward(student(), images()).logits
    expected = np.abs(forward(student(), np.asarray(patched)).logits - clean).mean()
    np.testing.assert_allclose(metrics["dhbe/distance"], expected, rtol=1e-4)

    def distance(params):
        moved = student().with_params(params)(patched).logits
        return jnp.abs(moved - clean.astype(np.float32)).mean()

    np.testing.assert_allclose(vector(extra), 0.1 * vector(jax.grad(distance)(student().params)), rtol=1e-3, atol=1e-6)
    for _ in range(30):
        new, _, later = settings.regularize(key, new, student(), images(), "running")
    assert later["dhbe/distance"] > metrics["dhbe/distance"]


# --- ABL


def test_the_lowest_losses_are_isolated():
    apart = jnp.asarray([0.3, 0.1, 0.5, 0.2, 0.4])
    np.testing.assert_array_equal(abl.isolation(apart, 0.4, 0.0), [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(abl.isolation(apart, 0.2, 0.5), [1, -0.5, 1, 1, 1])
    settings, weights = abl.ABL(share=0.4, start=0.5), jnp.asarray([1.0, 1.0, 0.1, 1.0, 1.0])
    np.testing.assert_array_equal(settings.weigh(apart, weights, jnp.asarray(0.4)), weights)
    np.testing.assert_array_equal(settings.weigh(apart, weights, jnp.asarray(0.5)), jnp.asarray([1.0, 0, 0.1, 0, 1.0]))
    gradient = jax.grad(lambda apart: (apart * settings.weigh(apart, jnp.ones(5), jnp.asarray(1.0))).sum())(apart)
    np.testing.assert_array_equal(gradient, [1, 0, 1, 0, 1])
