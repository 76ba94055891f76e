"""Channel Lipschitz bounds against float64 by hand, and a channel that was made to stand out."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from abd_jax.defenses import clp
from tests import networks


def by_hand(kernel, factor=1.0):
    """√λ_max(W Wᵀ) = √λ_max(Wᵀ W), of the smaller one, for each output channel."""
    norms = []
    for channel in range(kernel.shape[3]):
        matrix = np.array([kernel[:, :, i, channel].ravel() for i in range(kernel.shape[2])], np.float64)
        gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
        norms.append(np.sqrt(np.linalg.eigvalsh(gram).max()))
    return np.array(norms) * factor


def leaves(network):
    return {name: np.asarray(leaf, np.float64) for name, leaf in flatten_dict(dict(network.variables), sep="/").items()}


def test_a_convolution_is_scaled_by_the_normalization_behind_it():
    network = networks.tiny(2, (4, 4, 3))
    flat = leaves(network)
    factor = np.abs(flat["params/bn/scale"]) / np.sqrt(flat["batch_stats/bn/var"] + 1e-5)
    found = clp.bounds(network)
    assert list(found) == ["conv"]
    np.testing.assert_allclose(found["conv"], by_hand(flat["params/conv/kernel"], factor), rtol=1e-6)


def test_every_kernel_of_a_residual_network_in_forward_order():
    network = networks.network("wrn-10-2")
    flat, found = leaves(network), clp.bounds(network)
    assert list(found) == list(network.module.kernels)
    last = next(name for name in found if name.endswith("block3_layer_0/conv1"))
    factor = np.abs(flat["params/block3_layer_0/bn2/scale"]) / np.sqrt(
        flat["batch_stats/block3_layer_0/bn2/var"] + 1e-5
    )
    np.testing.assert_allclose(found[last], by_hand(flat[f"params/{last}/kernel"], factor), rtol=1e-6)


def test_without_normalization_the_kernels_alone_count():
    network = networks.network("vit-nano-4")
    found, flat = clp.bounds(network), leaves(network)
    for path, values in found.items():
        np.testing.assert_allclose(values, by_hand(flat[f"params/{path}/kernel"]), rtol=1e-6)


@pytest.mark.parametrize("channel", [0, 5])
def test_an_amplifying_channel_stands_out_of_its_layer(channel):
    network = networks.network("wrn-10-1")
    flat = flatten_dict(dict(network.params), sep="/")
    name = "block2_layer_0/conv1/kernel"
    flat[name] = flat[name].at[..., channel].multiply(30.0)
    network = network.with_params(unflatten_dict(flat, sep="/"))
    found = clp.deviations(clp.bounds(network))
    values = found["block2_layer_0/conv1"]
    assert np.argmax(values) == channel and values[channel] > 3
    assert abs(values.mean()) < 1e-9 and values.std(ddof=1) == pytest.approx(1)
    assert all(np.isfinite(values).all() for values in jax.tree.leaves(found))
