"""`Network` as a value: creation, normalization, absorbed statistics, replaced parameters, compute dtype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import models
from abd_jax.models import BatchNormTap
from tests import networks, reference

forward = jax.jit(lambda network, images, norm: network(images, norm), static_argnums=2)
OPTIONS = dict(num_classes=4, input_shape=(8, 8, 1), mean=(0.45,), std=(0.3,))
create = jax.jit(lambda key: models.create(key, "wrn-10-1", **OPTIONS))


@pytest.fixture(scope="module")
def fresh():
    return create(jax.random.key(0))


def test_a_fresh_network(fresh):
    leaves = reference.flat(fresh.variables)
    for path, leaf in leaves.items():
        if path.endswith(("scale", "var")):
            assert (leaf == 1).all(), path
        elif path.endswith(("bias", "mean")):
            assert (leaf == 0).all(), path
        elif path != "params/fc/kernel":  # He et al., 2015: variance 2 / fan-in
            fan_in = np.prod(leaf.shape[:-1])
            assert leaf.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.2), path
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(fresh.variables))
    assert fresh.input_shape == (8, 8, 1)


def test_a_key_is_a_draw(fresh):
    again, other = create(jax.random.key(0)), create(jax.random.key(1))
    chex.assert_trees_all_equal(fresh.params, again.params)
    assert (np.asarray(fresh.params["conv1"]["kernel"]) != np.asarray(other.params["conv1"]["kernel"])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (7, 8, 1)}, r"input shape \(7, 8, 1\): allowed are 8–64 pixels a side and 1 or 3 channels"),
        ({"input_shape": (8, 65, 1)}, r"input shape \(8, 65, 1\)"),
        ({"input_shape": (8, 8, 2)}, r"input shape \(8, 8, 2\)"),
        ({"input_shape": (8, 8, 3)}, r"mean and std need 3 value\(s\) each, got 1 and 1"),
        ({"std": (0.3, 0.3)}, r"mean and std need 1 value\(s\) each, got 1 and 2"),
    ],
)
def test_bad_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        models.create(jax.random.key(0), "wrn-10-1", **(OPTIONS | change))


def test_a_network_is_a_pytree_of_its_variables():
    network = networks.tiny()
    assert len(jax.tree.leaves(network)) == len(jax.tree.leaves(network.variables))
    same = jax.tree.map(lambda leaf: leaf, network)
    assert (same.module, same.mean, same.std, same.input_shape) == (
        network.module,
        network.mean,
        network.std,
        network.input_shape,
    )


def test_two_networks_of_one_architecture_share_a_compilation():
    traced = jax.jit(chex.assert_max_traces(lambda network, images: network(images).logits, n=1))
    logits = [traced(networks.tiny(seed), networks.images(0, 4, (4, 4, 1))) for seed in (0, 1)]
    assert (np.asarray(logits[0]) != np.asarray(logits[1])).all()


def test_images_are_normalized_inside():
    shape = (4, 4, 3)
    raw, images = networks.tiny(shape=shape), networks.images(0, 3, shape)
    normalized = (np.asarray(images, np.float64) - np.array(raw.mean)) / np.array(raw.std)
    plain = raw.replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    expected = forward(plain, jnp.asarray(normalized, jnp.float32), "running")
    np.testing.assert_allclose(forward(raw, images, "running").logits, expected.logits, rtol=1e-4, atol=1e-5)


# --- absorb


def test_absorb_moves_a_tenth_towards_the_batch():
    network, images = networks.network(seed=1), networks.images(1)
    result = forward(network, images, "batch")
    absorbed = network.absorb(result)
    seen = reference.wide_resnet(network.variables, 10, 1, images, network.mean, network.std, "batch").taps
    old, new = reference.flat(network.variables), reference.flat(absorbed.variables)
    assert set(old) == set(new)
    for path, tap in zip(network.module.batch_norms, seen, strict=True):
        for name, value in (("mean", tap.mean), ("var", tap.variance)):
            leaf = f"batch_stats/{path}/{name}"
            np.testing.assert_allclose(new[leaf], 0.9 * old[leaf] + 0.1 * value, rtol=1e-4, atol=1e-5, err_msg=leaf)
    chex.assert_trees_all_equal(absorbed.params, network.params)


def test_absorb_keeps_the_tree_and_leaves_the_original_alone():
    network = networks.tiny()
    before = jax.tree.map(np.array, network.variables)
    absorbed = network.absorb(forward(network, networks.images(0, 3, (4, 4, 1)), "batch"))
    chex.assert_trees_all_equal(network.variables, before)
    chex.assert_trees_all_equal_shapes_and_dtypes(absorbed, network)


def test_absorbed_statistics_carry_no_gradient():
    network = networks.tiny()

    def total(mean):
        tap = BatchNormTap(mean, jnp.ones(4), jnp.zeros((3, 4)))
        absorbed = network.absorb(result.replace(batch_norm=(tap,)))
        return sum(leaf.sum() for leaf in jax.tree.leaves(absorbed.variables["batch_stats"]))

    result = forward(network, networks.images(0, 3, (4, 4, 1)), "batch")
    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(4)), np.zeros(4))


def test_absorbing_many_batches_ends_at_their_statistics():
    network, images = networks.tiny(), networks.images(0, 8, (4, 4, 1))
    result = forward(network, images, "batch")
    for _ in range(150):
        network = network.absorb(result)
    np.testing.assert_allclose(forward(network, images, "running").logits, result.logits, rtol=1e-3, atol=1e-4)


# --- with_params


def test_with_params_replaces_the_parameters_only():
    network, other = networks.tiny(0), networks.tiny(1)
    mixed = network.with_params(other.params)
    chex.assert_trees_all_equal(mixed.params, other.params)
    chex.assert_trees_all_equal(mixed.variables["batch_stats"], network.variables["batch_stats"])


# --- compute dtype


def test_half_precision_computes_in_it_and_keeps_the_rest_in_float32():
    single = networks.network(seed=2)
    half = networks.network(seed=2, dtype="bfloat16")
    chex.assert_trees_all_equal(single.variables, half.variables)
    images = networks.images()
    precise, result = forward(single, images, "running"), forward(half, images, "running")
    assert all(stage.dtype == jnp.bfloat16 for stage in result.stages)
    assert result.logits.dtype == result.embedding.dtype == jnp.float32
    for tap in result.batch_norm:
        assert tap.mean.dtype == tap.variance.dtype == tap.image_mean.dtype == jnp.float32
    scale = np.abs(precise.logits).max()
    assert 0 < np.abs(precise.logits - result.logits).max() < 0.1 * scale


# --- tail with gathers


def test_each_copy_of_the_tail_reads_its_own_order_of_channels():
    """Against the definition: kernel input channel c meets activation channel order[c]."""
    network, images = networks.network(), networks.images(0, 3)
    whole = forward(network, images, "running")
    name, rng = "block3_layer_0/conv2", np.random.default_rng(0)
    orders = jnp.asarray(np.stack([rng.permutation(64) for _ in range(2)]))
    copies = jax.jit(lambda network, h, orders: network.tail(2, h, {name: orders}))(network, whole.entries[2], orders)
    assert copies.shape == (2, 3, 4)
    for copy, order in zip(copies, np.asarray(orders), strict=True):
        variables = jax.tree.map(np.array, network.variables)
        kernel = variables["params"]["block3_layer_0"]["conv2"]["kernel"]
        permuted = np.empty_like(kernel)
        permuted[:, :, order] = kernel
        variables["params"]["block3_layer_0"]["conv2"]["kernel"] = permuted
        expected = reference.wide_resnet(variables, 10, 1, images, network.mean, network.std).logits
        np.testing.assert_allclose(copy, expected, rtol=1e-3, atol=1e-4)
